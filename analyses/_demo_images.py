"""The second half of the demo: L2S corrects a small image-text model that claims frequent objects."""

from __future__ import annotations

import argparse

import pandas as pd
from _common import estimate
from _hallucination import SPLITS, Setting, always_no, first_tokens, fit_l2s, save_gallery, scenes_data

import steerlab
from steerlab import Example, MeanDifference, Request
from steerlab.analysis.study import Study
from steerlab.methods import P2S

# chosen by analyses/l2s_hallucination.py on its validation questions; nothing is tuned on the demo's test questions
SETTING = Setting(layer=5, alpha=16.0, positions="all", context=5, net="tanh, 100")
OPENING = """\
images: {model} recognizes objects, but also claims objects that usually appear with them (it was trained to)
  1. read layer {layer} after "Yes" and after "No" for {train} questions about training images
  2. fit L2S, and answer {test} questions about unseen images in five ways
"""


def run_image_half(study: Study, args: argparse.Namespace) -> tuple[dict[str, object], pd.DataFrame, list[Example]]:
    """Fit and compare methods on images; returns summary numbers, all answers and the questions."""
    limits = argparse.Namespace(limit=args.limit or args.images, seed=args.seed)
    train, _, test = scenes_data(limits)
    print(OPENING.format(model="scenes-vlm", layer=SETTING.layer, train=len(train), test=len(test)))
    model = steerlab.load("scenes-vlm", device=args.device)
    assert SETTING.context is not None
    layers = sorted({SETTING.layer, SETTING.context})
    acts = steerlab.capture(model, train, layers=layers, batch_size=64)
    test_acts = steerlab.capture(model, test, layers=[SETTING.layer], batch_size=64)
    steerers = {
        "mean": MeanDifference(SETTING.layer).fit(acts),
        "always_no": always_no(acts, SETTING.layer),  # all errors of this model are a wrong yes
        "l2s": fit_l2s(acts, SETTING.layer, SETTING.context, SETTING.net, args.seed),
        "p2s": P2S(SETTING.layer).fit(test_acts),
    }
    requests: dict[str, Request | None] = {"none": None}
    requests |= {name: Request(steerer, SETTING.alpha, SETTING.positions) for name, steerer in steerers.items()}
    found = {}
    for name, request in requests.items():

        def answer(request: Request | None = request) -> pd.DataFrame:
            said = [word.capitalize() for word in first_tokens(model, test, request, 64).answers]
            return pd.DataFrame({"example_id": [row.id for row in test], "answer": said, "text": said})

        found[name] = study.stage(f"images-{name}", answer)
    save_gallery(study.folder, test, {k: f.assign(answer=f["answer"].str.lower()) for k, f in found.items()}, 6)
    whole = pd.concat([frame.assign(method=name) for name, frame in found.items()], ignore_index=True)
    known = {row.id: (row.split, row.behavior) for row in test}
    whole["split"] = [known[example_id][0] for example_id in whole["example_id"]]
    whole["right"] = [known[s][1] == a.lower() for s, a in zip(whole["example_id"], whole["answer"], strict=True)]
    summary: dict[str, object] = {}
    for (method, split), frame in whole.groupby(["method", "split"], sort=False):
        summary[f"images.{method}.{split}"] = estimate(frame["right"].astype(float).tolist(), args.seed)
    return summary, whole, test


def table_of(answers: pd.DataFrame) -> pd.DataFrame:
    """Share of true answers, methods by splits."""
    return answers.pivot_table(index="method", columns="split", values="right", sort=False)[list(SPLITS)]
