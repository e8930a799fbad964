"""What decoding under each operator costs, as a ratio to unsteered decoding.

    python tests/benchmarks/operators.py [--model smollm2] [--batch 16] [--rounds 9] [--out FOLDER]

Both generations run in turns in one process; the ratio of each pair is taken, and their median reported. All texts have
the same number of new tokens, and every token is changed at one layer. Never part of the tests.
"""

import statistics
from typing import Any

import torch
from measured import arguments, paired, report

import steerlab
from steerlab import Contrast, Example, MeanDifference
from steerlab.methods import Clamp, GradientField, Operation, Scale, Spherical
from steerlab.methods.base import Steerer
from steerlab.models.model import Model


def main() -> None:
    parser = arguments(__doc__, "operators")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    model = steerlab.load(args.model)
    prompts = [f"Tell me in a few words what happened in the year {1900 + i}." for i in range(args.batch)]
    options: dict[str, Any] = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "progress": False}
    options |= {"batch_size": args.batch}
    ratios = {}
    for name, steerer in steerers(model).items():
        found, base = paired(
            lambda: steerlab.generate(model, prompts, **options),
            lambda steerer=steerer: steerlab.generate(model, prompts, steer=steerer, alpha=0.5, **options),
            args.rounds,
        )
        quartiles = [round(q, 4) for q in statistics.quantiles(found, n=4)]
        ratios[name] = {"ratio": round(statistics.median(found), 4), "quartiles": quartiles}
        print(name, ratios[name], flush=True)
    versions = model.info()["versions"]
    report(
        {
            "model": args.model, "batch": args.batch, "new_tokens": args.tokens, "rounds": args.rounds,
            "threads": torch.get_num_threads(), "unsteered_seconds": round(base, 3), "operators": ratios,
            "versions": versions,
        },
        args.out / "summary.json",
    )  # fmt: skip


def steerers(model: Model) -> dict[str, Steerer]:
    """Every operator at one layer in the middle."""
    layer = model.n_layers // 2
    pairs = [Example(f"Is {i} even?", Contrast("Certainly, it is.", "No, never."), behavior="yes") for i in range(24)]
    acts = steerlab.capture(model, pairs, layers=[layer], progress=False)
    mean = MeanDifference(layer).fit(acts)
    operations = {name: Operation(mean, name) for name in ("project_out", "replace", "rotate")}
    return {
        "add": mean, **operations, "clamp": Operation(mean, Clamp(-1.0, 1.0)), "scale": Operation(layer, Scale(0.9)),
        "spherical": Spherical(layer).fit(acts), "gradient field": GradientField(layer, epochs=5).fit(acts),
    }  # fmt: skip


if __name__ == "__main__":
    main()
