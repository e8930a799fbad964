"""Which tasks need a vector predicted for each input, told before any steering, and by what the answers show.

    python analyses/dependence.py --language-model FOLDER --out results/dependence
    python figures/dependence.py results/dependence

Three tasks of the other studies: a chat model that is to answer in the language of a named city (`l2s_evidence`), a
small image-text model that is to say what it sees (`l2s_images`), and a chat model that is to refuse dangerous requests
and to send advice questions to a professional (the demo's prompts). For each, `input_dependence` gives the share of
held-out inputs' own vectors that can be predicted within behaviors, and `shuffle_effects` what of their effect on the
answers is lost with the vector of another input of the same behavior. Layers are those of the other studies; nothing is
chosen here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pandas as pd
from _common import numbers, parser, provenance, show_table
from _image_questions import CAPTION, TYPES, image_questions
from l2s_evidence import CONTEXT_TOKEN
from l2s_images import IMAGES

import steerlab
from steerlab import L2S, Example
from steerlab.analysis.input_dependence import input_dependence, shuffle_effects
from steerlab.analysis.study import Study
from steerlab.data import data_hash, demo_set, language_questions
from steerlab.metrics import Estimate
from steerlab.models.model import Model

RESAMPLES = 2000


@dataclass(frozen=True)
class Task:
    """One task: how its model is loaded, its inputs, the L2S whose place is used, steered positions, and strength."""

    load: Callable[[], Model]
    rows: Sequence[Example]
    l2s: L2S
    positions: str
    alpha: float


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """The tasks by name."""
    options: dict[str, Any] = {"seed": args.seed, "progress": False}
    language = L2S(11, context_layer=7, context_position=CONTEXT_TOKEN, **options)
    image = L2S(5, context_layer=3, zero_behaviors=[CAPTION], **options)
    safety = L2S(16, zero_behaviors=["answer"], **options)
    chat, device = args.model, args.device
    images = image_questions("train", IMAGES["train"], args.seed).of_type(*TYPES, CAPTION)
    return {
        "language": Task(
            lambda: steerlab.load(args.language_model, device=device), language_questions("city"), language, "all", 0.7
        ),
        "images": Task(
            lambda: steerlab.load("scenes-vlm", device=device, backend="hooks"), images, image, "last+generated", 4.0
        ),
        "safety": Task(lambda: steerlab.load(chat, device=device), demo_set(seed=args.seed), safety, "all", 1.0),
    }


def evenly(rows: Sequence[Example], n: int) -> list[Example]:
    """The first `n` inputs, taken from each behavior in turn."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.behavior, []).append(row)
    in_turn = chain.from_iterable(zip_longest(*groups.values()))
    return [row for row in in_turn if row is not None][:n]


def share_lost(effects: pd.DataFrame, instead: str, seed: int) -> dict[str, float]:
    """Of the effect of the inputs' own vectors, the share that is lost with the vectors of another column.

    Sums over inputs are divided, so that no input with a small effect decides; inputs are resampled.
    """
    lost, gained = (effects["own"] - effects[instead]).to_numpy(), (effects["own"] - effects["none"]).to_numpy()
    draws = np.random.default_rng(seed).integers(0, len(lost), (RESAMPLES, len(lost)))
    low, high = np.quantile(lost[draws].sum(1) / gained[draws].sum(1), [0.025, 0.975])
    return numbers(Estimate(float(lost.sum() / gained.sum()), float(low), float(high), len(lost)))


def run_task(study: Study, name: str, task: Task, args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What can be predicted of the inputs' vectors, and what the answers show of it."""
    rows = evenly(task.rows, args.limit or len(task.rows))
    paired = evenly([row for row in rows if row.contrast is not None], args.inputs)
    stages = f"{name}-dependence", f"{name}-effects"
    if not all(map(study.has, stages)):
        model = task.load()
        options = task.l2s.capture_options(rows) | {"batch_size": args.batch_size, "progress": True}
        acts = steerlab.capture(model, rows, folder=study.folder / "activations" / name, **options).load()
        study.stage(stages[0], lambda: input_dependence(acts, task.l2s, seed=args.seed))
        few = acts.select(example_id=[row.id for row in paired])
        effects = partial(
            shuffle_effects, model, paired, few, task.l2s.layer, alpha=task.alpha, positions=task.positions,
            seed=args.seed, batch_size=args.batch_size,
        )  # fmt: skip
        study.stage(stages[1], effects)
    dependence, effect = (study.stage(stage, pd.DataFrame).assign(task=name) for stage in stages)
    return dependence, effect


def main() -> None:
    arguments = parser(__doc__, "results/dependence")
    arguments.add_argument("--language-model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="of the task language")
    arguments.add_argument("--inputs", type=int, default=192, help="inputs of each task whose answers are steered")
    args = arguments.parse_args()
    every = tasks(args)
    inputs = [row for task in every.values() for row in task.rows]
    named = ("seed", "limit", "model", "inputs")
    identity: dict[str, Any] = {"study": "dependence", "data": data_hash(inputs)}
    identity |= {name: getattr(args, name) for name in named}
    models = {name: task.load().info() for name, task in every.items()}
    identity |= {f"{name} weights": info["weights"] for name, info in models.items()}
    study = Study(args.out, identity)
    found = [run_task(study, name, task, args) for name, task in every.items()]
    dependence, effects = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
    summary: dict[str, Any] = {f"{name}.model": info["model"] for name, info in models.items()}
    for (name, kind), row in dependence.set_index(["task", "predictor"]).iterrows():
        summary[f"{name}.{kind}.within"] = numbers(
            Estimate(row["within"], row["within_low"], row["within_high"], int(row["n"]))
        )
        summary |= {f"{name}.{kind}.{column}": round(float(row[column]), 4) for column in ("explained", "between")}
    for name, rows in effects.groupby("task", sort=False):
        for instead in ("other", "mean"):
            summary[f"{name}.lost_with_{instead}"] = share_lost(rows, instead, args.seed)
    dependence.round(4).to_csv(study.folder / "dependence.csv", index=False)
    study.finish(effects.round(4), summary, "", provenance(every["safety"].load(), inputs, args))
    show_table("Shares within behaviors", dependence.pivot(index="predictor", columns="task", values="within"))


if __name__ == "__main__":
    main()
