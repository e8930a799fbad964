"""Answers of an image-text model steered from one concept to another, coarsely and finely."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import pandas as pd
import torch
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
ALPHAS, POSITIONS = (1.0, 2.0, 4.0), ("last", "all")
N_CONCEPTS, RANKED_ON = 24, 60  # concepts of all questions together; questions on which pairs of concepts are ranked
IMAGES = {"fit": 500, "validation": 250, "test": 400}
OTHERS = 200  # validation questions of other types
# the coarse vector once more, as strong as it may be where no other type of question loses more than `MOST_LOST` of
# its accuracy on validation questions; tested on images of its own, since the others had been looked at
KEPT_ALPHAS, MOST_LOST, KEPT_IMAGES = (0.25, 0.35, 0.5, 0.7, *ALPHAS), 0.03, 400
KEPT = (KEPT_ALPHAS, MOST_LOST, KEPT_IMAGES)
ANSWER_SETTINGS = (TASKS, METHODS, ALPHAS, POSITIONS, N_CONCEPTS, RANKED_ON, IMAGES, OTHERS, KEPT)


class Answers:
    """The questions of all parts, the model's own answers, and the states that predict them."""

    def __init__(self, study: Study, model: Model, args: argparse.Namespace) -> None:
        self.study, self.model, self.batch_size, self.layers = study, model, args.batch_size, args.layers
        sizes = {part: min(n, args.limit or n) for part, n in (*IMAGES.items(), ("kept", KEPT_IMAGES))}
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
        acts = steerlab.capture(self.model, self.rows["fit"], layers=self.layers, batch_size=64, folder=folder).load()
        said = self.own["fit"][acts.index["example_id"]].to_numpy()
        return replace(acts, index=acts.index.assign(behavior=said))

    def _concepts(self, layer: int) -> ConceptDictionary:
        """The concepts of all these states."""
        return ConceptDictionary(layer, N_CONCEPTS).fit(self.states)

    def shares(self, layer: int, answer: str) -> pd.DataFrame:
        """Of each concept's inputs, the share and the number that are answered so."""
        active = self.concepts(layer).assign(self.states.at(layer)).numpy()
        said = pd.Series(self.states.index["behavior"].to_numpy() == answer)
        return said.groupby(active).agg(["mean", "sum"])

    def _coarse(self, layer: int, task: str) -> SteeringVector:
        """The mean state before the wanted answer minus that before the old one."""
        old, new = (self.states.select(behavior=answer).at(layer).mean(0) for answer in TASKS[task])
        return SteeringVector({layer: new - old})

    def _steerer(self, method: str, layer: int, task: str) -> Steerer:
        """A fitted steerer; "random" is a direction as long as the coarse vector."""
        old, new = TASKS[task]
        if method == "coarse":
            return self.coarse(layer, task)
        if method == "random":
            drawn = torch.randn(self.model.hidden_size, generator=torch.Generator().manual_seed(0))
            return SteeringVector({layer: drawn * self.coarse(layer, task).norm / drawn.norm()})
        if method == "gated":
            probe = LinearProbe(layer, positive=[old]).fit(self.states)
            return Gated(self.coarse(layer, task), probe, threshold=0.5)
        concepts = self.concepts(layer)
        if method == "one_concept":
            source, target = self.best_pair(layer, task)
            return ConceptSteering(concepts, {source: concepts.between(source, target)})
        target = self.main_concept(layer, new)  # every concept of the old answer, to the largest of the new one
        pairs = {k: concepts.between(k, target) for k in self.sources(layer, old) if k != target}
        return ConceptSteering(concepts, pairs or {target: torch.zeros_like(concepts.concepts_[target])})

    def main_concept(self, layer: int, answer: str) -> int:
        """The concept with most inputs that are answered so."""
        return int(self.shares(layer, answer)["sum"].idxmax())

    def sources(self, layer: int, answer: str) -> list[int]:
        """The concepts of which more than half of the inputs are answered so; the main one if there is none."""
        shares = self.shares(layer, answer)["mean"]
        return [int(k) for k in shares[shares > 0.5].index] or [self.main_concept(layer, answer)]

    def best_pair(self, layer: int, task: str) -> tuple[int, int]:
        """The pair of concepts whose vector, added to all, makes the wanted answer alone more frequent, by most."""
        old, new = TASKS[task]
        concepts = self.concepts(layer)
        rows = [row for row in self.rows["fit"] if row.split == task][:RANKED_ON]
        own = self.own["fit"][[row.id for row in rows]].value_counts()

        def count() -> pd.DataFrame:
            found = []
            for source, target in product(self.sources(layer, old), range(N_CONCEPTS)):
                if source != target:
                    vector = SteeringVector({layer: concepts.between(source, target)})
                    said = answers(self.model, rows, Request(vector, 1.0, "all"), self.batch_size)["said"]
                    change = said.value_counts().sub(own, fill_value=0).rename_axis("answer").reset_index(name="change")
                    found.append(change.assign(vector=f"{source}>{target}"))
            return pd.concat(found, ignore_index=True)

        changes = self.study.stage(f"ranked-{task}-{layer}", count)
        table = changes.astype({"answer": str}).pivot(index="vector", columns="answer", values="change").fillna(0.0)
        ranked = rank_concept_vectors(table)
        clear = ranked[ranked["target"] == new]  # where no vector leads to it alone: the one that leads there most
        best = clear["vector"].iloc[0] if len(clear) else (table[new].idxmax() if new in table else table.index[0])
        source, target = str(best).split(">")
        return int(source), int(target)

    def steered(self, part: str, method: str, task: str, layer: int, alpha: float, where: str) -> pd.DataFrame:
        """Each question with the own and the steered answer."""
        name = f"{part}-{method}-{task}-{layer}-{alpha:g}-{where}"
        rows = self.rows[part]
        if part == "validation":  # the questions of the task, and some others
            others = [row for row in rows if row.split != task]
            rows = [row for row in rows if row.split == task] + others[:: max(1, len(others) // OTHERS)]
        said = self.answer(name, rows, lambda: Request(self.steerer(method, layer, task), alpha, where))
        frame = pd.DataFrame({"example_id": [row.id for row in rows], "type": [row.split for row in rows]})
        frame["image"] = [row.meta["image"] for row in rows]
        frame["true"] = [row.behavior for row in rows]
        return frame.assign(
            own=self.own[part][frame["example_id"]].to_numpy(), said=said[frame["example_id"]].to_numpy()
        )


def net_effect(frame: pd.DataFrame, task: str) -> float:
    """The share of old answers that became the wanted one, minus the share of all other answers that changed."""
    old, new = TASKS[task]
    is_old = (frame["own"] == old) & (frame["type"] == task)
    changed = frame["own"] != frame["said"]
    return float((frame.loc[is_old, "said"] == new).mean() - changed[~is_old].mean())


def lost(frame: pd.DataFrame, task: str) -> float:
    """The largest loss of accuracy of another type of questions."""
    others = frame[frame["type"] != task]
    right = others[["own", "said"]].eq(others["true"], axis=0).groupby(others["type"]).mean()
    return float((right["own"] - right["said"]).max())


def kept_grid(run: Answers, task: str) -> pd.DataFrame:
    """Of the coarse vector at every setting, on validation questions: the share of old answers that it moves, and the
    largest loss of accuracy of another type of questions.
    """
    old, new = TASKS[task]
    rows = []
    for layer, alpha, where in product(run.layers, KEPT_ALPHAS, POSITIONS):
        frame = run.steered("validation", "coarse", task, layer, alpha, where)
        is_old = (frame["type"] == task) & (frame["own"] == old)
        rows.append({
            "method": "coarse_kept", "task": task, "layer": layer, "alpha": alpha, "positions": where,
            "net": net_effect(frame, task), "moved": (frame.loc[is_old, "said"] == new).mean(),
            "lost": lost(frame, task),
        })  # fmt: skip
    return pd.DataFrame(rows)


def setting_of(row: pd.Series) -> dict[str, Any]:
    """The layer, strength and positions of a row of the grid."""
    return {"layer": int(row["layer"]), "alpha": float(row["alpha"]), "positions": str(row["positions"])}


def steer_answers(
    study: Study, model: Model, args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Choose layer, strength and positions of each method on validation questions, then answer the test questions."""
    run = Answers(study, model, args)
    grid = []
    for method, task, layer, alpha, where in product(METHODS, TASKS, run.layers, ALPHAS, POSITIONS):
        net = net_effect(run.steered("validation", method, task, layer, alpha, where), task)
        grid.append({"method": method, "task": task, "layer": layer, "alpha": alpha, "positions": where, "net": net})
    table = pd.DataFrame(grid)
    ranked = table.sort_values(["net", "alpha"], ascending=[False, True], kind="stable")
    chosen = ranked.groupby(["method", "task"], sort=False).first()
    answered, grids, summary = [], [table], dict[str, Any]()
    for task in TASKS:
        found = {}
        for method in METHODS:
            setting = setting_of(chosen.loc[(method, task)])
            found[method] = run.steered("test", method, task, *setting.values())
            summary[f"{task}.{method}.setting"] = setting
        at = summary[f"{task}.coarse.setting"]
        found["random"] = run.steered("test", "random", task, *at.values())
        grids.append(tried := kept_grid(run, task))
        allowed = tried[tried["lost"] <= MOST_LOST]
        if len(allowed):
            setting = setting_of(allowed.loc[allowed["moved"].idxmax()])
            found["coarse_kept"] = run.steered("kept", "coarse", task, *setting.values())
            summary[f"{task}.coarse_kept.setting"] = setting
        for method, frame in found.items():
            answered.append(frame.assign(method=method, task=task))
            summary |= {f"{task}.{method}.{key}": value for key, value in of_test(frame, task).items()}
        for rival in ("coarse", "gated"):
            for key, difference in differences(found["concepts"], found[rival], task).items():
                summary[f"{task}.concepts_over_{rival}.{key}"] = difference
    return pd.concat(answered, ignore_index=True), pd.concat(grids, ignore_index=True), summary


def hits(frame: pd.DataFrame, task: str) -> dict[str, pd.Series]:
    """By image: the share of old answers that became the wanted one, and of others that changed."""
    old, new = TASKS[task]
    same = frame["type"] == task
    is_old, changed = same & (frame["own"] == old), frame["own"] != frame["said"]
    parts = {"moved": (is_old, frame["said"] == new), "changed_same": (same & ~is_old, changed)}
    parts["changed_other"] = (~same, changed)
    return {key: hit[rows].astype(float).groupby(frame.loc[rows, "image"]).mean() for key, (rows, hit) in parts.items()}


def differences(first: pd.DataFrame, second: pd.DataFrame, task: str) -> dict[str, Any]:
    """What the first has over the second, image by image."""
    one, other = hits(first, task), hits(second, task)
    return {key: numbers(paired_bootstrap(one[key], other[key][one[key].index], seed=0)) for key in one}


def of_test(frame: pd.DataFrame, task: str) -> dict[str, Any]:
    """The measures with intervals over images, counts of answers, and the accuracy of each type before and after."""
    found: dict[str, Any] = {
        key: numbers(bootstrap_ci(by_image.tolist(), seed=0)) for key, by_image in hits(frame, task).items()
    }
    same = frame["type"] == task
    for answer in TASKS[task]:
        before, after = (int((frame.loc[same, column] == answer).sum()) for column in ("own", "said"))
        found[f"answers_{answer}"] = {"before": before, "after": after}
    for kind, rows in frame.groupby("type"):
        right = {c: (rows[c] == rows["true"]).astype(float).groupby(rows["image"]).mean() for c in ("own", "said")}
        found[f"accuracy_{kind}.before"] = round(float(right["own"].mean()), 4)
        found[f"accuracy_{kind}.change"] = numbers(paired_bootstrap(right["said"], right["own"], seed=0))
    return found
