"""When memory runs out, batches are halved and the numbers stay; where not even one row fits, it is said."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from swept import questions, vectors
from torch import Tensor

from steerlab import Model, OutOfMemory, sweep
from steerlab.analysis.sweep import plan
from steerlab.models.engine import Engine
from steerlab.testing import tiny_lm

ALPHAS, LAYERS = (-1.0, 0.0, 0.5, 2.0), (0, 2)


class Cramped:
    """An engine with room for so many rows: any other method is that of the engine within."""

    def __init__(self, engine: Engine, rows: int, *, whole: tuple[str, ...] = ("logits",)) -> None:
        self.engine, self.rows, self.whole = engine, rows, whole
        self.most, self.refused = 0, 0
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.engine, name)
        if name not in self.whole:
            return method

        def run(inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            n = len(inputs["input_ids"])
            if n > self.rows:
                self.refused += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory: {n} rows")
            if self.error is not None:
                raise self.error
            self.most = max(self.most, n)
            return method(inputs, *args, **kwargs)

        return run


def cramped(rows: int, family: str = "llama", backend: str = "hooks", **options: Any) -> tuple[Model, Cramped]:
    """A model of its own whose engine has little room."""
    model = tiny_lm(family, backend=backend)
    engine = Cramped(model.engine, rows, **options)
    model.engine = engine  # type: ignore[misc]
    return model, engine


def close(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _little_to_collect() -> Iterator[None]:
    """Memory is freed after every refusal, which takes long beside all that was ever imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("family", "backend"), [("llama", "hooks"), ("gemma2", "nnsight")])
@pytest.mark.parametrize(("positions", "rows"), [("last+generated", 7), ("last+generated", 1), ("all", 2)])
def test_halved_batches_give_the_same_numbers(
    lm, caplog: pytest.LogCaptureFixture, family: str, backend: str, positions: str, rows: int
) -> None:
    model, engine = cramped(rows, family, backend)
    asked = ({"v": vectors(model)}, questions(), LAYERS, ALPHAS, positions, ["propensity", "answer_probability"])
    with caplog.at_level(logging.WARNING):
        laid_out = plan(model, *asked)
        assert "halved" not in laid_out.explain()
        frame = laid_out.run(progress=False)
    close(frame, sweep(lm(family, backend), *asked, progress=False))
    assert engine.most <= rows and engine.refused > 0
    assert f"memory ran out {engine.refused} times" in laid_out.explain() == frame.attrs["plan"]
    assert caplog.text.count("out of memory") == engine.refused


@pytest.mark.parametrize(("positions", "rows"), [("last+generated", 12), ("all", 2)])
def test_both_answers_of_an_input_stay_together(lm, positions: str, rows: int) -> None:
    model, engine = cramped(rows)
    asked = ({"v": vectors(model)}, questions(), LAYERS, ALPHAS, positions, ["logprob", "logprob_difference"])
    few = sweep(model, *asked, batch_size=20, progress=False)
    close(few, sweep(lm(), *asked, batch_size=20, progress=False))
    assert engine.most <= rows and engine.refused > 0


@pytest.mark.parametrize("method", ["read", "prefill"])
def test_prompts_that_do_not_fit_together_are_halved_too(lm, method: str) -> None:
    model, engine = cramped(2, whole=(method,))
    frame = sweep(model, {"v": vectors(model)}, questions(), LAYERS, ALPHAS, progress=False)
    close(frame, sweep(lm(), {"v": vectors(model)}, questions(), LAYERS, ALPHAS, progress=False))
    assert engine.most <= 2 and engine.refused > 0


@pytest.mark.parametrize("alphas", [(0.0,), (1.0,), (0.0, 1.0)])
def test_no_room_for_a_single_row_is_said(alphas: tuple[float, ...]) -> None:
    model, engine = cramped(0)
    with pytest.raises(OutOfMemory, match=r"one row of \d+ tokens .* smaller memory= \(now \d+ bytes\)"):
        sweep(model, {"v": vectors(model)}, questions(), LAYERS, alphas, progress=False)
    assert engine.refused > 1, "halves were tried first"


@pytest.mark.parametrize("method", ["prefill", "read"])
def test_no_room_for_a_single_prompt_is_said(method: str) -> None:
    model, engine = cramped(0, whole=(method,))
    with pytest.raises(OutOfMemory, match=r"one row of \d+ tokens"):
        sweep(model, {"v": vectors(model)}, questions(), LAYERS, (1.0,), progress=False)
    assert engine.refused > 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model, engine = cramped(100)
    engine.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        sweep(model, {"v": vectors(model)}, questions(), [1], [1.0], "last", progress=False)


def test_what_is_stored_after_halving_is_read_back(lm, tmp_path: Path) -> None:
    def run(model: Model) -> pd.DataFrame:
        return sweep(model, {"v": vectors(model)}, questions(), LAYERS, ALPHAS, folder=tmp_path, progress=False)

    def stages() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "stages").iterdir()}

    one, written = run(cramped(3)[0]), stages()
    pd.testing.assert_frame_equal(run(cramped(3)[0]), one, check_exact=True)
    assert stages() == written
    close(run(lm()), one)
