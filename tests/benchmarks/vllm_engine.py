"""vLLM compared with Hugging Face: equal logits, no rows mixed up, and the gain of 64 requests at once.

    PYTHON=$(.venv/bin/python tests/remote/servers/venvs.py vllm)/bin/python   # as in `make vllm`
    PYTHONPATH=. $PYTHON tests/benchmarks/vllm_engine.py [--tokens 16] [--no-serve] [--out FOLDER]

64 prompts are steered at once, each by its own vector of an L2S that was fitted to states captured in vLLM, and then
one by one; each text has to equal that of its single run. Each captured row has to be nearest to Hugging Face's row of
the same prompt. `vllm.concurrent_speedup` is the time one by one over the time at once. `runs.csv` has the requests,
work, steps and bytes of several kinds of runs, in the engine and behind an `nnsight-serve`, for the cost model of
`docs/scaling.md`.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import steerlab
from steerlab import L2S
from steerlab.models.model import Model
from steerlab.models.smollm2 import smollm2_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vllm"))
from measured import Run, arguments, report, timed, write_runs
from server import Server
from steerers import examples, fitted_l2s

N, ALPHA, ROUNDS = 64, 1.5, 2
PROMPTS = [example.prompt for example in examples(N)]
LONG = [" ".join(PROMPTS[i : i + 24]) for i in range(8)]  # some three hundred tokens
LIMITS = {"max_model_len": 512, "max_num_seqs": N}
CLOSE = 1e-3  # of a row's norm, from its own in Hugging Face; other rows are a hundred times further away
KEY = "benchmark"


def main() -> None:
    """Measure, print and write."""
    parser = arguments(__doc__, "vllm")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--no-serve", dest="serve", action="store_false")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    begun = time.perf_counter()
    model = steerlab.load(smollm2_folder(), engine="vllm", **LIMITS)
    found: dict[str, Any] = {
        "model": "smollm2", "dtype": str(model.dtype), "device": "cpu", "threads": torch.get_num_threads(),
        "requests": N, "new_tokens": args.tokens, "vllm.seconds_to_load": time.perf_counter() - begun,
    }  # fmt: skip
    near = steerlab.load(smollm2_folder(), backend="hooks", prefix_caching=False)
    l2s = fitted_l2s(model, N)
    found |= {"vllm.logit_diff": logit_diff(model, near, l2s)}
    found |= rows(model, near, l2s, args.tokens)
    runs = costs(model, "vllm", l2s)
    model.engine.client.close()  # type: ignore[attr-defined]
    if args.serve:
        runs += served(l2s)
    found["versions"] = {name: version(name) for name in ("vllm-cpu", "nnsight", "torch", "transformers")}
    write_runs(runs, args.out)
    report({k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}, args.out / "summary.json")


def logit_diff(model: Model, near: Model, l2s: L2S) -> float:
    """The largest |difference| of two logits: of every prompt's last token, plain and steered, and of every token of
    some prompts.
    """
    worst = 0.0
    for steer in ((), l2s):
        options: dict[str, Any] = dict(steer=steer, alpha=ALPHA, batch_size=N)
        ours, theirs = (steerlab.next_token_logits(m, PROMPTS, **options) for m in (model, near))
        worst = max(worst, float((ours - theirs).abs().max()))
    given = near.inputs(near.batch([near.encode(prompt) for prompt in PROMPTS[::8]], "left"))
    real, columns = given["attention_mask"].bool(), torch.arange(given["attention_mask"].shape[1])
    ours, theirs = (m.engine.logits(given, {}, columns) for m in (model, near))
    return max(worst, float((ours - theirs)[real].abs().max()))


def rows(model: Model, near: Model, l2s: L2S, tokens: int) -> dict[str, Any]:
    """The numbers of rows that are right, steered and captured, and the gain of running them at once."""
    options: dict[str, Any] = dict(steer=l2s, alpha=ALPHA, max_new_tokens=tokens, min_new_tokens=tokens, batch_size=N)
    together, at_once = timed(lambda: steerlab.generate(model, PROMPTS, **options))
    alone, one_by_one = timed(lambda: [steerlab.generate(model, [prompt], **options).ids[0] for prompt in PROMPTS])
    steered = sum(a == b for a, b in zip(together.ids, alone, strict=True))
    plain = steerlab.generate(model, PROMPTS, **options | {"steer": ()}).ids
    where: dict[str, Any] = dict(layers="all", positions="last", batch_size=N, progress=False)
    ours, theirs = (steerlab.capture(m, PROMPTS, **where).values for m in (model, near))
    layers = (states.transpose(0, 1) for states in (ours, theirs))
    distances = torch.cdist(*layers, compute_mode="donot_use_mm_for_euclid_dist")
    own, size = distances.diagonal(dim1=1, dim2=2), theirs.norm(dim=-1).T
    right = ((distances.argmin(-1) == torch.arange(N)) & (own <= CLOSE * size)).all(0)
    vectors = l2s.predict(theirs[:, l2s.required_activations[0].site.layer])
    return {
        "vllm.rows_ok": (steered + int(right.sum())) / (2 * N),
        "vllm.rows_ok_steered": f"{steered}/{N}", "vllm.rows_ok_captured": f"{int(right.sum())}/{N}",
        "vllm.rows_changed_by_steering": sum(a != b for a, b in zip(together.ids, plain, strict=True)),
        "vllm.vectors_nearest_pair": float((torch.cdist(vectors, vectors) + torch.eye(N) * 1e9).min()),
        "vllm.vectors_mean_norm": float(vectors.norm(dim=-1).mean()),
        "vllm.captured_relative_diff": float((own / size).max()),
        "vllm.concurrent_speedup": one_by_one / at_once, "vllm.seconds_at_once": at_once,
        "vllm.seconds_one_by_one": one_by_one, "vllm.tokens_per_second_at_once": N * tokens / at_once,
    }  # fmt: skip


def costs(model: Model, engine: str, l2s: L2S) -> list[Run]:
    """Each kind of run with its requests, work, steps, bytes and seconds."""
    return [measured(Run(name, calibrates, engine), run, model) for name, calibrates, run in kinds(l2s)]


def kinds(l2s: L2S) -> list[tuple[str, bool, Callable[[Model], Any]]]:
    """Name, whether the cost model is fitted to it, and the run."""
    where: dict[str, Any] = dict(batch_size=N, progress=False)

    def texts(model: Model, steps: int, **options: Any) -> Any:
        made = steerlab.generate(model, PROMPTS, max_new_tokens=steps, min_new_tokens=steps, batch_size=N, **options)
        return torch.tensor(made.ids)

    def states(model: Model, layers: Any, n: int = N, **options: Any) -> Any:
        return steerlab.capture(model, PROMPTS[:n], layers=layers, **where | options).values

    steer: dict[str, Any] = {"steer": l2s, "alpha": ALPHA}
    return [
        ("first tokens' logits of 8 rows", True, lambda m: steerlab.next_token_logits(m, PROMPTS[:8], batch_size=N)),
        ("first tokens' logits of 64 rows", True, lambda m: steerlab.next_token_logits(m, PROMPTS, batch_size=N)),
        ("first tokens' logits of 8 long rows", True, lambda m: steerlab.next_token_logits(m, LONG, batch_size=N)),
        ("capture every token of 30 layers, 16 rows", True,
         lambda m: states(m, "all", 16, positions="all", reduce="none")),
        ("4 new tokens for 64 rows", True, lambda m: texts(m, 4)),
        ("24 new tokens for 64 rows", True, lambda m: texts(m, 24)),
        ("capture 1 layer, 64 rows", False, lambda m: states(m, [15], positions="last")),
        ("capture 30 layers, 64 rows", False, lambda m: states(m, "all", positions="last")),
        ("12 new tokens for 64 rows", False, lambda m: texts(m, 12)),
        ("12 new tokens for 64 rows, each with its own vector of L2S", False, lambda m: texts(m, 12, **steer)),
    ]  # fmt: skip


def measured(made: Run, run: Callable[[Model], Any], model: Model) -> Run:
    """The median of some rounds, and the counts of one."""
    client: Any = model.engine.client  # type: ignore[attr-defined]
    send, rows, traffic = client.run, [], client.traffic
    run(model)  # without what is compiled at a first call
    before = traffic.requests, traffic.sent, traffic.received
    client.run = lambda batch: rows.extend(batch) or send(batch)
    found, seconds = timed(lambda: run(model))
    client.run = send
    made.requests, made.sent, made.received = (
        now - then for now, then in zip((traffic.requests, traffic.sent, traffic.received), before, strict=True)
    )
    made.columns = sum(len(row.ids) for row in rows)
    made.work = made.columns * model.n_layers  # a request runs to its logits, whatever is captured
    made.steps = max(row.params["max_tokens"] for row in rows) - 1
    made.vectors = sum(len(row.edits) for row in rows)
    made.returned = found.nbytes
    made.seconds = statistics.median([seconds, *(timed(lambda: run(model))[1] for _ in range(ROUNDS - 1))])
    return made


def served(l2s: L2S) -> list[Run]:
    """The same costs with an `nnsight-serve` on loopback."""
    with tempfile.TemporaryDirectory() as folder:
        given = ("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", str(N))
        server = Server(smollm2_folder(), Path(folder) / "serve.log", KEY, *given)
        try:
            os.environ["NNSIGHT_SERVE_API_KEY"] = KEY
            return costs(steerlab.load(smollm2_folder(), serve=server.wait().host), "serve", l2s)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
