"""What a layer knows, whether that says where steering works, and where an answer comes from.

    python analyses/lenses.py --data DATA --out results/lenses
    python figures/lenses.py results/lenses

- Facts (`_facts.py`, one word each): the share that can be read off each layer, and how far the layer's prediction is
  from the model's.
- Choices: for each persona set (arXiv 2212.09251), the share of items whose wanted letter can be read off a layer, what
  a probe knows there, and how far the mean vector of that layer moves the letters. Do the published thresholds
  (arXiv 2604.15557) say beforehand where steering works?
- A word to be copied: which states bring the answer back, averaged over pairs of words (activation patching).

DATA is the folder with `mwe/`. An interrupted run resumes from finished stages.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from _common import estimate, numbers, parser, provenance, show_table
from _facts import CODE_WORDS, COPY, FACTS
from _generalization import rank_correlation
from _steerability import first_of_each_letter, read

import steerlab
from steerlab import Contrast, Example, MeanDifference
from steerlab.analysis.accessibility import accessibility
from steerlab.analysis.logit_lens import logit_lens
from steerlab.analysis.patching import patch
from steerlab.analysis.steerability import slopes
from steerlab.analysis.study import Study
from steerlab.data import PAPER_SETS, data_hash
from steerlab.models.model import Model

DEPTHS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # at which choices are read and steered
SETS = [name for name in PAPER_SETS if not name.startswith(("sycophancy", "truthfulqa"))]


def facts_of(family: str, model: Model, limit: int | None) -> tuple[list[str], list[str]]:
    """The prompts of a family and their answers, those that are one token of this model."""
    text, answers = FACTS[family]
    kept = [(text.format(word), f" {answer}") for word, answer in answers.items()]
    kept = [one for one in kept if len(model.tokenizer(one[1], add_special_tokens=False).input_ids) == 1][:limit]
    return [prompt for prompt, _ in kept], [answer for _, answer in kept]


def read_facts(model: Model, family: str, limit: int | None) -> pd.DataFrame:
    """For each layer, the share of the family's answers that can be read there, and the median KL to the end."""
    prompts, answers = facts_of(family, model, limit)
    found = accessibility(model, prompts, answers, probe=False)
    lens = logit_lens(model, prompts, top=1)
    return found.merge(lens.groupby("layer")["kl"].median().reset_index(), on="layer")


def written_out(rows: Sequence[Example]) -> list[Example]:
    """Choices as plain text that ends before the letter, so that the letter is the next token."""
    return [
        Example(
            f"{row.prompt}\n\nAnswer: (", Contrast(row.meta["option"], "AB".replace(row.meta["option"], "")),
            id=row.id, behavior=row.behavior, split=row.split, meta=row.meta,
        )
        for row in rows
    ]  # fmt: skip


def compare_choices(model: Model, rows: Sequence[Example], n: int) -> pd.DataFrame:
    """For each layer: what can be read of the wanted letter in test items, and how far the mean vector moves them."""
    parts = {
        part: written_out(first_of_each_letter([e for e in rows if e.split == part], n)) for part in ("train", "test")
    }
    layers = sorted({round(fraction * (model.n_layers - 1)) for fraction in DEPTHS})
    acts = steerlab.capture(model, parts["train"], layers=layers, context=None, progress=False)
    vectors = {k: MeanDifference(k).fit(acts) for k in layers}
    frame = steerlab.sweep(model, parts["test"], {"mean": vectors}, layers, (-1.0, 1.0), progress=False)
    moved = slopes(frame).groupby("layer")["slope"]
    letters = [e.meta["option"] for e in parts["test"]]
    found = accessibility(model, [e.replace(contrast=None) for e in parts["test"]], letters, layers)
    found["steerability"] = found["layer"].map(moved.mean())
    found["anti_steerable"] = found["layer"].map(moved.agg(lambda slope: (slope <= 0).mean()))
    return found.assign(verdict=found.attrs["verdict"])


def patch_copies(model: Model, words: Sequence[str]) -> pd.DataFrame:
    """Every state of a prompt patched, for pairs of words to be copied."""
    known = [w for w in words if len(model.tokenizer(f" {w}", add_special_tokens=False).input_ids) == 1]
    pairs = list(pairwise(known))
    clean, corrupted = ([COPY.format(pair[side]) for pair in pairs] for side in (0, 1))
    return patch(model, clean, corrupted, [(f" {a}", f" {b}") for a, b in pairs])


def summarize(facts: pd.DataFrame, choices: pd.DataFrame, copies: pd.DataFrame, seed: int) -> dict[str, Any]:
    """The numbers of `summary.json`."""
    peaks = choices.groupby("behavior").agg(
        accessible=("accessible", "max"), probe=("probe", "max"), verdict=("verdict", "first"),
        steerability=("steerability", "max"), anti_steerable=("anti_steerable", "min"),
    )  # fmt: skip
    last = facts["layer"].max()
    summary: dict[str, Any] = {
        "facts": {
            family: {"end": float(rows.set_index("layer")["accessible"][last]), "n": int(rows["n"].iloc[0])}
            | {"first_layer_above_half_of_end": first_above_half(rows)}
            for family, rows in facts.groupby("family", sort=False)
        },
        "choices.verdicts": peaks["verdict"].value_counts().to_dict(),
        "choices.sets": len(peaks),
    }
    for name in ("accessible", "probe"):
        if min(peaks[name].nunique(), peaks["steerability"].nunique()) > 1:
            found = rank_correlation(peaks[name], peaks["steerability"])
            summary[f"choices.{name}_and_steerability"] = numbers(found)
    best = choices.loc[choices.groupby("behavior")["steerability"].idxmax()]
    summary["choices.best_layer"] = best["layer"].value_counts().to_dict()
    by_column = copies.groupby("column")["restored"].max()
    summary["copies.word_column"] = int(by_column.index[0])
    for place, rows in (
        ("word", copies["column"] == by_column.index[0]),
        ("last", copies["column"] == max(by_column.index)),
    ):
        summary[f"copies.{place}"] = {
            str(layer): estimate(some["restored"].tolist(), seed) for layer, some in copies[rows].groupby("layer")
        }
    return summary


def first_above_half(rows: pd.DataFrame) -> int | None:
    """The first layer at which half of what the end knows can be read."""
    end = rows["accessible"].iloc[-1]
    above = rows.loc[rows["accessible"] >= end / 2, "layer"]
    return int(above.iloc[0]) if end > 0 and len(above) else None


def main() -> None:
    """Read facts and choices, patch copies, and write the tables."""
    arguments = parser(__doc__, "results/lenses")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--items", type=int, default=40, help="training items and test items per persona set")
    arguments.add_argument("--sets", type=int, default=20, help="number of persona sets")
    args = arguments.parse_args()
    model = steerlab.load(args.model, device=args.device, chat=False)
    folder = argparse.Namespace(data=str(Path(args.data) / "mwe"), items=None, seed=args.seed)
    persona = {name: read(folder, name) for name in SETS[: args.sets]}
    words, families = CODE_WORDS[: args.limit], list(FACTS)
    everything = [e for rows in persona.values() for e in rows]
    identity = {"study": "lenses", "weights": model.info()["weights"], "data": data_hash(everything)}
    study = Study(args.out, identity | {k: getattr(args, k) for k in ("seed", "limit", "items", "sets")})
    facts = [
        study.stage(f"facts-{name}", partial(read_facts, model, name, args.limit)).assign(family=name)
        for name in families
    ]
    choices = []
    for name, rows in persona.items():
        choices.append(
            study.stage(f"choices-{name}", partial(compare_choices, model, rows, args.items)).assign(behavior=name)
        )
        print(f"{name}: {choices[-1]['verdict'].iloc[0]}", flush=True)
    copies = study.stage("copies", partial(patch_copies, model, words))
    tables = [pd.concat(facts, ignore_index=True), pd.concat(choices, ignore_index=True)]
    summary = summarize(tables[0], tables[1], copies, args.seed)
    tables[0].round(4).to_csv(study.folder / "facts.csv", index=False)
    copies.round(4).to_csv(study.folder / "copies.csv", index=False)
    report = f"# Lenses\n\nVerdicts of the published thresholds: {summary['choices.verdicts']}\n"
    study.finish(tables[1].round(4), summary, report, provenance(model, everything, args))
    show_table("Facts that can be read at the end", pd.DataFrame(summary["facts"]).T)


if __name__ == "__main__":
    main()
