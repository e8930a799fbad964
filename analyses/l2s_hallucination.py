"""Learn-to-Steer on hallucinated objects (POPE): say "no" to what is not in the picture, and "yes" to what is.

    python analyses/l2s_hallucination.py --model scenes-vlm --easy-vqa EASY_VQA --coco-free COCO_FREE
    python analyses/l2s_hallucination.py --model llava-hf/llava-1.5-7b-hf --pope POPE_FOLDER --pictures COCO_VAL2014

Every vector is the state after the true answer minus the state after the other one, at the answer's token. Layer,
strength, scope, and what the net reads are chosen on questions about other pictures than those of the test; so are
those of the mean vector. Scopes: "as released" writes at every token; "as written" at the generated ones, which come
too late for the first of them; the third writes at the last prompt token too. The probe tells what a linear map can
know of the truth from the same state.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _beyond_pope import beyond
from _common import as_markdown, estimate, parser, provenance, show_table
from _hallucination import (
    ALPHAS,
    SCOPES,
    SPLITS,
    Setting,
    answers,
    best_cell,
    by_split,
    fit_l2s,
    gap_closed,
    keep_gallery,
    pope_data,
    scenes_data,
    what_to_read,
    where_to_write,
)

import steerlab
from steerlab import P2S, Activations, Example, MeanDifference, Model, Prompt, RandomDirection, Request
from steerlab.analysis.headroom import headroom
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods.prompt import LOOK_INSTRUCTION
from steerlab.metrics import bootstrap_ci, l2s_f1, pope_scores


def capture(study: Study, part: str, model: Model, rows: list[Example], batch_size: int) -> Activations:
    """Contrasts and contexts of every layer, kept on disk."""
    folder = study.folder / "stages" / f"acts-{part}"
    return steerlab.capture_to(folder, model, rows, layers="all", batch_size=batch_size).load()


def requests(own: dict[str, Setting], train: Activations, tested: Activations, seed: int) -> dict[str, Request | None]:
    """Every method with its setting; the baselines take that of L2S."""
    s, m = own["l2s"], own["mean"]
    assert s.context is not None
    steerers = {
        "prompt": (Prompt(LOOK_INSTRUCTION), s),
        "random": (RandomDirection(s.layer, seed=seed).fit(train), s),
        "mean": (MeanDifference(m.layer).fit(train), m),
        "l2s": (fit_l2s(train, s.layer, s.context, s.net, seed), s),
        "p2s": (P2S(s.layer).fit(tested), s),
    }
    return {"none": None} | {k: Request(method, at.alpha, at.positions) for k, (method, at) in steerers.items()}


def run_method(model: Model, rows: list[Example], request: Request | None, args: argparse.Namespace) -> pd.DataFrame:
    """Answers by the first token, and as text."""
    steer = () if request is None else request
    texts = steerlab.generate(
        model, rows, steer=steer, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=True
    )
    said = answers(model, rows, request, args.batch_size)
    return pd.DataFrame({"sample": [r.id for r in rows], "answer": said, "text": list(texts)})


def scores(rows: list[Example], found: dict[str, pd.DataFrame], seed: int) -> dict[str, object]:
    """Accuracy, F1 of both conventions and yes-rate of every method on every split, by token and by text."""
    summary: dict[str, object] = {}
    for method, frame in found.items():
        for split in SPLITS:
            keep = [row.split == split for row in rows]
            gold = [row.behaviour for row in rows if row.split == split]
            name = "base" if method == "none" else method
            for kind, column in (("", "answer"), ("text.", "text")):
                told = pope_scores(gold, frame.loc[keep, column].astype(str).tolist())
                right = [float(g == p) for g, p in zip(gold, frame.loc[keep, column], strict=True)]
                value = estimate(right, seed) if column == "answer" else {"value": round(told.accuracy, 4)}
                summary[f"{kind}{name}.{split}"] = value
                summary[f"{kind}{name}.f1.{split}"] = round(told.f1, 4)
                summary[f"{kind}{name}.l2s_f1.{split}"] = round(l2s_f1(told.accuracy), 4)
                summary[f"{kind}yes_rate.{name}.{split}"] = round(told.yes_rate, 4)
                summary[f"{kind}parse_failures.{name}.{split}"] = told.parse_failures
    return summary


def comparisons(rows: list[Example], found: dict[str, pd.DataFrame], seed: int) -> dict[str, object]:
    """Paired differences of L2S to none and mean, and how much of the way to the oracle it goes."""
    right = {
        method: dict(zip(frame["sample"], frame["answer"] == [r.behaviour for r in rows], strict=True))
        for method, frame in found.items()
    }
    told: dict[str, object] = {}
    for other in ("none", "mean"):
        pooled = [float(right["l2s"][r.id]) - float(right[other][r.id]) for r in rows]
        told[f"l2s_minus_{other}.pooled"] = estimate(pooled, seed)
    shares = {method: by_split(rows, values) for method, values in right.items()}
    for split in SPLITS:
        base, l2s, oracle = (float(np.mean(shares[m][split])) for m in ("none", "l2s", "p2s"))
        told[f"gap_closed.{split}"] = round(gap_closed(base, l2s, oracle), 4)
    return told


def probes(train: Activations, tested: Activations, rows: list[Example], none: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The probe's ceiling at every layer and split."""
    return headroom(train, tested, dict(zip(none["sample"], none["answer"], strict=True)), group="split", seed=seed)


def page(rows: list[Example], found: dict[str, pd.DataFrame]) -> str:
    """The same questions under every method: some that L2S mended, some that it broke."""
    frames = {method: frame.set_index("sample") for method, frame in found.items()}
    changed = [r for r in rows if frames["none"].loc[r.id, "answer"] != frames["l2s"].loc[r.id, "answer"]]
    blocks = {
        f"{r.id}: {r.prompt} (true: {r.behaviour})": {m: str(f.loc[r.id, "text"]) for m, f in frames.items()}
        for r in changed[:12]
    }
    return as_markdown("The same question under every method", blocks)


def scopes(
    study: Study, model: Model, rows: list[Example], l2s: Request, args: argparse.Namespace
) -> dict[str, object]:
    """L2S in every scope, at its own strength, by the text it generates."""
    told: dict[str, object] = {}
    for positions in SCOPES.values():
        request = Request(l2s.steerer, l2s.alpha, positions)

        def run(request: Request = request) -> pd.DataFrame:
            texts = steerlab.generate(
                model, rows, steer=request, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
            )
            return pd.DataFrame({"sample": [r.id for r in rows], "text": list(texts)})

        found = study.stage(f"scope-{positions}", run)
        for split in SPLITS:
            keep = [row.split == split for row in rows]
            gold = [row.behaviour for row in rows if row.split == split]
            scored = pope_scores(gold, found.loc[keep, "text"].astype(str).tolist())
            told[f"scope.{positions}.l2s.{split}"] = round(scored.accuracy, 4)
    return told | {"scopes": SCOPES}


def main() -> None:
    """Choose on validation, report on test."""
    arguments = parser(__doc__, "results/l2s_hallucination")
    arguments.set_defaults(model="scenes-vlm", batch_size=64, max_new_tokens=3)
    arguments.add_argument("--pope", default=None, help="folder of official POPE files (coco_pope_*.jsonl)")
    arguments.add_argument("--pictures", default=None, help="folder of their pictures")
    arguments.add_argument("--easy-vqa", default=None, help="folder with easy-VQA's test.zip: accuracy by template")
    arguments.add_argument("--coco-free", default=None, help="folder of photographs with boxes: POPE by recipe on them")
    args = arguments.parse_args()
    train_rows, held, test = scenes_data(args) if args.pope is None else pope_data(args)
    print(f"{len(train_rows)} training, {len(held)} validation and {len(test)} test questions; results in {args.out}")
    data = data_hash([*train_rows, *held, *test])
    identity = {"study": "l2s_hallucination", "seed": args.seed, "limit": args.limit, "data": data, "alphas": ALPHAS}
    model = steerlab.load(args.model, device=args.device, task="image-text")
    study = Study(args.out, identity | {"model": args.model, "revision": model.revision})
    train, own, tested = (
        capture(study, part, model, rows, args.batch_size)
        for part, rows in (("train", train_rows), ("validation", held), ("test", test))
    )
    cells = study.stage("where", lambda: where_to_write(model, held, train, own, args))
    reads = study.stage("reads", lambda: what_to_read(model, held, train, own, cells, args))
    grid = pd.concat([cells, reads], ignore_index=True)
    chosen = {"l2s": best_cell(grid, "l2s"), "mean": best_cell(grid, "mean")}
    for method, setting in chosen.items():
        print(f"{method}, chosen on validation: {setting}")

    asked = requests(chosen, train, tested, args.seed)
    found = {
        name: study.stage(f"answers-{name}", lambda r=request: run_method(model, test, r, args))  # type: ignore[misc]
        for name, request in asked.items()
    }
    told = study.stage("probes", lambda: probes(train, tested, test, found["none"], args.seed))
    summary = scores(test, found, args.seed) | comparisons(test, found, args.seed)
    assert chosen["l2s"].context is not None
    for split in SPLITS:
        here = told[told["group"] == split]
        summary[f"probe.{split}"] = round(float(here.loc[here["layer"] == chosen["l2s"].context, "probe"].iloc[0]), 4)
        summary[f"probe.best.{split}"] = round(float(here["probe"].max()), 4)
    summary |= {f"{method}.setting": vars(setting) for method, setting in chosen.items()}
    assert asked["l2s"] is not None
    summary |= scopes(study, model, test, asked["l2s"], args)
    summary |= beyond(study, model, {name: asked[name] for name in ("none", "mean", "l2s")}, args)
    frame = pd.concat([f.assign(method=m) for m, f in found.items()], ignore_index=True)
    truth = {r.id: (r.behaviour, r.split) for r in test}
    frame["true"] = [truth[s][0] for s in frame["sample"]]
    frame["split"] = [truth[s][1] for s in frame["sample"]]
    study.finish(frame, summary, page(test, found), provenance(model, test, args))
    keep_gallery(study.folder, test, found)
    grid.round(4).to_csv(study.folder / "grid.csv", index=False)
    told.round(4).to_csv(study.folder / "probes.csv", index=False)
    table = frame.assign(right=frame["answer"] == frame["true"]).pivot_table(
        index="method", columns="split", values="right", sort=False
    )
    show_table("Accuracy on the test questions, by the first token", table)
    gain = bootstrap_ci([float(v) for v in told.loc[told["group"] == "adversarial", "gain"]], seed=args.seed)
    print(f"probe minus own answers on adversarial, mean over layers: {gain.value:.3f}")


if __name__ == "__main__":
    main()
