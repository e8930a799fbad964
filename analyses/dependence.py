"""Which tasks need a vector predicted for each input: what can be predicted of the inputs' own, and what it changes.

    python analyses/dependence.py --language-model FOLDER --out results/dependence
    python figures/dependence.py results/dependence

Three tasks of the other studies: a chat model that is to answer in the language of a named city (`l2s_evidence`), a
small image-text model that is to say what it sees (`l2s_images`; existence, color and number), and a chat model that is
to refuse dangerous requests and to send advice questions to a professional (the demo's prompts). For each,
`input_dependence` gives the share of held-out inputs' own vectors that can be predicted within behaviors; inputs with
the same question, or about the same image, are held out together. `shuffle_effects` gives what an input loses with the
vector of another input of its behavior: the log-probability of the wanted minus the unwanted answer of its contrast,
whose texts no method generated.

Layers are those of the other studies; strengths are set by hand. An image question's unwanted answer is the same for
all with one true answer here: one drawn at random, as in `l2s_images`, is something that nobody can predict.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
from _common import numbers, parser, provenance, show_table
from _image_questions import CAPTION, TYPES, image_questions
from _shuffle_test import effects_lost, evenly, with_fixed_contrast, without_split
from l2s_evidence import CONTEXT_TOKEN

import steerlab
from steerlab import L2S, Activations, Example
from steerlab.analysis.input_dependence import input_dependence
from steerlab.analysis.shuffling import shuffle_effects
from steerlab.analysis.study import Study
from steerlab.data import data_hash, demo_set, language_questions
from steerlab.metrics import Estimate
from steerlab.models.model import Model

IMAGES = 400


@dataclass(frozen=True)
class Task:
    """One task: its model, its inputs and their groups, the L2S whose place is used, positions and strength."""

    model: Model
    rows: Sequence[Example]
    l2s: L2S
    positions: str
    alpha: float
    groups: Mapping[str, str]


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """The tasks by name."""
    options: dict[str, Any] = {"net": "mlp", "seed": args.seed, "progress": False}
    language = L2S(11, context_layer=7, context_position=CONTEXT_TOKEN, **options)
    image = L2S(5, context_layer=3, zero_behaviors=[CAPTION], **options)
    safety = L2S(16, context_layer=22, zero_behaviors=["answer"], **options)
    places = language_questions("city")
    images = [
        with_fixed_contrast(row) for row in image_questions("train", IMAGES, args.seed).of_type(*TYPES[:3], CAPTION)
    ]
    prompts = demo_set(seed=args.seed)
    chat, language_chat = (steerlab.load(name, device=args.device) for name in (args.model, args.language_model))
    scenes = steerlab.load("scenes-vlm", device=args.device, backend="hooks")
    questions, shown = {e.id: e.meta["question"] for e in places}, {row.id: row.meta["image"] for row in images}
    return {
        "language": Task(language_chat, without_split(places), language, "all", 0.7, questions),
        "images": Task(scenes, without_split(images), image, "last+generated", 4.0, shown),
        "safety": Task(chat, without_split(prompts), safety, "all", 1.0, {e.id: e.id for e in prompts}),
    }


def run_task(study: Study, name: str, task: Task, args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What can be predicted of the inputs' vectors, and what the answers show of it."""
    rows = evenly(task.rows, args.rows or len(task.rows), args.seed)
    paired = evenly([row for row in rows if row.contrast is not None], args.inputs, args.seed)

    @cache
    def acts() -> Activations:
        options = task.l2s.capture_options(rows) | {"batch_size": args.batch_size, "progress": True}
        return steerlab.capture(task.model, rows, folder=study.folder / "activations" / name, **options).load()

    def effects() -> pd.DataFrame:
        return shuffle_effects(
            task.model, paired, acts().select(example_id=[row.id for row in paired]), task.l2s.layer, alpha=task.alpha,
            positions=task.positions, seed=args.seed, batch_size=args.batch_size,
        )  # fmt: skip

    dependence = study.stage(
        f"{name}-dependence", lambda: input_dependence(acts(), task.l2s, groups=task.groups, seed=args.seed)
    )
    return dependence.assign(task=name), study.stage(f"{name}-effects", effects).assign(task=name)


def main() -> None:
    arguments = parser(__doc__, "results/dependence")
    arguments.add_argument("--language-model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="of the task language")
    arguments.add_argument("--rows", type=int, default=None, help="maximal number of inputs of each task")
    arguments.add_argument("--inputs", type=int, default=192, help="inputs of each task whose answers are steered")
    args = arguments.parse_args()
    every = tasks(args)
    inputs = [row for task in every.values() for row in task.rows]
    identity: dict[str, Any] = {"study": "dependence", "data": data_hash(inputs)}
    identity |= {name: getattr(args, name) for name in ("seed", "rows", "inputs")}
    identity |= {name: [repr(task.l2s), task.positions, task.alpha] for name, task in every.items()}
    models = {name: task.model.info() for name, task in every.items()}
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
        lost = effects_lost(rows, every[str(name)].groups, args.seed)
        summary |= {f"{name}.{key}": value for key, value in lost.items()}
    dependence.round(4).to_csv(study.folder / "dependence.csv", index=False)
    study.finish(effects.round(4), summary, "", provenance(every["safety"].model, inputs, args))
    show_table("Shares within behaviors", dependence.pivot(index="predictor", columns="task", values="within"))


if __name__ == "__main__":
    main()
