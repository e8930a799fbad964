"""Questions about objects for the hallucination study, and the choice of where and how strongly to steer."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

import steerlab
from steerlab import L2S, P2S, Activations, Contrast, Example, MeanDifference, Model, Request
from steerlab.data import pope_file, pope_questions
from steerlab.data.scenes import World
from steerlab.methods import PAPER, Context
from steerlab.metrics import yes_no_ids, yes_no_logits

SPLITS = ("random", "popular", "adversarial")
ALPHAS = (0.4, 0.7, 1.0, 1.4, 2.0)
SCOPES = {"as released": "all", "as written": "last+generated"}
NETS: dict[str, tuple[str, int]] = {"tanh, 100": ("tanh", 100), "relu, 100": ("relu", 100), "relu, 300": ("relu", 300)}


@dataclass(frozen=True)
class Setting:
    """Where and how strongly to steer, and what the net reads."""

    layer: int
    alpha: float
    positions: str
    context: int | None = None
    net: str = "tanh, 100"


def contrasted(rows: Sequence[Example]) -> list[Example]:
    """Every question with its true answer as the wanted one."""
    pairs = {"yes": Contrast("Yes", "No"), "no": Contrast("No", "Yes")}
    return [row.with_(contrast=pairs[row.behaviour]) for row in rows]


def scenes_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Training, validation and test questions about scenes nobody was trained on; one yes and one no a picture."""
    world, found = World(), []
    sizes = {"train": (args.limit or 700), "validation": (args.limit or 200), "test": (args.limit or 500)}
    rng = np.random.default_rng(10_000 + args.seed)
    usual = {str(i): world.scene(rng).kinds for i in range(5000)}  # what is frequent, and what keeps company
    for part, n in sizes.items():
        scenes = {f"{part}-{i:04d}": world.scene(rng) for i in range(n)}
        pictures = {name: scene.picture() for name, scene in scenes.items()}
        kinds = {name: scene.kinds for name, scene in scenes.items()}
        rows = [
            row.with_(images=(pictures[row.meta["picture"]],), split=row.meta["subset"])
            for split in SPLITS
            for row in pope_questions(kinds, split, 2, args.seed, counts=usual, name=part)
        ]
        found.append(contrasted(rows))
    return found[0], found[1], found[2]


def pope_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Official POPE files, divided by picture: 70 % to train, 10 % to choose on, 20 % to test."""
    rows = [
        row.with_(split=split)
        for split in SPLITS
        for row in pope_file(Path(args.pope) / f"coco_pope_{split}.jsonl", pictures=args.pictures, instruction="")
    ]
    names = sorted({row.meta["picture"] for row in rows})
    random.Random(args.seed).shuffle(names)
    names = names[: args.limit]
    at = {name: i / len(names) for i, name in enumerate(names)}
    known = [row for row in contrasted(rows) if row.meta["picture"] in at]
    edges = [(0, 0.7), (0.7, 0.8), (0.8, 1.0)]
    train, held, test = ([row for row in known if a <= at[row.meta["picture"]] < b] for a, b in edges)
    return train, held, test


def answers(
    model: Model, rows: Sequence[Example], request: Request | None, batch_size: int, progress: bool = False
) -> list[str]:
    """Yes or no by the first token."""
    yes, no = yes_no_ids(model.tokenizer)
    steer = () if request is None else request
    logits = steerlab.first_logits(model, rows, [*yes, *no], steer=steer, batch_size=batch_size, progress=progress)
    return yes_no_logits(logits, range(len(yes)), range(len(yes), len(yes) + len(no))).answers


def accuracy(rows: Sequence[Example], said: Sequence[str]) -> float:
    """The share of true answers."""
    return float(np.mean([row.behaviour == answer for row, answer in zip(rows, said, strict=True)]))


def fit_l2s(acts: Activations, layer: int, context: int, net: str, seed: int) -> L2S:
    """L2S with the paper's loss and balanced classes."""
    activation, hidden = NETS[net]
    recipe = replace(PAPER, class_balanced=True)
    return L2S(
        layer, context_layer=context, hidden=hidden, activation=activation, preset=recipe, seed=seed, progress=False
    ).fit(acts)


def where_to_write(
    model: Model, held: list[Example], train: Activations, own: Activations, args: argparse.Namespace
) -> pd.DataFrame:
    """Accuracy on validation of the oracle and of the mean vector at every layer, strength and scope."""
    found = []
    for layer in range(model.n_layers):
        steerers = {"p2s": P2S(layer).fit(own), "mean": MeanDifference(layer).fit(train)}
        for (name, steerer), alpha, positions in product(steerers.items(), ALPHAS, SCOPES.values()):
            said = answers(model, held, Request(steerer, alpha, positions), args.batch_size)
            cell = {"method": name, "layer": layer, "alpha": alpha, "positions": positions}
            found.append({**cell, "accuracy": accuracy(held, said)})
        print(f"layer {layer}: best oracle {max(c['accuracy'] for c in found if c['layer'] == layer):.3f}")
    return pd.DataFrame(found)


def what_to_read(
    model: Model, held: list[Example], train: Activations, own: Activations, cells: pd.DataFrame,
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """Accuracy on validation of L2S in the oracle's best cells, for every context layer and kind of net."""
    best = cells[cells["method"] == "p2s"].sort_values("accuracy", ascending=False, kind="stable")
    layers = list(dict.fromkeys(best["layer"]))[:3]
    ids = tuple(row.id for row in held)
    found = []
    for layer, context, net in product(layers, range(model.n_layers), NETS):
        predicted: Tensor = fit_l2s(train, layer, context, net, args.seed).vectors(Context(ids, own))
        table = P2S.from_table(layer, dict(zip(ids, predicted, strict=True)))
        for row in best[best["layer"] == layer].head(4).itertuples():
            said = answers(model, held, Request(table, float(row.alpha), str(row.positions)), args.batch_size)
            where = {"layer": layer, "alpha": row.alpha, "positions": row.positions, "context": context, "net": net}
            found.append({"method": "l2s", **where, "accuracy": accuracy(held, said)})
    return pd.DataFrame(found)


def best_cell(cells: pd.DataFrame, method: str) -> Setting:
    """The most accurate cell of a method on validation; ties go to the weaker one."""
    ranked = cells[cells["method"] == method].sort_values(["accuracy", "alpha"], ascending=[False, True], kind="stable")
    row = ranked.iloc[0]
    read = int(row["context"]) if "context" in row and not pd.isna(row["context"]) else None
    net = str(row["net"]) if read is not None else "tanh, 100"
    return Setting(int(row["layer"]), float(row["alpha"]), str(row["positions"]), read, net)


def gap_closed(base: float, method: float, oracle: float) -> float:
    """The share of the distance from no steering to the oracle."""
    return (method - base) / (oracle - base) if oracle > base else float("nan")


def by_split(rows: Sequence[Example], right: Mapping[str, bool]) -> dict[str, list[bool]]:
    """Whether each question of each split was answered truly."""
    return {split: [right[row.id] for row in rows if row.split == split] for split in SPLITS}
