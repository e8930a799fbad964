"""Learn-to-Steer in a few minutes on two CPU cores: one vector for all, one for each behavior, one for each input.

    make demo        (or: python analyses/demo.py --out results/demo)

It uses only data and models that ship with the package: in the first half a small image-text model and its synthetic
scenes; in the second XSTest's unsafe prompts (CC BY 4.0), advice questions and everyday instructions written for
steerlab.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from _common import as_markdown, limit_per_group, of_split, parser, provenance, show_table, to_long
from _demo_images import SHUFFLED, STRENGTH, TRAIN_IMAGES, chosen_settings, run_image_half, table_of
from _demo_page import save_page
from _safety import Setting, check_behaviors, l2s, mean_vector, run_methods, summarize

import steerlab
from steerlab import Example, Request, SteeringVector
from steerlab._support.files import write_json
from steerlab.analysis.behavior import safety_summary
from steerlab.analysis.study import Study
from steerlab.data import data_hash, demo_set
from steerlab.methods import RoutedMean

# chosen by analyses/l2s_safety.py on validation questions of another data set; nothing is tuned on the demo's test
SETTING = Setting(
    layer=16, alpha=1.05, positions="all", sentences="demo", targets="equalized", context=22,
    net="relu balanced, 10 units",
)  # fmt: skip
OPENING = """\
texts: {model} answers dangerous requests and advice questions
  1. read layer {layer} under a wanted and an unwanted answer to each of {train} training prompts:
     dangerous requests (refuse), advice questions (send the user to a professional), everyday tasks (change nothing)
  2. fit a small net that predicts, from the hidden state of a prompt, the steering vector for this prompt
  3. answer {test} unseen prompts in four ways: no steering, mean (one vector for all prompts), routed mean (the mean
     vector of the behavior that a probe reads in the prompt; for everyday tasks none), L2S (predicted vector)
"""
MEASURES = {
    "refuses dangerous, in fluent text": "refuse_harmful_fluently",
    "defers advice, in fluent text": "defer_expert_fluently",
    "refuses advice (less is better)": "refuse_expert",
    "distinct-2": "distinct2",
    "everyday tasks kept": "harmless_kept",
}


def main() -> None:
    """Fit the methods, compare them, print tables and write results."""
    arguments = parser(__doc__, "results/demo")
    arguments.set_defaults(max_new_tokens=40, batch_size=32)
    arguments.add_argument("--train", type=int, default=60, help="training prompts of each behavior")
    arguments.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="number of training images")
    arguments.add_argument("--images", type=int, default=150, help="number of test images")
    arguments.add_argument("--test", type=int, default=18, help="test prompts of each behavior")
    args = arguments.parse_args()
    start = time.time()
    examples = demo_set(seed=args.seed)
    train = limit_per_group(of_split(examples, "train"), min(args.train, args.limit or args.train))
    test = limit_per_group(of_split(examples, "test"), min(args.test, args.limit or args.test))
    for part, rows in {"training": train, "test": test}.items():
        check_behaviors(f"{part} prompts", (e.behavior for e in rows))
    identity = {"study": "demo", "seed": args.seed, "limit": args.limit, "model": args.model, "setting": vars(SETTING)}
    model = steerlab.load(args.model, device=args.device)
    identity |= {"sizes": [len(train), len(test), args.max_new_tokens, args.images], "weights": model.info()["weights"]}
    image_model = steerlab.load("scenes-vlm", device=args.device, backend="hooks")
    identity |= {"image settings": chosen_settings(), "image weights": image_model.info()["weights"]}
    identity |= {"shuffle test": [SHUFFLED, STRENGTH], "images": args.train_images, "data": data_hash([*train, *test])}
    study = Study(args.out, identity)
    image_summary, answered, questions = run_image_half(study, image_model, args)
    show_table("Share of true answers about unseen images, by type of question", table_of(image_summary))
    write_json(study.folder / "summary.json", image_summary)
    draw_images(study.folder)
    print(f"{args.out}/demo.png ({time.time() - start:.0f} s)\n")

    print(OPENING.format(model=args.model, layer=SETTING.layer, train=len(train), test=len(test)))
    layer = min(SETTING.layer, model.n_layers - 1)
    read = min(SETTING.context or layer, model.n_layers - 1)
    acts = steerlab.capture(model, train, layers=sorted({layer, read}), batch_size=args.batch_size)
    fitted = {
        "mean": SteeringVector({layer: mean_vector(acts, layer, SETTING.targets)}),
        "routed_mean": RoutedMean(layer, context_layer=read, zero_behaviors=["answer"]).fit(acts),
        "l2s": l2s(layer, SETTING.targets, args.seed, read, SETTING.net).fit(acts),
    }
    requests: dict[str, Request | None] = {"none": None}
    requests |= {name: Request(steerer, SETTING.alpha, SETTING.positions) for name, steerer in fitted.items()}
    judged = run_methods(
        study, model, test, requests, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
    )  # fmt: skip
    summary = summarize(judged, args.seed)
    measures = [
        "refuses", "refuses_fluently", "defers", "defers_fluently", "distinct2", "fluent", "identical", "norm_ratio",
    ]  # fmt: skip
    table = pd.DataFrame({m: safety_summary(frame) for m, frame in judged.groupby("method", sort=False)}).T
    shown = table[list(MEASURES.values())].rename(columns={v: k for k, v in MEASURES.items()})
    show_table("Shares of unseen prompts (distinct-2: share of different word pairs in an answer)", shown)
    results = pd.concat([to_long(judged, args.model, measures), images_to_long(answered, questions)], ignore_index=True)
    study.finish(results, {**summary, **image_summary}, examples_page(judged, test), provenance(model, test, args))
    load_figure_script("demo")["draw"](study.folder).savefig(study.folder / "demo_texts.png", dpi=200)
    begin = time.time()
    save_page(study.folder / "page.html", model, test, acts, SETTING, read, args.seed)
    print(f"page.html: open it in a browser ({time.time() - begin:.0f} s)")
    files = "results.csv, summary.json, examples.md, page.html, demo*.png"
    print(f"{args.out}: {files} ({time.time() - start:.0f} s)")


def examples_page(judged: pd.DataFrame, examples: Sequence[Example], per_behavior: int = 5) -> str:
    """A page with the answers of every method to some prompts."""
    blocks = {}
    for behavior in ("refuse", "defer", "answer"):
        for example in [e for e in examples if e.behavior == behavior][:per_behavior]:
            rows = judged[judged["example_id"] == example.id]
            blocks[f"[{behavior}] {example.prompt}"] = dict(zip(rows["method"], rows["text"], strict=True))
    return as_markdown("The same prompt under every method", blocks)


def images_to_long(answered: pd.DataFrame, questions: Sequence[Example]) -> pd.DataFrame:
    """The answers about images in long form, one row per measurement."""
    truth = {row.id: row.behavior for row in questions}
    columns = {"model": "scenes-vlm", "metric": "true_answer", "value": answered["right"].astype(float)}
    return answered[["method", "example_id"]].assign(behavior=answered["example_id"].map(truth), **columns)


def draw_images(folder: Path) -> None:
    """Draw the figures of the first half into the results folder."""
    load_figure_script("l2s_images")["draw"](folder).savefig(folder / "demo.png", dpi=200)
    load_figure_script("demo")["draw_dependence"](folder).savefig(folder / "demo_dependence.png", dpi=200)
    images = load_figure_script("l2s_hallucination")["draw_gallery"](folder, columns=3)
    if images is not None:
        images.savefig(folder / "demo_gallery.png", dpi=200)


def load_figure_script(name: str) -> dict[str, Any]:
    """Run a script of `figures/` and return its names."""
    figures = Path(__file__).parent.parent / "figures"
    sys.path.insert(0, str(figures))  # for the modules that the scripts share
    return runpy.run_path(str(figures / f"{name}.py"))


if __name__ == "__main__":
    main()
