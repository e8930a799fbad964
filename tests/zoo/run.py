"""Try steerlab on every architecture of transformers: `python tests/zoo/run.py [NAME ...] [--jobs 2]`.

Each architecture has a process and a time limit of its own, so a crash or a hang is a verdict. A NAME is a part of
`model_type/Class`; none means all. With names, the verdicts of others are kept from the file of the last run.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from build import architectures
from check import Verdict, check

CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process that has imported everything already
CONTEXT.set_forkserver_preload(["check"])
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)  # the server that forks has no other path to it
SECONDS = 120
SHORTCUTS = {
    "prefix": "run prompts once", "shared_beginning": "run a shared beginning once",
    "layer_restart": "restart at a block", "generation_prefix": "continue texts from a prompt",
}  # fmt: skip
BAD = ("silently wrong", "foreign error")


def judge(name: str, seed: int | None) -> dict[str, Any]:
    """The verdict of one architecture, from a process of its own."""
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_check, args=(name, seed, send))
    process.start()
    send.close()
    try:
        if receive.poll(SECONDS):
            return receive.recv()
        reason = f"not done after {SECONDS} s"
    except EOFError:
        process.join()
        reason = f"the process ended with {process.exitcode}"
    finally:
        process.join(1)
        process.kill()
    return asdict(Verdict(name, "foreign error", reason, SECONDS))


def _check(name: str, seed: int | None, send: Any) -> None:
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # models warn about themselves
    send.send(asdict(check(name, seed)))


def table(verdicts: Sequence[dict[str, Any]]) -> str:
    """The page of all verdicts."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "nnsight"))
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(v["kind"] for v in verdicts).most_common())
    right = [v["fast"] for v in verdicts if v["kind"] == "right"]
    shares = [f"{sum(bool(fast.get(key)) for fast in right)} {what}" for key, what in SHORTCUTS.items()]
    lines = [
        "# Models", "",
        "Every class of the causal and image-text mappings of transformers, made tiny and random, and read as text, "
        "against plain Hugging Face on one row alone: captures, contrasts, steering at every point, texts, scores "
        "and sweeps. BERT's kin are built as decoders (`is_decoder=True`), two of them also as encoders.",
        f"Made by `make zoo` with {versions}.", "",
        f"{len(verdicts)} architectures: {counts}.", f"Of {len(right)} right, {', '.join(shares)}.", "",
        "- **right**: every number equals plain Hugging Face's; what a model refuses is named.",
        "- **refused**: `load`, `capture` or `generate` raises an error that says why.",
        "- **can't run**: plain Hugging Face needs more than the token ids of one row.", "",
        "| model type | class | verdict | why, or what is refused | shortcuts |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for verdict in verdicts:
        refused = ", ".join(verb for verb, (kind, _) in verdict["findings"].items() if kind == "refused")
        notes = verdict["reason"].partition(". ")[0] or (f"refused: {refused}" if refused else "")
        fast = verdict["fast"]
        used = f"all, {fast['prefix']} keys" if all(map(fast.get, SHORTCUTS)) else fast.get("used", "")
        cells = [*verdict["name"].split("/"), verdict["kind"], notes, used]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run and report; the exit status is 1 if anything is silently wrong or a foreign error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of model_type/Class; none for all")
    parser.add_argument("--seed", type=int, help="try only the cases that a seed draws, in a fifth of the time")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("results/zoo.json"), help="where the verdicts go")
    parser.add_argument("--table", type=Path, help="a Markdown page to write")
    args = parser.parse_args()
    names = [n for n in architectures() if not args.names or any(part in n for part in args.names)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    verdicts: list[dict[str, Any]] = []
    kept = json.loads(args.out.read_text()) if args.names and args.out.exists() else []
    with ThreadPoolExecutor(args.jobs) as pool:
        for number, verdict in enumerate(pool.map(partial(judge, seed=args.seed), names), 1):
            verdicts.append(verdict)
            print(f"{number}/{len(names)} {verdict['name']}: {verdict['kind']} {verdict['seconds']} s", flush=True)
            for verb, (kind, reason) in verdict["findings"].items() or [("", ("", verdict["reason"]))]:
                if reason:
                    print(f"    {verb} {kind}: {' '.join(reason.split())[:250]}", flush=True)
            tried = {v["name"] for v in verdicts}
            merged = sorted([v for v in kept if v["name"] not in tried] + verdicts, key=lambda v: v["name"])
            args.out.write_text(json.dumps(merged, indent=1))
    if args.table:
        args.table.write_text(table(merged))
    counts = Counter(v["kind"] for v in verdicts)
    print(dict(counts))
    return 1 if any(counts[kind] for kind in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
