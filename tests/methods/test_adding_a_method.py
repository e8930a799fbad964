"""The method that `docs/adding_a_method.md` writes down works everywhere, though no other file knows of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from steerlab import Contrast, Example, Gated, LinearProbe, MismatchError, capture, generate, load_steerer, save, sweep
from steerlab.methods import Context
from steerlab.testing import tiny_lm

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
ROWS = [
    Example(f"r{i}", f"number {i}, please", "refuse" if i % 2 else "answer", Contrast("No.", "Yes!")) for i in range(8)
]
NEW = [Example(f"n{i}", f"digit {i}", "answer", Contrast("No.", "Yes!")) for i in range(3)]


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def method(blocks: list[str]) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(f"{blocks[1]}\n{blocks[0]}", str(PAGE), "exec"), namespace)
    return namespace["Nearest"]


def test_it_has_fifteen_lines(blocks: list[str]) -> None:
    assert len([line for line in blocks[0].splitlines() if line.strip()]) == 15


def test_it_gives_every_new_input_the_vector_of_its_nearest_known_one(method) -> None:
    model = tiny_lm("llama", backend="hooks")
    acts = capture(model, ROWS, layers=[1], progress=False)
    fresh = capture(model, NEW, layers=[1], progress=False)
    fitted = method(1).fit(acts)
    ids, known = acts.by_example(1, side="prompt")
    names, states = fresh.by_example(1, side="prompt")
    table = dict(zip(*acts.contrast(1), strict=True))
    for name, state in zip(names, states, strict=True):
        nearest = min(range(len(ids)), key=lambda k: float((known[k] - state).norm()))
        assert torch.equal(fitted.vectors(Context((name,), fresh))[0], table[ids[nearest]])
    assert torch.equal(fitted.vectors(Context(tuple(ids), acts)), torch.stack([table[i] for i in ids]))


def test_every_verb_takes_it(method, tmp_path: Path) -> None:
    model = tiny_lm("llama", backend="hooks")
    acts = capture(model, ROWS, layers=[1, 2], progress=False)
    fitted = method(1).fit(acts)
    steered = generate(model, NEW, steer=fitted, alpha=3.0, max_new_tokens=4)
    assert steered.steered_tokens > 0 and steered.norm_ratio > 0
    alone = [generate(model, [e], steer=fitted, alpha=3.0, max_new_tokens=4).ids[0] for e in NEW]
    assert list(steered.ids) == alone
    assert (
        generate(model, NEW, steer=fitted, alpha=0.0, max_new_tokens=4).ids
        == generate(model, NEW, max_new_tokens=4).ids
    )
    frame = sweep(model, method(0), NEW, [1, 2], (0.0, 1.0), train=acts, progress=False)
    assert len(frame) == 2 * 2 * len(NEW) and set(frame["method"]) == {"nearest"}
    again = load_steerer(save(fitted, tmp_path / "nearest"), model)
    assert generate(model, NEW, steer=again, alpha=3.0, max_new_tokens=4).ids == steered.ids
    probe = LinearProbe(2).fit(acts)
    shut = Gated(fitted, probe, threshold=2.0)
    assert generate(model, NEW, steer=shut, alpha=3.0, max_new_tokens=4).steered_tokens == 0
    with pytest.raises(MismatchError, match="was fitted on a model"):
        generate(tiny_lm("gpt2", backend="hooks"), NEW, steer=fitted, max_new_tokens=2)
