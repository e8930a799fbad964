"""A metric of generated text is given what `generate` says cell by cell, and every answer as the text it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from swept import questions, vectors

import steerlab
from steerlab import Example, Model, sweep

NEW = 6
ALPHAS = (0.0, -1.0, 2.0)
LAYERS = (0, 2)


class Heard:
    """A metric that keeps the texts it is given; it says how long they are."""

    __name__ = "length"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        assert [e.id for e in examples] == [e.id for e in questions()]
        self.calls.append(list(texts))
        return [float(len(text)) for text in texts]


def alone(model: Model, layer: int, alpha: float, positions: str) -> list[str]:
    """What one cell says, by `steer`."""
    with steerlab.steer(model, vectors(model)[layer], alpha=alpha, positions=positions) as run:
        return list(run.generate(questions(), max_new_tokens=NEW))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("positions", ["last+generated", "all"])
def test_texts_are_those_of_steer_cell_by_cell(lm, family: str, backend: str, positions: str) -> None:
    model, heard = lm(family, backend), Heard()
    frame = sweep(
        model, {"v": vectors(model)}, questions(), LAYERS, ALPHAS, positions, heard,
        generation={"max_new_tokens": NEW}, progress=False,
    )  # fmt: skip
    cells = [(layer, alpha) for layer in LAYERS for alpha in ALPHAS]
    assert len(heard.calls) == len(cells)
    plain = list(steerlab.generate(model, questions(), max_new_tokens=NEW))
    for (layer, alpha), texts in zip(cells, heard.calls, strict=True):
        assert texts == alone(lm(family, "hooks"), layer, alpha, positions), (layer, alpha)
        assert (texts == plain) == (alpha == 0), "every vector is felt"
        cell = frame[(frame["layer"] == layer) & (frame["alpha"] == alpha)]
        assert cell["example_id"].tolist() == [e.id for e in questions()]
        assert cell["value"].tolist() == [len(text) for text in texts]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_decides_nothing(lm, batch_size: int) -> None:
    model, few, many = lm(), Heard(), Heard()
    asked = {"alphas": ALPHAS, "layers": LAYERS, "generation": {"max_new_tokens": NEW}, "progress": False}
    one = sweep(model, {"v": vectors(model)}, questions(), metric=few, batch_size=batch_size, **asked)
    two = sweep(model, {"v": vectors(model)}, questions(), metric=many, **asked)
    assert few.calls == many.calls
    assert one["norm_ratio"].tolist() == pytest.approx(two["norm_ratio"].tolist(), rel=1e-4)


def test_norm_ratio_is_that_of_generate(lm) -> None:
    model = lm()
    options = {"generation": {"max_new_tokens": NEW}, "progress": False}
    frame = sweep(model, {"v": vectors(model)}, questions(), [1], [2.0], metric=Heard(), **options)
    for example, ratio in zip(questions(), frame["norm_ratio"], strict=True):
        steerer = vectors(model)[1]
        asked = {"steer": steerer, "alpha": 2.0, "positions": "last+generated", "max_new_tokens": NEW}
        assert ratio == pytest.approx(steerlab.generate(model, [example], **asked).norm_ratio, rel=1e-4)


def test_answers_and_texts_are_measured_in_one_sweep(lm) -> None:
    model = lm()
    asked = {"layers": LAYERS, "alphas": ALPHAS, "generation": {"max_new_tokens": NEW}, "progress": False}
    both = sweep(model, {"v": vectors(model)}, questions(), metric=[Heard(), "propensity"], **asked)
    for metric, name in ((Heard(), "length"), ("propensity", "propensity")):
        single = sweep(model, {"v": vectors(model)}, questions(), metric=metric, **asked)
        mine = both[both["metric"] == name]
        assert mine["value"].tolist() == single["value"].tolist()
        where = ["layer", "alpha", "example_id"]
        assert mine[where].to_numpy().tolist() == single[where].to_numpy().tolist()


@pytest.mark.parametrize("said", ["7", "0", "."])
def test_answers_that_look_like_numbers_reach_the_metric_as_text(lm, tmp_path: Path, said: str) -> None:
    model, heard = lm(), Heard()
    (only,) = model.tokenizer(said, add_special_tokens=False).input_ids
    never = [i for i in range(len(model.tokenizer)) if i != only]
    sweep(
        model, {"v": vectors(model)}, questions(), [1], [1.0], metric=heard, folder=tmp_path, progress=False,
        generation={"max_new_tokens": 3, "suppress_tokens": never},
    )  # fmt: skip
    assert heard.calls == [[3 * said] * len(questions())]


def test_a_folder_resumed_with_another_batch_size_gives_the_same_texts(lm, tmp_path: Path) -> None:
    model, heard = lm(), Heard()
    asked = {"layers": [1], "alphas": [1.0], "generation": {"max_new_tokens": NEW}, "progress": False}
    sweep(model, {"v": vectors(model)}, questions(), metric=heard, folder=tmp_path, batch_size=3, **asked)
    stages = sorted((tmp_path / "stages").glob("*.csv"), key=lambda p: p.name)
    for path in [p for p in stages if not p.name.startswith("text")] + stages[-1:]:
        path.unlink()  # as if killed after the first batch
    sweep(model, {"v": vectors(model)}, questions(), metric=heard, folder=tmp_path, batch_size=4, **asked)
    assert heard.calls[0] == heard.calls[1] == alone(model, 1, 1.0, "last+generated")
