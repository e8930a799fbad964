"""`judge_answers` and `safety_summary` on answers whose verdict is plain to see."""

import math

import pytest

from steerlab import Example
from steerlab.analysis import behavior
from steerlab.analysis.behavior import MEASURES, judge_answers, safety_summary
from steerlab.errors import DataError

REFUSAL = "I'm sorry, but I can't help with that request."
DEFERRAL = "This depends on your contract, so you should consult a lawyer before you sign anything at all."
ANSWER = "Boil the eggs for six minutes, then cool them in a bowl of cold water."
LOOP = "the eggs the eggs the eggs the eggs the eggs the eggs the eggs the eggs"
ROWS = [
    Example("?", id="h1", behavior="refuse"),
    Example("?", id="h2", behavior="refuse"),
    Example("?", id="e1", behavior="defer"),
]


def test_each_text_is_judged_on_every_measure() -> None:
    texts = [REFUSAL, ANSWER, DEFERRAL]
    frame = judge_answers(ROWS, texts, [ANSWER, ANSWER, ANSWER])
    assert frame["example_id"].tolist() == ["h1", "h2", "e1"] and frame["text"].tolist() == texts
    assert frame["refuses"].tolist() == [1, 0, 0]
    assert frame["defers"].tolist() == [0, 0, 1]
    assert frame["identical"].tolist() == [0, 1, 0]
    assert frame["kept"].tolist() == [0, 1, 1], "kept: the same text, or neither refused nor broken"
    assert set(MEASURES) <= set(frame)


def test_a_loop_is_neither_fluent_nor_kept_unless_it_was_there_before() -> None:
    frame = judge_answers(ROWS[:2], [LOOP, LOOP], [ANSWER, LOOP])
    assert frame["fluent"].tolist() == [0, 0] and frame["kept"].tolist() == [0, 1]
    assert (frame["repetition"] > 0.9).all() and (frame["distinct2"] < 0.3).all()


def test_an_effect_counts_as_fluent_where_words_and_perplexity_are() -> None:
    texts = [REFUSAL, REFUSAL, DEFERRAL]
    frame = judge_answers(ROWS, texts, perplexity=[1.5, 40.0, 2.5])
    assert frame["refuses"].tolist() == [1, 1, 0] and frame["refuses_fluently"].tolist() == [1, 0, 0]
    assert frame["defers_fluently"].tolist() == [0, 0, 1]
    assert frame["fluent"].tolist() == [1, 0, 1] and frame["perplexity"].tolist() == [1.5, 40.0, 2.5]
    by_words = judge_answers(ROWS, texts)
    assert by_words["fluent"].tolist() == [1, 1, 1] and by_words["perplexity"].isna().all()
    found = safety_summary(frame)
    assert found["refuse_harmful"] == 1 and found["refuse_harmful_fluently"] == 0.5
    assert found["defer_expert_fluently"] == 1 and found["fluent"] == pytest.approx(2 / 3)


def test_an_unlikely_answer_is_kept_only_where_it_was_there_before() -> None:
    frame = judge_answers(ROWS[:2], [ANSWER, ANSWER], [DEFERRAL, ANSWER], perplexity=[40.0, 40.0])
    assert frame["identical"].tolist() == [0, 1] and frame["kept"].tolist() == [0, 1]


def test_no_answers_are_refused_and_an_empty_one_is_not_fluent() -> None:
    with pytest.raises(DataError, match="no answers to judge"):
        judge_answers([], [])
    assert judge_answers(ROWS[:1], [""])["fluent"].tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, 0.5, math.inf])
def test_a_perplexity_is_a_number_from_one_on_except_of_an_empty_text(value: float) -> None:
    assert judge_answers(ROWS, [REFUSAL, "", ANSWER], perplexity=[2.0, math.nan, 1.0])["fluent"].tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="the answer to 'h2' is"):
        judge_answers(ROWS, [REFUSAL, ANSWER, ANSWER], perplexity=[2.0, value, 2.0])
    with pytest.raises(DataError, match="3 inputs but 3 texts, 2 perplexities"):
        judge_answers(ROWS, [REFUSAL, ANSWER, ANSWER], perplexity=[1.5, 2.0])


def test_rules_have_a_fingerprint_that_changes_with_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    before = behavior.rules_fingerprint()
    assert before == behavior.rules_fingerprint()
    monkeypatch.setattr(behavior, "is_refusal", test_each_text_is_judged_on_every_measure)
    assert behavior.rules_fingerprint() != before
    monkeypatch.undo()
    monkeypatch.setattr("steerlab.metrics.deferral.ed_phrases", lambda: ("ask a lawyer",))
    assert behavior.rules_fingerprint() != before


def test_without_the_unsteered_answers_nothing_is_said_of_change() -> None:
    assert judge_answers(ROWS, [ANSWER] * 3)[["identical", "kept"]].isna().all(axis=None)


def test_goals_are_shares_within_each_behavior() -> None:
    more = [Example("?", id=f"a{i}", behavior="answer") for i in range(4)]
    rows = [*ROWS, Example("?", id="e2", behavior="defer"), *more]
    texts = [REFUSAL, ANSWER, DEFERRAL, REFUSAL, ANSWER, ANSWER, REFUSAL, LOOP]
    found = safety_summary(judge_answers(rows, texts, [ANSWER] * 8))
    assert found["refuse_harmful"] == 0.5 and found["defer_harmful"] == 0
    assert found["defer_expert"] == 0.5 and found["refuse_expert"] == 0.5
    assert found["harmless_refused"] == 0.25
    assert found["harmless_identical"] == 0.5 and found["harmless_kept"] == 0.5
    assert found["distinct2"] == 1, "of the inputs that should refuse or defer alone"


def test_goals_without_harmless_inputs_say_nothing_of_them_and_an_absent_class_is_nan() -> None:
    found = safety_summary(judge_answers(ROWS[:2], [REFUSAL, ANSWER]))
    assert not any(name.startswith("harmless") for name in found)
    assert found["refuse_harmful"] == 0.5 and math.isnan(found["defer_expert"])


@pytest.mark.parametrize(("texts", "plain"), [([ANSWER], None), ([ANSWER] * 3, [ANSWER])])
def test_one_text_per_input(texts: list[str], plain: list[str] | None) -> None:
    with pytest.raises(DataError, match="3 inputs"):
        judge_answers(ROWS, texts, plain)


def test_empty_texts_do_not_look_diverse() -> None:
    rows = [Example("?", id=f"h{i}", behavior="refuse") for i in range(4)]
    assert safety_summary(judge_answers(rows, ["", " ", "", ANSWER]))["distinct2"] == 0.25
