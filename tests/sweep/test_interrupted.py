"""Ctrl-C: what is finished stays in the folder, the error says how to go on, and the model is as before."""

import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from nightly import by_day
from reference import at_forward, questions, text_length, vectors

import steerlab
from steerlab.analysis.texts import write_texts
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

PROMPTS = [f"Prompt {number}" for number in range(12)]


def sweep_of_answers(model: Model, folder: Path | None) -> pd.DataFrame:
    return steerlab.sweep(
        model, questions(), {"v": vectors(model)}, (0, 1, 2), (-1.0, 0.5), folder=folder, batch_size=4, progress=False
    )


def sweep_of_texts(model: Model, folder: Path | None) -> pd.DataFrame:
    return steerlab.sweep(
        model, questions(), {"v": vectors(model)}, (1, 2), (0.0, 0.5, 1.0), metric=text_length, folder=folder,
        batch_size=4, progress=False, generation={"max_new_tokens": 3},
    )  # fmt: skip


def texts(model: Model, folder: Path | None) -> pd.DataFrame:
    return write_texts(
        model, PROMPTS, {2: torch.ones(32)}, (0.0, 3.0), folder=folder, batch_size=4, max_new_tokens=3, progress=False
    )


def captured(model: Model, folder: Path | None) -> pd.DataFrame:
    found: Any = steerlab.capture(model, PROMPTS, folder=folder, batch_size=4, progress=False)
    acts = found.load() if folder else found
    return pd.DataFrame(acts.values.flatten(1).numpy())


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


WORK = (sweep_of_answers, sweep_of_texts, texts, captured)


@pytest.mark.parametrize(
    ("work", "backend"),
    by_day(product(WORK, ("hooks", "nnsight")), lambda work, backend: backend == "hooks" or work is sweep_of_texts),
)
def test_interrupted_work_goes_on_from_its_folder(work: Callable[..., Any], backend: str, tmp_path: Path) -> None:
    model = tiny_lm("llama", backend=backend)
    whole = work(model, None)
    model = tiny_lm("llama", backend=backend)
    work(model, tmp_path / "first")  # tries the shortcuts, whose forwards do not count
    for number in (1, 2):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt) as stopped, at_forward(model, number, interrupt):
            work(model, folder)
        (note,) = stopped.value.__notes__
        assert f"batches are kept in {folder}: the same call goes on from there" in note
        finished = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".csv", ".safetensors")}
        assert not list(folder.rglob("*.partial"))
        assert not any(module._forward_hooks for module in model.hf.modules()), "no hook is left"
        pd.testing.assert_frame_equal(work(model, folder), whole, atol=1e-5)
        assert finished == {path: path.stat().st_mtime_ns for path in finished}, "nothing was computed again"


def test_interrupted_work_without_a_folder_has_no_note() -> None:
    model = tiny_lm("llama")
    with pytest.raises(KeyboardInterrupt) as stopped, at_forward(model, 3, interrupt):
        texts(model, None)
    assert not getattr(stopped.value, "__notes__", [])
