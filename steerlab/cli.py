"""`steerlab`: look at a model, or at the installation and the servers, from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import steerlab

MODEL = "smollm2, a hub id, a folder or a gguf file"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Example:
        $ steerlab doctor smollm2
        $ steerlab positions "How do I bake bread?" --position last
        $ steerlab doctor --remote ndif
    """
    args = _parser().parse_args(arguments)
    try:
        if args.command == "doctor":
            return _doctor(args)
        from steerlab.models.positions import describe_positions  # imports torch, which takes seconds

        model = steerlab.load(args.model, revision=args.revision)
        print(describe_positions(model, args.prompt, args.position))
    except steerlab.errors.SteerlabError as error:
        print(f"steerlab: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from steerlab.doctor import check_model, report, run_checks  # imports torch, which takes seconds

    findings = check_model(args.model, args.revision) if args.model else run_checks(args.remote, args.serve)
    print(report(findings))
    return int(any(finding.needs_action for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="steerlab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"steerlab {steerlab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    positions = commands.add_parser("positions", help="show which tokens a position name selects")
    positions.add_argument("prompt")
    positions.add_argument("--position", help="one name or union; all names by default")
    positions.add_argument("--model", default="smollm2", help=MODEL)
    doctor = commands.add_parser("doctor", help="check a model, or packages, devices, engines and servers")
    doctor.add_argument("model", nargs="?", help=f"{MODEL}; without it, the installation is checked")
    for command in (positions, doctor):
        command.add_argument("--revision")
    ndif = "an NDIF server, ndif or http://host:port; repeatable. Default: ndif if NDIF_HOST or NDIF_API_KEY is set"
    doctor.add_argument("--remote", action="append", default=[], metavar="ADDRESS", help=ndif)
    doctor.add_argument("--serve", action="append", default=[], metavar="URL", help="an nnsight-serve; repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
