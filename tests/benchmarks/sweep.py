"""A sweep of layers and strengths against the obvious ways: one nnsight run a cell, one forward with a hook a cell.

    python tests/benchmarks/sweep.py [--model smollm2] [--inputs 1 8] [--peers PYTHON]

Every layer, seven strengths, the logits of two answers after a prompt of about ninety tokens. The other ways run on
cells spread over the grid, before and after the sweep in the same process; their seconds a cell are scaled up to all
cells. The numbers of all ways are compared. `--peers` are Pythons in which steering-vectors or nnterp is installed (the
latter needs an older nnsight); they see the same weights, prompt and vectors. `--random 32 4096` measures a random
Llama of that many layers and that width instead, for example on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnsight
import torch
from safetensors.torch import save_file
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, MeanDifference, Model
from steerlab.analysis.protocols import MULTIPLIERS
from steerlab.models.layout import blocks
from steerlab.testing import tiny_lm

TEXT = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun for a long while before it wakes"
Setting = tuple[int, float]
Way = Callable[[Setting], Tensor]


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="smollm2")
    arguments.add_argument("--random", type=int, nargs=2, metavar=("LAYERS", "WIDTH"))
    arguments.add_argument("--device", default=None)
    arguments.add_argument("--inputs", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--words", type=int, default=60, help="of a prompt")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--every", type=int, default=10, help="the other ways run every so manieth cell")
    arguments.add_argument("--peers", nargs="+", default=[])
    arguments.add_argument("--out", default="tests/benchmarks/results/sweep")
    args = arguments.parse_args()
    model = loaded(args)
    found: dict[str, Any] = {"model": model.id, "device": str(model.device), "threads": torch.get_num_threads()}
    for n in args.inputs:
        for positions in ("last+generated", "all"):
            found |= compared(model, n, positions, args)
    first = args.inputs[0]
    for positions, name in (("last+generated", "last"), ("all", "all")):
        found[f"sweep.speedup_{name}"] = found[f"{positions}.{first}.speedup_over_nnsight"]
    found["sweep.max_abs_diff"] = max(v for k, v in found.items() if k.endswith("max_abs_diff"))
    found["sweep.forward_equivalents"] = found[f"last+generated.{first}.forward_equivalents"]
    if args.peers:
        found |= with_peers(model, args)
    found["versions"] = model.info()["versions"]
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def loaded(args: argparse.Namespace) -> Model:
    """The model to measure."""
    if args.random is None:
        return steerlab.load(args.model, device=args.device)
    layers, width = args.random
    model = tiny_lm("llama", n_layers=layers, hidden_size=width, attn_implementation="sdpa")
    if args.device:
        model.hf.to(device=args.device, dtype=torch.bfloat16)
    return model


def asked(n: int, words: int) -> list[Example]:
    """Prompts of the same words in other orders, each with two answers that part at their second token."""
    said = TEXT.split(" ")
    pair = Contrast("(A)", "(B)", position="first_difference")
    return [
        Example(str(k), " ".join(said[(i * (k + 1)) % len(said)] for i in range(words)), "ask", pair) for k in range(n)
    ]


def compared(model: Model, n: int, positions: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a whole sweep, of the other ways scaled up to all its cells, and the largest difference."""
    rows = asked(n, args.words)
    generator = torch.Generator().manual_seed(0)
    vectors = {k: torch.randn(model.hidden_size, generator=generator) for k in range(model.n_layers)}
    steerers = {"mean": {k: MeanDifference.from_tensor(k, v) for k, v in vectors.items()}}
    # alpha 0 is one pass in the sweep and as dear as any in the other ways: it counts as a cell in both
    cells = [(layer, alpha) for layer in range(model.n_layers) for alpha in MULTIPLIERS]
    sample = [cell for cell in cells[:: args.every] if cell[1] != 0]
    ways = {"nnsight": by_nnsight(model, rows, vectors, positions), "hooks": by_hooks(model, rows, vectors, positions)}
    values: dict[str, dict[Setting, Tensor]] = {name: {} for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    took, frames = [], []

    def others() -> None:
        for name, way in ways.items():
            begun = time.perf_counter()
            values[name] |= {cell: way(cell) for cell in sample}
            seconds[name].append((time.perf_counter() - begun) / len(sample) * len(cells))

    steerlab.sweep(model, steerers, rows, [0, 1], (0.0, 1.0), positions, progress=False)
    for way in ways.values():
        way(sample[0])
    for _ in range(args.rounds):
        others()
        begun = time.perf_counter()
        plan = steerlab.sweep(model, steerers, rows, None, MULTIPLIERS, positions, dry_run=True)
        frames.append(plan.run(progress=False))
        took.append(time.perf_counter() - begun)
    others()
    frame = frames[-1].set_index(["layer", "alpha", "example_id"])["value"]
    differences = {
        name: max(
            float((torch.tensor([frame[(*cell, row.id)] for row in rows]) - found).abs().max())
            for cell, found in values[name].items()
        )
        for name in ways
    }
    told = {f"speedup_over_{name}": statistics.mean(seconds[name]) / statistics.median(took) for name in ways}
    told |= {f"seconds_{name}": statistics.mean(seconds[name]) for name in ways}
    told |= {"seconds_sweep": statistics.median(took), "max_abs_diff": max(differences.values())}
    equivalents = {k: round(float(v), 1) for k, v in frames[-1].attrs["forward_equivalents"].items()}
    print(plan.explain())
    name = f"{positions}.{n}"
    return {f"{name}.{k}": round(v, 6) for k, v in told.items()} | {f"{name}.forward_equivalents": equivalents}


def row_of(model: Model, rows: list[Example]) -> tuple[dict[str, Tensor], Tensor, list[list[int]]]:
    """Left-padded inputs up to where the answers part, the columns from the last prompt token on, the two answers."""
    encoded = [model.encode(e.prompt, answer="(A)", other_answer="(B)") for e in rows]
    other = [model.encode(e.prompt, answer="(B)", other_answer="(A)") for e in rows]
    heads = [row.head(row.first_difference or 0) for row in encoded]
    batch = model.batch(heads, "left")
    later = (
        torch.arange(batch.width)
        >= torch.tensor([o + h.n_prompt - 1 for o, h in zip(batch.offsets, heads, strict=True)])[:, None]
    )
    ids = [
        [p.ids[p.first_difference or 0], q.ids[q.first_difference or 0]] for p, q in zip(encoded, other, strict=True)
    ]
    return model.inputs(batch), later.to(model.device), ids


def position(logits: Tensor, ids: list[list[int]]) -> Tensor:
    """The difference of the two answers' logits."""
    last = logits[:, -1].float().cpu()
    return torch.tensor([float(row[a] - row[b]) for row, (a, b) in zip(last, ids, strict=True)])


def by_nnsight(model: Model, rows: list[Example], vectors: dict[int, Tensor], positions: str) -> Way:
    """One trace a cell, all inputs in its batch."""
    inputs, later, ids = row_of(model, rows)
    where = later if positions != "all" else inputs["attention_mask"].bool()
    root = nnsight.NNsight(model.hf)
    path = model.layout.blocks_path.split(".")

    def way(cell: Setting) -> Tensor:
        layer, alpha = cell
        shift = alpha * vectors[layer].to(model.device, model.dtype) * where[..., None]
        with torch.no_grad(), root.trace(**inputs, use_cache=False, logits_to_keep=1):
            envoy = root
            for name in path:
                envoy = getattr(envoy, name)
            envoy[layer].output = envoy[layer].output + shift
            logits = root.output.logits.save()
        return position(logits, ids)

    return way


def by_hooks(model: Model, rows: list[Example], vectors: dict[int, Tensor], positions: str) -> Way:
    """One forward a cell with a plain hook, all inputs in its batch."""
    inputs, later, ids = row_of(model, rows)
    where = later if positions != "all" else inputs["attention_mask"].bool()

    def way(cell: Setting) -> Tensor:
        layer, alpha = cell
        shift = alpha * vectors[layer].to(model.device, model.dtype) * where[..., None]
        block = blocks(model.hf, model.layout)[layer]
        handle = block.register_forward_hook(lambda _m, _a, out: out + shift)
        try:
            with torch.no_grad():
                return position(model.hf(**inputs, use_cache=False, logits_to_keep=1).logits, ids)
        finally:
            handle.remove()

    return way


def with_peers(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the other libraries for one input, scaled up to all cells, beside those of the sweep just measured."""
    rows = asked(1, args.words)
    inputs, later, ids = row_of(model, rows)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.stack([torch.randn(model.hidden_size, generator=generator) for _ in range(model.n_layers)])
    with tempfile.TemporaryDirectory() as folder:
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        # the peers pin an older transformers, which looks for the base of the rotations under its former name
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        config["rope_theta"] = config.get("rope_parameters", config).get("rope_theta", 10000.0)
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file({"ids": inputs["input_ids"].cpu(), "vectors": vectors}, f"{folder}/given.safetensors")
        first = int(later[0].to(torch.uint8).argmax())
        given = [folder, str(first), json.dumps(ids[0]), json.dumps(list(MULTIPLIERS)), str(args.every)]
        script = Path(__file__).with_name("sweep_peers.py")
        told: dict[str, Any] = {}
        for python in args.peers:
            done = subprocess.run([python, str(script), *given], capture_output=True, text=True, check=True)
            for name, facts in json.loads(done.stdout.splitlines()[-1]).items():
                if "error" not in facts or name not in told:  # a library is asked in each Python until it runs
                    told[name] = facts
    steerers = {"mean": {k: MeanDifference.from_tensor(k, v) for k, v in enumerate(vectors)}}
    begun = time.perf_counter()
    frame = steerlab.sweep(model, steerers, rows, None, MULTIPLIERS, "last+generated", progress=False)
    seconds = time.perf_counter() - begun
    values = frame.set_index(["layer", "alpha"])["value"]
    found: dict[str, Any] = {"peers.seconds_sweep": round(seconds, 4)}
    for name, facts in told.items():
        if "error" in facts:
            found[f"peers.{name}"] = facts["error"]
            continue
        apart = max(abs(values[(layer, alpha)] - value) for layer, alpha, value in facts["values"])
        found[f"peers.{name}"] = {
            "speedup": round(facts["seconds"] / seconds, 2), "seconds": round(facts["seconds"], 3),
            "max_abs_diff": round(apart, 6), "version": facts["version"],
        }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
