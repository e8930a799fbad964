"""Side effects measured by the hallucination study: captions, easy-VQA by template, and photographs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _hallucination import SPLITS, accuracy, answers, scenes_of
from scenes.questions import absent_partners, existence, scene_vocabulary
from scenes.world import Scene

import steerlab
from steerlab import Example, Request
from steerlab.analysis.study import Study
from steerlab.data import coco_objects, easy_vqa, pope_questions
from steerlab.metrics import chair
from steerlab.models.model import Model

DESCRIBE = "Describe the image."


def measure_side_effects(
    study: Study, model: Model, requests: Mapping[str, Request | None], args: argparse.Namespace
) -> dict[str, float]:
    """Run all measurements that the arguments allow, one stage and one CSV each; returns the summary's entries."""
    size, summary = args.batch_size, dict[str, float]()

    def keep(name: str, keys: Sequence[str], values: Sequence[str], compute: Callable[[], pd.DataFrame]) -> None:
        frame = study.stage(name, compute)
        frame.round(4).to_csv(study.folder / f"{name}.csv", index=False)
        for row in frame.to_dict("records"):
            at = ".".join(str(row[key]) for key in keys)
            summary.update({f"{name}.{value}.{at}": round(float(row[value]), 4) for value in values})

    if args.pope is None:
        scenes = scenes_of(args, "test")
        scored = ["chair_s", "chair_i", "recall", "length"]
        keep("captions", ["method"], scored, lambda: scene_captions(model, scenes, requests, size))
        keep("partners", ["method"], ["yes_rate"], lambda: absent_partner_answers(model, scenes, requests, size))
    shares = ["accuracy", "yes_rate"]
    if args.easy_vqa:
        ask = partial(by_template, model, args.easy_vqa, requests, size, args.limit)
        keep("easy_vqa", ["method", "template"], shares, ask)
    if args.coco_free:
        keep("photographs", ["method", "split"], shares, partial(photographs, model, args.coco_free, requests, size))
    return summary


def scene_captions(
    model: Model, scenes: Mapping[str, Scene], requests: Mapping[str, Request | None], batch_size: int
) -> pd.DataFrame:
    """CHAIR of the captions under every method, one row per method."""
    rows = [Example(DESCRIBE, id=f"caption/{name}", images=(scene.image(),)) for name, scene in scenes.items()]
    objects = {row.id: scene.kinds for row, scene in zip(rows, scenes.values(), strict=True)}
    words = scene_vocabulary(next(iter(scenes.values())).world.kinds)
    found = []
    for method, request in requests.items():
        steer = () if request is None else request
        texts = steerlab.generate(model, rows, steer=steer, max_new_tokens=40, batch_size=batch_size)
        scores = chair(dict(zip(objects, texts, strict=True)), objects, words)
        partners = sum(
            len(scores.captions[row.id].hallucinated & set(absent_partners(scene)))
            for row, scene in zip(rows, scenes.values(), strict=True)
        )
        invented = sum(len(one.hallucinated) for one in scores.captions.values())
        found.append({
            "method": method, "chair_s": scores.chair_s, "chair_i": scores.chair_i, "recall": scores.recall,
            "length": scores.length, "n": scores.n, "partners_of_invented": partners / max(1, invented),
        })  # fmt: skip
    return pd.DataFrame(found)


def absent_partner_answers(
    model: Model, scenes: Mapping[str, Scene], requests: Mapping[str, Request | None], batch_size: int
) -> pd.DataFrame:
    """How often each method says yes to an absent object that often appears with one in the scene."""
    rows = [
        Example(existence(scene, kind).text, id=f"partner/{name}/{kind}", behavior="no", images=(image,))
        for name, scene in scenes.items()
        for image in [scene.image()]
        for kind in absent_partners(scene)
    ]
    said = {method: answers(model, rows, request, batch_size) for method, request in requests.items()}
    return pd.DataFrame(
        {"method": method, "yes_rate": float(np.mean([answer == "yes" for answer in found])), "n": len(rows)}
        for method, found in said.items()
    )


def by_template(
    model: Model, folder: str | Path, requests: Mapping[str, Request | None], batch_size: int, limit: int | None
) -> pd.DataFrame:
    """easy-VQA's yes/no questions, balanced within each template: accuracy and yes-rate by the first token."""
    rows = [row for row in easy_vqa(folder, split="test", balanced=True) if row.meta["kind"] == "yes/no"]
    rows = rows[:: max(1, len(rows) // (limit or 2000))]
    templates = [row.meta["template"].replace("{colour}", "{color}") for row in rows]
    found: list[pd.DataFrame] = []
    for method, request in requests.items():
        said = answers(model, rows, request, batch_size)
        frame = pd.DataFrame({"template": templates, "yes": [a == "yes" for a in said]})
        frame["right"] = [row.behavior == answer for row, answer in zip(rows, said, strict=True)]
        whole = frame.assign(template="all")
        groups = pd.concat([frame, whole]).groupby("template", sort=False)
        shares = groups.agg(accuracy=("right", "mean"), yes_rate=("yes", "mean"), n=("yes", "size")).reset_index()
        found.append(shares.assign(method=method))
    return pd.concat(found, ignore_index=True)[["method", "template", "accuracy", "yes_rate", "n"]]


def photographs(
    model: Model, folder: str | Path, requests: Mapping[str, Request | None], batch_size: int, n: int = 50
) -> pd.DataFrame:
    """POPE questions made from photographs with annotated objects, on which the small model was not trained."""
    root = Path(folder)
    shown = coco_objects(root / "annotations.jsonl")
    usual = coco_objects(root / "objects_all.jsonl")
    objects_of = {name: sorted(objects) for name, objects in sorted(shown.items()) if objects}
    objects_of = dict(list(objects_of.items())[:n])
    found = []
    for split in SPLITS:
        rows = pope_questions(objects_of, split, 2, counts=usual, images=root / "images", name="photo")
        for method, request in requests.items():
            said = answers(model, rows, request, batch_size)
            yes = float(np.mean([answer == "yes" for answer in said]))
            found.append(
                {"method": method, "split": split, "accuracy": accuracy(rows, said), "yes_rate": yes, "n": len(rows)}
            )
    return pd.DataFrame(found)
