"""Answers of an image-text model steered from one concept to another, coarsely and finely."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from _common import numbers
from _image_questions import TYPES, answers, image_questions

import steerlab
from steerlab import Activations, Example, Request, SteeringVector
from steerlab.analysis.concepts import rank_concept_vectors
from steerlab.analysis.study import Study
from steerlab.methods import ConceptDictionary, ConceptSteering, Gated, LinearProbe, Steerer
from steerlab.metrics import bootstrap_ci, paired_bootstrap
from steerlab.models.model import Model

TASKS = {"existence": ("yes", "no"), "number": ("one", "three"), "color": ("red", "blue")}
METHODS = ("coarse", "gated", "one_concept", "concepts")
LAYERS, ALPHAS, WHERE = (2, 3, 4, 5), (1.0, 2.0, 4.0), ("last", "all")
N_CONCEPTS, RANKED_ON = 24, 60
IMAGES = {"fit": 500, "validation": 60, "test": 400}


class Answers:
    """The questions of three parts, the model's own answers, and the states that predict them."""

    def __init__(self, study: Study, model: Model, args: argparse.Namespace) -> None:
        self.study, self.model, self.batch_size = study, model, args.batch_size
        sizes = {part: min(n, args.limit or n) for part, n in IMAGES.items()}
        # parts of seeds of their own: the questions of `l2s_images` were looked at
        self.rows = {
            part: [
                row.replace(contrast=None, id=f"{part}/{row.id}")
                for row in image_questions("test", n, args.seed + 800 + k).of_type(*TYPES)
            ]
            for k, (part, n) in enumerate(sizes.items())
        }
        self.concepts, self.coarse = cache(self._concepts), cache(self._coarse)
        self.steerer = cache(self._steerer)
        self.own = {part: self.answer(f"own-{part}", self.rows[part], lambda: None) for part in self.rows}

    def answer(self, name: str, rows: list[Example], request: Callable[[], Request | None]) -> pd.Series:
        """What the model says under a request, by example id."""
        found = self.study.stage(f"answers-{name}", lambda: answers(self.model, rows, request(), self.batch_size))
        return found.set_index("example_id")["said"].fillna("").astype(str)

    @cached_property
    def states(self) -> Activations:
        """States before the answer to the questions for fitting; `behavior` is the model's own answer."""
        folder = self.study.folder / "stages" / "states-answers"
        acts = steerlab.capture(self.model, self.rows["fit"], layers=list(LAYERS), batch_size=64, folder=folder).load()
        said = self.own["fit"][acts.index["example_id"]].to_numpy()
        return Activations(acts.values, acts.index.assign(behavior=said), acts.sites, acts.info)

    def _concepts(self, layer: int) -> ConceptDictionary:
        """The concepts of all these states."""
        return ConceptDictionary(layer, N_CONCEPTS).fit(self.states)

    def shares(self, layer: int, answer: str) -> pd.Series:
        """The share of each concept's inputs that are answered so."""
        active = self.concepts(layer).assign(self.states.at(layer)).numpy()
        said = pd.Series(self.states.index["behavior"].to_numpy() == answer)
        return said.groupby(active).mean()

    def _coarse(self, layer: int, task: str) -> SteeringVector:
        """The mean state before the wanted answer minus that before the old one."""
        old, new = (self.states.select(behavior=answer).at(layer).mean(0) for answer in TASKS[task])
        vector = SteeringVector({layer: new - old})
        vector.info_ = dict(self.concepts(layer).info_)
        return vector

    def _steerer(self, method: str, layer: int, task: str) -> Steerer:
        """A fitted steerer."""
        old, new = TASKS[task]
        if method == "coarse":
            return self.coarse(layer, task)
        if method == "gated":
            acts = self.states
            labels = np.where(acts.index["behavior"] == old, "old", "other")
            labeled = Activations(acts.values, acts.index.assign(behavior=labels), acts.sites, acts.info)
            probe = LinearProbe(layer, positive=["old"]).fit(labeled)
            return Gated(self.coarse(layer, task), probe, threshold=0.5)
        concepts, leave = self.concepts(layer), self.shares(layer, old)
        if method == "concepts":  # every concept of the old answer, to the purest of the new one
            reach = int(self.shares(layer, new).idxmax())
            pairs = {int(k): concepts.between(int(k), reach) for k in leave[leave > 0.5].index if k != reach}
            return ConceptSteering(
                concepts, pairs or {int(leave.idxmax()): concepts.between(int(leave.idxmax()), reach)}
            )
        source, reach = self.best_pair(layer, task)
        return ConceptSteering(concepts, {source: concepts.between(source, reach)})

    def best_pair(self, layer: int, task: str) -> tuple[int, int]:
        """The pair of concepts whose vector, added to all, makes the wanted answer alone more frequent, by most."""
        old, new = TASKS[task]
        concepts, leave = self.concepts(layer), self.shares(layer, old)
        sources = [int(k) for k in (leave[leave > 0.5].index if (leave > 0.5).any() else [leave.idxmax()])]
        rows = [row for row in self.rows["fit"] if row.split == task][:RANKED_ON]
        own = self.own["fit"][[row.id for row in rows]].value_counts()

        def count() -> pd.DataFrame:
            found = []
            for source, reach in product(sources, range(N_CONCEPTS)):
                if source != reach:
                    vector = SteeringVector({layer: concepts.between(source, reach)})
                    said = answers(self.model, rows, Request((vector,), 1.0, "all"), self.batch_size)["said"]
                    counts = said.value_counts().sub(own, fill_value=0)
                    found.append(
                        counts.rename_axis("answer").reset_index(name="change").assign(vector=f"{source}>{reach}")
                    )
            return pd.concat(found, ignore_index=True)

        changes = self.study.stage(f"ranked-{task}-{layer}", count)
        table = changes.astype({"answer": str}).pivot(index="vector", columns="answer", values="change").fillna(0.0)
        ranked = rank_concept_vectors(table)
        clear = ranked[(ranked["target"] == new)]
        best = (
            str(clear["vector"].iloc[0]) if len(clear) else str(table[new].idxmax() if new in table else table.index[0])
        )
        source, reach = best.split(">")
        return int(source), int(reach)

    def steered(self, part: str, method: str, task: str, layer: int, alpha: float, where: str) -> pd.DataFrame:
        """Each question with the own and the steered answer."""
        name = f"{part}-{method}-{task}-{layer}-{alpha:g}-{where}"
        rows = self.rows[part]
        said = self.answer(name, rows, lambda: Request((self.steerer(method, layer, task),), alpha, where))
        frame = pd.DataFrame({"example_id": [row.id for row in rows], "type": [row.split for row in rows]})
        frame["image"] = [row.meta["image"] for row in rows]
        frame["true"] = [row.behavior for row in rows]
        return frame.assign(
            own=self.own[part][frame["example_id"]].to_numpy(), said=said[frame["example_id"]].to_numpy()
        )


def measure(frame: pd.DataFrame, task: str) -> dict[str, float]:
    """What steering did: the share of old answers that became the wanted one, and the share of other answers, of this
    type and of the others, that changed.
    """
    old, new = TASKS[task]
    is_old, same = (frame["own"] == old) & (frame["type"] == task), frame["type"] == task
    changed = frame["own"] != frame["said"]
    moved = float((frame.loc[is_old, "said"] == new).mean())
    others = {"changed_same": changed[same & ~is_old], "changed_other": changed[~same]}
    shares = {name: float(rows.mean()) for name, rows in others.items()}
    return {"moved": moved, **shares, "net": moved - float(changed[~is_old].mean())}


def steer_answers(
    study: Study, model: Model, args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Choose layer, strength and positions of each method on validation questions, then answer the test questions."""
    run = Answers(study, model, args)
    grid = []
    for method, task, layer, alpha, where in product(METHODS, TASKS, LAYERS, ALPHAS, WHERE):
        found = measure(run.steered("validation", method, task, layer, alpha, where), task)
        grid.append({"method": method, "task": task, "layer": layer, "alpha": alpha, "positions": where} | found)
    table = pd.DataFrame(grid)
    ranked = table.sort_values(["net", "alpha"], ascending=[False, True], kind="stable")
    chosen = ranked.groupby(["method", "task"], sort=False).first()
    answered, summary = [], dict[str, Any]()
    for (method, task), at in chosen.iterrows():
        frame = run.steered("test", method, task, int(at["layer"]), float(at["alpha"]), str(at["positions"]))
        answered.append(frame.assign(method=method, task=task))
        summary |= {f"{task}.{method}.{key}": value for key, value in of_test(frame, task).items()}
        setting = {"layer": int(at["layer"]), "alpha": float(at["alpha"]), "positions": at["positions"]}
        summary[f"{task}.{method}.setting"] = setting
    return pd.concat(answered, ignore_index=True), table, summary


def of_test(frame: pd.DataFrame, task: str) -> dict[str, Any]:
    """The measures with intervals over images, counts of answers, and the accuracy of each type before and after."""
    old, new = TASKS[task]
    is_old = (frame["own"] == old) & (frame["type"] == task)
    same = frame["type"] == task
    found: dict[str, Any] = {}
    parts = {"moved": (is_old, frame["said"] == new), "changed_same": (same & ~is_old, frame["own"] != frame["said"])}
    parts["changed_other"] = (~same, frame["own"] != frame["said"])
    for key, (rows, hit) in parts.items():
        by_image = hit[rows].astype(float).groupby(frame.loc[rows, "image"]).mean()
        found[key] = numbers(bootstrap_ci(by_image.tolist(), seed=0))
    for answer in (old, new):
        counts = [int((frame.loc[same, column] == answer).sum()) for column in ("own", "said")]
        found[f"answers_{answer}"] = {"before": counts[0], "after": counts[1]}
    for kind, rows in frame.groupby("type"):
        right = {
            column: (rows[column] == rows["true"]).astype(float).groupby(rows["image"]).mean()
            for column in ("own", "said")
        }
        found[f"accuracy_{kind}"] = {
            "before": round(float(right["own"].mean()), 4),
            "after": round(float(right["said"].mean()), 4),
        }
        found[f"accuracy_{kind}_change"] = numbers(paired_bootstrap(right["said"], right["own"], seed=0))
    return found
