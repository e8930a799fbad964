"""Steerability of SmolLM2 by mean vectors on the model-written evaluations, with the share of anti-steerable inputs.

    python analyses/steerability.py --data mwe                    # 37 sets, split 40/10/50, 7 strengths
    python analyses/steerability.py --data mwe --items 500        # half of each set, in half the time
    python figures/steerability.py results/steerability

`--data` has the folders persona/ and xrisk_lm/ of the evaluations (Perez et al., arXiv 2212.09251). The protocol is
the one of Tan et al. (arXiv 2407.12404): vectors are read at the answer's letter and added from the last prompt token
on. One layer for all sets is chosen on validation examples and evaluated on test examples. Unlike in the paper, both
letters are equally frequent in every split.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from _common import of_split, parser, provenance, show_table
from _published import PROTOCOLS
from _steerability import SHIFTED, measure_shifts, read, report, results_of, summary_of

import steerlab
from steerlab import Example
from steerlab.analysis.steerability import slopes, steerability
from steerlab.analysis.study import Study
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.data import PAPER_SETS, check_balance
from steerlab.methods import load_steerer
from steerlab.models.model import Model

MISSING_SETS = ("sycophancy_train", "sycophancy_test", "truthfulqa")  # of the paper's 40; not in this data folder
POSITIONS = PROTOCOLS["paper"].positions


def main() -> None:
    """Scan the layers of every set, choose one layer, evaluate it, and write tables."""
    arguments = parser(__doc__, "results/steerability")
    arguments.add_argument("--data", required=True, help="folder of the model-written evaluations")
    arguments.add_argument("--items", type=int, default=None, help="number of items per set, drawn with the seed")
    arguments.add_argument("--step", type=int, default=2, help="scan every n-th layer")
    arguments.add_argument(
        "--shift-items", type=int, default=60, help="shifted prompts: number of training items and of test items"
    )
    args = arguments.parse_args()
    keys = ("seed", "model", "items", "step", "shift_items", "limit")
    model = steerlab.load(args.model, device=args.device)
    identity = {"study": "steerability", **{k: getattr(args, k) for k in keys}, "weights": model.info()["weights"]}
    study = Study(args.out, identity)
    names = [name for name in PAPER_SETS if name not in MISSING_SETS][: args.limit]
    sets = {name: read(args.data, name, args.items, args.seed) for name in names}
    layers = list(range(args.step - 1, model.n_layers, args.step))

    clock = Clock(study)
    scans = [clock.stage(f"scan-{name}", lambda: scan(study, model, sets[name], layers, args)) for name in names]  # noqa: B023
    by_layer = pd.concat([steerability(slopes(frame), ("behavior", "layer")) for frame in scans])
    layer = int(by_layer.groupby("layer")["steerability"].mean().idxmax())
    print(f"layer {layer} has the largest mean slope on validation examples of {len(names)} sets")
    tests = [clock.stage(f"test-{layer}-{name}", lambda: test(study, model, sets[name], layer, args)) for name in names]  # noqa: B023
    shifts = [
        clock.stage(f"shift-{layer}-{name}", lambda: measure_shifts(model, sets[name], layer, args))  # noqa: B023
        for name in SHIFTED
        if name in names and args.shift_items
    ]

    rows = [row for name in names for row in sets[name]]
    tables = results_of(pd.concat(tests), by_layer, rows, pd.concat(shifts) if shifts else None, args.seed)
    for name, frame in tables.items():
        if name == "slopes":
            continue  # `results.csv`
        frame.to_csv(study.folder / f"{name}.csv", index=False, float_format="%.5g")
    summary = summary_of(tables, layer) | {"minutes": clock.minutes()}
    study.finish(tables["slopes"].round(5), summary, report(tables, layer), provenance(model, rows, args))
    show_table(f"Steerability at layer {layer}", tables["sets"].iloc[:, :10])


class Clock:
    """Runs the stages of a study and adds up their seconds, also over resumed runs."""

    def __init__(self, study: Study) -> None:
        self.study, self.seconds = study, 0.0

    def stage(self, name: str, compute: object) -> pd.DataFrame:
        """Like `Study.stage`, with the seconds stored as a column of the stage."""
        start = time.time()

        def timed() -> pd.DataFrame:
            frame = compute()  # type: ignore[operator]
            return frame.assign(seconds=round(time.time() - start, 2))

        frame = self.study.stage(name, timed)
        self.seconds += float(frame["seconds"].iloc[0])
        print(f"{name}: {frame['seconds'].iloc[0]:.0f} s", flush=True)
        return frame.drop(columns="seconds")

    def minutes(self) -> float:
        """Minutes of all stages, including those of earlier runs."""
        return round(self.seconds / 60, 1)


def folder_of(study: Study, name: str, layer: int) -> Path:
    """Folder of the vector of a set at a layer."""
    return study.folder / "stages" / "vectors" / name / str(layer)


def scan(
    study: Study, model: Model, rows: Sequence[Example], layers: list[int], args: argparse.Namespace
) -> pd.DataFrame:
    """Fit a vector at every layer and measure it at strengths -1 and 1 on validation examples."""
    train = of_split(rows, "train")
    check_balance(train)
    acts = steerlab.capture(model, train, layers=layers, context=None, batch_size=args.batch_size, progress=False)
    vectors = {layer: steerlab.MeanDifference(layer).fit(acts) for layer in layers}
    for layer, vector in vectors.items():
        vector.save_pretrained(folder_of(study, rows[0].behavior, layer))
    return steerlab.sweep(
        model, of_split(rows, "validation"), {"mean": vectors}, layers, (-1.0, 1.0), POSITIONS, progress=False
    )


def test(study: Study, model: Model, rows: Sequence[Example], layer: int, args: argparse.Namespace) -> pd.DataFrame:
    """Measure the vector of a set on its test examples at every strength."""
    vector = load_steerer(folder_of(study, rows[0].behavior, layer), model)
    return steerlab.sweep(
        model, of_split(rows, "test"), {"mean": {layer: vector}}, layer, MULTIPLIERS, POSITIONS,
        metric=["propensity", "accuracy"], progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
