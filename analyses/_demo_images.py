"""The first half of the demo: a small image-text model says what is usual, and L2S makes it say what it sees."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from _common import ROOT, estimate
from _hallucination import save_gallery
from _image_questions import CAPTION, TYPES, answers, image_questions, shares_by_image
from _shuffle_test import effects_lost, evenly, with_fixed_contrast, without_split
from l2s_images import CONTEXT_LAYERS, MIN_TRAIN_IMAGES, answer_means, as_request, oracle, predictor

import steerlab
from steerlab import L2S, Activations, Example, SteeringVector
from steerlab.analysis.input_dependence import input_dependence
from steerlab.analysis.shuffling import shuffle_effects
from steerlab.analysis.study import Study
from steerlab.methods import Steerer
from steerlab.models.model import Model

METHODS = ("one_vector", "routed_mean", "l2s", "own")
TRAIN_IMAGES = MIN_TRAIN_IMAGES * 4 // 5  # the study fits to four fifths of its images, for each seed others
SHUFFLED, STRENGTH = 44, 4.0  # questions of each type in the shuffle test; their strength in analyses/dependence.py
OPENING = """\
steerlab demo: Learn-to-Steer
images: {model} sees what is in an image, but often says what is usual instead (it was trained to)
  1. read its layers under a true and a false answer to {train} questions about training images
  2. fit L2S, and answer {test} questions about unseen images in five ways
  3. give questions the vector of another question with the same answer: does the effect get smaller?
"""


def chosen_settings() -> dict[str, Any]:
    """What analyses/l2s_images.py chose on its validation questions; nothing is chosen on the demo's."""
    path = ROOT / "analyses" / "results" / "l2s_images" / "summary.json"
    chosen: dict[str, Any] = json.loads(path.read_text())
    return {k: v for k, v in chosen.items() if k.endswith(".setting") or k in ("context_layer", "options")}


def run_image_half(
    study: Study, model: Model, args: argparse.Namespace
) -> tuple[dict[str, object], pd.DataFrame, list[Example]]:
    """Fit and compare methods on images; returns summary numbers, all answers and the questions."""
    train = image_questions("train", args.train_images, args.seed)
    test = image_questions("test", args.images, args.seed)
    rows = test.of_type(*TYPES)
    print(OPENING.format(model="scenes-vlm", train=len(train.of_type(*TYPES)), test=len(rows)))
    chosen = chosen_settings()
    context = chosen["context_layer"]
    layers = sorted(
        {context, *CONTEXT_LAYERS, *(int(at["layer"]) for name, at in chosen.items() if name.endswith(".setting"))}
    )
    acts = steerlab.capture(model, train.rows, layers=layers, batch_size=64)
    test_acts = steerlab.capture(model, rows, layers=layers, batch_size=64)

    @cache
    def fitted(method: str, layer: int) -> Steerer:
        return predictor(method, chosen["options"][method], layer, context, args.seed).fit(acts)

    def answer(method: str, kind: str) -> pd.DataFrame:
        questions = test.of_type(kind)
        if method == "none":
            return answers(model, questions, None, 64)
        at = chosen[f"{kind}.{method}.setting"]
        if method == "one_vector":
            steerer: Steerer = SteeringVector({at["layer"]: answer_means(at["layer"], acts)[at["vector"]]})
        elif method == "own":
            steerer = oracle("own", at["layer"], acts, test_acts)
        else:
            steerer = fitted(method, at["layer"])
        return answers(model, questions, as_request(steerer, at["alpha"]), 64)

    found = [
        study.stage(f"images-{method}-{kind}", partial(answer, method, kind)).assign(method=method)
        for method, kind in product(("none", *METHODS), TYPES)
    ]
    study.stage("dependence", partial(dependence, acts, chosen, args.seed)).to_csv(
        study.folder / "dependence.csv", index=False
    )
    some = []
    for kind in TYPES[:3]:  # the rarer neighbors have too few questions with the same answer
        some += evenly(without_split([with_fixed_contrast(row) for row in train.of_type(kind)]), SHUFFLED, args.seed)
    effects = study.stage("shuffle", partial(shuffle_test, model, some, chosen, args.seed))
    whole = pd.concat(found, ignore_index=True)
    shown = {name: whole[whole["method"] == name].rename(columns={"said": "text"}) for name in ("none", "l2s")}
    mixed = sorted(rows, key=lambda row: row.id)  # questions of all types about an image side by side
    save_gallery(study.folder, mixed, {name: frame.assign(answer=frame["text"]) for name, frame in shown.items()}, 6)
    lost = effects_lost(effects, {row.id: row.meta["image"] for row in some}, args.seed)
    summary: dict[str, object] = {f"shuffle.{name}": value for name, value in lost.items()}
    for kind, shares in shares_by_image(whole, test).groupby("type"):
        summary |= {f"{kind}.{method}.right": estimate(shares[method].tolist(), args.seed) for method in shares}
    return summary, whole, rows


def dependence(acts: Activations, chosen: Mapping[str, Any], seed: int) -> pd.DataFrame:
    """What of the questions' own vectors each predictor explains, on a third of them; the questions about an image are
    held out together, and the rarer neighbors have too few.
    """
    layer, context = chosen["color.l2s.setting"]["layer"], chosen["context_layer"]
    l2s = predictor("l2s", 0, layer, context, seed, config="paper")  # the option with one context layer and no limit
    assert isinstance(l2s, L2S)
    ids = sorted(set(acts.select(split=["existence", "color", "number", CAPTION]).index["example_id"]))
    some = np.random.default_rng(seed).permutation(ids)[::3].tolist()
    images = {example_id: example_id.split("/")[0] for example_id in some}
    return input_dependence(acts.select(example_id=some), l2s, groups=images, folds=3, seed=seed)


def shuffle_test(model: Model, rows: list[Example], chosen: Mapping[str, Any], seed: int) -> pd.DataFrame:
    """What each question's wanted answer gains with its own vector, and with that of another with the same answer."""
    layer = chosen["color.l2s.setting"]["layer"]
    acts = steerlab.capture(model, rows, layers=[layer], batch_size=64)
    return shuffle_effects(
        model, rows, acts, layer, alpha=STRENGTH, positions="last+generated", seed=seed, batch_size=64
    )


def table_of(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Share of true answers, methods by types of question."""
    return pd.DataFrame({
        kind: {method: summary[f"{kind}.{method}.right"]["value"] for method in ("none", *METHODS)} for kind in TYPES
    })  # fmt: skip
