"""Concepts from pairs of texts that change two attributes at once: a sparse shift autoencoder against its rivals.

    python analyses/ssae.py --model smollm2 --out results/ssae/smollm2
    python figures/ssae.py results/ssae

"a round red table." becomes "a round blue box.": two of shape, color and object change in every pair, so that no pair
shows what one of them does. Each method finds as many directions as there are values, without knowing what changed; for
each value the one that follows it best is taken, on training pairs. How well it follows on test pairs, whose article is
in no other pair, is the mean absolute correlation (MCC). Also, as the paper has it, the cosine of a pair's end to its
start moved by what is read off this very pair; and, since nobody has the pair at use, moved by fixed directions: those
of the values that changed, each as long as on average. Layer and, where a method has one, a setting (level of the
SSAE, penalty of the dictionary) are chosen on validation pairs; both choices need labels, and all methods have them.
"labels" are the mean differences of the values: what knowing all labels gives. "sentences" are a second kind of pairs,
of language, gender and tense.

Then a value's direction is added, at one layer and an equal dose on everyday prompts, to texts such as "I see one round
red table. Its color is", about things without this value: in which share is it now the likeliest of the attribute's
values, and in which do the other attributes keep theirs? The layer is the one at which the mean difference of clean
pairs, in which one attribute changes alone, has the largest effect: that rival has the choice. "moved" directions are
read at the layer where a method follows values best, and added at this one (`SSAE.direction_at`); the SSAE is also
added as a second seed found it. Texts are given as they are, without a chat template. With `--grid`, layers and
settings are those of an earlier run.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import numbers, parser, provenance, show_table
from _concepts import SEEDED, SETTINGS, Directions, Part, matched_correlation, resampled
from scipy import stats
from torch import Tensor

import steerlab
from steerlab import Example, SteeringVector
from steerlab._support.files import fingerprint
from steerlab.analysis.calibration import calibrate_strength
from steerlab.analysis.study import Study
from steerlab.data import attribute_pairs, data_hash, demo_set
from steerlab.metrics import Estimate, bootstrap_ci, match_directions, paired_bootstrap
from steerlab.models.model import Model

PAIRS = {"objects": 1500, "sentences": 800}
CONTINUED = {"shape": "The shape of it is", "color": "Its color is", "object": "It is a"}
FRACTIONS = (0.1, 0.2, 0.35, 0.5, 0.75)  # of the depth: the layers
SEEDS, DRAWS, TEXTS = range(5), 300, 24
BUDGET = 0.5  # nats: the dose at which directions are compared
# what is added: the method, whether its directions are moved from the layer where they follow best, and the seed
STEERED = {name: (name, False, 0) for name in ("pca", "affine", "ica", "dictionary", "ssae", "labels", "clean")}
STEERED |= {"ica_moved": ("ica", True, 0), "ssae_moved": ("ssae", True, 0)}
STEERED |= {"ssae_1": ("ssae", False, 1), "ssae_moved_1": ("ssae", True, 1)}


def choose(study: Study, kind: str, part: Part) -> pd.DataFrame:
    """The MCC on validation pairs of every method, setting and layer, with one seed."""

    def compute(method: str, layer: int) -> pd.DataFrame:
        rows = []
        for setting in SETTINGS[method]:
            found = part.fit(method, layer, setting, 0)
            mcc = np.nan
            if found is not None:
                codes = part.followed(found, layer, "validation")
                mcc = float(matched_correlation(part.truth("validation"), codes).mean())
            rows.append((method, layer, setting, mcc))
        return pd.DataFrame(rows, columns=["method", "layer", "setting", "mcc"])

    places = product(SETTINGS, part.layers)
    frames = [study.stage(f"{kind}-choose-{m}-{layer}", partial(compute, m, layer)) for m, layer in places]
    return pd.concat(frames, ignore_index=True)


def known_grid(path: str, kind: str, part: Part) -> pd.DataFrame:
    """What `choose` found in an earlier run."""
    grid = pd.read_csv(path)
    grid = grid[grid["pairs"] == kind].drop(columns="pairs").reset_index(drop=True)
    if sorted(set(grid["layer"])) != part.layers:
        raise SystemExit(f"{path} has the layers {sorted(set(grid['layer']))}, this model {part.layers}")
    return grid


def test(study: Study, kind: str, part: Part, chosen: pd.DataFrame) -> pd.DataFrame:
    """On test pairs at the chosen settings: the MCC of every value and seed, of every draw of pairs, and how far the
    directions of two seeds agree.
    """
    truth = part.truth("test")
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(DRAWS)]  # the same for every method

    def compute(method: str) -> pd.DataFrame:
        layer, setting, fits = int(chosen.loc[method, "layer"]), setting_of(chosen.loc[method]), []
        for seed in SEEDS if method in SEEDED else SEEDS[:1]:
            found = part.fit(method, layer, setting, seed)
            if found is not None:
                fits.append((seed, found))
        codes = [part.followed(found, layer, "test") for _, found in fits]
        rows: list[tuple[Any, ...]] = []
        for (seed, _), of_seed in zip(fits, codes, strict=True):
            mcc = matched_correlation(truth, of_seed).tolist()
            rows += [(method, "mcc", str(seed), value, one) for value, one in zip(part.labels, mcc, strict=True)]
        rows += [(method, "draw", str(i), "", one) for i, one in enumerate(resampled(truth, codes, draws))]
        for i, (one, first) in enumerate(fits):
            for other, second in fits[i + 1 :]:
                cosine = match_directions(first.rows, second.rows, signed=False).mean
                rows.append((method, "agreement", f"{one}-{other}", "", cosine))
        return pd.DataFrame(rows, columns=["method", "measure", "seed", "value", "number"])

    found = pd.concat([study.stage(f"{kind}-test-{m}", partial(compute, m)) for m in SETTINGS], ignore_index=True)
    return found.astype({"seed": str})  # a stage whose seeds are all numbers is read back with numbers


def cosines(part: Part, found: Directions, layer: int) -> dict[str, list[float]]:
    """Of each test pair, the cosine of its end to its start, and to its start moved by what is read off the pair
    ("read") or by the directions of the values that changed, found on training pairs ("fixed"). The mean state of
    training pairs is taken away first: with it, any two states are nearly parallel.

    A fixed direction is as long as the median training pair that changes its value goes along it: codes are shorter,
    where a bound or a penalty holds them down.
    """
    start, end = part.start_and_end(layer, "test")
    if len(found.rows) == 1:  # the mean of all pairs is the same for each
        read = fixed = found.rows.expand_as(start)
    else:
        read = found.codes(end - start) @ found.rows + found.constant
        units = torch.nn.functional.normalize(found.rows[part.best_columns(found, layer)[0]], dim=1)
        labels = part.truth("train")
        along = labels * (part.differences(layer, "train") @ units.T)
        sizes = torch.stack([column[changed].median() for column, changed in zip(along.T, labels.T != 0, strict=True)])
        fixed = (part.truth("test") * sizes) @ units
    middle = torch.cat(part.start_and_end(layer, "train")).mean(0)
    moved = {"start": start, "read": start + read, "fixed": start + fixed}
    return {name: torch.cosine_similarity(end - middle, one - middle).tolist() for name, one in moved.items()}


def test_cosines(study: Study, kind: str, part: Part, chosen: pd.DataFrame) -> dict[str, Any]:
    """`cosines` of every method, means over pairs and seeds with intervals over pairs."""

    def compute(method: str) -> pd.DataFrame:
        layer, setting, frames = int(chosen.loc[method, "layer"]), setting_of(chosen.loc[method]), []
        for seed in SEEDS if method in SEEDED else SEEDS[:1]:
            found = part.fit(method, layer, setting, seed)
            if found is not None:
                frames.append(pd.DataFrame(cosines(part, found, layer)).assign(pair=part.ids["test"], seed=seed))
        return pd.concat(frames, ignore_index=True)

    summary = {}
    for method in SETTINGS:
        means = study.stage(f"{kind}-cosine-{method}", partial(compute, method)).groupby("pair").mean()
        for name in ("start", "read", "fixed"):
            summary[f"{kind}.{method}.cosine_{name}"] = numbers(bootstrap_ci(means[name].tolist(), seed=0))
    return summary


def setting_of(row: pd.Series) -> float | None:
    """The setting of a row of the grid; None for a method without one."""
    return None if pd.isna(row["setting"]) else float(row["setting"])


class Steering:
    """Adding a value's direction to texts about things without it.

    Args:
        model: which continues texts.
        part: the pairs that change two attributes.
        clean: the pairs that change one.
        grid: of `choose`.
        args: of the study.
    """

    def __init__(self, model: Model, part: Part, clean: Part, grid: pd.DataFrame, args: argparse.Namespace) -> None:
        self.model, self.part, self.clean, self.grid, self.args = model, part, clean, grid, args
        self.values: dict[str, list[str]] = {}
        for column in part.labels:
            name, value = column.split("=")
            self.values.setdefault(name, []).append(value)
        self.tokens = {
            name: [model.tokenizer(f" {value}", add_special_tokens=False)["input_ids"][0] for value in values]
            for name, values in self.values.items()
        }
        assert all(len(set(ids)) == len(ids) for ids in self.tokens.values()), "values must differ in their first token"
        everyday = [e.replace(contrast=None) for e in demo_set(seed=args.seed) if e.behavior == "answer"]
        self.everyday = everyday[:8]
        self.descriptions = attribute_pairs("objects", 400, changed=(1, 1), seed=args.seed + 2)
        self._found: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._unsteered: dict[tuple[str, str, str], Tensor] = {}

    def things(self, column: str, split: str) -> list[Example]:
        """Descriptions of things without a value, drawn at random."""
        name, value = column.split("=")
        without = [e for e in self.descriptions if e.split == split and e.meta[f"{name}_before"] != value]
        texts = {e.contrast.negative: e for e in without if e.contrast}
        return list(texts.values())[:TEXTS]

    def logits(self, things: list[Example], name: str, steer: SteeringVector | None, alpha: float) -> Tensor:
        """The logits of an attribute's values after each description."""
        rows = [
            Example(f"I see {e.contrast.negative} {CONTINUED[name]}", id=e.id) for e in things if e.contrast is not None
        ]
        options: dict[str, Any] = {} if steer is None else {"steer": steer, "alpha": alpha, "positions": "all"}
        return steerlab.next_token_logits(
            self.model, rows, self.tokens[name], batch_size=self.args.batch_size, progress=False, **options
        )

    def unsteered(self, column: str, split: str, name: str) -> Tensor:
        """The unsteered logits of an attribute's values after the descriptions of a value; computed once."""
        key = (column, split, name)
        if key not in self._unsteered:
            self._unsteered[key] = self.logits(self.things(column, split), name, None, 0.0)
        return self._unsteered[key]

    def vector(self, method: str, column: str, layer: int) -> SteeringVector:
        """The direction of a value at a layer, of the mean norm of the differences."""
        size, place = float(self.part.differences(layer, "train").norm(dim=1).mean()), self._column(column)
        if method == "clean":
            label = self.clean.truth("train")[:, place]
            row = (label[:, None] * self.clean.differences(layer, "train")).sum(0)
        else:
            found, best, signs = self._directions(method, layer)
            row = signs[place] * found[best[place]]
        return SteeringVector({layer: size * torch.nn.functional.normalize(row, dim=0)})

    def _column(self, column: str) -> int:
        return list(self.part.labels).index(column)

    def _directions(self, method: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """The directions of a method of `STEERED` at a layer, with that of each value and its sign.

        Moved ones are found at the layer where the method follows values best on validation pairs; at this layer they
        are the mean of the differences weighted by the codes (`SSAE.direction_at`).
        """
        if (method, layer) not in self._found:
            name, moved, seed = STEERED[method]
            rows = self.grid[(self.grid["method"] == name) & self.grid["mcc"].notna()]
            tried = rows if moved else rows[rows["layer"] == layer]
            if tried.empty:
                raise SystemExit(f"{name} converged with no setting at layer {layer}: give more --pairs")
            best = rows.loc[tried["mcc"].idxmax()]
            found_at = int(best["layer"])
            found = self.part.fit(name, found_at, setting_of(best), seed)
            if found is None:
                raise SystemExit(f"{name} at layer {found_at} did not converge with seed {seed}: take another seed")
            here, there = (self.part.differences(one, "train") for one in (found_at, layer))
            codes = found.codes(here)
            directions = (codes - codes.mean(0)).T @ there if moved else found.rows
            self._found[method, layer] = directions, *self.part.best_columns(found, found_at)
        return self._found[method, layer]

    def layer_effects(self) -> pd.DataFrame:
        """The gain in log-odds of each value by the mean of clean pairs, as long as half a difference, by layer."""
        rows = []
        for layer, column in product(self.part.layers, self.part.labels):
            name, value = column.split("=")
            things, place = self.things(column, "train"), self.values[name].index(value)
            vector = self.vector("clean", column, layer)
            before, after = self.unsteered(column, "train", name), self.logits(things, name, vector, 0.5)
            gain = float((log_odds(after, place) - log_odds(before, place)).mean())
            rows.append((layer, column, gain))
        return pd.DataFrame(rows, columns=["layer", "value", "gain"])

    def at_equal_dose(self, method: str, column: str, layer: int) -> pd.DataFrame:
        """What a value's direction does to each text."""
        steerer = self.vector(method, column, layer)
        dose = calibrate_strength(
            self.model, self.everyday, steerer, kl=self.args.budget, max_new_tokens=12, positions="all",
            batch_size=len(self.everyday),
        )  # fmt: skip
        things = self.things(column, "test")
        frame = pd.DataFrame({"method": method, "value": column, "thing": [e.id for e in things], "alpha": dose.alpha})
        wanted, value = column.split("=")
        kept = []
        for name in self.values:
            before, after = self.unsteered(column, "test", name), self.logits(things, name, steerer, dose.alpha)
            if name == wanted:
                place = self.values[name].index(value)
                stated = [self.values[name].index(e.meta[f"{name}_before"]) for e in things]
                frame["right_before"] = (before.argmax(1) == torch.tensor(stated)).float().numpy()
                frame["before"] = (before.argmax(1) == place).float().numpy()
                frame["after"] = (after.argmax(1) == place).float().numpy()
                frame["gain"] = (log_odds(after, place) - log_odds(before, place)).numpy()
            else:
                kept.append((before.argmax(1) == after.argmax(1)).float())
        return frame.assign(others_kept=torch.stack(kept).mean(0).numpy())


def log_odds(logits: Tensor, place: int) -> Tensor:
    """The log-odds of one value against the others, in nats."""
    others = [i for i in range(logits.shape[1]) if i != place]
    return logits[:, place] - logits[:, others].logsumexp(1)


def steer_values(study: Study, steering: Steering) -> tuple[int, pd.DataFrame]:
    """The layer that suits the clean pairs (`layers.csv`), and what every method's directions do there."""
    effects = study.stage("steer-layers", steering.layer_effects)
    effects.round(4).to_csv(study.folder / "layers.csv", index=False)
    layer = int(effects.groupby("layer")["gain"].mean().idxmax())
    frames = []
    for method, column in product(STEERED, steering.part.labels):
        name = f"steer-{method}-{column.replace('=', '-')}"
        frames.append(study.stage(name, partial(steering.at_equal_dose, method, column, layer)))
    return layer, pd.concat(frames, ignore_index=True)


def main() -> None:
    arguments = parser(__doc__, "results/ssae/smollm2")
    arguments.add_argument("--pairs", type=int, default=None, help="maximal number of pairs of each kind")
    arguments.add_argument(
        "--budget", type=float, default=BUDGET, help="nats of the dose at which directions are added"
    )
    arguments.add_argument("--grid", help="grid.csv of an earlier run: its settings, without trying them again")
    args = arguments.parse_args()
    model = steerlab.load(args.model, device=args.device, chat=False)
    counts = {kind: min(n, args.pairs or n) for kind, n in PAIRS.items()}
    examples = [e for kind, n in counts.items() for e in attribute_pairs(kind, n, changed=(2, 2), seed=args.seed)]
    identity = {"study": "ssae", "model": args.model, "weights": model.info()["weights"], "seed": args.seed}
    identity |= {"pairs": counts, "budget": args.budget, "settings": SETTINGS, "texts": [CONTINUED, TEXTS]}
    identity |= {"grid": fingerprint(Path(args.grid).read_text())} if args.grid else {}
    study = Study(args.out, identity | {"layers": FRACTIONS, "draws": DRAWS, "data": data_hash(examples)})
    layers = sorted({round(fraction * (model.n_layers - 1)) for fraction in FRACTIONS})
    made = partial(Part, study, model, layers=layers, batch_size=args.batch_size)
    summary: dict[str, Any] = {}
    frames, grids = [], []
    for kind, n in counts.items():
        part = made(kind, n, changed=(2, 2), seed=args.seed)
        grid = known_grid(args.grid, kind, part) if args.grid else choose(study, kind, part)
        best = grid.loc[grid.groupby("method")["mcc"].idxmax()].set_index("method")
        found = test(study, kind, part, best)
        summary |= summarize_directions(kind, found, best, len(part.ids["test"])) | test_cosines(
            study, kind, part, best
        )
        frames.append(found[found["measure"] != "draw"].assign(pairs=kind))
        grids.append(grid.assign(pairs=kind))
        if kind == "objects":
            clean = made(kind, n, changed=(1, 1), seed=args.seed + 1)
            layer, steered = steer_values(study, Steering(model, part, clean, grid, args))
            summary |= {"steered.layer": layer} | summarize_steering(steered, args.seed)
    pd.concat(grids).round(4).to_csv(study.folder / "grid.csv", index=False)
    steered.round(4).to_csv(study.folder / "steered.csv", index=False)
    results = pd.concat(frames, ignore_index=True).round(4)
    study.finish(results, summary, "", provenance(model, examples, args))
    shown = results.groupby(["method", "pairs", "measure"])["number"].mean().unstack(["pairs", "measure"])
    show_table("On test pairs", shown)
    columns = ["right_before", "before", "after", "gain", "others_kept", "alpha"]
    show_table("Steered", steered.groupby("method")[columns].mean())


def summarize_directions(kind: str, found: pd.DataFrame, best: pd.DataFrame, n: int) -> dict[str, Any]:
    """MCC with intervals over `n` test pairs, what the SSAE has over the others, seeds, and the chosen settings."""
    summary: dict[str, Any] = {}
    draws = found[found["measure"] == "draw"].pivot(index="seed", columns="method", values="number")
    mcc = found[found["measure"] == "mcc"]
    means = mcc.groupby("method")["number"].mean()
    by_seed = mcc.groupby(["method", "seed"])["number"].mean()
    agreement = found[found["measure"] == "agreement"].groupby("method")["number"].agg(["mean", "std"])
    for method, row in best.iterrows():
        low, high = draws[method].quantile([0.025, 0.975])
        summary[f"{kind}.{method}.mcc"] = numbers(Estimate(float(means[method]), float(low), float(high), n))
        summary[f"{kind}.{method}.seeds"] = [round(float(one), 4) for one in by_seed[method]]
        summary[f"{kind}.{method}.setting"] = {"layer": int(row["layer"]), "setting": setting_of(row)}
        if method != "ssae":
            low, high = (draws["ssae"] - draws[method]).quantile([0.025, 0.975])
            difference = Estimate(float(means["ssae"] - means[method]), float(low), float(high), n)
            summary[f"{kind}.ssae_over_{method}.mcc"] = numbers(difference)
            other = by_seed[method] if method in SEEDED else by_seed[method].iloc[0]
            gains = (by_seed["ssae"] - other).dropna()
            if len(gains) > 1:  # Student's interval: of five, a resampled one would be too narrow
                low, high = stats.t.interval(0.95, len(gains) - 1, gains.mean(), gains.sem())
                over_seeds = Estimate(float(gains.mean()), float(low), float(high), len(gains))
                summary[f"{kind}.ssae_over_{method}.over_seeds"] = numbers(over_seeds)
        if method in agreement.index:
            summary[f"{kind}.{method}.agreement"] = agreement.loc[method].round(4).to_dict()
    return summary


def summarize_steering(steered: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of texts and gains in log-odds; values are resampled, since texts about one are alike."""
    summary: dict[str, Any] = {}
    for measure in ("after", "gain", "others_kept"):
        table = steered.groupby(["value", "method"])[measure].mean().unstack("method")
        for method in table:
            summary[f"steered.{method}.{measure}"] = numbers(bootstrap_ci(table[method].tolist(), seed=seed))
            for one in ("ssae", "ssae_1", "ssae_moved", "ssae_moved_1", "ica_moved"):
                if one != method:
                    difference = paired_bootstrap(table[one].tolist(), table[method].tolist(), seed=seed)
                    summary[f"steered.{one}_over_{method}.{measure}"] = numbers(difference)
    for measure, name in (("before", "after"), ("right_before", "right")):
        means = steered.groupby("value")[measure].mean()
        summary[f"steered.none.{name}"] = numbers(bootstrap_ci(means.tolist(), seed=seed))
    return summary


if __name__ == "__main__":
    main()
