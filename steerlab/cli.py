"""`steerlab`: look at a model, or at what is installed and which servers answer, from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from steerlab._support.errors import SteerlabError
from steerlab.doctor import examine, report
from steerlab.models.loading import load
from steerlab.models.positions import describe_positions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Example:
        $ steerlab check smollm2
        $ steerlab positions "How do I bake bread?" --position last
        $ steerlab doctor --remote ndif
    """
    parser = argparse.ArgumentParser(prog="steerlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load a model and verify that hooks see its residual stream")
    positions = commands.add_parser("positions", help="show which tokens a position name means")
    positions.add_argument("prompt")
    positions.add_argument("--position", default=None, help="one name or union; all names by default")
    doctor = commands.add_parser("doctor", help="show what is installed, which servers answer, and what mends the rest")
    doctor.add_argument(
        "--remote", action="append", default=[], metavar="ADDRESS",
        help="an NDIF server, ndif or http://host:port; repeatable. Where no server is named and NDIF_HOST or "
        "NDIF_API_KEY is set, it is ndif",
    )  # fmt: skip
    doctor.add_argument("--serve", action="append", default=[], metavar="URL", help="an nnsight-serve; repeatable")
    for command in (check, positions):
        command.add_argument("--revision", default=None)
    check.add_argument("model", help="smollm2, a hub id, a folder or a gguf file")
    positions.add_argument("--model", default="smollm2", help="smollm2, a hub id, a folder or a gguf file")
    given = parser.parse_args(arguments)
    try:
        if given.command == "doctor":
            findings = examine(given.remote, given.serve)
            print(report(findings))
            return int(any(finding.needs_action for finding in findings))
        model = load(given.model, revision=given.revision)
        if given.command == "positions":
            print(describe_positions(model, given.prompt, given.position))
        else:
            print(f"{model}\nblocks at {model.layout.blocks_path}, every layer equals hidden_states[k + 1]")
    except SteerlabError as error:
        print(f"steerlab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
