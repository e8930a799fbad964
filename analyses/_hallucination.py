"""Questions about objects for the hallucination study, and the choice of layer, strength and positions."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scenes.world import Scene, World
from torch import Tensor
from tqdm.auto import tqdm

import steerlab
from steerlab import L2S, Activations, Contrast, Example, MeanDifference, Request
from steerlab._support.images import open_image
from steerlab.data import pope_file, pope_questions
from steerlab.methods import L2S_PAPER, P2S, Context, Steerer
from steerlab.metrics import yes_no_ids, yes_no_logits
from steerlab.models.model import Model

SPLITS = ("random", "popular", "adversarial")
# the released code steers every token; the paper says generated tokens, which does not change the first new token
SCOPES = {"as released": "all", "as written": "generated", "first token too": "last+generated"}
TRIED_POSITIONS = ("all", "last+generated")
IMAGES = {"train": 700, "validation": 150, "test": 500}
NETS: dict[str, tuple[str, int]] = {"tanh, 100": ("tanh", 100), "relu, 100": ("relu", 100)}


@dataclass(frozen=True)
class Setting:
    """Layer, strength and positions of steering, the layer that the net reads, and the kind of net."""

    layer: int
    alpha: float
    positions: str
    context: int | None = None
    net: str = "tanh, 100"


def with_yes_no_contrasts(rows: Sequence[Example]) -> list[Example]:
    """Questions with a contrast whose wanted answer is the true one."""
    pairs = {"yes": Contrast("Yes", "No"), "no": Contrast("No", "Yes")}
    return [row.replace(contrast=pairs[row.behavior]) for row in rows]


def scenes_of(args: argparse.Namespace, part: str) -> dict[str, Scene]:
    """The scenes of one part of the data, determined by the seed; no model was trained on them."""
    n = args.limit or IMAGES[part]
    rng = np.random.default_rng([10_000 + args.seed, list(IMAGES).index(part)])
    world = World()
    return {f"{part}-{i:04d}": world.scene(rng) for i in range(n)}


def scenes_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Training, validation and test questions about scenes; one yes and one no question per image and split."""
    world, found = World(), []
    rng = np.random.default_rng(20_000 + args.seed)
    usual = {str(i): world.scene(rng).kinds for i in range(5000)}  # frequencies and co-occurrences of objects
    for part in IMAGES:
        scenes = scenes_of(args, part)
        images = {name: scene.image() for name, scene in scenes.items()}
        kinds = {name: scene.kinds for name, scene in scenes.items()}
        rows = [
            row.replace(images=(images[row.meta["image"]],), split=row.meta["subset"])
            for split in SPLITS
            for row in pope_questions(kinds, split, 2, args.seed, counts=usual, name=part)
        ]
        found.append(with_yes_no_contrasts(rows))
    return found[0], found[1], found[2]


def pope_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Official POPE files, split by image: 70 % training, 10 % validation, 20 % test."""
    rows = [
        row.replace(split=split)
        for split in SPLITS
        for row in pope_file(Path(args.pope) / f"coco_pope_{split}.jsonl", images=args.images, instruction="")
    ]
    names = sorted({row.meta["image"] for row in rows})
    random.Random(args.seed).shuffle(names)
    names = names[: args.limit]
    at = {name: i / len(names) for i, name in enumerate(names)}
    known = [row for row in with_yes_no_contrasts(rows) if row.meta["image"] in at]
    edges = [(0, 0.7), (0.7, 0.8), (0.8, 1.0)]
    train, validation, test = ([row for row in known if a <= at[row.meta["image"]] < b] for a, b in edges)
    return train, validation, test


def answers(model: Model, rows: Sequence[Example], request: Request | None, batch_size: int) -> list[str]:
    """Yes or no by the first token; "" where the most likely token is neither: a broken answer is no true one."""
    yes, no = yes_no_ids(model.tokenizer)
    steer = () if request is None else request
    logits = steerlab.next_token_logits(model, rows, [*yes, *no], max_other=True, steer=steer, batch_size=batch_size)
    first = yes_no_logits(logits, range(len(yes)), range(len(yes), len(yes) + len(no)))
    return ["" if neither else answer for answer, neither in zip(first.answers, first.neither, strict=True)]


def accuracy(rows: Sequence[Example], said: Sequence[str]) -> float:
    """Share of true answers."""
    return float(np.mean([row.behavior == answer for row, answer in zip(rows, said, strict=True)]))


def fit_l2s(acts: Activations, layer: int, context: int, net: str, seed: int) -> L2S:
    """L2S with the paper's loss and balanced classes."""
    activation, hidden_units = NETS[net]
    config = replace(L2S_PAPER, class_balanced=True)
    return L2S(
        layer,
        context_layer=context,
        hidden_units=hidden_units,
        activation=activation,
        config=config,
        seed=seed,
        progress=False,
    ).fit(acts)


def layers_to_try(model: Model, args: argparse.Namespace) -> list[int]:
    """All layers, or those of `--layers`."""
    return list(range(model.n_layers)) if args.layers is None else [int(layer) for layer in args.layers.split(",")]


def strengths(args: argparse.Namespace) -> list[float]:
    """The strengths to try."""
    return [float(alpha) for alpha in args.alphas.split(",")]


def scan_steering_sites(
    model: Model, validation: list[Example], methods: Mapping[str, Callable[[int], Steerer]], args: argparse.Namespace
) -> pd.DataFrame:
    """Validation accuracy of methods at every layer, strength and position; each method is a function of the layer."""
    found = []
    for layer in tqdm(layers_to_try(model, args), desc="steering sites", unit="layer"):
        steerers = {name: make(layer) for name, make in methods.items()}
        for (name, steerer), alpha, positions in product(steerers.items(), strengths(args), TRIED_POSITIONS):
            said = answers(model, validation, Request(steerer, alpha, positions), args.batch_size)
            setting = {"method": name, "layer": layer, "alpha": alpha, "positions": positions}
            found.append({**setting, "accuracy": accuracy(validation, said)})
    return pd.DataFrame(found)


def always_no(train: Activations, layer: int) -> MeanDifference:
    """One vector from the questions whose true answer is no: the effect of shifting the yes/no threshold alone."""
    return MeanDifference(layer).fit(train.select(behavior="no"))


def scan_net_inputs(
    model: Model, validation: list[Example], train: Activations, validation_acts: Activations, grid: pd.DataFrame,
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """Validation accuracy of L2S at the best settings of P2S, for the context layers and nets that predict best.

    Every context layer and kind of net is fitted. The share of inputs whose predicted vector has a positive cosine
    with the P2S vector needs no forward pass; it decides which of them are used for steering.
    """
    best = grid[grid["method"] == "p2s"].sort_values("accuracy", ascending=False, kind="stable")
    ids = tuple(row.id for row in validation)
    found = []
    for layer in list(dict.fromkeys(best["layer"]))[:3]:
        oracle = P2S(layer).fit(validation_acts).vectors(Context(ids, validation_acts))
        tried: list[tuple[float, int, str, Tensor]] = []
        for context, net in tqdm(list(product(layers_to_try(model, args), NETS)), desc=f"layer {layer}: net inputs"):
            predicted = fit_l2s(train, layer, context, net, args.seed).vectors(Context(ids, validation_acts))
            tried.append((float(((predicted * oracle).sum(-1) > 0).float().mean()), context, net, predicted))
        for agreement, context, net, predicted in sorted(tried, key=lambda one: -one[0])[:3]:
            table = P2S.from_table(layer, dict(zip(ids, predicted, strict=True)))
            for row in best[best["layer"] == layer].head(4).itertuples():
                said = answers(model, validation, Request(table, float(row.alpha), str(row.positions)), args.batch_size)
                where = {"layer": layer, "alpha": row.alpha, "positions": row.positions, "context": context, "net": net}
                setting = {"method": "l2s", **where, "agreement": agreement, "accuracy": accuracy(validation, said)}
                found.append(setting)
    return pd.DataFrame(found)


def best_setting(grid: pd.DataFrame, method: str) -> Setting:
    """The most accurate validation setting of a method; ties go to the smaller strength."""
    ranked = grid[grid["method"] == method].sort_values(["accuracy", "alpha"], ascending=[False, True], kind="stable")
    row = ranked.iloc[0]
    read = int(row["context"]) if "context" in row and not pd.isna(row["context"]) else None
    net = str(row["net"]) if read is not None else "tanh, 100"
    return Setting(int(row["layer"]), float(row["alpha"]), str(row["positions"]), read, net)


def gap_closed(base: float, method: float, oracle: float) -> float:
    """Share of the distance from no steering to the oracle that the method closes."""
    return (method - base) / (oracle - base) if oracle > base else float("nan")


def by_split(rows: Sequence[Example], right: Mapping[str, bool]) -> dict[str, list[bool]]:
    """For each split, whether each question was answered correctly."""
    return {split: [right[row.id] for row in rows if row.split == split] for split in SPLITS}


def save_gallery(folder: Path, rows: list[Example], found: dict[str, pd.DataFrame], n: int = 8) -> None:
    """Save images whose answer L2S changed; corrected and spoiled answers are in proportion to their numbers."""
    before, after = (found[m].set_index("example_id") for m in ("none", "l2s"))
    changed = [r for r in rows if before.loc[r.id, "answer"] != after.loc[r.id, "answer"]]
    corrected = [r for r in changed if after.loc[r.id, "answer"] == r.behavior]
    spoiled = [r for r in changed if after.loc[r.id, "answer"] != r.behavior]
    wrong = min(round(n * len(spoiled) / max(1, len(changed))), len(spoiled))
    table = []
    for number, row in enumerate([*corrected[: n - wrong], *spoiled[:wrong]]):
        path = folder / "gallery" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_image(row.images[0]).save(path)
        said = {"before": before.loc[row.id, "text"], "after": after.loc[row.id, "text"]}
        table.append({"file": path.name, "example_id": row.id, "question": row.prompt, "true": row.behavior, **said})
    if table:
        pd.DataFrame(table).to_csv(folder / "gallery" / "gallery.csv", index=False)
