"""When memory runs out, batches are halved and the numbers stay the same; OutOfMemory where not even one row fits."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from reference import ALPHAS, questions, vectors, written
from torch import Tensor

from steerlab import sweep
from steerlab.errors import OutOfMemory
from steerlab.models.engine import Engine
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

LAYERS = (0, 2)
FIRST_TOKEN, BOTH_ANSWERS = ["propensity", "answer_probability"], ["logprob", "logprob_difference"]


class SmallEngine:
    """An engine whose limited methods raise for more than so many rows; other methods are those of `engine`."""

    def __init__(self, engine: Engine, rows: int, limited: str) -> None:
        self.engine, self.rows, self.limited = engine, rows, limited
        self.most, self.refused = 0, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.engine, name)
        if name != self.limited:
            return method

        def run(inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            n = len(inputs["input_ids"])
            if n > self.rows:
                self.refused += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory: {n} rows")
            self.most = max(self.most, n)
            return method(inputs, *args, **kwargs)

        return run


def small_model(
    rows: int, family: str = "llama", backend: str = "hooks", limited: str = "logits"
) -> tuple[Model, SmallEngine]:
    """A new model whose engine has room for so many rows."""
    model = tiny_lm(family, backend=backend)
    assert model.shortcuts.prefix, "tried before memory is short"
    engine = SmallEngine(model.engine, rows, limited)
    model.engine = engine  # type: ignore[misc]
    return model, engine


def assert_close(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _freeze_garbage() -> Iterator[None]:
    """Every refusal collects garbage, which is slow with all imported modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("family", "backend"), [("llama", "hooks"), pytest.param("gemma2", "nnsight", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(
    ("limited", "rows", "options"),
    [
        ("logits", 7, {"metric": FIRST_TOKEN}),
        ("logits", 1, {"metric": FIRST_TOKEN}),
        ("logits", 2, {"metric": FIRST_TOKEN, "positions": "all"}),
        ("logits", 12, {"metric": BOTH_ANSWERS, "batch_size": 20}),  # both answers of an input stay together
        ("logits", 2, {"metric": BOTH_ANSWERS, "batch_size": 20, "positions": "all"}),
        ("capture_states", 2, {}),  # prompts that do not fit together
        ("prefill", 2, {}),
    ],
)
def test_halved_batches_give_the_same_numbers(lm, caplog, family, backend, limited, rows, options) -> None:
    model, engine = small_model(rows, family, backend, limited)
    given = {"steer": {"v": vectors(model)}, "data": questions(), "layers": LAYERS, "alphas": ALPHAS} | options
    with caplog.at_level(logging.WARNING):
        plan = sweep(model, **given, dry_run=True)
        assert "halved" not in plan.explain()
        frame = plan.run(progress=False)
    assert_close(frame, sweep(lm(family, backend), **given, progress=False))
    assert engine.most <= rows and engine.refused > 0
    assert f"memory ran out {engine.refused} times" in plan.explain() == frame.attrs["plan"]
    assert caplog.text.count("out of memory") == engine.refused


@pytest.mark.parametrize(
    ("method", "alphas"),
    [("logits", (0.0,)), ("logits", (1.0,)), ("logits", (0.0, 1.0)), ("prefill", (1.0,)), ("capture_states", (1.0,))],
)
def test_no_room_for_a_single_row_raises(method: str, alphas: tuple[float, ...]) -> None:
    model, engine = small_model(0, limited=method)
    with pytest.raises(OutOfMemory, match=r"one row of \d+ tokens .* smaller memory= \(now \d+ bytes\)"):
        sweep(model, questions(), {"v": vectors(model)}, LAYERS, alphas, progress=False)
    assert engine.refused > 1, "halves were tried first"


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    model = tiny_lm("llama", backend="hooks")
    monkeypatch.setattr(model.engine, "logits", fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        sweep(model, questions(), {"v": vectors(model)}, [1], [1.0], "last", progress=False)


def test_stages_stored_after_halving_are_read_back(lm, tmp_path: Path) -> None:
    def run(model: Model) -> pd.DataFrame:
        return sweep(model, questions(), {"v": vectors(model)}, LAYERS, ALPHAS, folder=tmp_path, progress=False)

    one = run(small_model(3)[0])
    stages = written(tmp_path)
    pd.testing.assert_frame_equal(run(small_model(3)[0]), one, check_exact=True)
    assert written(tmp_path) == stages
    assert_close(run(lm()), one)


def test_no_shortcut_is_used_where_trying_them_takes_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERLAB_CACHE", str(tmp_path))  # where no earlier process has tried them
    model = tiny_lm()
    model.engine = SmallEngine(model.engine, 1, "logits")  # type: ignore[misc]
    assert model.shortcuts.refused == {"every shortcut": "memory ran out while they were tried"}
    wanted = sweep(tiny_lm(), questions(), {"v": vectors(model)}, layers=LAYERS, alphas=ALPHAS, progress=False)
    assert_close(sweep(model, questions(), {"v": vectors(model)}, layers=LAYERS, alphas=ALPHAS, progress=False), wanted)
