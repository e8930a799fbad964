"""Which layers, strength and method? Chosen on validation examples of the built-in prompts, evaluated on test examples.

    python analyses/layer_sweep.py --model smollm2              # 30 layers x 7 strengths x 4 methods
    python figures/layer_sweep.py results/layer_sweep

The metric is the logit difference between the first words of the wanted answer ("I'm sorry", "You should consult") and
of the unwanted answer. Layers are chosen only among settings under which the two first words keep at least the share
`--guard` of their unsteered probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from _common import limit_per_group, numbers, parser, provenance, show_table

import steerlab
from steerlab import L2S, MeanDifference
from steerlab.analysis.layer_selection import LayerRange, validated_sweep
from steerlab.analysis.study import Study
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.data import demo_set
from steerlab.methods import P2S, RandomDirection

METHODS = ("mean", "l2s", "p2s", "random")


def main() -> None:
    """Capture once, sweep four methods, choose a layer range for each, write the tables."""
    arguments = parser(__doc__, "results/layer_sweep")
    arguments.add_argument(
        "--guard",
        type=float,
        default=0.5,
        help="smallest share of the unsteered answer probability that a setting may keep",
    )
    args = arguments.parse_args()
    rows = limit_per_group(demo_set(seed=args.seed), args.limit)
    identity = {"study": "layer_sweep", "seed": args.seed, "limit": args.limit, "model": args.model}
    model = steerlab.load(args.model, device=args.device)
    study = Study(args.out, identity | {"guard": args.guard, "weights": model.info()["weights"]})
    train = [e for e in rows if e.split == "train"]
    contrasts = [e for e in rows if e.split != "train" and e.contrast is not None]
    acts = steerlab.capture(model, train, folder=study.folder / "stages" / "acts", batch_size=args.batch_size).load()
    steerers: Mapping[str, Any] = {
        "mean": MeanDifference(0),
        "l2s": L2S(0, net="mlp", zero_behaviors=["answer"], seed=args.seed, progress=False),
        "p2s": P2S(0),
        "random": RandomDirection(0, seed=args.seed),
    }
    plain = steerlab.sweep(
        model, [e for e in contrasts if e.split == "validation"], {"none": RandomDirection(0, seed=0)}, 0, (0.0,),
        metric="answer_probability", train=acts, progress=False,
    )  # fmt: skip
    threshold = args.guard * float(plain["value"].mean())
    layer_ranges: dict[str, LayerRange] = {}
    frames: list[pd.DataFrame] = []
    for name in METHODS:
        layer_ranges[name], frame = validated_sweep(
            model, contrasts, {name: steerers[name]}, "all", alphas=MULTIPLIERS, train=acts, seed=args.seed,
            guard={"answer_probability": threshold}, folder=study.folder / "stages" / name, progress=False,
        )  # fmt: skip
        frames.append(frame)
        print(f"{name}: {layer_ranges[name]}")
    sweep = pd.concat(frames, ignore_index=True)
    means = sweep.groupby(["method", "layer", "alpha", "split", "metric"], sort=False)["value"].mean().reset_index()
    tables = pd.concat(
        [layer_range.table.assign(method=name, alpha=layer_range.alpha) for name, layer_range in layer_ranges.items()]
    )
    means.to_csv(study.folder / "settings.csv", index=False, float_format="%.5g")
    tables.to_csv(study.folder / "layer_ranges.csv", index=False, float_format="%.5g")
    tested = sweep[sweep["split"] == "test"].drop(columns=["model", "positions", "norm_ratio"])
    summary = {
        "answer_probability": {"unsteered": float(plain["value"].mean()), "threshold": threshold},
        "layer_ranges": {name: as_entry(layer_range) for name, layer_range in layer_ranges.items()},
    }
    report = "\n\n".join(
        [
            "# Layer ranges chosen on validation examples",
            *(f"{name}: {layer_range}" for name, layer_range in layer_ranges.items()),
        ]
    )
    study.finish(tested.round({"value": 4}), summary, report + "\n", provenance(model, rows, args))
    show_table("Gain on test examples", pd.DataFrame(summary["layer_ranges"]).T)


def as_entry(layer_range: LayerRange) -> dict[str, Any]:
    """A layer range as an entry of the summary."""
    assert layer_range.gain is not None and layer_range.gain_best is not None
    return {
        "layers": list(layer_range.layers), "best": layer_range.best, "alpha": layer_range.alpha,
        "gain": numbers(layer_range.gain),
        "gain_best": numbers(layer_range.gain_best), "n_validation": layer_range.n_validation,
    }  # fmt: skip


if __name__ == "__main__":
    main()
