"""The safety study's choice of layer, strength, positions, sentences, targets and net, on validation inputs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _common import limited
from _crossfit import crossfit, without
from _safety import NETS, SENTENCES, Setting, l2s, mean_vector
from torch import Tensor

import steerlab
from steerlab import Activations, DataError, Example, Model, SteeringError
from steerlab._support.files import fingerprint
from steerlab.analysis.selection import Candidate, Goal, choose_candidate, evaluate_candidates
from steerlab.analysis.study import Study
from steerlab.methods import Context
from steerlab.plots import metric_style

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
        "targets": ("equalized",),
        "alphas": (1.0, 1.1, 1.2),
    },
    "deferral": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("general_closed", "situation_closed"),
        "targets": ("equalized",),
        "alphas": (0.9, 1.05),
    },
    "context": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalized",),
        "alphas": (0.9, 0.95, 1.0, 1.05),
        "inputs": 80,
        "contexts": (14, 16, 18, 20, 22, 24, 28),
    },
    "net": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalized",),
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
        "targets": ("equalized",),
        "alphas": (1.1, 1.15),
        "inputs": 80,
        "readers": ((22, "tanh, 10 units"), (22, "tanh balanced, 10 units")),
    },
    "mean": {"best_of": "mean", "centers": 4, "targets": ("raw", "equalized"), "inputs": 80},
}
"""What each round tries.

`inputs`: validation inputs of each behavior; only the rounds with the most of them are chosen from, so "again" holds
what was best for the mean vector before. `contexts`: the layer to read and the kind of net are chosen by cross-fitting
among these and `CROSSFITTED`. `readers`: layers to read and kinds of net, all tried. From "narrow" to "units"
the rounds, but for "again", are centered on the best cells of L2S. `best_of`: centered on those of the method named, as
the rounds before have judged them: its `centers` best that were not yet judged on so many inputs, each with all
`targets`.
"""
CROSSFITTED = ("tanh", "relu", "relu balanced")
LAYERS = (14, 15, 16, 17, 18, 20, 22, 24, 28)  # all that any round writes at or reads
ANSWERS = 480  # of a stage: what an interrupted run loses, minutes on two CPU cores
CELL = ["method", "sentences", "targets", "layer", "positions", "alpha", "net", "context"]  # what makes a cell another
PER_BEHAVIOR = 40  # validation inputs of each behavior, where a round does not say otherwise
GOALS = [
    Goal(name, target, n, at_most=metric_style(name).lower_is_better)
    for name, n in {
        "refuse_harmful": PER_BEHAVIOR,
        "defer_expert": PER_BEHAVIOR,
        "refuse_expert": PER_BEHAVIOR,
        "distinct2": 2 * PER_BEHAVIOR,
        "harmless_kept": PER_BEHAVIOR,
    }.items()
    if (target := metric_style(name).goal) is not None
]  # the targets are those the figures draw
THREE = GOALS[:3]  # what one vector is said not to reach at once


@dataclass(frozen=True)
class Block:
    """Cells that write at the same place and share what their vectors are made of; `readers` is for L2S."""

    layer: int
    positions: str
    sentences: str
    targets: str
    alphas: tuple[float, ...]
    methods: tuple[str, ...] = ("mean", "l2s")
    readers: tuple[tuple[int, str], ...] = ()

    @property
    def name(self) -> str:
        """What its stages are called."""
        alphas = "_".join(f"{alpha:g}" for alpha in self.alphas)
        return f"{self.layer}-{self.positions}-{self.sentences}-{self.targets}-{alphas}"

    def cells(self) -> list[tuple[str, int, str, float]]:
        """Method, layer that is read, kind of net, and strength."""
        readers = {"mean": [(self.layer, "-")], "l2s": list(self.readers or [(self.layer, "tanh")])}
        return [(m, *reader, alpha) for m in self.methods for reader in readers[m] for alpha in self.alphas]


def recipe(rounds: Sequence[str]) -> dict[str, str]:
    """Fingerprints of what these rounds try, and of all sentences: with others, finished stages are no good."""
    spaces = [[name, ROUNDS[name]] for name in rounds]
    sentences = {name: {kind: c and vars(c) for kind, c in pairs.items()} for name, pairs in SENTENCES.items()}
    return {
        "space": fingerprint([spaces, CROSSFITTED, LAYERS, PER_BEHAVIOR, NETS]),
        "sentences": fingerprint(sentences),
    }


def layers_of(model: Model) -> tuple[int, ...]:
    """Those of `LAYERS` that the model has."""
    return tuple(k for k in LAYERS if k < model.n_layers)


def clipped(name: str, n_layers: int) -> dict[str, Any]:
    """The round without the layers that the model does not have; those are printed.

    Raises:
        SteeringError: nothing is left to write at, or to read.
    """
    space = dict(ROUNDS[name])
    for key in {"layers", "contexts", "readers"} & space.keys():
        there = [(v[0] if key == "readers" else v) < n_layers for v in space[key]]
        told = f"round {name!r}: the model has layers 0 to {n_layers - 1}, and of the {key} {space[key]}"
        if not any(there):
            raise SteeringError(f"{told} none is there. Choose other --rounds, or write the model's into ROUNDS")
        if not all(there):
            space[key] = tuple(v for v, is_there in zip(space[key], there, strict=True) if is_there)
            print(f"{told} it has {space[key]}: only these are tried")
    return space


def read_grid(path: str | Path, rounds: Sequence[str]) -> pd.DataFrame:
    """The cells of rounds that were run before, from the `grid.csv` of a study.

    Raises:
        DataError: no such file, columns are missing, or one of the `rounds` that are to be run is there already.
    """
    if not Path(path).is_file():
        raise DataError(f"there is no grid {path}: give the grid.csv of a finished study")
    grid = pd.read_csv(path, keep_default_na=False, na_values=["nan", ""])
    missing = [name for name in [*CELL, *(g.measure for g in GOALS), "round", "inputs"] if name not in grid]
    if missing:
        raise DataError(f"{path} lacks the columns {missing}: expected the grid.csv of a finished study")
    twice = sorted(set(rounds) & set(grid["round"]))
    if twice:
        raise DataError(f"{path} holds the rounds {twice} already: leave them out of --rounds")
    return grid


def distinct(grid: pd.DataFrame) -> pd.DataFrame:
    """Every cell once: as it was judged on the most inputs, where several rounds tried it."""
    return grid.sort_values("inputs", kind="stable").drop_duplicates(CELL, keep="last")


def search(
    study: Study, model: Model, train: Callable[[str], Activations], spare: list[Example], args: argparse.Namespace,
    earlier: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The grid of all rounds, in stages of at most `ANSWERS` answers, or of one cell.

    Args:
        train: gives the activations of all training inputs under a sentence set; those of `spare` are not fitted to.
        spare: the validation part; every round answers its first inputs of each behavior.
        earlier: the grid of rounds that were run before; its rows come first in the answer.
    """
    spaces = {name: clipped(name, model.n_layers) for name in args.rounds}  # before anything costly
    frames = [] if earlier is None else [earlier]
    for name, space in spaces.items():
        held = limited(spare, min(args.limit or 10**9, space.get("inputs", PER_BEHAVIOR)))
        suffix = f"-{space['inputs']}" if "inputs" in space else ""
        known = pd.concat(frames, ignore_index=True) if frames else None
        tried = blocks(space, known, len(held), model.n_layers)
        print(f"round {name!r}: {len(held)} inputs for each cell of {len(tried)} blocks")
        plain = study.stage(f"validation-none{suffix}", lambda: _unsteered(model, held, args))["text"].tolist()  # noqa: B023
        for block in tried:
            frame = run_block(study, model, spare, held, plain, train, name, space, block, args)
            frames.append(frame.assign(round=name, inputs=len(held)))
    return pd.concat(frames, ignore_index=True)


def blocks(space: Mapping[str, Any], known: pd.DataFrame | None, inputs: int, n_layers: int) -> list[Block]:
    """What a round tries; `known` are the cells of the rounds before it."""
    if "best_of" in space:
        return _around_the_best(space, known, inputs, n_layers)
    places = product(space["layers"], space["positions"], space["sentences"], space["targets"])
    readers = tuple(space.get("readers", ()))
    return [Block(*place, alphas=tuple(space["alphas"]), readers=readers) for place in places]


def _around_the_best(
    space: Mapping[str, Any], known: pd.DataFrame | None, inputs: int, n_layers: int
) -> list[Block]:  # fmt: skip
    """The method's best cells, by the score that chooses, and the same with other targets; what is judged is left out.

    Raises:
        DataError: no cell of the method has been judged before.
    """
    method = space["best_of"]
    cells = known if known is None else distinct(known[(known["method"] == method) & (known["layer"] < n_layers)])
    if cells is None or cells.empty:
        raise DataError(f"no cell of {method!r} to begin with: run the rounds before this one, or give their --grid")
    done, found = _blocks_of(cells[cells["inputs"] >= inputs], method), dict[Block, None]()
    rest = cells[cells["inputs"] < inputs].reset_index(drop=True)
    for _ in range(min(space["centers"], len(rest))):
        best = choose_candidate(rest, GOALS)
        rest = rest.drop(index=best.name)
        center = _blocks_of(best.to_frame().T, method)[0]
        found |= dict.fromkeys(replace(center, targets=targets) for targets in space["targets"])
    return [block for block in found if block not in done]


def _blocks_of(cells: pd.DataFrame, method: str) -> list[Block]:
    """One block a cell."""
    return [
        Block(int(c["layer"]), c["positions"], c["sentences"], c["targets"], (float(c["alpha"]),), (method,))
        for _, c in cells.iterrows()
    ]


def run_block(
    study: Study, model: Model, spare: Sequence[Example], held: list[Example], plain: list[str],
    train: Callable[[str], Activations], name: str, space: Mapping[str, Any], block: Block, args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """All cells of one block on the validation inputs, in stages that hold what is done when the run is stopped."""
    acts = cache(lambda: train(block.sentences))  # read, and fitted to, only where a stage is still to do
    if "contexts" in space:
        block = replace(block, readers=(_best_reader(study, acts, space, block, args),))
    fitted = cache(lambda *kind: _vectors(acts(), spare, held, block, kind, args.seed))
    cells = block.cells()
    step = max(1, ANSWERS // len(held))

    def evaluate(part: list[tuple[str, int, str, float]]) -> pd.DataFrame:
        where: dict[str, str | int | float] = {"layer": block.layer, "positions": block.positions}
        made = {"sentences": block.sentences, "targets": block.targets}
        packed = [
            Candidate({"method": m, **made, "net": net, **where, "context": read}, fitted(m, read, net), alpha)
            for m, read, net, alpha in part
        ]
        return evaluate_candidates(
            model, held, plain, packed, site=block.layer, positions=block.positions,
            max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
        )  # fmt: skip

    frames = [
        study.stage(f"grid-{name}-{block.name}-{begin}", lambda: evaluate(cells[begin : begin + step]))  # noqa: B023
        for begin in range(0, len(cells), step)
    ]
    return pd.concat(frames, ignore_index=True)


def _vectors(
    acts: Activations, spare: Sequence[Example], held: Sequence[Example], block: Block, kind: tuple[Any, ...], seed: int
) -> Tensor:
    """One vector for each validation input, none of which was fitted to."""
    method, read, net = kind
    fit = without(acts, [e.id for e in spare])
    if method == "mean":
        return mean_vector(fit, block.layer, block.targets).expand(len(held), -1)
    learned = l2s(block.layer, block.targets, seed, read, net).fit(fit)
    return learned.vectors(Context(tuple(e.id for e in held), acts))


def _best_reader(
    study: Study, acts: Callable[[], Activations], space: Mapping[str, Any], block: Block, args: argparse.Namespace
) -> tuple[int, str]:
    """The layer to read and the kind of net, by cross-fitting."""
    table = study.stage(
        f"crossfit-{block.layer}-{block.sentences}-{block.targets}",
        lambda: crossfitted(acts(), block.layer, block.targets, space, args),
    )
    best = table.loc[table["cosine"].idxmax()]
    return int(best["context"]), str(best["net"])


def crossfitted(
    acts: Activations, layer: int, targets: str, space: Mapping[str, Any], args: argparse.Namespace
) -> pd.DataFrame:
    """How well each context layer and kind of net predicts training inputs it was not fitted to.

    `cosine` is the mean over the behaviors of the mean cosine to the inputs' own contrast vectors; `harmless_norm`
    is the mean predicted norm where nothing should be added, over that where something should.
    """
    ids, z = acts.contrast(layer)
    labels = pd.Series(acts.labels(ids))
    rows = []
    for context, net in product(space["contexts"], CROSSFITTED):
        everyone, vectors = crossfit(l2s(layer, targets, args.seed, context, net), acts, seed=args.seed)
        place = {example_id: row for row, example_id in enumerate(everyone)}
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
    return pd.DataFrame({"example_id": found.example_ids, "text": found.texts})


def pick(grid: pd.DataFrame, method: str) -> Setting:
    """The method's best cell on validation, among those of it that were judged on the most inputs."""
    cells = grid[grid["method"] == method]
    best = choose_candidate(cells[cells["inputs"] == cells["inputs"].max()], GOALS)
    where = (int(best["layer"]), float(best["alpha"]), best["positions"], best["sentences"], best["targets"])
    return Setting(*where, context=int(best["context"]), net=best["net"], inputs=int(best["inputs"]))
