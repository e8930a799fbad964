"""When memory runs out, batches are halved and the numbers stay the same; OutOfMemory where not even one row fits."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from reference import questions, vectors
from torch import Tensor

from steerlab import Model, OutOfMemory, sweep
from steerlab.models.engine import Engine
from steerlab.testing import tiny_lm

ALPHAS, LAYERS = (-1.0, 0.0, 0.5, 2.0), (0, 2)


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


@pytest.mark.parametrize(("family", "backend"), [("llama", "hooks"), ("gemma2", "nnsight")])
@pytest.mark.parametrize(("positions", "rows"), [("last+generated", 7), ("last+generated", 1), ("all", 2)])
def test_halved_batches_give_the_same_numbers(
    lm, caplog: pytest.LogCaptureFixture, family: str, backend: str, positions: str, rows: int
) -> None:
    model, engine = small_model(rows, family, backend)
    given = ({"v": vectors(model)}, questions(), LAYERS, ALPHAS, positions, ["propensity", "answer_probability"])
    with caplog.at_level(logging.WARNING):
        plan = sweep(model, *given, dry_run=True)
        assert "halved" not in plan.explain()
        frame = plan.run(progress=False)
    assert_close(frame, sweep(lm(family, backend), *given, progress=False))
    assert engine.most <= rows and engine.refused > 0
    assert f"memory ran out {engine.refused} times" in plan.explain() == frame.attrs["plan"]
    assert caplog.text.count("out of memory") == engine.refused


@pytest.mark.parametrize(("positions", "rows"), [("last+generated", 12), ("all", 2)])
def test_both_answers_of_an_input_stay_together(lm, positions: str, rows: int) -> None:
    model, engine = small_model(rows)
    given = ({"v": vectors(model)}, questions(), LAYERS, ALPHAS, positions, ["logprob", "logprob_difference"])
    found = sweep(model, *given, batch_size=20, progress=False)
    assert_close(found, sweep(lm(), *given, batch_size=20, progress=False))
    assert engine.most <= rows and engine.refused > 0


@pytest.mark.parametrize("method", ["capture_states", "prefill"])
def test_prompts_that_do_not_fit_together_are_halved(lm, method: str) -> None:
    model, engine = small_model(2, limited=method)
    frame = sweep(model, {"v": vectors(model)}, questions(), LAYERS, ALPHAS, progress=False)
    assert_close(frame, sweep(lm(), {"v": vectors(model)}, questions(), LAYERS, ALPHAS, progress=False))
    assert engine.most <= 2 and engine.refused > 0


@pytest.mark.parametrize(
    ("method", "alphas"),
    [("logits", (0.0,)), ("logits", (1.0,)), ("logits", (0.0, 1.0)), ("prefill", (1.0,)), ("capture_states", (1.0,))],
)
def test_no_room_for_a_single_row_raises(method: str, alphas: tuple[float, ...]) -> None:
    model, engine = small_model(0, limited=method)
    with pytest.raises(OutOfMemory, match=r"one row of \d+ tokens .* smaller memory= \(now \d+ bytes\)"):
        sweep(model, {"v": vectors(model)}, questions(), LAYERS, alphas, progress=False)
    assert engine.refused > 1, "halves were tried first"


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    model = tiny_lm("llama", backend="hooks")
    monkeypatch.setattr(model.engine, "logits", fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        sweep(model, {"v": vectors(model)}, questions(), [1], [1.0], "last", progress=False)


def test_stages_stored_after_halving_are_read_back(lm, tmp_path: Path) -> None:
    def run(model: Model) -> pd.DataFrame:
        return sweep(model, {"v": vectors(model)}, questions(), LAYERS, ALPHAS, folder=tmp_path, progress=False)

    def stages() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "stages").iterdir()}

    one, written = run(small_model(3)[0]), stages()
    pd.testing.assert_frame_equal(run(small_model(3)[0]), one, check_exact=True)
    assert stages() == written
    assert_close(run(lm()), one)
