"""Learn-to-Steer on hallucinated objects (POPE): answer whether an object is in an image.

    python analyses/l2s_hallucination.py --model scenes-vlm --easy-vqa EASY_VQA --coco-free COCO_FREE
    python analyses/l2s_hallucination.py --model llava-hf/llava-1.5-7b-hf --alphas 0.5,1,1.5,2 \\
        --layers 12,14,16,18 --pope POPE_FOLDER --images COCO_VAL2014

Every contrast vector is the hidden state at the true answer's token minus the state at the other answer's token. Layer,
strength, positions, and the input of the net are chosen on questions about other images than those of the test. The
same holds for the mean vector and for "always no", the mean vector of the questions whose true answer is no: where a
model says yes too often, one vector that shifts the yes/no threshold corrects many answers, and a random vector of the
same length may too. Positions: "as released" steers every token; "as written" steers generated tokens, which does not
change the first of them; the third also steers the last prompt token. A linear probe shows what can be decoded from
the same hidden state.
"""

from __future__ import annotations

import argparse
from functools import partial

import pandas as pd
from _beyond_pope import measure_side_effects
from _common import parser, provenance, show_table
from _hallucination import (
    SCOPES,
    SPLITS,
    Setting,
    always_no,
    answers,
    best_setting,
    fit_l2s,
    layers_to_try,
    pope_data,
    save_gallery,
    scan_net_inputs,
    scan_steering_sites,
    scenes_data,
)
from _hallucination_report import RANDOM_SEEDS, comparisons, measurements, page, probe_accuracies, scores

import steerlab
from steerlab import Activations, Example, MeanDifference, Request
from steerlab.analysis.probe_gap import probe_gap
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods import P2S, Prompt, RandomDirection
from steerlab.methods.prompt import LOOK_INSTRUCTION
from steerlab.metrics import pope_scores
from steerlab.models.model import Model


def capture(
    study: Study, part: str, model: Model, rows: list[Example], layers: list[int], batch_size: int
) -> Activations:
    """Contrasts and contexts of the layers, stored on disk."""
    folder = study.folder / "stages" / f"acts-{part}"
    return steerlab.capture(model, rows, folder=folder, layers=layers, batch_size=batch_size).load()


def requests(
    settings: dict[str, Setting], train: Activations, tested: Activations, seed: int
) -> dict[str, Request | None]:
    """The request of every method; prompt, random and P2S use the setting of L2S."""
    s, m, n = settings["l2s"], settings["mean"], settings["always_no"]
    assert s.context is not None
    names = ["random", *(f"random-{i}" for i in range(1, RANDOM_SEEDS))]
    drawn = {name: (RandomDirection(s.layer, seed=seed + i).fit(train), s) for i, name in enumerate(names)}
    steerers = {
        "prompt": (Prompt(LOOK_INSTRUCTION), s),
        **drawn,
        "mean": (MeanDifference(m.layer).fit(train), m),
        "always_no": (always_no(train, n.layer), n),
        "l2s": (fit_l2s(train, s.layer, s.context, s.net, seed), s),
        "p2s": (P2S(s.layer).fit(tested), s),
    }
    return {"none": None} | {k: Request(method, at.alpha, at.positions) for k, (method, at) in steerers.items()}


def run_method(model: Model, rows: list[Example], request: Request | None, args: argparse.Namespace) -> pd.DataFrame:
    """Answers by the first token and as text."""
    steer = () if request is None else request
    texts = steerlab.generate(
        model, rows, steer=steer, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=True
    )
    said = answers(model, rows, request, args.batch_size)
    found = {"answer": said, "other": [answer == "" for answer in said], "text": list(texts)}
    return pd.DataFrame({"example_id": [r.id for r in rows], **found})


def probes(train: Activations, tested: Activations, rows: list[Example], none: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Accuracy of a linear probe at every layer and split, beside the model's."""
    return probe_gap(
        train, tested, dict(zip(none["example_id"], none["answer"], strict=True)), label="split", seed=seed
    )


def scopes(
    study: Study, model: Model, rows: list[Example], l2s: Request, args: argparse.Namespace
) -> dict[str, object]:
    """Accuracy of L2S by generated text for every choice of positions, at its chosen strength."""
    summary: dict[str, object] = {}
    for positions in SCOPES.values():
        request = Request(l2s.steerer, l2s.alpha, positions)

        def run(request: Request = request) -> pd.DataFrame:
            texts = steerlab.generate(
                model, rows, steer=request, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
            )
            return pd.DataFrame({"example_id": [r.id for r in rows], "text": list(texts)})

        found = study.stage(f"scope-{positions}", run)
        for split in SPLITS:
            keep = [row.split == split for row in rows]
            gold = [row.behavior for row in rows if row.split == split]
            scored = pope_scores(gold, found.loc[keep, "text"].astype(str).tolist())
            summary[f"scope.{positions}.l2s.{split}"] = round(scored.accuracy, 4)
    return summary | {"scopes": SCOPES}


def arguments_of() -> argparse.Namespace:
    """The arguments of this study."""
    arguments = parser(__doc__, "results/l2s_hallucination")
    arguments.set_defaults(model="scenes-vlm", batch_size=64, max_new_tokens=3)
    arguments.add_argument("--pope", default=None, help="folder of official POPE files (coco_pope_*.jsonl)")
    arguments.add_argument("--images", default=None, help="folder of their images")
    arguments.add_argument(
        "--layers", default=None, help="layers to read and to steer, such as 12,14,16; all by default"
    )
    arguments.add_argument(
        "--alphas",
        default="4,8,16",
        help="strengths to try; the default suits scenes-vlm, whose contrast vectors are short",
    )
    arguments.add_argument(
        "--backend", default="nnsight", help="nnsight, or hooks: the same numbers, faster for tiny models"
    )
    arguments.add_argument("--easy-vqa", default=None, help="folder with easy-VQA's test.zip: accuracy by template")
    arguments.add_argument(
        "--coco-free", default=None, help="folder of photographs with annotated objects, for POPE questions about them"
    )
    return arguments.parse_args()


def main() -> None:
    """Choose settings on validation questions, evaluate on test questions."""
    args = arguments_of()
    train_rows, validation, test = scenes_data(args) if args.pope is None else pope_data(args)
    print(
        f"{len(train_rows)} training, {len(validation)} validation, {len(test)} test questions; results in {args.out}"
    )
    identity = {"study": "l2s_hallucination", "seed": args.seed, "limit": args.limit, "layers": args.layers}
    identity |= {"data": data_hash([*train_rows, *validation, *test]), "alphas": args.alphas, "model": args.model}
    model = steerlab.load(args.model, device=args.device, task="image-text", backend=args.backend)
    study = Study(args.out, identity | {"revision": model.revision, "weights": model.info()["weights"]})
    train, validation_acts, tested = (
        capture(study, part, model, rows, layers_to_try(model, args), args.batch_size)
        for part, rows in (("train", train_rows), ("validation", validation), ("test", test))
    )
    oracles = {
        "p2s": lambda layer: P2S(layer).fit(validation_acts),
        "mean": lambda layer: MeanDifference(layer).fit(train),
    }
    sites = study.stage("sites", lambda: scan_steering_sites(model, validation, oracles, args))
    always = {"always_no": lambda layer: always_no(train, layer)}
    sites_no = study.stage("sites-no", lambda: scan_steering_sites(model, validation, always, args))
    nets = study.stage("net-inputs", lambda: scan_net_inputs(model, validation, train, validation_acts, sites, args))
    grid = pd.concat([sites, sites_no, nets], ignore_index=True)
    chosen = {method: best_setting(grid, method) for method in ("l2s", "mean", "always_no")}
    for method, setting in chosen.items():
        print(f"{method}, chosen on validation: {setting}")
    methods = requests(chosen, train, tested, args.seed)
    found = {
        name: study.stage(f"answers-{name}", partial(run_method, model, test, request, args))
        for name, request in methods.items()
    }
    probed = study.stage("probes", lambda: probes(train, tested, test, found["none"], args.seed))
    assert chosen["l2s"].context is not None and methods["l2s"] is not None
    summary = scores(test, found, args.seed) | comparisons(test, found, args.seed)
    summary |= probe_accuracies(probed, chosen["l2s"].context) | scopes(study, model, test, methods["l2s"], args)
    summary |= measure_side_effects(study, model, {name: methods[name] for name in ("none", "mean", "l2s")}, args)
    summary |= {f"{method}.setting": vars(setting) for method, setting in chosen.items()}
    save_gallery(study.folder, test, found)
    grid.round(4).to_csv(study.folder / "grid.csv", index=False)
    probed.round(4).to_csv(study.folder / "probes.csv", index=False)
    results = measurements(test, found, methods, model)
    study.finish(results, summary, page(test, found), provenance(model, test, args))
    results = results[~results["method"].str.startswith("random-")]
    table = results.pivot_table(index="method", columns="split", values="value", sort=False)
    show_table("Accuracy on the test questions, by the first token", table)


if __name__ == "__main__":
    main()
