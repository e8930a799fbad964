"""A cost model of remote engines, in seconds and bytes, and the load of workloads on a large model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from transformers import LlamaConfig

import steerlab
from steerlab import Example, SteeringVector
from steerlab.models.model import Model
from steerlab.models.shortcuts import Shortcuts
from steerlab.models.smollm2 import smollm2_folder
from steerlab.testing import tiny_lm

TERMS = ("requests", "work", "steps", "down")
NOWHERE = "http://127.0.0.1:9"  # never contacted: planning needs no server
MULTIPLIERS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class CostModel:
    """Seconds and bytes of one engine.

    Attributes:
        engine: "ndif", "vllm" or "serve".
        seconds: per request, per token times block, per step of new tokens, and per returned byte.
        sent: bytes per request and per token; vectors are added to them, four bytes per number.
        overhead: returned bytes per request besides the values.
    """

    engine: str
    seconds: dict[str, float]
    sent: tuple[float, float]
    overhead: float

    def bytes_sent(self, requests: Any, tokens: Any, vectors: Any, hidden: int) -> Any:
        """Bytes sent, for numbers or columns of a data frame."""
        return requests * self.sent[0] + tokens * self.sent[1] + FLOAT * hidden * vectors


def add_returned_bytes(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the returned bytes `down`: as counted on the network, else the size of the returned values."""
    return runs.assign(down=runs["received"].where(runs["received"] > 0, runs["returned"]))


def fit_cost_model(runs: pd.DataFrame, hidden: int) -> CostModel:
    """Fit the cost model of one engine to the runs with `calibrates`: least squares of relative errors, costs >= 0."""
    seen = add_returned_bytes(runs[runs["calibrates"]])
    scale = seen["seconds"].to_numpy()[:, None]
    costs, _ = nnls(seen[list(TERMS)].to_numpy(float) / scale, np.ones(len(seen)))
    bytes_up = (seen["sent"] - FLOAT * hidden * seen["vectors"]).to_numpy(float)
    per = np.zeros(2)
    if bytes_up.any():
        per, _ = nnls(seen[["requests", "columns"]].to_numpy(float) / bytes_up[:, None], np.ones(len(seen)))
    over = float(((seen["down"] - seen["returned"]) / seen["requests"]).median())
    seconds = {name: float(cost) for name, cost in zip(TERMS, costs, strict=True)}
    return CostModel(str(seen["engine"].iloc[0]), seconds, (float(per[0]), float(per[1])), over)


def predict(model: CostModel, runs: pd.DataFrame, hidden: int) -> pd.DataFrame:
    """Predicted seconds and bytes of every run beside the measured ones."""
    found = add_returned_bytes(runs)
    seconds = sum(found[name] * model.seconds[name] for name in TERMS)
    sent = model.bytes_sent(found["requests"], found["columns"], found["vectors"], hidden)
    measured = found["seconds"].round(3)
    return pd.DataFrame({
        "engine": found["engine"], "run": found["name"], "used_for_fit": found["calibrates"],
        "measured_s": measured, "predicted_s": seconds.round(3), "ratio_s": (seconds / measured).round(3),
        "measured_sent": found["sent"], "predicted_sent": sent.round().astype(int) * (found["sent"] > 0),
        "ratio_sent": (sent / found["sent"]).where(found["sent"] > 0).round(3),
    })  # fmt: skip


@dataclass(frozen=True)
class Load:
    """The load of a workload on an engine.

    Attributes:
        requests, rows, tokens: number of requests, of rows of forwards, and of their tokens with padding.
        work: tokens times the blocks that process them.
        vectors: number of vectors sent.
        steps: number of forwards of new tokens.
        down: bytes of the returned values.
    """

    requests: int
    rows: int
    tokens: int
    work: float
    vectors: int = 0
    steps: int = 0
    down: int = 0


def sweep_load(
    model: Model, vectors: Mapping[int, SteeringVector], data: Sequence[Example], where: str, **options: Any
) -> Load:
    """The load of a sweep, from its plan; nothing is run."""
    arguments: dict[str, Any] = {"steer": {"mean": vectors}, "layers": list(vectors), "positions": where}
    found = steerlab.sweep(model, data=data, dry_run=True, **arguments | options).answers
    n_vectors = sum(len(batch.settings) for group in found.groups for batch in group.batches)
    n_steered = len(found.settings) - len({i for group in found.groups for i in group.unsteered})
    rows = (n_steered + 1) * len(data)
    work = found.planned * found.forward_cost
    return Load(found.n_batches, rows, round(work / found.n_layers), work, n_vectors, 0, rows * FLOAT * 2)


class PlannedLlama(Model):
    """A Llama without weights to try shortcuts on: it is planned with those that a tiny one has."""

    @cached_property
    def shortcuts(self) -> Shortcuts:
        """Those of a tiny Llama, with the keys and values of this one."""
        config = self.hf.config
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return replace(tiny_lm("llama", backend="hooks").shortcuts, numbers_per_token=numbers)


def llama_70b(n: int = 500) -> tuple[Model, Model, list[Example]]:
    """A Llama of 70 B parameters without weights, as a remote and as a local model, and `n` examples with contrasts."""
    config = LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    tokenizer = str(smollm2_folder())  # for the prompt lengths
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        remote = steerlab.load(Path(folder), remote=NOWHERE, check=False, tokenizer=tokenizer)
    local = PlannedLlama(remote.hf, remote.tokenizer, remote.layout, id=remote.id, backend="hooks")
    rows = [row for row in steerlab.data.demo_set() if row.contrast]
    return (
        remote,
        local,
        [rows[i % len(rows)].replace(id=str(i), prompt=f"{i}. {rows[i % len(rows)].prompt}") for i in range(n)],
    )


def loads(remote: Model, local: Model, data: Sequence[Example]) -> dict[str, dict[str, Load]]:
    """The load of three workloads in one process, on NDIF, and in vLLM, where every row is a request."""
    vectors = {k: SteeringVector({k: torch.ones(remote.hidden_size)}) for k in range(remote.n_layers)}
    lengths = [len(remote.encode(row.prompt)) for row in data]
    tokens, n, depth = sum(lengths), len(data), remote.n_layers
    states = n * depth * remote.hidden_size * FLOAT
    workloads = {"capture": {
        "local": Load(-(-n // 16), n, tokens, tokens * depth, down=states),
        "ndif": Load(-(-n // 16), n, tokens, tokens * depth, down=states),
        "vllm": Load(n, n, tokens, tokens * depth, down=states),
    }}  # fmt: skip
    for where in ("last+generated", "all"):
        in_process, ndif = (sweep_load(m, vectors, data, where, alphas=MULTIPLIERS) for m in (local, remote))
        vllm = Load(ndif.rows, ndif.rows, ndif.tokens, ndif.work, ndif.rows - n, 0, ndif.down)
        workloads[f"sweep, {where}"] = {"local": in_process, "ndif": ndif, "vllm": vllm}
    return workloads


def texts_load(remote: Model, data: Sequence[Example], strengths: int, new: int, hidden_net: int) -> dict[str, Load]:
    """The load of generating texts with L2S.

    Every request to NDIF contains the net of `hidden_net` units. vLLM gets vectors, after a pass that captures the
    input of the net.
    """
    lengths = [len(remote.encode(row.prompt)) for row in data]
    rows, tokens = len(data) * strengths, sum(lengths) * strengths
    batches, net = -(-rows // 16), 2 * hidden_net  # the net's weights, in rows as wide as a vector
    at_once, depth = -(-rows // 256), remote.n_layers
    down = rows * new * 8
    return {
        "local": Load(batches, rows, tokens, tokens * depth, 0, batches * new, down),
        "ndif": Load(batches, rows, tokens, tokens * depth, batches * net, batches * new, down),
        "vllm": Load(2 * rows, 2 * rows, 2 * tokens, 2 * tokens * depth, rows, at_once * new, down),
    }


@dataclass(frozen=True)
class Machine:
    """Assumptions about machines and network, since no such machine was available.

    Attributes:
        gpus: number on the node.
        flops, memory: floating-point operations and bytes per second of one GPU, as specified by its maker.
        used: share of both that is reached.
        network: bytes per second between client and server.
        trip: extra seconds per request over that network compared with one machine.
    """

    gpus: int = 8
    flops: float = 989e12
    memory: float = 3.35e12
    used: float = 0.4
    network: float = 12.5e6
    trip: float = 0.3


def costs(load: Load, engine: str, remote: Model, machine: Machine, model: CostModel | None) -> dict[str, Any]:
    """Forwards, bytes and minutes of a workload with one engine: computing, transfer, and requests.

    One process with `device_map` and NDIF use one GPU after the other; vLLM splits every block over all GPUs.
    """
    block = sum(p.numel() for p in remote.hf.model.layers[0].parameters())
    weights = 2 * sum(p.numel() for p in remote.hf.parameters())  # bytes in bfloat16
    parallel_gpus = machine.gpus if engine in ("vllm", "serve") else 1
    flop = 2 * block * load.work
    computing = flop / (machine.flops * machine.used * parallel_gpus)
    computing += load.steps * weights / (machine.memory * machine.used * parallel_gpus)
    request_seconds = 0.0 if model is None else load.requests * model.seconds["requests"]
    up = down = 0.0
    if model is not None and engine in ("ndif", "serve"):
        up = model.bytes_sent(load.requests, load.tokens, load.vectors, remote.hidden_size)
        down = load.down + load.requests * model.overhead
        request_seconds += load.requests * machine.trip / (64 if engine == "serve" else 1)  # concurrent requests
    transfer = (up + down) / machine.network
    return {
        "row_forwards": load.rows, "requests": load.requests if model is not None else 0, "tokens": load.tokens,
        "PFLOP": flop / 1e15, "GB_sent": up / 1e9, "GB_received": down / 1e9,
        "min_computing": computing / 60, "min_transfer": transfer / 60, "min_requests": request_seconds / 60,
        "minutes": (computing + transfer + request_seconds) / 60,
    }  # fmt: skip
