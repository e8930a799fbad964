"""Seconds to train L2S with the paper's preset on 1,400 random rows of width 4,096.

python tests/benchmarks/l2s_training.py [--out tests/benchmarks/results/l2s_training.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from steerlab.methods import L2S_PAPER, SteeringNet
from steerlab.methods.l2s.train import train_net


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1400)
    arguments.add_argument("--width", type=int, default=4096)
    arguments.add_argument("--out", default="tests/benchmarks/results/l2s_training.json")
    args = arguments.parse_args()
    generator = torch.Generator().manual_seed(0)
    contexts, targets = (torch.randn(args.rows, args.width, generator=generator) for _ in range(2))
    held = args.rows // 10
    net = SteeringNet(args.width, 100)
    start = time.perf_counter()
    history = train_net(
        net,
        contexts[held:],
        targets[held:],
        L2S_PAPER,
        groups=torch.zeros(args.rows - held, dtype=torch.long),
        validation=(contexts[:held], targets[:held]),
        seed=0,
        progress=True,
    )
    found = {
        "rows": args.rows,
        "width": args.width,
        "epochs": len(history),
        "threads": torch.get_num_threads(),
        "l2s.train_seconds": round(time.perf_counter() - start, 2),
        "torch": torch.__version__,
    }
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
