"""Concepts from pairs of texts that change two attributes at once: a sparse shift autoencoder against its rivals.

    python analyses/ssae.py --model smollm2 --out results/ssae/smollm2
    python figures/ssae.py results/ssae

"a round red table." becomes "a round blue box.": two of shape, color and object change in every pair, so that no pair
shows what one of them does. Each method finds twenty directions without knowing which attributes changed. Its layer
and, where it has one, a setting (the level of the SSAE, the penalty of the dictionary) are chosen on validation pairs,
by how well the best direction for each value follows its changes (the mean absolute correlation, MCC); the test pairs,
with an article of their own, are looked at once. "sentences" are a second set of pairs, of language, gender and tense.

Then the direction that follows a value best on training pairs is added, at an equal dose on everyday prompts, to texts
such as "I see my round red table. Its color is", about things without this value: in which share is it now the
likeliest of the attribute's values? The rivals that know the labels are the mean difference of the same pairs, and that
of clean pairs, in which this attribute alone changes. Texts are given as they are, without a chat template.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import numbers, of_split, parser, provenance, show_table
from sklearn.decomposition import PCA, FastICA, MiniBatchDictionaryLearning
from torch import Tensor

import steerlab
from steerlab import Activations, Example, SteeringVector
from steerlab.analysis.calibration import calibrate_strength
from steerlab.analysis.ssae_levels import stability
from steerlab.analysis.study import Study
from steerlab.data import attribute_pairs, change_labels, data_hash, demo_set
from steerlab.methods import SSAE
from steerlab.metrics import bootstrap_ci, paired_bootstrap
from steerlab.metrics.matching import match_codes
from steerlab.models.model import Model

PAIRS = {"objects": 1500, "sentences": 800}
CONTINUED = {"shape": "The shape of it is", "color": "Its color is", "object": "It is a"}
FRACTIONS = (0.1, 0.2, 0.35, 0.5, 0.75)  # of the depth: the layers
SETTINGS: dict[str, tuple[float | None, ...]] = {
    "ssae": (1.6, 1.4, 1.2, 1.0), "affine": (None,), "ica": (None,), "pca": (None,), "dictionary": (0.1, 0.3, 1.0),
    "mean": (None,),
}  # fmt: skip
SEEDED = ("ssae", "affine", "ica", "dictionary")
SEEDS = range(5)
BUDGET = 0.5  # nats: the dose at which directions are compared
STEERED = ("ssae", "affine", "ica", "pca", "mean of the same pairs", "mean of clean pairs")


class Directions:
    """Directions of one method: what they read off differences, and the directions themselves.

    Args:
        codes: of differences.
        rows: `(concept, hidden)`; codes times rows are what is read off a difference.
        fitted: the SSAE, if it is one.
    """

    def __init__(self, codes: Callable[[Tensor], Tensor], rows: Tensor, fitted: SSAE | None = None) -> None:
        self.codes, self.rows, self.fitted = codes, rows, fitted


def find_directions(method: str, z: Tensor, k: int, setting: float | None, seed: int) -> Directions:
    """Fit a method to differences; none of them is told what changed."""
    if method in ("ssae", "affine"):
        ssae = SSAE(0, k, setting, seed=seed).fit_differences(z)
        return Directions(ssae.encode, ssae.decoder_, ssae)
    if method == "mean":
        mean = z.mean(0, keepdim=True)
        return Directions(lambda x: x @ mean.T / mean.square().sum(), mean)
    size = float(z.norm(dim=1).mean())
    made: dict[str, Callable[[], Any]] = {
        "pca": lambda: PCA(k),
        "ica": lambda: FastICA(k, random_state=seed, max_iter=1000),
        "dictionary": lambda: MiniBatchDictionaryLearning(
            k, alpha=setting, random_state=seed, max_iter=100, transform_algorithm="lasso_lars",
            transform_alpha=setting,
        ),
    }  # fmt: skip
    fitted = made[method]().fit((z / size).double().numpy())
    rows = fitted.mixing_.T if method == "ica" else fitted.components_
    return Directions(
        lambda x: torch.from_numpy(fitted.transform((x / size).double().numpy())).float(),
        torch.from_numpy(rows).float() * size,
    )


class Part:
    """The pairs of one kind: their differences by layer, and what changed in them."""

    def __init__(self, study: Study, model: Model, kind: str, args: argparse.Namespace) -> None:
        n = min(PAIRS[kind], args.pairs or PAIRS[kind])
        self.rows = attribute_pairs(kind, n, changed=(2, 2), seed=args.seed)
        self.layers = sorted({round(f * (model.n_layers - 1)) for f in FRACTIONS})
        self.acts = captured(study, model, kind, self.rows, self.layers, args)
        self.labels = change_labels(self.rows)
        split = {e.id: e.split for e in self.rows}
        known = [i for i in self.acts.contrast(self.layers[0])[0] if split[i] == "train"]
        self.ids = {"train": [i for j, i in enumerate(known) if j % 4], "validation": known[::4]}
        self.ids["test"] = [i for i in split if split[i] == "test"]

    def differences(self, layer: int, part: str) -> Tensor:
        """The differences of the pairs of a part."""
        ids, z = self.acts.contrast(layer)
        return z.float()[[ids.index(i) for i in self.ids[part]]]

    def truth(self, part: str) -> Tensor:
        """What changed in the pairs of a part."""
        return torch.tensor(self.labels.loc[self.ids[part]].to_numpy()).float()

    def cosine(self, found: Directions, layer: int) -> float:
        """The published measure: the cosine of a pair's end to its start moved by what was read off this very pair."""
        ids, starts = self.acts.by_example(layer, side="negative")
        start = starts.float()[[ids.index(i) for i in self.ids["test"]]]
        z = self.differences(layer, "test")
        return float(torch.cosine_similarity(start + z, start + found.codes(z) @ found.rows, dim=1).mean())

    def mcc(self, found: Directions, layer: int, part: str) -> Tensor:
        """For each value, the correlation of its changes with the direction that follows them best."""
        codes = found.codes(self.differences(layer, part))
        return match_codes(self.truth(part), codes, one_to_one=False).similarity


def captured(
    study: Study, model: Model, name: str, rows: Sequence[Example], layers: Sequence[int], args: argparse.Namespace
) -> Activations:
    """The activations of pairs of texts, kept in the study's folder."""
    folder = study.folder / "activations" / name
    return steerlab.capture(
        model, rows, layers=list(layers), context=None, batch_size=args.batch_size, folder=folder, progress=False
    ).load()


def choose(study: Study, kind: str, part: Part) -> pd.DataFrame:
    """The MCC on validation pairs of every method, setting and layer, with one seed."""
    k = part.labels.shape[1]

    def compute() -> pd.DataFrame:
        rows = []
        for method, layer in product(SETTINGS, part.layers):
            z = part.differences(layer, "train")
            for setting in SETTINGS[method]:
                found = find_directions(method, z, k, setting, 0)
                rows.append((method, layer, setting, float(part.mcc(found, layer, "validation").mean())))
        return pd.DataFrame(rows, columns=["method", "layer", "setting", "mcc"])

    return study.stage(f"{kind}-choose", compute)


def test(study: Study, kind: str, part: Part, chosen: pd.DataFrame) -> pd.DataFrame:
    """On test pairs at the chosen settings, by seed: the MCC of every value, the published cosine, how seeds agree."""
    k = part.labels.shape[1]

    def compute() -> pd.DataFrame:
        rows: list[tuple[Any, ...]] = []
        for method, row in chosen.iterrows():
            layer, setting = int(row["layer"]), None if np.isnan(row["setting"]) else float(row["setting"])
            z, fits = part.differences(layer, "train"), []
            for seed in SEEDS if method in SEEDED else [0]:
                found = find_directions(str(method), z, k, setting, seed)
                fits.append(found.fitted)
                mcc = zip(part.labels, part.mcc(found, layer, "test").tolist(), strict=True)
                rows += [(method, seed, "mcc", value, number) for value, number in mcc]
                rows.append((method, seed, "cosine", "", part.cosine(found, layer)))
            if fits[0] is not None:
                agreement = stability([one for one in fits if one is not None])
                rows += [(method, pair.first, "agreement", "", pair.cosine) for pair in agreement.itertuples()]
        return pd.DataFrame(rows, columns=["method", "seed", "measure", "value", "number"])

    return study.stage(f"{kind}-test", compute)


def steer_values(
    study: Study, model: Model, part: Part, chosen: pd.DataFrame, args: argparse.Namespace
) -> pd.DataFrame:
    """For each value and method, the texts that go on with the value at an equal dose: a row per text."""
    clean_rows = of_split(attribute_pairs("objects", len(part.rows), changed=(1, 1), seed=args.seed + 1), "train")
    clean = captured(study, model, "clean", clean_rows, part.layers, args)
    clean_labels = change_labels(clean_rows)
    k = part.labels.shape[1]

    @cache
    def directions(method: str) -> Directions:
        row = chosen.loc[method]
        setting = None if np.isnan(row["setting"]) else float(row["setting"])
        return find_directions(method, part.differences(int(row["layer"]), "train"), k, setting, 0)

    def vector(method: str, value: str) -> SteeringVector:
        layer = int(chosen.loc["ssae" if method.startswith("mean") else method, "layer"])
        if method.startswith("mean"):
            if method == "mean of clean pairs":
                ids, z = clean.contrast(layer)
                label = torch.tensor(clean_labels.loc[ids, value].to_numpy()).float()
            else:
                z, label = part.differences(layer, "train"), part.truth("train")[:, part.labels.columns.get_loc(value)]
            return SteeringVector({layer: (label[:, None] * z.float()).sum(0) / label.abs().sum()})
        found, z = directions(method), part.differences(layer, "train")
        label = part.truth("train")[:, [part.labels.columns.get_loc(value)]]
        codes = found.codes(z)
        best = int(match_codes(label, codes, one_to_one=False).order[0])
        sign = torch.corrcoef(torch.stack([label[:, 0], codes[:, best]]))[0, 1].sign()
        unit = torch.nn.functional.normalize(found.rows[best], dim=0)
        return SteeringVector({layer: sign * float(z.norm(dim=1).mean()) * unit})

    everyday = [e.replace(contrast=None) for e in demo_set(seed=args.seed) if e.behavior == "answer"][:8]
    frames = []
    for method, value in product(STEERED, part.labels):

        def compute(method: str = method, value: str = value) -> pd.DataFrame:
            steerer = vector(method, value)
            dose = calibrate_strength(model, everyday, steerer, kl=args.budget, max_new_tokens=12, positions="all")
            return continuations(model, value, steerer, dose.alpha, args).assign(method=method, alpha=dose.alpha)

        frames.append(study.stage(f"steer-{method.replace(' ', '_')}-{value.replace('=', '-')}", compute))
    return pd.concat(frames, ignore_index=True)


def continuations(
    model: Model, value: str, steerer: SteeringVector, alpha: float, args: argparse.Namespace
) -> pd.DataFrame:
    """The likeliest of an attribute's values in texts about things without this one, unsteered and steered."""
    name, wanted = value.split("=")
    texts = [e for e in attribute_pairs("objects", 200, changed=(1, 1), seed=args.seed + 2) if e.split == "test"]
    things = {str(e.contrast.negative) for e in texts if e.contrast and e.meta[f"{name}_before"] != wanted}
    rows = [Example(f"I see {thing} {CONTINUED[name]}", id=thing) for thing in sorted(things)[:24]]
    values = [column.split("=")[1] for column in change_labels(texts) if column.startswith(f"{name}=")]
    ids = [model.tokenizer(f" {one}", add_special_tokens=False)["input_ids"][0] for one in values]
    options: dict[str, Any] = {"batch_size": args.batch_size, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = steerlab.next_token_logits(model, rows, ids, **options)
        steered = steerlab.next_token_logits(
            model, rows, ids, steer=steerer, alpha=alpha, positions="all", **options
        )  # fmt: skip
    place = values.index(wanted)
    margins = [margin(logits, place) for logits in (plain, steered)]
    return pd.DataFrame({
        "value": value, "thing": [row.id for row in rows], "before": (plain.argmax(1) == place).float().tolist(),
        "after": (steered.argmax(1) == place).float().tolist(), "gain": (margins[1] - margins[0]).tolist(),
    })  # fmt: skip


def margin(logits: Tensor, place: int) -> Tensor:
    """The log-odds of one value against the others, in nats."""
    others = [i for i in range(logits.shape[1]) if i != place]
    return logits[:, place] - logits[:, others].logsumexp(1)


def main() -> None:
    arguments = parser(__doc__, "results/ssae/smollm2")
    arguments.add_argument("--pairs", type=int, default=None, help="maximal number of pairs of each kind")
    arguments.add_argument(
        "--budget", type=float, default=BUDGET, help="nats of the dose at which directions are added"
    )
    args = arguments.parse_args()
    model = steerlab.load(args.model, device=args.device, chat=False)
    identity = {"study": "ssae", "model": args.model, "weights": model.info()["weights"], "seed": args.seed}
    examples = [e for kind in PAIRS for e in attribute_pairs(kind, PAIRS[kind], changed=(2, 2), seed=args.seed)]
    identity |= {"pairs": args.pairs, "budget": args.budget, "settings": SETTINGS, "data": data_hash(examples)}
    study = Study(args.out, identity)
    summary: dict[str, Any] = {}
    frames, grids = [], []
    for kind in PAIRS:
        part = Part(study, model, kind, args)
        grid = choose(study, kind, part)
        best = grid.sort_values("mcc", ascending=False, kind="stable").groupby("method").head(1).set_index("method")
        found = test(study, kind, part, best)
        summary |= summarize_directions(kind, found, best, args.seed)
        frames.append(found.assign(pairs=kind))
        grids.append(grid.assign(pairs=kind))
        if kind == "objects":
            steered = steer_values(study, model, part, best, args)
            summary |= summarize_steering(steered, args.seed)
    pd.concat(grids).round(4).to_csv(study.folder / "grid.csv", index=False)
    steered.round(4).to_csv(study.folder / "steered.csv", index=False)
    results = pd.concat(frames, ignore_index=True).round(4)
    study.finish(results, summary, "", provenance(model, examples, args))
    shown = results.groupby(["method", "pairs", "measure"])["number"].mean().unstack(["pairs", "measure"])
    show_table("On test pairs", shown)
    show_table("Steered", steered.groupby("method")[["before", "after", "gain", "alpha"]].mean())


def summarize_directions(kind: str, found: pd.DataFrame, best: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Means over values with intervals over seeds, what the SSAE has over the others, and the chosen settings."""
    summary: dict[str, Any] = {}
    means = found.groupby(["method", "measure", "seed"])["number"].mean()
    for (method, measure), of_seeds in means.groupby(level=["method", "measure"]):
        summary[f"{kind}.{method}.{measure}"] = numbers(bootstrap_ci(of_seeds.tolist(), seed=seed))
    for method, row in best.iterrows():
        summary[f"{kind}.{method}.setting"] = {
            key: None if pd.isna(value) else float(value) for key, value in row.items() if key != "pairs"
        }
        if method != "ssae":
            rival = means[method, "mcc"].reindex(means["ssae", "mcc"].index).ffill()  # one fit where no seed matters
            difference = paired_bootstrap(means["ssae", "mcc"].tolist(), rival.tolist(), seed=seed)
            summary[f"{kind}.ssae_over_{method}.mcc"] = numbers(difference)
    return summary


def summarize_steering(steered: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of texts and gains in log-odds; values are resampled, since texts about one are alike."""
    summary: dict[str, Any] = {}
    for measure in ("after", "gain"):
        table = steered.groupby(["value", "method"])[measure].mean().unstack("method")
        for method in table:
            summary[f"steered.{method}.{measure}"] = numbers(bootstrap_ci(table[method].tolist(), seed=seed))
            if method != "ssae":
                difference = paired_bootstrap(table["ssae"].tolist(), table[method].tolist(), seed=seed)
                summary[f"steered.ssae_over_{method}.{measure}"] = numbers(difference)
    before = steered.groupby("value")["before"].mean()
    summary["steered.none.after"] = numbers(bootstrap_ci(before.tolist(), seed=seed))
    return summary


if __name__ == "__main__":
    main()
