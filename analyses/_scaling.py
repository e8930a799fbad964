"""What a job on a server costs: seconds and bytes fitted to measured runs, and asked about a model that is not here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from transformers import LlamaConfig

import steerlab
from steerlab import Example, MeanDifference, Model
from steerlab.analysis.sweep import plan
from steerlab.models.smollm2 import smollm2_folder

TERMS = ("requests", "work", "steps", "down")
NOWHERE = "http://127.0.0.1:9"  # a plan asks no server anything
MULTIPLIERS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class CostModel:
    """Seconds and bytes of one engine.

    Attributes:
        engine: "ndif", "vllm" or "serve".
        seconds: of a request, of a token times a block, of a step of new tokens, and of a byte that comes back.
        sent: bytes of a request, and of a token in it; vectors are counted beside them, four bytes a number.
        overhead: bytes that come back with a request beside the values.
    """

    engine: str
    seconds: dict[str, float]
    sent: tuple[float, float]
    overhead: float

    def up(self, requests: Any, tokens: Any, vectors: Any, hidden: int) -> Any:
        """Bytes that are sent; numbers or columns."""
        return requests * self.sent[0] + tokens * self.sent[1] + FLOAT * hidden * vectors


def with_down(runs: pd.DataFrame) -> pd.DataFrame:
    """Bytes that come back: what was counted on the wire, else what the caller gets from another process."""
    return runs.assign(down=runs["received"].where(runs["received"] > 0, runs["returned"]))


def fitted(runs: pd.DataFrame, hidden: int) -> CostModel:
    """The cost model of one engine, from the runs that it may look at; relative errors, no cost below zero."""
    seen = with_down(runs[runs["calibrates"]])
    scale = seen["seconds"].to_numpy()[:, None]
    costs, _ = nnls(seen[list(TERMS)].to_numpy(float) / scale, np.ones(len(seen)))
    bytes_up = (seen["sent"] - FLOAT * hidden * seen["vectors"]).to_numpy(float)
    per = np.zeros(2)
    if bytes_up.any():
        per, _ = nnls(seen[["requests", "columns"]].to_numpy(float) / bytes_up[:, None], np.ones(len(seen)))
    over = float(((seen["down"] - seen["returned"]) / seen["requests"]).median())
    seconds = {name: float(cost) for name, cost in zip(TERMS, costs, strict=True)}
    return CostModel(str(seen["engine"].iloc[0]), seconds, (float(per[0]), float(per[1])), over)


def predicted(model: CostModel, runs: pd.DataFrame, hidden: int) -> pd.DataFrame:
    """Every run with what the model says of it, beside what was measured."""
    found = with_down(runs)
    seconds = sum(found[name] * model.seconds[name] for name in TERMS)
    sent = model.up(found["requests"], found["columns"], found["vectors"], hidden)
    measured = found["seconds"].round(3)
    return pd.DataFrame({
        "engine": found["engine"], "run": found["name"], "used_for_fit": found["calibrates"],
        "measured_s": measured, "predicted_s": seconds.round(3), "ratio_s": (seconds / measured).round(3),
        "measured_sent": found["sent"], "predicted_sent": sent.round().astype(int) * (found["sent"] > 0),
        "ratio_sent": (sent / found["sent"]).where(found["sent"] > 0).round(3),
    })  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a job asks of an engine.

    Attributes:
        requests, rows, tokens: jobs, rows of forwards, and their tokens with padding.
        work: tokens times the blocks that they go through.
        vectors: vectors that are sent.
        steps: forwards of new tokens.
        down: bytes of the values that come back.
    """

    requests: int
    rows: int
    tokens: int
    work: float
    vectors: int = 0
    steps: int = 0
    down: int = 0


def of_sweep(model: Model, vectors: dict[int, MeanDifference], data: Sequence[Example], where: str, **how: Any) -> Load:
    """A sweep as it is planned for the model; nothing is run."""
    asked: dict[str, Any] = {"steerer": {"mean": vectors}, "layers": list(vectors), "positions": where}
    found = plan(model, data=data, **asked | how).plan
    assert found is not None
    cells = sum(len(chunk.settings) for part in found.parts for chunk in part.chunks)
    alive = len(found.settings) - len({i for part in found.parts for i in part.idle})
    rows = (alive + 1) * len(data)
    work = found.predicted * found.forward
    return Load(found.batches, rows, round(work / found.n_layers), work, cells, 0, rows * FLOAT * 2)


def large(n: int = 500) -> tuple[Model, Model, list[Example]]:
    """A Llama of 70 B without its weights, elsewhere and here, and as many prompts with two answers each."""
    config = LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    tokenizer = str(smollm2_folder())  # for the lengths
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        far = steerlab.load(Path(folder), remote=NOWHERE, check=False, tokenizer=tokenizer)
    near = steerlab.load(far.hf, tokenizer=far.tokenizer, check=False, backend="hooks")
    rows = [row for row in steerlab.data.demo_set() if row.contrast]
    return (
        far,
        near,
        [rows[i % len(rows)].replace(id=str(i), prompt=f"{i}. {rows[i % len(rows)].prompt}") for i in range(n)],
    )


def loads(far: Model, near: Model, data: Sequence[Example]) -> dict[str, dict[str, Load]]:
    """What three jobs ask of a model in one process, of one on NDIF, and of one in vLLM, where a row is a request."""
    vectors = {k: MeanDifference.from_tensor(k, torch.ones(far.hidden_size)) for k in range(far.n_layers)}
    lengths = [len(far.encode(row.prompt)) for row in data]
    tokens, n, depth = sum(lengths), len(data), far.n_layers
    states = n * depth * far.hidden_size * FLOAT
    jobs = {"capture": {
        "here": Load(-(-n // 16), n, tokens, tokens * depth, down=states),
        "ndif": Load(-(-n // 16), n, tokens, tokens * depth, down=states),
        "vllm": Load(n, n, tokens, tokens * depth, down=states),
    }}  # fmt: skip
    for where in ("last+generated", "all"):
        here, ndif = (of_sweep(m, vectors, data, where, alphas=MULTIPLIERS) for m in (near, far))
        vllm = Load(ndif.rows, ndif.rows, ndif.tokens, ndif.work, ndif.rows - n, 0, ndif.down)
        jobs[f"sweep, {where}"] = {"here": here, "ndif": ndif, "vllm": vllm}
    return jobs


def of_texts(far: Model, data: Sequence[Example], strengths: int, new: int, hidden_net: int) -> dict[str, Load]:
    """Texts under an L2S whose net of `hidden_net` units goes along with every request to NDIF; vLLM gets vectors,
    after a pass that reads what the net asks for.
    """
    lengths = [len(far.encode(row.prompt)) for row in data]
    rows, tokens = len(data) * strengths, sum(lengths) * strengths
    batches, net = -(-rows // 16), 2 * hidden_net  # the net's weights, in rows as wide as a vector
    at_once, depth = -(-rows // 256), far.n_layers
    down = rows * new * 8
    return {
        "here": Load(batches, rows, tokens, tokens * depth, 0, batches * new, down),
        "ndif": Load(batches, rows, tokens, tokens * depth, batches * net, batches * new, down),
        "vllm": Load(2 * rows, 2 * rows, 2 * tokens, 2 * tokens * depth, rows, at_once * new, down),
    }


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machines and the network, as nothing of the kind was here.

    Attributes:
        gpus: on the node.
        flops, memory: of one of them, multiplications and additions and bytes a second, as its maker states.
        used: share of either that is reached.
        network: bytes a second between client and server.
        trip: seconds that a request takes longer over that network than on one machine.
    """

    gpus: int = 8
    flops: float = 989e12
    memory: float = 3.35e12
    used: float = 0.4
    network: float = 12.5e6
    trip: float = 0.3


def costs(load: Load, way: str, far: Model, machine: Machine, model: CostModel | None) -> dict[str, Any]:
    """Forwards, bytes and minutes of a job in one place: computing, bytes on the wire, and requests by themselves.

    One process with `device_map` and NDIF run a forward through one GPU after the other; vLLM splits every block over
    all of them.
    """
    block = sum(p.numel() for p in far.hf.model.layers[0].parameters())
    weights = 2 * sum(p.numel() for p in far.hf.parameters())  # bytes in bfloat16
    together = machine.gpus if way in ("vllm", "serve") else 1
    flop = 2 * block * load.work
    computing = flop / (machine.flops * machine.used * together)
    computing += load.steps * weights / (machine.memory * machine.used * together)
    asking = 0.0 if model is None else load.requests * model.seconds["requests"]
    up = down = 0.0
    if model is not None and way in ("ndif", "serve"):
        up = model.up(load.requests, load.tokens, load.vectors, far.hidden_size)
        down = load.down + load.requests * model.overhead
        asking += load.requests * machine.trip / (64 if way == "serve" else 1)  # so many at a time
    wire = (up + down) / machine.network
    return {
        "row_forwards": load.rows, "requests": load.requests if model is not None else 0, "tokens": load.tokens,
        "PFLOP": flop / 1e15, "GB_sent": up / 1e9, "GB_received": down / 1e9,
        "min_computing": computing / 60, "min_transfer": wire / 60, "min_requests": asking / 60,
        "minutes": (computing + wire + asking) / 60,
    }  # fmt: skip
