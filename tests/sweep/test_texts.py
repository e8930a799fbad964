"""Text metrics get the texts that `generate` gives setting by setting, and every answer as text."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nightly import by_day
from reference import Recorder, questions, vectors

import steerlab
from steerlab import Example, generate, sweep
from steerlab.models.model import Model

NEW = 6
ALPHAS = (0.0, -1.0, 2.0)
LAYERS = (0, 2)
OPTIONS: dict[str, Any] = {"generation": {"max_new_tokens": NEW}, "progress": False}
LOG = SimpleNamespace(measured=[])  # an object's own state is not what a function does
GRID = OPTIONS | {"layers": LAYERS, "alphas": ALPHAS}


def steered_texts(model: Model, layer: int, alpha: float, positions: str) -> list[str]:
    """The texts of one setting, by `steer`."""
    with steerlab.steer(model, vectors(model)[layer], alpha=alpha, positions=positions) as run:
        return list(run.generate(questions(), max_new_tokens=NEW))


@pytest.mark.parametrize(
    ("family", "backend"),
    by_day(
        product(("llama", "gpt2", "gemma2"), ("nnsight", "hooks")),
        lambda family, backend: family == "llama" or backend == "hooks",
    ),
)
@pytest.mark.parametrize("positions", ["last+generated", "all"])
def test_texts_of_every_setting_equal_steer(lm, family: str, backend: str, positions: str) -> None:
    model, recorder = lm(family, backend), Recorder()
    frame = sweep(model, questions(), {"v": vectors(model)}, positions=positions, metric=recorder, **GRID)
    settings = [(layer, alpha) for layer in LAYERS for alpha in ALPHAS]
    assert len(recorder.calls) == len(settings)
    unsteered = list(steerlab.generate(model, questions(), max_new_tokens=NEW))
    for (layer, alpha), texts in zip(settings, recorder.calls, strict=True):
        assert texts == steered_texts(lm(family, "hooks"), layer, alpha, positions), (layer, alpha)
        assert (texts == unsteered) == (alpha == 0), "every vector changes the texts"
        found = frame[(frame["layer"] == layer) & (frame["alpha"] == alpha)]
        assert found["example_id"].tolist() == [e.id for e in questions()]
        assert found["value"].tolist() == [len(text) for text in texts]


def test_plan_keeps_the_texts_and_their_tokens(lm, tmp_path: Path) -> None:
    model, recorder = lm(), Recorder()
    plan = sweep(model, questions(), {"v": vectors(model)}, metric=recorder, dry_run=True, **GRID)
    assert plan.texts is None
    plan.run(tmp_path, progress=False)
    assert plan.texts["text"].tolist() == [text for texts in recorder.calls for text in texts]
    assert list(plan.texts)[:5] == ["method", "layer", "alpha", "positions", "example_id"]
    decoded = [model.tokenizer.decode(ids, skip_special_tokens=True).rstrip() for ids in plan.texts["ids"]]
    assert decoded == plan.texts["text"].tolist()
    again = sweep(model, questions(), {"v": vectors(model)}, metric=Recorder(), dry_run=True, **GRID)
    again.run(tmp_path, progress=False)  # read back from the folder
    assert again.texts["ids"].tolist() == plan.texts["ids"].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_texts_do_not_depend_on_the_batch_size(lm, batch_size: int) -> None:
    model, few, many = lm(), Recorder(), Recorder()
    one = sweep(model, questions(), {"v": vectors(model)}, metric=few, batch_size=batch_size, **GRID)
    two = sweep(model, questions(), {"v": vectors(model)}, metric=many, **GRID)
    assert few.calls == many.calls
    assert one["norm_ratio"].tolist() == pytest.approx(two["norm_ratio"].tolist(), rel=1e-4)


def test_norm_ratio_equals_that_of_generate(lm) -> None:
    model, steerer = lm(), vectors(lm())[1]
    frame = sweep(model, questions(), {"v": {1: steerer}}, [1], [2.0], metric=Recorder(), **OPTIONS)
    options: Any = {"steer": steerer, "alpha": 2.0, "positions": "last+generated", "max_new_tokens": NEW}
    for example, ratio in zip(questions(), frame["norm_ratio"], strict=True):
        assert ratio == pytest.approx(steerlab.generate(model, [example], **options).norm_ratio, rel=1e-4)


def test_one_sweep_measures_answers_and_texts(lm) -> None:
    model, columns = lm(), ["layer", "alpha", "example_id", "value"]
    both = sweep(model, questions(), {"v": vectors(model)}, metric=[Recorder(), "propensity"], **GRID)
    for metric, name in ((Recorder(), "length"), ("propensity", "propensity")):
        single = sweep(model, questions(), {"v": vectors(model)}, metric=metric, **GRID)
        assert both.loc[both["metric"] == name, columns].values.tolist() == single[columns].values.tolist()


@pytest.mark.parametrize("text", ["7", "0", "."])
def test_texts_that_look_like_numbers_stay_text(lm, tmp_path: Path, text: str) -> None:
    model, recorder = lm(), Recorder()
    (only,) = model.tokenizer(text, add_special_tokens=False).input_ids
    others = [i for i in range(len(model.tokenizer)) if i != only]
    options = OPTIONS | {"generation": {"max_new_tokens": 3, "suppress_tokens": others}, "folder": tmp_path}
    sweep(model, questions(), {"v": vectors(model)}, [1], [1.0], metric=recorder, **options)
    assert recorder.calls == [[3 * text] * len(questions())]


def test_resumed_folder_with_another_batch_size_gives_the_same_texts(lm, tmp_path: Path) -> None:
    model, recorder = lm(), Recorder()
    options = OPTIONS | {"layers": [1], "alphas": [1.0], "metric": recorder, "folder": tmp_path}
    sweep(model, questions(), {"v": vectors(model)}, batch_size=3, **options)
    stages = sorted((tmp_path / "stages").glob("*.csv"), key=lambda p: p.name)
    for path in [p for p in stages if not p.name.startswith("text")] + stages[-1:]:
        path.unlink()  # as if killed after the first batch
    sweep(model, questions(), {"v": vectors(model)}, batch_size=4, **options)
    assert recorder.calls[0] == recorder.calls[1] == steered_texts(model, 1, 1.0, "last+generated")


def test_a_changed_metric_of_the_same_name_is_measured_anew(lm, tmp_path: Path) -> None:
    def sweep_with(least: int, length: Callable[[str], int] = len) -> float:
        def long(examples: Sequence[Example], texts: Sequence[str]) -> list[bool]:
            LOG.measured.append(list(texts))
            return [length(text) >= least for text in texts]

        metrics = {"long": long}
        return sweep(lm(), rows, {"v": vectors(lm())}, [1], [1.0], metric=metrics, folder=tmp_path, **OPTIONS).value[0]

    rows = questions()[:1]
    assert sweep_with(0) == sweep_with(0) == 1 and len(LOG.measured) == 1, "the folder knows it"
    assert sweep_with(10**6) == sweep_with(-1, lambda text: -2) == 0
    assert len(LOG.measured) == 3 and LOG.measured[0] == LOG.measured[2], "the texts are kept"


@pytest.mark.parametrize("generation", [{"use_cache": False}, {"num_beams": 2}])
def test_a_prompt_runs_again_where_generate_can_not_go_on_from_it(lm, generation: dict[str, Any]) -> None:
    found: list[str] = []
    rows, options = questions(), {"max_new_tokens": NEW} | generation
    metric = lambda _, texts: [float(found.extend(texts) or 0)] * len(texts)  # noqa: E731
    sweep(lm(), rows, {"v": vectors(lm())}, [1], [0.0], metric=metric, generation=options, progress=False)
    assert tuple(found) == generate(lm(), rows, **options).texts


def test_sampled_texts_are_the_same_in_every_sweep_and_leave_the_random_state(lm) -> None:
    generation = {"max_new_tokens": NEW, "do_sample": True, "temperature": 5.0}
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        recorder, state = Recorder(), torch.get_rng_state()
        sweep(lm(), questions(), {"v": vectors(lm())}, metric=recorder, **GRID | {"generation": generation})
        assert torch.equal(torch.get_rng_state(), state)
        texts.append(recorder.calls)
    assert texts[0] == texts[1] and len(set(texts[0][0])) > 1
