"""Questions about objects for the hallucination study, and the choice of where and how strongly to steer."""

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
from steerlab import L2S, P2S, Activations, Contrast, Example, MeanDifference, Model, Request
from steerlab._support.images import open_image
from steerlab.data import pope_file, pope_questions
from steerlab.methods import L2S_PAPER, Context, Steerer
from steerlab.metrics import YesNo, yes_no_ids, yes_no_logits

SPLITS = ("random", "popular", "adversarial")
# the released code writes at every token; the paper's text says generated tokens, which the first answer never feels
SCOPES = {"as released": "all", "as written": "generated", "first token too": "last+generated"}
SEARCHED = ("all", "last+generated")
IMAGES = {"train": 700, "validation": 150, "test": 500}
NETS: dict[str, tuple[str, int]] = {"tanh, 100": ("tanh", 100), "relu, 100": ("relu", 100)}


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
    return [row.replace(contrast=pairs[row.behavior]) for row in rows]


def scenes_of(args: argparse.Namespace, part: str) -> dict[str, Scene]:
    """The scenes of one part of the data, always the same for a seed: nobody was trained on them."""
    n = args.limit or IMAGES[part]
    rng = np.random.default_rng([10_000 + args.seed, list(IMAGES).index(part)])
    world = World()
    return {f"{part}-{i:04d}": world.scene(rng) for i in range(n)}


def scenes_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Training, validation and test questions about scenes; one yes and one no a picture and split."""
    world, found = World(), []
    rng = np.random.default_rng(20_000 + args.seed)
    usual = {str(i): world.scene(rng).kinds for i in range(5000)}  # what is frequent, and what keeps company
    for part in IMAGES:
        scenes = scenes_of(args, part)
        images = {name: scene.image() for name, scene in scenes.items()}
        kinds = {name: scene.kinds for name, scene in scenes.items()}
        rows = [
            row.replace(images=(images[row.meta["image"]],), split=row.meta["subset"])
            for split in SPLITS
            for row in pope_questions(kinds, split, 2, args.seed, counts=usual, name=part)
        ]
        found.append(contrasted(rows))
    return found[0], found[1], found[2]


def pope_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Official POPE files, divided by picture: 70 % to train, 10 % to choose on, 20 % to test."""
    rows = [
        row.replace(split=split)
        for split in SPLITS
        for row in pope_file(Path(args.pope) / f"coco_pope_{split}.jsonl", images=args.images, instruction="")
    ]
    names = sorted({row.meta["image"] for row in rows})
    random.Random(args.seed).shuffle(names)
    names = names[: args.limit]
    at = {name: i / len(names) for i, name in enumerate(names)}
    known = [row for row in contrasted(rows) if row.meta["image"] in at]
    edges = [(0, 0.7), (0.7, 0.8), (0.8, 1.0)]
    train, held, test = ([row for row in known if a <= at[row.meta["image"]] < b] for a, b in edges)
    return train, held, test


def first_tokens(model: Model, rows: Sequence[Example], request: Request | None, batch_size: int) -> YesNo:
    """Yes or no by the first token, a forced choice; `other` marks the rows about to say neither."""
    yes, no = yes_no_ids(model.tokenizer)
    steer = () if request is None else request
    logits = steerlab.next_token_logits(model, rows, [*yes, *no], max_other=True, steer=steer, batch_size=batch_size)
    return yes_no_logits(logits, range(len(yes)), range(len(yes), len(yes) + len(no)))


def answers(model: Model, rows: Sequence[Example], request: Request | None, batch_size: int) -> list[str]:
    """Yes or no by the first token."""
    return first_tokens(model, rows, request, batch_size).answers


def accuracy(rows: Sequence[Example], said: Sequence[str]) -> float:
    """The share of true answers."""
    return float(np.mean([row.behavior == answer for row, answer in zip(rows, said, strict=True)]))


def fit_l2s(acts: Activations, layer: int, context: int, net: str, seed: int) -> L2S:
    """L2S with the paper's loss and balanced classes."""
    activation, hidden_units = NETS[net]
    recipe = replace(L2S_PAPER, class_balanced=True)
    return L2S(
        layer,
        context_layer=context,
        hidden_units=hidden_units,
        activation=activation,
        config=recipe,
        seed=seed,
        progress=False,
    ).fit(acts)


def searched(model: Model, args: argparse.Namespace) -> list[int]:
    """The layers to look at: all, or those of `--layers`."""
    return list(range(model.n_layers)) if args.layers is None else [int(layer) for layer in args.layers.split(",")]


def strengths(args: argparse.Namespace) -> list[float]:
    """The alphas to try."""
    return [float(alpha) for alpha in args.alphas.split(",")]


def where_to_write(
    model: Model, held: list[Example], methods: Mapping[str, Callable[[int], Steerer]], args: argparse.Namespace
) -> pd.DataFrame:
    """Accuracy on validation of some methods, each made for a layer, at every layer, strength and scope."""
    found = []
    for layer in tqdm(searched(model, args), desc="where to write", unit="layer"):
        steerers = {name: made(layer) for name, made in methods.items()}
        for (name, steerer), alpha, positions in product(steerers.items(), strengths(args), SEARCHED):
            said = answers(model, held, Request(steerer, alpha, positions), args.batch_size)
            cell = {"method": name, "layer": layer, "alpha": alpha, "positions": positions}
            found.append({**cell, "accuracy": accuracy(held, said)})
    return pd.DataFrame(found)


def always_no(train: Activations, layer: int) -> MeanDifference:
    """One vector for all, of the questions whose true answer is no: what a mere shift of the threshold can mend."""
    return MeanDifference(layer).fit(train.select(behavior="no"))


def what_to_read(
    model: Model, held: list[Example], train: Activations, own: Activations, cells: pd.DataFrame,
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """Accuracy on validation of L2S in the oracle's best cells, for the contexts and nets that predict best there.

    Every layer that can be read and every kind of net is fitted; how often a predicted vector points the way of the
    input's own one costs no forward and decides which are steered with.
    """
    best = cells[cells["method"] == "p2s"].sort_values("accuracy", ascending=False, kind="stable")
    ids = tuple(row.id for row in held)
    found = []
    for layer in list(dict.fromkeys(best["layer"]))[:3]:
        oracle = P2S(layer).fit(own).vectors(Context(ids, own))
        tried: list[tuple[float, int, str, Tensor]] = []
        for context, net in tqdm(list(product(searched(model, args), NETS)), desc=f"layer {layer}: what to read"):
            predicted = fit_l2s(train, layer, context, net, args.seed).vectors(Context(ids, own))
            tried.append((float(((predicted * oracle).sum(-1) > 0).float().mean()), context, net, predicted))
        for agreement, context, net, predicted in sorted(tried, key=lambda one: -one[0])[:3]:
            table = P2S.from_table(layer, dict(zip(ids, predicted, strict=True)))
            for row in best[best["layer"] == layer].head(4).itertuples():
                said = answers(model, held, Request(table, float(row.alpha), str(row.positions)), args.batch_size)
                where = {"layer": layer, "alpha": row.alpha, "positions": row.positions, "context": context, "net": net}
                cell = {"method": "l2s", **where, "agreement": agreement, "accuracy": accuracy(held, said)}
                found.append(cell)
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


def keep_gallery(folder: Path, rows: list[Example], found: dict[str, pd.DataFrame], n: int = 8) -> None:
    """Some pictures whose answer L2S changed, in the proportion in which it mended and broke answers."""
    before, after = (found[m].set_index("example_id") for m in ("none", "l2s"))
    changed = [r for r in rows if before.loc[r.id, "answer"] != after.loc[r.id, "answer"]]
    mended = [r for r in changed if after.loc[r.id, "answer"] == r.behavior]
    broken = [r for r in changed if after.loc[r.id, "answer"] != r.behavior]
    wrong = min(round(n * len(broken) / max(1, len(changed))), len(broken))
    table = []
    for number, row in enumerate([*mended[: n - wrong], *broken[:wrong]]):
        path = folder / "gallery" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_image(row.images[0]).save(path)
        said = {"before": before.loc[row.id, "text"], "after": after.loc[row.id, "text"]}
        table.append({"file": path.name, "example_id": row.id, "question": row.prompt, "true": row.behavior, **said})
    if table:
        pd.DataFrame(table).to_csv(folder / "gallery" / "gallery.csv", index=False)
