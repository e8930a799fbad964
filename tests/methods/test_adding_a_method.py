"""The method of `docs/adding_a_method.md` works in every function, though no other file mentions it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from steerlab import Contrast, Example, capture, generate, load_steerer, sweep
from steerlab.errors import MismatchError
from steerlab.methods import Context, Gated, LinearProbe
from steerlab.methods.serialization import save
from steerlab.testing import tiny_lm

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
CONTRAST = Contrast("No.", "Yes!")
TRAIN = [
    Example(f"number {i}, please", id=f"r{i}", behavior="refuse" if i % 2 else "answer", contrast=CONTRAST)
    for i in range(8)
]
NEW = [Example(f"digit {i}", id=f"n{i}", behavior="answer", contrast=CONTRAST) for i in range(3)]


@pytest.fixture(scope="module")
def method() -> Any:
    code, imports = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 13
    namespace: dict[str, Any] = {}
    exec(compile(f"{imports}\n{code}", str(PAGE), "exec"), namespace)
    return namespace["Nearest"]


def test_documented_method_gives_each_input_the_vector_of_its_nearest_training_input(method) -> None:
    model = tiny_lm("llama", backend="hooks")
    acts, new = (capture(model, examples, layers=[1], progress=False) for examples in (TRAIN, NEW))
    fitted = method(1).fit(acts)
    ids, known = acts.by_example(1, side="prompt")
    table = dict(zip(*acts.contrast(1), strict=True))
    for example_id, state in zip(*new.by_example(1, side="prompt"), strict=True):
        nearest = min(range(len(ids)), key=lambda k: float((known[k] - state).norm()))
        assert torch.equal(fitted.vectors(Context((example_id,), new))[0], table[ids[nearest]])
    assert torch.equal(fitted.vectors(Context(tuple(ids), acts)), torch.stack([table[i] for i in ids]))


def test_documented_method_generates_sweeps_saves_loads_and_is_gated(method, tmp_path: Path) -> None:
    model = tiny_lm("llama", backend="hooks")
    acts = capture(model, TRAIN, layers=[1, 2], progress=False)
    fitted = method(1).fit(acts)

    def ids(steer: Any, examples: list[Example] = NEW, alpha: float = 3.0) -> Any:
        return generate(model, examples, steer=steer, alpha=alpha, max_new_tokens=4).ids

    steered = generate(model, NEW, steer=fitted, alpha=3.0, max_new_tokens=4)
    assert steered.steered_tokens > 0 and steered.norm_ratio > 0
    assert list(steered.ids) == [ids(fitted, [example])[0] for example in NEW]
    assert ids(fitted, alpha=0.0) == ids(())
    frame = sweep(model, NEW, method(0), [1, 2], (0.0, 1.0), train=acts, progress=False)
    assert len(frame) == 2 * 2 * len(NEW) and set(frame["method"]) == {"nearest"}
    assert ids(load_steerer(save(fitted, tmp_path / "nearest"), model)) == steered.ids
    closed = Gated(fitted, LinearProbe(2).fit(acts), threshold=2.0)
    assert generate(model, NEW, steer=closed, alpha=3.0, max_new_tokens=4).steered_tokens == 0
    with pytest.raises(MismatchError, match="was fitted on a model"):
        generate(tiny_lm("gpt2", backend="hooks"), NEW, steer=fitted, max_new_tokens=2)
