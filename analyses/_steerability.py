"""Parts of analyses/steerability.py: shifted prompts, tables, summary, report."""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from _common import numbers, of_split
from _generalization import match_norm, rank_correlation, relative_steerability
from _published import PROTOCOLS, paper_llama2

import steerlab
from steerlab import Example, SteeringVector
from steerlab.analysis.answer_position_bias import answer_position_bias, slopes_by_answer_position
from steerlab.analysis.steerability import anti_steerable, propensity_curves, slopes, steerability
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.data import DEFAULT_SYSTEM, VARIANTS, mwe, paper_split, persona_prompts, prompt_variant
from steerlab.models.model import Model

# sets whose prompts are also shifted: the persona sets for which the paper shows Llama-2's slopes
SHIFTED = (
    "interest-in-science", "anti-LGBTQ-rights", "politically-liberal", "openness", "subscribes-to-Christianity",
    "believes-AIs-are-not-an-existential-threat-to-humanity", "subscribes-to-Hinduism", "subscribes-to-deontology",
    "subscribes-to-Islam", "narcissism",
)  # fmt: skip


def read(folder: str | Path, name: str, items: int | None, seed: int) -> list[Example]:
    """Read one set, or `items` of it, with splits that are made separately for each letter and word.

    A split of all rows at once leaves, for example, 110 A and 90 B among 200. In a small model the effect of the letter
    is so much larger than that of the behavior that the mean slope would show which letter is more frequent.
    """
    rows = mwe(Path(folder), name, system=DEFAULT_SYSTEM)
    has_words = all(row.meta["word"] for row in rows)
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault((row.meta["option"], row.meta["word"] if has_words else ""), []).append(row)
    draw, share = random.Random(seed), min(1.0, (items or len(rows)) / len(rows))
    split: dict[str, Example] = {}
    for same_option in groups.values():
        chosen = draw.sample(same_option, round(share * len(same_option)))
        split |= {row.id: row for row in paper_split(chosen, seed=seed)}
    return [split[row.id] for row in rows if row.id in split]


def measure_shifts(model: Model, rows: Sequence[Example], layer: int, args: argparse.Namespace) -> pd.DataFrame:
    """Fit a vector on each variant of the prompts and measure it on every variant."""
    personas = persona_prompts(Path(args.data) / "persona_prompts.json")
    train, test = (first_of_each_letter(of_split(rows, part), args.shift_items) for part in ("train", "test"))
    vectors: dict[str, SteeringVector] = {}
    for kind in VARIANTS:
        acts = steerlab.capture(
            model, prompt_variant(train, kind, personas, system=DEFAULT_SYSTEM), layers=[layer], context=None,
            progress=False,
            batch_size=args.batch_size,
        )  # fmt: skip
        vectors[kind] = steerlab.MeanDifference(layer).fit(acts)
        own = vectors[kind].at(layer)
        vectors[kind] = SteeringVector({layer: match_norm(own, vectors["base"].at(layer))})
    frames = [
        steerlab.sweep(
            model, prompt_variant(test, tested, personas, system=DEFAULT_SYSTEM),
            {kind: {layer: vector} for kind, vector in vectors.items()}, layer, MULTIPLIERS,
            PROTOCOLS["paper"].positions,
            progress=False,
        ).rename(columns={"method": "train_variant"}).assign(test_variant=tested)
        for tested in VARIANTS
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def first_of_each_letter(rows: Sequence[Example], n: int) -> list[Example]:
    """The first examples whose wanted answer is A, and as many for B, `n` in all."""
    kept = {row.id for letter in ("A", "B") for row in [r for r in rows if r.meta["option"] == letter][: n // 2]}
    return [row for row in rows if row.id in kept]


def results_of(
    tests: pd.DataFrame, by_layer: pd.DataFrame, rows: Sequence[Example], shifts: pd.DataFrame | None, seed: int
) -> dict[str, pd.DataFrame]:
    """All tables: `slopes` (results.csv), `sets`, `curves`, `layers`, `answer_positions`, and `shifts` if measured."""
    per_example = slopes(tests, "propensity", by=("behavior",))
    sets = steerability(per_example, ("behavior",), seed=seed)
    shares = answer_position_bias(per_example, rows, ("behavior",))
    plain = tests[(tests["metric"] == "accuracy") & (tests["alpha"] == 0)]
    one = tests[(tests["metric"] == "propensity") & (tests["alpha"] == 1)]
    facts = pd.DataFrame(
        {
            "accuracy": plain.groupby("behavior")["value"].mean(),
            "norm_ratio": one.groupby("behavior")["norm_ratio"].mean(),
        }
    ).reset_index()
    paper = paper_llama2().rename(columns={"median": "llama2_median", "anti_steerable": "llama2_anti_steerable"})
    sets = (
        sets.merge(facts, on="behavior")
        .merge(shares[["behavior", "option", "word", "unexplained"]], on="behavior")
        .merge(paper, on="behavior", how="left")
        .sort_values("median", ascending=False, ignore_index=True)
    )
    tables = {
        "slopes": per_example[["behavior", "example_id", "slope", "intercept", "residual"]],
        "sets": sets,
        "curves": propensity_curves(tests, "propensity", by=("behavior",), seed=seed),
        "layers": by_layer[["behavior", "layer", "steerability", "low", "high", "anti_steerable", "n"]],
        "answer_positions": slopes_by_answer_position(per_example, rows, ("behavior",), seed=seed),
    }
    if shifts is not None:
        keys = ("behavior", "train_variant", "test_variant")
        tables["shifts"] = steerability(slopes(shifts, by=("train_variant", "test_variant")), keys, seed=seed)
    return tables


def summary_of(tables: Mapping[str, pd.DataFrame], layer: int) -> dict[str, Any]:
    """The numbers of `summary.json`."""
    sets = tables["sets"].set_index("behavior")
    both = sets.dropna(subset="llama2_median")
    found: dict[str, Any] = {
        "layer": layer,
        "sets": len(sets),
        "examples": int(sets["n"].sum()),
        "steerability": {"mean": sets["steerability"].mean(), "largest": sets["steerability"].max()},
        "anti_steerable": numbers(anti_steerable(tables["slopes"])),
        "sets_below_half": int((sets["anti_steerable_high"] < 0.5).sum()),
        "accuracy": sets["accuracy"].mean(),
        "variance_explained": {k: sets[k].mean() for k in ("option", "word", "unexplained")},
        "rank_correlation_with_llama2": {
            "median": ranked(both["median"], both["llama2_median"]),
            "anti_steerable": ranked(both["anti_steerable"], both["llama2_anti_steerable"]),
            "sets": len(both),
        },
    }
    if "shifts" in tables:
        found["shifts"] = shift_facts(tables["shifts"])
    return found


def shift_facts(shifts: pd.DataFrame) -> dict[str, Any]:
    """Rank correlations of the steerability under base prompts with that under shifted prompts, as in the paper."""
    square = shifts.pivot(index="behavior", columns=["train_variant", "test_variant"], values="steerability")
    base = square[("base", "base")].rename("base")
    pairs = [("base", "user_neg"), ("base", "user_pos"), ("sys_pos", "user_neg"), ("sys_neg", "user_pos")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = relative_steerability(shifts)
    return {
        "rank_correlation_with_base": {f"{a} to {b}": ranked(base, square[(a, b)].rename("shifted")) for a, b in pairs},
        "relative_steerability_kept": len(kept),
        "relative_steerability_dropped": kept.attrs["dropped"],
        "threshold": 0.25,
    }


def ranked(a: pd.Series, b: pd.Series) -> dict[str, float] | None:
    """Spearman's correlation as an entry of the summary; None if one of the two is constant."""
    return numbers(rank_correlation(a, b)) if a.nunique() > 1 and b.nunique() > 1 else None


def report(tables: Mapping[str, pd.DataFrame], layer: int) -> str:
    """A page with the table of all sets."""
    lines = [
        f"# Steerability at layer {layer}, test examples", "",
        "Slope of the letter's logit difference over the strength. `wrong way`: share of anti-steerable inputs, with "
        "its 95 % interval. `letter`, `word`: shares of the slopes' variance explained by the letter and by the first "
        "word of the wanted answer. `accuracy`: without steering. Llama-2: medians of Llama-2-7B-chat as "
        "published (Tan et al., arXiv 2407.12404, read off a figure).", "",
        "| set | mean slope | 95 % | median | wrong way | 95 % | letter | word | accuracy | Llama-2 | its wrong way |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in tables["sets"].itertuples():
        llama = f"{row.llama2_median:.1f} | {row.llama2_anti_steerable:.2f}" if pd.notna(row.llama2_median) else " | "
        wrong_way = f"{row.anti_steerable:.2f} | {row.anti_steerable_low:.2f} to {row.anti_steerable_high:.2f}"
        lines.append(
            f"| {row.behavior} | {row.steerability:.3f} | {row.low:.3f} to {row.high:.3f} | {row.median:.3f} | "
            f"{wrong_way} | {row.option:.2f} | {row.word:.2f} | {row.accuracy:.2f} | {llama} |"
        )
    return "\n".join([*lines, ""])
