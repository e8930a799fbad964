"""What capturing every layer costs, as a ratio to the bare forward, and seconds to train L2S with the paper's preset.

    python tests/benchmarks/costs.py [--model smollm2] [--rows 1400] [--width 4096] [--out tests/benchmarks/results]

The bare forward and the capture run in turns in one process, so that whatever else the machine does hits both; the
ratio of each pair is taken, and their median reported. L2S trains on random rows. Never part of the tests: seconds
depend on the machine.
"""

import statistics
from argparse import Namespace
from typing import Any

import torch
from measured import arguments, paired, report, timed

import steerlab
from steerlab.capturing.capture import BatchRunner
from steerlab.capturing.rows import as_sites, plan_rows
from steerlab.data.inputs import as_examples
from steerlab.methods import L2S_PAPER, SteeringNet
from steerlab.methods.l2s.train import train_net


def main() -> None:
    parser = arguments(__doc__, "")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=1400)
    parser.add_argument("--width", type=int, default=4096)
    args = parser.parse_args()
    report(capture_cost(args), args.out / "capture_cost.json")
    report(l2s_training(args), args.out / "l2s_training.json")


def capture_cost(args: Namespace) -> dict[str, Any]:
    model = steerlab.load(args.model)
    text = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun for a long while"
    words = list(text.split(" "))
    prompts = [" ".join(words[i % len(words)] for i in range(k, k + 24)) for k in range(args.batch)]
    rows = plan_rows(model, as_examples(prompts), ["last"], [], "mean")
    sites = as_sites("all", model)
    batch = model.batch([row.prompt for row in rows], "right")
    inputs = model.inputs(batch)
    run = BatchRunner(model, sites, torch.float32, "right", "mean")

    def bare() -> None:
        with torch.no_grad():
            model.hf(**inputs, use_cache=False, logits_to_keep=1)

    ratios, seconds = paired(bare, lambda: list(run(rows)), args.rounds)
    acts = steerlab.capture(model, prompts, batch_size=args.batch, progress=False)
    return {
        "model": args.model, "batch": args.batch, "tokens": batch.width, "layers": len(sites),
        "device": str(model.device), "threads": torch.get_num_threads(),
        "capture.ratio_to_forward": round(statistics.median(ratios), 4),
        "capture.ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)],
        "forward.seconds": round(seconds, 4),
        "capture.bytes_copied": acts.info["bytes_copied"], "capture.bytes_returned": acts.values.nbytes,
        "versions": model.info()["versions"],
    }  # fmt: skip


def l2s_training(args: Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    contexts, targets = (torch.randn(args.rows, args.width, generator=generator) for _ in range(2))
    held = args.rows // 10
    groups = torch.zeros(args.rows - held, dtype=torch.long)
    options = {"groups": groups, "validation": (contexts[:held], targets[:held]), "seed": 0, "progress": True}
    net = SteeringNet(args.width, 100)
    history, seconds = timed(lambda: train_net(net, contexts[held:], targets[held:], L2S_PAPER, **options))
    return {
        "rows": args.rows, "width": args.width, "epochs": len(history), "threads": torch.get_num_threads(),
        "l2s.train_seconds": round(seconds, 2), "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
