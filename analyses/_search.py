"""Search of the safety study: layer, strength, positions, sentences, targets and net, on validation inputs."""

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
from _common import limit_per_group
from _crossfit import crossfit, without
from _safety import NETS, SENTENCES, Setting, l2s, mean_vector
from _selection import Candidate, Goal, choose_candidate, evaluate_candidates
from torch import Tensor

import steerlab
from steerlab import Activations, Example
from steerlab._support.files import fingerprint
from steerlab.analysis.study import Study
from steerlab.data.example import contrast_fields
from steerlab.errors import DataError, SteeringError
from steerlab.methods import Context
from steerlab.models.model import Model
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
    "ending": {
        "layers": (16,),
        "positions": ("all",),
        "sentences": ("situation_closed",),
        "targets": ("equalized",),
        "alphas": (1.2, 1.3),
        "inputs": 80,
        "firsts": (8, 10, 12, 16),
        "methods": ("l2s",),
        "readers": ((22, "relu balanced, 10 units"),),
    },
}
"""The settings that each round tries.

`inputs`: validation inputs of each behavior. The choice is made among the rounds with the most inputs, so "again"
repeats the setting that was best for the mean vector before. `contexts`: the layer to read and the kind of net are
chosen by cross-fitting among these and `CROSSFITTED`. `readers`: layers to read and kinds of net, all tried. `firsts`:
numbers of new tokens that are steered (0: all). `methods`: "mean", "l2s", or both. The rounds from "narrow" to "units",
except "again", and "ending" are centered on the best settings of L2S. `best_of`: centered on the best settings of the
named method in earlier rounds: the `centers` best that were not yet evaluated on so many inputs, each with all
`targets`.
"""
CROSSFITTED = ("tanh", "relu", "relu balanced")
LAYERS = (14, 15, 16, 17, 18, 20, 22, 24, 28)  # every layer that a round steers or reads
ANSWERS = 480  # per stage, minutes on two CPU cores: an interrupted run loses at most one stage
SETTING_COLUMNS = [
    "method",
    "sentences",
    "targets",
    "layer",
    "positions",
    "alpha",
    "net",
    "context",
    "first",
]  # columns that identify a setting
PER_BEHAVIOR = 40  # default number of validation inputs of each behavior
GOALS = [
    Goal(name, target, n, at_most=bool(metric_style(name).lower_is_better))
    for name, n in {
        "refuse_harmful": PER_BEHAVIOR,
        "defer_expert": PER_BEHAVIOR,
        "refuse_expert": PER_BEHAVIOR,
        "distinct2": 2 * PER_BEHAVIOR,
        "harmless_kept": PER_BEHAVIOR,
    }.items()
    if (target := metric_style(name).goal) is not None
]  # the figures draw the same targets
BEHAVIOR_GOALS = GOALS[:3]  # that one vector does not reach at once


@dataclass(frozen=True)
class SettingGroup:
    """Settings with the same layer, positions, sentences and targets; `readers` applies to L2S only."""

    layer: int
    positions: str
    sentences: str
    targets: str
    alphas: tuple[float, ...]
    methods: tuple[str, ...] = ("mean", "l2s")
    readers: tuple[tuple[int, str], ...] = ()
    firsts: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """Part of the names of its stages."""
        alphas = "_".join(f"{alpha:g}" for alpha in self.alphas)
        return f"{self.layer}-{self.positions}-{self.sentences}-{self.targets}-{alphas}"

    def settings(self) -> list[tuple[str, int, str, float, int]]:
        """Tuples of method, layer to read, kind of net, strength, and new tokens that are steered."""
        readers = {"mean": [(self.layer, "-")], "l2s": list(self.readers or [(self.layer, "tanh")])}
        places = [(m, *reader) for m in self.methods for reader in readers[m]]
        return [(*place, alpha, first) for place, alpha, first in product(places, self.alphas, self.firsts)]


def search_fingerprints(rounds: Sequence[str]) -> dict[str, str]:
    """Fingerprints of these rounds and of all sentences; finished stages of other ones are not reused."""
    spaces = [[name, ROUNDS[name]] for name in rounds]
    sentences = {name: {k: contrast_fields(c) for k, c in pairs.items()} for name, pairs in SENTENCES.items()}
    return {
        "space": fingerprint([spaces, CROSSFITTED, LAYERS, PER_BEHAVIOR, NETS]),
        "sentences": fingerprint(sentences),
    }


def layers_of(model: Model) -> tuple[int, ...]:
    """Those of `LAYERS` that the model has."""
    return tuple(k for k in LAYERS if k < model.n_layers)


def round_for_model(name: str, n_layers: int) -> dict[str, Any]:
    """The round restricted to layers that the model has; dropped layers are reported on stdout.

    Raises:
        SteeringError: no layer to steer or to read is left.
    """
    space = dict(ROUNDS[name])
    for key in {"layers", "contexts", "readers"} & space.keys():
        exists = [(v[0] if key == "readers" else v) < n_layers for v in space[key]]
        message = f"round {name!r}: the model has layers 0 to {n_layers - 1}; of the {key} {space[key]}"
        if not any(exists):
            raise SteeringError(f"{message} it has none. Choose other --rounds, or add layers of the model to ROUNDS")
        if not all(exists):
            space[key] = tuple(v for v, in_model in zip(space[key], exists, strict=True) if in_model)
            print(f"{message} it has {space[key]}: only these are tried")
    return space


def read_grid(path: str | Path, rounds: Sequence[str], rules: str | None = None) -> pd.DataFrame:
    """Read the grid of earlier rounds from the `grid.csv` of a study.

    Raises:
        DataError: no such file, columns are missing, it already contains one of `rounds`, or it was judged by other
            rules than `rules` (`rules_fingerprint()`).
    """
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist: give the grid.csv of a finished study")
    grid = pd.read_csv(path, keep_default_na=False, na_values=["nan", ""])
    missing = [name for name in [*SETTING_COLUMNS, *(g.measure for g in GOALS), "round", "inputs"] if name not in grid]
    if missing:
        raise DataError(f"{path} lacks the columns {missing}: give the grid.csv of a finished study")
    if rules is not None and set(grid.get("rules", [""])) != {rules}:
        raise DataError(f"{path} was judged by other rules than today's: search its rounds again, or leave --grid out")
    twice = sorted(set(rounds) & set(grid["round"]))
    if twice:
        raise DataError(f"{path} holds the rounds {twice} already: leave them out of --rounds")
    return grid


def distinct(grid: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: the one with the most inputs where several rounds tried it."""
    return grid.sort_values("inputs", kind="stable").drop_duplicates(SETTING_COLUMNS, keep="last")


def search(
    study: Study, model: Model, train: Callable[[str], Activations], validation: list[Example],
    args: argparse.Namespace, earlier: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The grid of all rounds, computed in stages of at most `ANSWERS` answers, but at least one setting.

    Args:
        train: returns the activations of all training inputs, `validation` included, under a sentence set.
        validation: validation inputs; every round uses the first inputs of each behavior.
        earlier: the grid of earlier rounds; its rows come first in the result.
    """
    spaces = {name: round_for_model(name, model.n_layers) for name in args.rounds}  # before anything costly
    frames = [] if earlier is None else [earlier]
    for name, space in spaces.items():
        examples = limit_per_group(validation, min(args.limit or 10**9, space.get("inputs", PER_BEHAVIOR)))
        suffix = f"-{space['inputs']}" if "inputs" in space else ""
        known = pd.concat(frames, ignore_index=True) if frames else None
        groups = setting_groups(space, known, len(examples), model.n_layers)
        print(f"round {name!r}: {len(examples)} inputs for each setting of {len(groups)} groups")
        plain = study.stage(f"validation-none{suffix}", lambda: _unsteered(model, examples, args))["text"].tolist()  # noqa: B023
        for group in groups:
            frame = run_group(study, model, validation, examples, plain, train, name, space, group, args)
            frames.append(frame.assign(round=name, inputs=len(examples)))
    return pd.concat(frames, ignore_index=True)


def setting_groups(
    space: Mapping[str, Any], known: pd.DataFrame | None, inputs: int, n_layers: int
) -> list[SettingGroup]:
    """The settings of a round; `known` is the grid of the earlier rounds."""
    if "best_of" in space:
        return _around_the_best(space, known, inputs, n_layers)
    places = product(space["layers"], space["positions"], space["sentences"], space["targets"])
    given: dict[str, Any] = {
        key: tuple(space[key]) for key in ("alphas", "readers", "firsts", "methods") if key in space
    }
    return [SettingGroup(*place, **given) for place in places]


def _around_the_best(
    space: Mapping[str, Any], known: pd.DataFrame | None, inputs: int, n_layers: int
) -> list[SettingGroup]:  # fmt: skip
    """The best settings of the method, each with all targets, without settings that have been evaluated.

    Raises:
        DataError: no setting of the method has been evaluated before.
    """
    method = space["best_of"]
    settings = known if known is None else distinct(known[(known["method"] == method) & (known["layer"] < n_layers)])
    if settings is None or settings.empty:
        raise DataError(f"no setting of {method!r} to start from: run the earlier rounds, or give their --grid")
    done, found = _groups_of(settings[settings["inputs"] >= inputs], method), dict[SettingGroup, None]()
    rest = settings[settings["inputs"] < inputs].reset_index(drop=True)
    for _ in range(min(space["centers"], len(rest))):
        best = choose_candidate(rest, GOALS)
        rest = rest.drop(index=best.name)
        center = _groups_of(best.to_frame().T, method)[0]
        found |= dict.fromkeys(replace(center, targets=targets) for targets in space["targets"])
    return [group for group in found if group not in done]


def _groups_of(settings: pd.DataFrame, method: str) -> list[SettingGroup]:
    """One group per setting."""
    return [
        SettingGroup(int(c["layer"]), c["positions"], c["sentences"], c["targets"], (float(c["alpha"]),), (method,))
        for _, c in settings.iterrows()
    ]


def run_group(
    study: Study, model: Model, validation: Sequence[Example], examples: list[Example], plain: list[str],
    train: Callable[[str], Activations], name: str, space: Mapping[str, Any], group: SettingGroup,
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate all settings of one group on the validation inputs, in stages."""
    acts = cache(lambda: train(group.sentences))  # loaded and fitted only if a stage is missing
    if "contexts" in space:
        group = replace(group, readers=(_best_reader(study, acts, space, group, args),))
    fitted = cache(lambda *kind: _vectors(acts(), validation, examples, group, kind, args.seed))
    settings = group.settings()
    step = max(1, ANSWERS // len(examples))

    def evaluate(part: list[tuple[str, int, str, float, int]]) -> pd.DataFrame:
        where: dict[str, str | int | float] = {"layer": group.layer, "positions": group.positions}
        made = {"sentences": group.sentences, "targets": group.targets}
        candidates = [
            Candidate({"method": m, **made, "net": net, **where, "context": read}, fitted(m, read, net), alpha, first)
            for m, read, net, alpha, first in part
        ]
        return evaluate_candidates(
            model, examples, plain, candidates, site=group.layer, positions=group.positions,
            max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
        )  # fmt: skip

    frames = [
        study.stage(f"grid-{name}-{group.name}-{begin}", lambda: evaluate(settings[begin : begin + step]))  # noqa: B023
        for begin in range(0, len(settings), step)
    ]
    return pd.concat(frames, ignore_index=True)


def _vectors(
    acts: Activations,
    validation: Sequence[Example],
    examples: Sequence[Example],
    group: SettingGroup,
    kind: tuple[Any, ...],
    seed: int,
) -> Tensor:
    """One vector per validation input, fitted without the validation inputs."""
    method, read, net = kind
    fit = without(acts, [e.id for e in validation])
    if method == "mean":
        return mean_vector(fit, group.layer, group.targets).expand(len(examples), -1)
    learned = l2s(group.layer, group.targets, seed, read, net).fit(fit)
    return learned.vectors(Context(tuple(e.id for e in examples), acts))


def _best_reader(
    study: Study,
    acts: Callable[[], Activations],
    space: Mapping[str, Any],
    group: SettingGroup,
    args: argparse.Namespace,
) -> tuple[int, str]:
    """The layer to read and the kind of net with the best cross-fitted cosine."""
    table = study.stage(
        f"crossfit-{group.layer}-{group.sentences}-{group.targets}",
        lambda: crossfitted(acts(), group.layer, group.targets, space, args),
    )
    best = table.loc[table["cosine"].idxmax()]
    return int(best["context"]), str(best["net"])


def crossfitted(
    acts: Activations, layer: int, targets: str, space: Mapping[str, Any], args: argparse.Namespace
) -> pd.DataFrame:
    """How well each context layer and kind of net predicts the vectors of training inputs from other folds.

    `cosine` is the mean over the behaviors of the mean cosine to the inputs' contrast vectors; `harmless_norm`
    is the mean predicted norm of inputs without a contrast over that of inputs with one.
    """
    ids, z = acts.contrast(layer)
    labels = pd.Series(acts.labels(ids))
    rows = []
    for context, net in product(space["contexts"], CROSSFITTED):
        everyone, vectors = crossfit(l2s(layer, targets, args.seed, context, net), acts, seed=args.seed)
        place = {example_id: row for row, example_id in enumerate(everyone)}
        cosines = torch.nn.functional.cosine_similarity(vectors[[place[s] for s in ids]], z)
        per = pd.Series(cosines.numpy()).groupby(labels).mean()
        norms = pd.Series(vectors.norm(dim=-1).numpy(), index=everyone)
        harmless_norm = norms[norms.index.difference(ids)].mean() / norms[ids].mean()
        shares = {f"cosine_{name}": value for name, value in per.items()}
        rows.append({"context": context, "net": net, "cosine": per.mean(), **shares, "harmless_norm": harmless_norm})
        print(f"reads layer {context}, {net}: out-of-fold cosine {per.mean():.3f}")
    return pd.DataFrame(rows)


def _unsteered(model: Model, examples: list[Example], args: argparse.Namespace) -> pd.DataFrame:
    found = steerlab.generate(
        model, examples, steer=(), max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=True
    )
    return pd.DataFrame({"example_id": found.example_ids, "text": found.texts})


def pick_setting(grid: pd.DataFrame, method: str) -> Setting:
    """The best validation setting of a method, among those that were evaluated on the most inputs."""
    settings = grid[grid["method"] == method]
    best = choose_candidate(settings[settings["inputs"] == settings["inputs"].max()], GOALS)
    where = (int(best["layer"]), float(best["alpha"]), best["positions"], best["sentences"], best["targets"])
    read = {"context": int(best["context"]), "net": best["net"], "first": int(best["first"])}
    return Setting(*where, **read, inputs=int(best["inputs"]))
