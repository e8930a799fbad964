"""One model, two behaviors, one vector or a predicted one: Learn-to-Steer in a few minutes on two CPU cores.

    make demo        (or: python analyses/demo.py --out results/demo)

Uses only what ships with the package: XSTest's unsafe prompts (CC BY 4.0), advice questions and everyday instructions
written for it, and, in the second half, a small image-text model with the world of pictures it was trained on.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from _common import as_markdown, limited, of_split, parser, provenance, show_table, tidy
from _demo_images import image_half, table_of
from _safety import Setting, check_behaviors, l2s, mean_vector, run_methods, summarize

import steerlab
from steerlab import P2S, Example, MeanDifference, Request
from steerlab.analysis.behavior import safety_summary
from steerlab.analysis.study import Study
from steerlab.data import demo_set

# where analyses/l2s_safety.py ended up on validation questions of another data set; nothing is tuned on the demo's test
SETTING = Setting(
    layer=16, alpha=1.05, positions="all", sentences="demo", targets="equalized", context=22,
    net="relu balanced, 10 units",
)  # fmt: skip
OPENING = """\
steerlab demo: Learn-to-Steer on {model}
  1. read layer {layer} while the model hears a wanted and an unwanted answer to {train} training prompts:
     dangerous requests (refuse), advice questions (send the user to a professional), everyday tasks (change nothing)
  2. fit a small net that predicts, from a prompt's own activation, the steering vector for that prompt
  3. answer {test} unseen prompts four ways: none, mean (one vector for all), L2S (predicted), P2S (an oracle's own)
"""
MEASURES = {
    "refuses dangerous": "refuse_harmful",
    "defers advice": "defer_expert",
    "refuses advice (less is better)": "refuse_expert",
    "distinct-2": "distinct2",
    "everyday tasks kept": "harmless_kept",
}


def main() -> None:
    """Fit and compare, print the table, write the results."""
    arguments = parser(__doc__, "results/demo")
    arguments.set_defaults(max_new_tokens=48, batch_size=32)
    arguments.add_argument("--train", type=int, default=60, help="training prompts of each behavior")
    arguments.add_argument("--images", type=int, default=200, help="pictures to train on, and as many to test on")
    arguments.add_argument("--test", type=int, default=24, help="test prompts of each behavior")
    args = arguments.parse_args()
    begun = time.time()
    examples = demo_set(seed=args.seed)
    train = limited(of_split(examples, "train"), min(args.train, args.limit or args.train))
    test = limited(of_split(examples, "test"), min(args.test, args.limit or args.test))
    for part, rows in {"training": train, "test": test}.items():
        check_behaviors(f"{part} prompts", (e.behavior for e in rows))
    print(OPENING.format(model=args.model, layer=SETTING.layer, train=len(train), test=len(test)))

    identity = {"study": "demo", "seed": args.seed, "limit": args.limit, "model": args.model, "setting": vars(SETTING)}
    study = Study(args.out, identity | {"sizes": [len(train), len(test), args.max_new_tokens, args.images]})
    model = steerlab.load(args.model, device=args.device)
    layer = min(SETTING.layer, model.n_layers - 1)
    read = min(SETTING.context or layer, model.n_layers - 1)
    acts = steerlab.capture(model, train, layers=sorted({layer, read}), batch_size=args.batch_size)
    own = steerlab.capture(model, test, layers=[layer], batch_size=args.batch_size)
    fitted = {
        "mean": MeanDifference.from_tensor(layer, mean_vector(acts, layer, SETTING.targets)),
        "l2s": l2s(layer, SETTING.targets, args.seed, read, SETTING.net).fit(acts),
        "p2s": P2S(layer, zero_behaviors=["answer"]).fit(own),
    }
    requests: dict[str, Request | None] = {"none": None}
    requests |= {name: Request(steerer, SETTING.alpha, SETTING.positions) for name, steerer in fitted.items()}
    judged = run_methods(study, model, test, requests, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
    summary = summarize(judged, args.seed)
    measures = ["refuses", "defers", "distinct2", "fluent", "identical", "norm_ratio"]
    table = pd.DataFrame({m: safety_summary(frame) for m, frame in judged.groupby("method", sort=False)}).T
    shown = table[list(MEASURES.values())].rename(columns={v: k for k, v in MEASURES.items()})
    show_table("Shares of unseen prompts (distinct-2: share of different word pairs in an answer)", shown)
    seen, answered, questions = image_half(study, args)
    results = pd.concat([tidy(judged, args.model, measures), tidy_pictures(answered, questions)], ignore_index=True)
    study.finish(results, {**summary, **seen}, page(judged, test), provenance(model, test, args))
    draw(study.folder)
    show_table("Share of true answers about unseen pictures, by kind of absent object", table_of(answered))
    files = "results.csv, summary.json, examples.md, demo.png, demo_pictures.png"
    print(f"{args.out}: {files} ({time.time() - begun:.0f} s)")


def page(judged: pd.DataFrame, examples: Sequence[Example], per_behavior: int = 5) -> str:
    """The same prompts under every method."""
    blocks = {}
    for behavior in ("refuse", "defer", "answer"):
        for example in [e for e in examples if e.behavior == behavior][:per_behavior]:
            rows = judged[judged["example_id"] == example.id]
            blocks[f"[{behavior}] {example.prompt}"] = dict(zip(rows["method"], rows["text"], strict=True))
    return as_markdown("The same prompt under every method", blocks)


def tidy_pictures(answered: pd.DataFrame, questions: Sequence[Example]) -> pd.DataFrame:
    """The picture half's answers as measurements, one row each."""
    truth = {row.id: row.behavior for row in questions}
    told = {"model": "scenes-vlm", "metric": "true_answer", "value": answered["right"].astype(float)}
    return answered[["method", "example_id"]].assign(behavior=answered["example_id"].map(truth), **told)


def draw(folder: Path) -> None:
    """The figures of the two halves, beside the results."""
    script("demo")["draw"](folder).savefig(folder / "demo.png", dpi=200)
    images = script("l2s_hallucination")["draw_gallery"](folder, columns=3)
    if images is not None:
        images.savefig(folder / "demo_pictures.png", dpi=200)


def script(name: str) -> dict[str, Any]:
    """The names that a script of `figures/` defines."""
    figures = Path(__file__).parent.parent / "figures"
    sys.path.insert(0, str(figures))  # for the modules that the scripts share
    return runpy.run_path(str(figures / f"{name}.py"))


if __name__ == "__main__":
    main()
