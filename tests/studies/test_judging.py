"""Answers of a study are judged with the perplexities of exactly these answers."""

from pathlib import Path

import pytest
from _common import judge_with_perplexity

from steerlab import Example
from steerlab.analysis.study import Study
from steerlab.metrics import perplexity
from steerlab.models.model import Model

ROWS = [Example("Tell me of the Nile.", id="a", behavior="refuse"), Example("Hi", id="b", behavior="refuse")]
TEXTS = ["I'm sorry, but I can't help with that.", "I can't assist you with this request."]


def test_perplexities_belong_to_the_texts_and_are_measured_once(lm, tmp_path: Path, monkeypatch) -> None:
    model: Model = lm("llama")
    study = Study(tmp_path, {"study": "judging"})
    found = judge_with_perplexity(study, "test-l2s", model, ROWS, TEXTS)
    expected = perplexity(model, ROWS, TEXTS, progress=False)
    assert found["perplexity"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found["refuses"].tolist() == [1, 1] and found["refuses_fluently"].tolist() == [0, 0], "a random model"
    swapped = judge_with_perplexity(study, "test-l2s", model, ROWS, TEXTS[::-1])
    assert swapped["perplexity"].tolist() != found["perplexity"].tolist(), "other answers under the same name"
    monkeypatch.setattr("_common.perplexity", None)
    assert judge_with_perplexity(study, "test-l2s", model, ROWS, TEXTS).equals(found)
