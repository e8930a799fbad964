"""What can be read off a layer, and which states an answer comes from.

    python analyses/lenses.py --out results/lenses
    python figures/lenses.py results/lenses

- Facts (`_facts.py`, answers of one word): the share of right answers that can be read off each layer at the last token
  (logit lens), and how far the layer's prediction is from the model's.
- A word to be copied: which states bring the answer back (activation patching), averaged over pairs of words; beside
  it, how far the lens tells the two words of a pair apart, and from which layer on the word is the most probable one.

An interrupted run resumes from finished stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from _common import estimate, parser, provenance, show_table
from _facts import CODE_WORDS, COPY, FACTS

import steerlab
from steerlab import Example
from steerlab.analysis.accessibility import accessibility
from steerlab.analysis.logit_lens import logit_lens
from steerlab.analysis.patching import patch
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.models.model import Model


def is_one_token(model: Model, word: str) -> bool:
    """Whether the model's tokenizer knows a word with a space in front."""
    return len(model.tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1


def facts_of(family: str, model: Model, limit: int | None) -> tuple[list[str], list[str]]:
    """The prompts of a family and their answers, those that are one token of this model."""
    text, answers = FACTS[family]
    kept = [(text.format(word), f" {answer}") for word, answer in answers.items() if is_one_token(model, answer)]
    return [prompt for prompt, _ in kept[:limit]], [answer for _, answer in kept[:limit]]


def read_answers(model: Model, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    """For each layer, the share of the answers that can be read there, and the median KL to the end."""
    found = accessibility(model, prompts, answers, probe=False)
    lens = logit_lens(model, prompts, top=1)
    return found.merge(lens.groupby("layer")["kl"].median().reset_index(), on="layer")


def pairs_of_words(model: Model, limit: int | None) -> list[tuple[str, str]]:
    """The words of the clean and of the corrupted prompt."""
    known = [word for word in CODE_WORDS if is_one_token(model, word)]
    return list(zip(known[::2], known[1::2], strict=False))[:limit]  # no word is in two pairs


def read_copies(model: Model, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """By pair and layer, how far the lens tells the two words apart at the last token: 1 as far as the model's end."""
    frames = []
    for number, (a, b) in enumerate(pairs):
        both = logit_lens(model, [COPY.format(a), COPY.format(b)], tokens=[f" {a}", f" {b}"])
        logprob = np.log(both["probability"])
        sign = np.where(both["token"] == f" {a}", 1, -1) * np.where(
            both["example_id"] == both["example_id"].iloc[0], 1, -1
        )
        difference = (logprob * sign).groupby(both["layer"]).sum()
        frames.append(
            pd.DataFrame({"pair": number, "layer": difference.index, "share": difference / difference.iloc[-1]})
        )
    return pd.concat(frames, ignore_index=True)


def patch_copies(model: Model, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Every state of a prompt patched, for each pair of words."""
    clean, corrupted = ([COPY.format(pair[side]) for pair in pairs] for side in (0, 1))
    return patch(model, clean, corrupted, [(f" {a}", f" {b}") for a, b in pairs])


def summarize(
    facts: pd.DataFrame, copies: pd.DataFrame, copied: pd.DataFrame, lens: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """By family, what the end knows and from where on half of it can be read; for copies, where the answer is."""
    summary: dict[str, Any] = {
        f"facts.{family}": {
            "end": float(rows["accessible"].iloc[-1]), "n": int(rows["n"].iloc[0]),
            "half_read_from": first_layer(rows["layer"], rows["accessible"], rows["accessible"].iloc[-1] / 2),
        }
        for family, rows in facts.groupby("family", sort=False)
    }  # fmt: skip
    word, last = copies.loc[copies["token"] != copies["clean_token"], "column"].iloc[0], copies["column"].max()
    for place, column in (("word", word), ("last", last)):
        restored = copies[copies["column"] == column].groupby("layer")["restored"]
        summary |= {f"copies.{place}.{layer}": estimate(rows.tolist(), seed) for layer, rows in restored}
        if place == "last":
            mean = restored.mean()
            summary["copies.half_restored_from"] = first_layer(mean.index.to_series(), mean, 0.5)
    read = lens.groupby("layer")["share"]
    summary |= {f"copies.lens.{layer}": estimate(rows.tolist(), seed) for layer, rows in read}
    summary["copies.half_of_lens_from"] = first_layer(read.mean().index.to_series(), read.mean(), 0.5)
    summary["copies.half_read_from"] = first_layer(copied["layer"], copied["accessible"], 0.5)
    return summary


def first_layer(layers: pd.Series, values: pd.Series, threshold: float) -> int | None:
    """The first layer whose value is above 0 and at least the threshold; None if there is none."""
    above = layers[((values >= threshold) & (values > 0)).to_numpy()]
    return int(above.iloc[0]) if len(above) else None


def main() -> None:
    """Read facts, patch copies, and write the tables."""
    args = parser(__doc__, "results/lenses").parse_args()
    model = steerlab.load(args.model, device=args.device, chat=False)
    pairs = pairs_of_words(model, args.limit)
    families = {family: facts_of(family, model, args.limit) for family in FACTS}
    texts = [prompt for prompts, _ in families.values() for prompt in prompts] + [COPY.format(a) for a, _ in pairs]
    everything = [Example(text) for text in texts]
    identity = {"study": "lenses", "weights": model.info()["weights"], "data": data_hash(everything)}
    study = Study(args.out, identity | {k: getattr(args, k) for k in ("seed", "limit")})
    facts = pd.concat(
        [
            study.stage(f"facts-{family}", partial(read_answers, model, *given)).assign(family=family)
            for family, given in families.items()
        ],
        ignore_index=True,
    )
    copies = study.stage("copies", partial(patch_copies, model, pairs))
    words = [a for a, _ in pairs]
    copied = study.stage(
        "copied", partial(read_answers, model, [COPY.format(w) for w in words], [f" {w}" for w in words])
    )
    lens = study.stage("copies-lens", partial(read_copies, model, pairs))
    summary = summarize(facts, copies, copied, lens, args.seed)
    lens.round(4).to_csv(study.folder / "copies_lens.csv", index=False)
    columns = ["family", "layer", "accessible", "low", "high", "median_rank", "kl", "n"]
    tables = pd.concat([facts, copied.assign(family="copied words")], ignore_index=True)[columns]
    cells = copies[["example_id", "layer", "column", "token", "clean_token", "restored"]]
    cells.round(4).to_csv(study.folder / "copies.csv", index=False)
    lines = [
        f"- {family}: {', '.join(f'{p}{a}' for p, a in zip(*given, strict=True))}" for family, given in families.items()
    ]
    study.finish(
        tables.round(4), summary, "\n".join(["# Facts", "", *lines]) + "\n", provenance(model, everything, args)
    )
    shown = {family: summary[f"facts.{family}"] for family in families}
    show_table("Facts that can be read at the end", pd.DataFrame(shown).T)


if __name__ == "__main__":
    main()
