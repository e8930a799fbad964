"""Right, or refused: bad input, killed runs, tampered files, modes. Writes summary.json and docs/reliability.md.

python tests/reliability/run.py        # about ten minutes on one core
"""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bad_inputs
import kills
import modes
import tampering

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
PACKAGES = ("steerlab", "torch", "transformers", "nnsight", "peft")
# part of the summary -> what runs it, and the outcomes that are counted as a fault
PARTS = {
    "bad_inputs": (bad_inputs.run, "unclear"), "kills": (kills.run, "lost"), "tampered": (tampering.run, "accepted"),
    "modes": (modes.run, "wrong"),
}  # fmt: skip

INTRODUCTION = """\
# Right, or refused

No input, file, mode or crash may give a silently wrong number. This page is written by
`python tests/reliability/run.py`; its numbers are those of `tests/reliability/summary.json`.

| tried | how many | what must come of it | faults |
|---|---|---|---|
"""
LINES = {
    "bad_inputs": "arguments of every verb, method, reader, metric, plot and command, by hand and by hypothesis | "
    "a right answer, or a `SteerlabError` that says what was wrong",
    "kills": "captures, sweeps, saved artifacts and studies, killed at a random moment or file access, called again | "
    "the same bits as without the kill; finished parts are kept",
    "tampered": "stores, artifacts, stages and results with flipped bits, changed fields, missing or cut files | "
    "an error that names the file",
    "modes": "modes of a model, with every verb on both engines, against plain hooks on single rows | "
    "the same numbers, or a refusal that says which mode",
}  # fmt: skip


def main() -> None:
    """Run all parts, and write the summary and the page."""
    found = {part: run() for part, (run, _) in PARTS.items()}
    summary: dict[str, Any] = {}
    for part, (_, fault) in PARTS.items():
        summary |= {f"{part}.tried": found[part]["tried"], f"{part}.{fault}": found[part][fault]}
        for case in found[part]["cases"]:
            if case["outcome"] == fault:
                print(part, case)
    summary["versions"] = {name: version(name) for name in PACKAGES}
    (HERE / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(summary, found), encoding="utf-8")
    print(json.dumps(summary))


def soak_line(soak: dict[str, float]) -> str:
    """The last run of `soak.py`, which takes longer than everything else together."""
    what = f"captures, sweeps, generations and files for {soak['minutes']:.0f} minutes in one process"
    wanted = f"as much memory at the end as after five minutes (here {soak['ratio'] - 1:+.1%})"
    return f"| {what} (`soak.py`) | {soak['rounds']:.0f} rounds | {wanted} | {int(abs(soak['ratio'] - 1) > 0.05)} |"


def page(summary: dict[str, Any], found: dict[str, Any]) -> str:
    """The page: a table of the parts, of the kinds of bad input, and of the modes."""
    lines = [INTRODUCTION.rstrip("\n")]
    for part, (_, fault) in PARTS.items():
        what, wanted = LINES[part].split(" | ")
        lines.append(f"| {what} | {summary[f'{part}.tried']} | {wanted} | {summary[f'{part}.{fault}']} |")
    lines.append(soak_line(json.loads((HERE / "soak.json").read_text(encoding="utf-8"))))
    areas: dict[str, Counter[str]] = {}
    for case in found["bad_inputs"]["cases"]:
        areas.setdefault(case["area"], Counter())[case["outcome"]] += 1
    lines += ["", "## Bad input", "| input | answered rightly | refused | unclear |", "|---|---|---|---|"]
    lines += [f"| {area} | {n['right']} | {n['refused']} | {n['unclear']} |" for area, n in areas.items()]
    lines += ["", "## Modes", "| mode | outcome | the refusal says |", "|---|---|---|"]
    by_mode: dict[str, list[dict[str, str]]] = {}
    for case in found["modes"]["cases"]:
        by_mode.setdefault(case["mode"], []).append(case)
    for mode, cases in by_mode.items():
        outcomes = Counter(case["outcome"] for case in cases)
        detail = next((case["detail"].partition(": ")[2] for case in cases if case["outcome"] == "refused"), "")
        text = ", ".join(f"{name} ({n})" if len(outcomes) > 1 else name for name, n in outcomes.items())
        lines.append(f"| {mode} | {text} | {detail.replace('|', '/')} |")
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


if __name__ == "__main__":
    main()
