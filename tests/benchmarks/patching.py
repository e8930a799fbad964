"""Activation patching against the obvious way: one forward with a hook for each cell.

    python tests/benchmarks/patching.py [--model smollm2] [--tokens 60]

All blocks times all tokens of a prompt, the logits of two answers after it. The obvious way runs cells spread over the
grid, before and after `patch` in the same process; its seconds per cell are scaled up to all cells. The prompts differ
in their first word, so that no cell can be left out, and once in the middle, as pairs in use do. Values of all ways are
compared.
"""

import argparse
import statistics
from typing import Any

import torch
from measured import arguments, report, timed

import steerlab
from steerlab.analysis.patching import patch
from steerlab.models.layout import blocks
from steerlab.models.model import Model

TEXT = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun for a long while before it wakes"


def main() -> None:
    parser = arguments(__doc__, "patching")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=61, help="the obvious way runs every n-th cell")
    args = parser.parse_args()
    model = steerlab.load(args.model, chat=False)
    words = (TEXT.split(" ") * args.tokens)[: args.tokens]
    found: dict[str, Any] = {"model": model.id, "threads": torch.get_num_threads()}
    for name, place in (("first", 0), ("middle", args.tokens // 2)):
        pair = [" ".join([*words[:place], word, *words[place + 1 :]]) for word in ("one", "two")]
        found |= {f"patch.{name}.{k}": v for k, v in compared(model, pair[0], pair[1], args).items()}
    found["versions"] = model.info()["versions"]
    report(found, args.out / "summary.json")


def compared(model: Model, clean: str, corrupted: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways for all cells, and the largest difference."""
    rows = [model.encode(text).ids for text in (clean, corrupted)]
    assert len(rows[0]) == len(rows[1]), "the words have to be as many tokens"
    cells = [(layer, column) for layer in range(model.n_layers) for column in range(len(rows[0]))]
    sample = cells[:: args.every]
    with torch.no_grad():
        hidden = model.hf(torch.tensor([rows[0]]), output_hidden_states=True, use_cache=False).hidden_states
    # the last of Hugging Face's states is normed already, and the layer below gives all others
    states = [*hidden[1:-1], block_output(model, rows[0])]
    answers = model.tokenizer.decode([rows[0][-1]]), model.tokenizer.decode([rows[0][-2]])
    ids = rows[0][-1], rows[0][-2]

    def by_hook(cell: tuple[int, int]) -> float:
        layer, column = cell

        def put(_module: Any, _args: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            h[:, column] = states[layer][:, column]

        with torch.no_grad(), blocks(model.hf, model.layout)[layer].register_forward_hook(put):
            logits = model.hf(torch.tensor([rows[1]]), use_cache=False, logits_to_keep=1).logits[0, -1]
        return float(logits[ids[0]] - logits[ids[1]])

    patch(model, [clean], [corrupted], answers, layers=[0])
    by_hook(sample[0])
    seconds: dict[str, list[float]] = {"hook": [], "patch": []}
    for _ in range(args.rounds):
        values, elapsed = timed(lambda: [by_hook(cell) for cell in sample])
        seconds["hook"].append(elapsed / len(sample) * len(cells))
        frame, elapsed = timed(lambda: patch(model, [clean], [corrupted], answers))
        seconds["patch"].append(elapsed)
    patched = frame.set_index(["layer", "column"])["value"]
    typical = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "cells": len(cells), "seconds": round(typical["patch"], 2), "seconds_hook": round(typical["hook"], 2),
        "speedup": round(typical["hook"] / typical["patch"], 2),
        "max_abs_diff": max(abs(patched[cell] - value) for cell, value in zip(sample, values, strict=True)),
    }  # fmt: skip


def block_output(model: Model, ids: tuple[int, ...]) -> torch.Tensor:
    """The output of the last block, before the final norm."""
    seen: list[torch.Tensor] = []
    last = blocks(model.hf, model.layout)[-1]
    with torch.no_grad(), last.register_forward_hook(lambda _m, _a, out: seen.append(out)):
        model.hf(torch.tensor([ids]), use_cache=False)
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


if __name__ == "__main__":
    main()
