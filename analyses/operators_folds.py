"""Refusal added, on all prompts of AdvBench at hand: fitted, chosen and tested on different ones, in four folds.

    python analyses/operators_folds.py --model smollm2 --data DATA --out results/operators_folds

`operators.py` tests an addition on parts of the prompts, and no part is left that it has not looked at. Here each fold
of the prompts is tested with a direction that is fitted to half of the other folds' prompts, and with the strength and
length that refuse most, in any text, on the other half. The layer is `--layer`, the one that `operators.py` chose.
`--folds` names the folds to compute; processes with other folds may share the folder, and the last one writes the
results. An interrupted run resumes from finished stages.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pandas as pd
from _common import numbers, parser, provenance, show_table
from _refusal_prompts import load_sets
from operators import MEASURED, RESULT_COLUMNS, answers, judged

import steerlab
from steerlab import Example, Request, SteeringVector
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods import Operation
from steerlab.metrics import is_refusal, share_interval

FOLDS, SETTINGS = 4, list(product((1.25, 1.5), (10, 12, 16)))  # strength, and how many new tokens besides the prompt


def parts_of_fold(prompts: list[Example], fold: int) -> tuple[list[Example], list[Example], list[Example]]:
    """The prompts that a fold is fitted to, chosen on and tested on."""
    others = [e for i, e in enumerate(prompts) if i % FOLDS != fold]
    return others[::2], others[1::2], prompts[fold::FOLDS]


def main() -> None:
    arguments = parser(__doc__, "results/operators_folds")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--layer", type=int, default=16)
    arguments.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
    arguments.set_defaults(max_new_tokens=32, batch_size=54)
    args = arguments.parse_args()
    prompts = [e for harmful, _ in load_sets(args.data, args.seed, args.limit).values() for e in harmful]
    model = steerlab.load(args.model, device=args.device)
    identity = {"study": "operators_folds", "seed": args.seed, "limit": args.limit, "tokens": args.max_new_tokens}
    identity |= {"layer": args.layer, "settings": SETTINGS, "weights": model.info()["weights"]}
    study = Study(args.out, identity | {"data": data_hash(prompts)})

    def tested(fold: int) -> pd.DataFrame:
        fit, choose, test = parts_of_fold(prompts, fold)
        folder = study.folder / "activations" / str(fold)
        options: dict[str, Any] = {"layers": [args.layer], "context": None, "batch_size": args.batch_size}
        acts = steerlab.capture(model, fit, folder=folder, **options).load()
        vector = SteeringVector({args.layer: steerlab.MeanDifference(args.layer).fit(acts).vector_})

        def added(alpha: float, first: int) -> Request:
            return Request(Operation(vector, "add", first=first), alpha, "all")

        rows = []
        for alpha, first in SETTINGS:
            make = partial(answers, model, added(alpha, first), (choose, []), [], args)
            texts = study.stage(f"choose-{fold}-{alpha:g}-{first}", make)["text"].astype(str)
            rows.append({"alpha": alpha, "first": first, "refuses": texts.map(is_refusal).mean()})
        best = pd.DataFrame(rows).sort_values(["refuses", "alpha", "first"], ascending=[False, True, True]).iloc[0]
        alpha, first = float(best["alpha"]), int(best["first"])
        found = judged(study, model, f"test-{fold}", (test, []), added(alpha, first), [], args)
        return found[RESULT_COLUMNS].assign(fold=fold, alpha=alpha, first=first)

    results = pd.concat([tested(fold) for fold in args.folds], ignore_index=True)
    if len(results) < len(prompts):
        print(f"{len(results)} of {len(prompts)} prompts: run the other folds in this folder, then all of them")
        return
    summary = {name: numbers(share_interval(int(results[name].sum()), len(results))) for name in MEASURED}
    settings = results.groupby("fold")[["alpha", "first"]].first().to_dict("index")
    page = "Ids and judgments are in results.csv; no texts.\n"
    study.finish(results, {**summary, "settings": settings}, page, provenance(model, prompts, args))
    show_table("Answers with the direction added", results.groupby("fold")[list(MEASURED)].mean())


if __name__ == "__main__":
    main()
