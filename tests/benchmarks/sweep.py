"""A sweep of layers and strengths against the obvious ways: per setting one nnsight run, or one forward with a hook.

    python tests/benchmarks/sweep.py [--model smollm2] [--inputs 1 8] [--peers PYTHON]

Every layer, seven strengths, the logits of two answers after a prompt of about ninety tokens. The other ways run on
settings spread over the grid, before and after the sweep in the same process; their seconds per setting are scaled up
to all settings. The numbers of all ways are compared. `--peers` are Pythons in which steering-vectors or nnterp is
installed (the latter needs an older nnsight); they see the same weights, prompt and vectors. `--random 32 4096`
measures a random Llama of that many layers and that width instead, for example on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import nnsight
import pandas as pd
import torch
from measured import arguments, report, timed
from safetensors.torch import save_file
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, SteeringVector
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.models.layout import blocks
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

TEXT = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun for a long while before it wakes"
Setting = tuple[int, float]
Way = Callable[[Setting], Tensor]


def main() -> None:
    parser = arguments(__doc__, "sweep")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--random", type=int, nargs=2, metavar=("LAYERS", "WIDTH"))
    parser.add_argument("--device", default=None)
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--words", type=int, default=60, help="of a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, help="the other ways run every n-th setting")
    parser.add_argument("--peers", nargs="+", default=[])
    args = parser.parse_args()
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
    report(found, args.out / "summary.json")


def loaded(args: argparse.Namespace) -> Model:
    if args.random is None:
        return steerlab.load(args.model, device=args.device)
    layers, width = args.random
    model = tiny_lm("llama", n_layers=layers, hidden_size=width, attn_implementation="sdpa")
    if args.device:
        model.hf.to(device=args.device, dtype=torch.bfloat16)
    return model


def prompts_with_answers(n: int, n_words: int) -> list[Example]:
    """Prompts of the same words in other orders, each with two answers that differ at their second token."""
    words = TEXT.split(" ")
    pair = Contrast("(A)", "(B)", position="first_difference")
    prompts = (" ".join(words[(i * (k + 1)) % len(words)] for i in range(n_words)) for k in range(n))
    return [Example(prompt, id=str(k), behavior="ask", contrast=pair) for k, prompt in enumerate(prompts)]


def compared(model: Model, n: int, positions: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a whole sweep, of the other ways scaled up to all its settings, and the largest difference."""
    rows = prompts_with_answers(n, args.words)
    generator = torch.Generator().manual_seed(0)
    vectors = {k: torch.randn(model.hidden_size, generator=generator) for k in range(model.n_layers)}
    steerers = {"mean": {k: SteeringVector({k: v}) for k, v in vectors.items()}}
    # alpha 0 is one pass in the sweep and as dear as any in the other ways: it counts as a setting in both
    settings = [(layer, alpha) for layer in range(model.n_layers) for alpha in MULTIPLIERS]
    sample = [setting for setting in settings[:: args.every] if setting[1] != 0]
    ways = {"nnsight": by_nnsight(model, rows, vectors, positions), "hooks": by_hooks(model, rows, vectors, positions)}
    values: list[tuple[Setting, Tensor]] = []
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "sweep")}

    def run_ways() -> None:
        for name, way in ways.items():
            found, elapsed = timed(lambda way=way: [(setting, way(setting)) for setting in sample])
            values.extend(found)
            seconds[name].append(elapsed / len(sample) * len(settings))

    def run_sweep() -> pd.DataFrame:
        return steerlab.sweep(model, rows, steerers, None, MULTIPLIERS, positions, dry_run=True).run(progress=False)

    steerlab.sweep(model, rows, steerers, [0, 1], (0.0, 1.0), positions, progress=False)
    for way in ways.values():
        way(sample[0])
    for _ in range(args.rounds):
        run_ways()
        frame, elapsed = timed(run_sweep)
        seconds["sweep"].append(elapsed)
    run_ways()
    print(steerlab.sweep(model, rows, steerers, None, MULTIPLIERS, positions, dry_run=True).explain())
    swept = frame.set_index(["layer", "alpha", "example_id"])["value"]
    differences = (torch.tensor([swept[(*setting, row.id)] for row in rows]) - found for setting, found in values)
    typical = {name: statistics.mean(seconds[name]) for name in ways} | {"sweep": statistics.median(seconds["sweep"])}
    numbers = {f"speedup_over_{name}": typical[name] / typical["sweep"] for name in ways}
    numbers |= {f"seconds_{name}": value for name, value in typical.items()}
    numbers["max_abs_diff"] = max(float(difference.abs().max()) for difference in differences)
    equivalents = {k: round(float(v), 1) for k, v in frame.attrs["forward_equivalents"].items()}
    name = f"{positions}.{n}"
    return {f"{name}.{k}": round(v, 6) for k, v in numbers.items()} | {f"{name}.forward_equivalents": equivalents}


def row_of(model: Model, rows: list[Example], positions: str) -> tuple[dict[str, Tensor], Tensor, list[list[int]]]:
    """Left-padded inputs up to where the answers part, the steered columns, the two answers."""
    orders = (("(A)", "(B)"), ("(B)", "(A)"))
    sides = [[model.encode(e.prompt, answer=a, other_answer=b) for a, b in orders] for e in rows]
    batch = model.batch([side.head(side.first_difference or 0) for side, _ in sides], "left")
    inputs = model.inputs(batch)
    later = torch.arange(batch.width) >= torch.tensor(batch.last_prompt_columns)[:, None]
    where = later.to(model.device) if positions != "all" else inputs["attention_mask"].bool()
    return inputs, where, [[side.ids[side.first_difference or 0] for side in pair] for pair in sides]


def position(logits: Tensor, ids: list[list[int]]) -> Tensor:
    """The difference of the two answers' logits."""
    last = logits[:, -1].float().cpu()
    return torch.tensor([float(row[a] - row[b]) for row, (a, b) in zip(last, ids, strict=True)])


def by_nnsight(model: Model, rows: list[Example], vectors: dict[int, Tensor], positions: str) -> Way:
    """One trace a setting, all inputs in its batch."""
    inputs, where, ids = row_of(model, rows, positions)
    root = nnsight.NNsight(model.hf)
    envoys = attrgetter(model.layout.blocks_path)(root)

    def way(setting: Setting) -> Tensor:
        layer, alpha = setting
        shift = alpha * vectors[layer].to(model.device, model.dtype) * where[..., None]
        with torch.no_grad(), root.trace(**inputs, use_cache=False, logits_to_keep=1):
            envoys[layer].output = envoys[layer].output + shift
            logits = root.output.logits.save()
        return position(logits, ids)

    return way


def by_hooks(model: Model, rows: list[Example], vectors: dict[int, Tensor], positions: str) -> Way:
    """One forward a setting with a plain hook, all inputs in its batch."""
    inputs, where, ids = row_of(model, rows, positions)

    def way(setting: Setting) -> Tensor:
        layer, alpha = setting
        shift = alpha * vectors[layer].to(model.device, model.dtype) * where[..., None]
        block = blocks(model.hf, model.layout)[layer]
        with torch.no_grad(), block.register_forward_hook(lambda _m, _a, out: out + shift):
            return position(model.hf(**inputs, use_cache=False, logits_to_keep=1).logits, ids)

    return way


def with_peers(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the other libraries for one input, scaled up to all settings, and of the sweep."""
    rows = prompts_with_answers(1, args.words)
    inputs, later, ids = row_of(model, rows, "last+generated")
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
        by_library: dict[str, Any] = {}
        for python in args.peers:
            done = subprocess.run([python, str(script), *given], capture_output=True, text=True, check=True)
            for name, facts in json.loads(done.stdout.splitlines()[-1]).items():
                if "error" not in facts or name not in by_library:  # each library is tried in each Python until it runs
                    by_library[name] = facts
    steerers = {"mean": {k: SteeringVector({k: v}) for k, v in enumerate(vectors)}}
    sweep = partial(steerlab.sweep, model, steerers, rows, None, MULTIPLIERS, "last+generated", progress=False)
    frame, seconds = timed(sweep)
    values = frame.set_index(["layer", "alpha"])["value"]
    found: dict[str, Any] = {"peers.seconds_sweep": round(seconds, 4)}
    for name, facts in by_library.items():
        if "error" in facts:
            found[f"peers.{name}"] = facts["error"]
            continue
        difference = max(abs(values[(layer, alpha)] - value) for layer, alpha, value in facts["values"])
        found[f"peers.{name}"] = {
            "speedup": round(facts["seconds"] / seconds, 2), "seconds": round(facts["seconds"], 3),
            "max_abs_diff": round(difference, 6), "version": facts["version"],
        }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
