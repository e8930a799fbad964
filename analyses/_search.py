"""The safety study's choice of layer, strength, positions, sentences, targets and net, on validation inputs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch
from _common import limited
from _safety import Setting, l2s, mean_vector

import steerlab
from steerlab import Activations, Example, Model
from steerlab.analysis.crossfit import crossfit, without
from steerlab.analysis.selection import Cell, Goal, choose, evaluate_cells
from steerlab.analysis.study import Study
from steerlab.methods import Context
from steerlab.plots import measure

ROUNDS: dict[str, dict[str, Any]] = {
    "wide": {
        "layers": (15, 16, 17, 18),
        "positions": ("all", "prompt", "last+generated"),
        "sentences": ("plain", "plain_closed", "reasoned", "short", "domain", "mixed"),
        "targets": ("raw",),
        "alphas": (0.7, 0.85, 1.0, 1.2, 1.5),
    },
    "narrow": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("domain", "domain_closed"),
        "targets": ("equalised",),
        "alphas": (1.0, 1.1, 1.2),
    },
    "deferral": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("general_closed", "situation_closed"),
        "targets": ("equalised",),
        "alphas": (0.9, 1.05),
    },
    "context": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalised",),
        "alphas": (0.9, 0.95, 1.0, 1.05),
        "inputs": 80,
        "contexts": (14, 16, 18, 20, 22, 24, 28),
    },
    "net": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalised",),
        "alphas": (1.05,),
        "inputs": 80,
        "readers": ((16, "tanh"), (22, "tanh"), (22, "tanh, 10 units"), (22, "relu balanced, 10 units")),
    },
    "again": {
        "layers": (15,),
        "positions": ("all",),
        "sentences": ("reasoned",),
        "targets": ("raw",),
        "alphas": (0.7,),
        "inputs": 80,
    },
    "units": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalised",),
        "alphas": (1.1, 1.15),
        "inputs": 80,
        "readers": ((22, "tanh, 10 units"), (22, "tanh balanced, 10 units")),
    },
}
"""What each round tries.

`inputs`: validation inputs of each behaviour; only the rounds with the most of them are chosen from, so "again" holds
what was best for the mean vector before. `contexts`: the layer to read and the kind of net are chosen by cross-fitting
among these and `CROSSFITTED`. `readers`: layers to read and kinds of net, all tried.
"""
CROSSFITTED = ("tanh", "relu", "relu balanced")
LAYERS = (14, 15, 16, 17, 18, 20, 22, 24, 28)  # all that any round writes at or reads
PER_BEHAVIOUR = 40  # validation inputs of each behaviour, where a round does not say otherwise
GOALS = [
    Goal(name, target, n, at_most=measure(name).lower)
    for name, n in {
        "refuse_harmful": PER_BEHAVIOUR,
        "defer_expert": PER_BEHAVIOUR,
        "refuse_expert": PER_BEHAVIOUR,
        "distinct2": 2 * PER_BEHAVIOUR,
        "harmless_kept": PER_BEHAVIOUR,
    }.items()
    if (target := measure(name).goal) is not None
]  # the targets are those the figures draw
THREE = GOALS[:3]  # what one vector is said not to reach at once


def search(
    study: Study, model: Model, train: Callable[[str], Activations], spare: list[Example], args: argparse.Namespace
) -> pd.DataFrame:
    """The grid of all rounds, one stage a block.

    Args:
        train: gives the activations of all training inputs under a sentence set; those of `spare` are not fitted to.
        spare: the validation part; every round answers its first inputs of each behaviour.
    """
    frames = []
    for name in args.rounds:
        space = ROUNDS[name]
        held = limited(spare, min(args.limit or 10**9, space.get("inputs", PER_BEHAVIOUR)))
        suffix = f"-{space['inputs']}" if "inputs" in space else ""
        plain = study.stage(f"validation-none{suffix}", lambda: _unsteered(model, held, args))["text"].tolist()  # noqa: B023
        for layer, positions in product(space["layers"], space["positions"]):
            frame = study.stage(
                f"grid-{name}-{layer}-{positions}",
                lambda: run_block(study, model, spare, held, plain, train, space, layer, positions, args),  # noqa: B023
            )
            frames.append(frame.assign(round=name, inputs=len(held)))
    return pd.concat(frames, ignore_index=True)


def run_block(
    study: Study, model: Model, spare: Sequence[Example], held: list[Example], plain: list[str],
    train: Callable[[str], Activations], space: Mapping[str, Any], layer: int, positions: str, args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """All cells of one layer and one kind of positions, on the validation inputs."""
    inputs = tuple(e.id for e in held)
    cells = []
    for sentences, targets in product(space["sentences"], space["targets"]):
        acts = train(sentences)
        fit = without(acts, [e.id for e in spare])
        readers = space.get("readers", ((layer, "tanh"),))
        if "contexts" in space:
            table = study.stage(f"crossfit-{layer}-{sentences}", lambda: crossfitted(acts, layer, targets, space, args))  # noqa: B023
            best = table.loc[table["cosine"].idxmax()]
            readers = ((int(best["context"]), str(best["net"])),)
        tried = [("mean", layer, "-", mean_vector(fit, layer, targets).expand(len(held), -1))]
        for read, net in readers:
            fitted = l2s(layer, targets, args.seed, read, net).fit(fit)
            tried.append(("l2s", read, net, fitted.vectors(Context(inputs, acts))))
        for (method, read, net, vectors), alpha in product(tried, space["alphas"]):
            where: dict[str, str | int | float] = {"layer": layer, "positions": positions, "context": read}
            labels = {"method": method, "sentences": sentences, "targets": targets, "net": net} | where
            cells.append(Cell(labels, vectors, alpha))
    return evaluate_cells(
        model, held, plain, cells, site=layer, positions=positions,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
    )  # fmt: skip


def crossfitted(
    acts: Activations, layer: int, targets: str, space: Mapping[str, Any], args: argparse.Namespace
) -> pd.DataFrame:
    """How well each context layer and kind of net predicts training inputs it was not fitted to.

    `cosine` is the mean over the behaviours of the mean cosine to the inputs' own contrast vectors; `harmless_norm`
    is the mean predicted norm where nothing should be added, over that where something should.
    """
    ids, z = acts.contrast(layer)
    labels = pd.Series(acts.labels(ids))
    rows = []
    for context, net in product(space["contexts"], CROSSFITTED):
        everyone, vectors = crossfit(l2s(layer, targets, args.seed, context, net), acts, seed=args.seed)
        place = {sample: row for row, sample in enumerate(everyone)}
        near = torch.nn.functional.cosine_similarity(vectors[[place[s] for s in ids]], z)
        per = pd.Series(near.numpy()).groupby(labels).mean()
        norms = pd.Series(vectors.norm(dim=-1).numpy(), index=everyone)
        beside = norms[norms.index.difference(ids)].mean() / norms[ids].mean()
        shares = {f"cosine_{name}": value for name, value in per.items()}
        rows.append({"context": context, "net": net, "cosine": per.mean(), **shares, "harmless_norm": beside})
        print(f"reads layer {context}, {net}: out-of-fold cosine {per.mean():.3f}")
    return pd.DataFrame(rows)


def _unsteered(model: Model, held: list[Example], args: argparse.Namespace) -> pd.DataFrame:
    found = steerlab.generate(
        model, held, steer=(), max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=True
    )
    return pd.DataFrame({"sample": found.samples, "text": found.texts})


def pick(grid: pd.DataFrame, method: str) -> Setting:
    """The method's best cell on validation, among those judged on the most inputs."""
    best = choose(grid[(grid["method"] == method) & (grid["inputs"] == grid["inputs"].max())], GOALS)
    where = (int(best["layer"]), float(best["alpha"]), best["positions"], best["sentences"], best["targets"])
    return Setting(*where, context=int(best["context"]), net=best["net"], inputs=int(best["inputs"]))
