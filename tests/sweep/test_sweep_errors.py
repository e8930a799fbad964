"""What a sweep refuses, and what it says then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from swept import expected, questions, vectors

from steerlab import (
    Contrast,
    DataError,
    EncodingError,
    Example,
    LayoutError,
    MeanDifference,
    Site,
    SteeringError,
    SteerlabError,
    capture,
    sweep,
)  # fmt: skip

QUIET: dict[str, Any] = {"progress": False, "generation": {"max_new_tokens": 3}}


def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def answered(positive: str, negative: str) -> list[Example]:
    """The questions with other answers."""
    return [e.replace(contrast=Contrast(positive, negative)) for e in questions()]


@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_metric_that_is_not_finite_is_named_with_its_cell(lm, bad: float, said: str) -> None:
    def odd(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        odd.calls += 1  # type: ignore[attr-defined]
        return [0.0, 1.0, bad if odd.calls == 4 else 2.0, 3.0, bad if odd.calls == 4 else 4.0]  # type: ignore[attr-defined]

    odd.calls = 0  # type: ignore[attr-defined]
    given = {"v": vectors(lm()), "w": vectors(lm(), 1)}
    wanted = rf"'odd' gave {said} for 2 of 5 texts of 'w' at layer 2, alpha 0.5, positions 'all', .* number 2"
    with pytest.raises(DataError, match=wanted):
        sweep(lm(), given, questions(), [2], (-1.0, 0.5), "all", odd, **QUIET)


@pytest.mark.parametrize("n", [0, 4, 6])
def test_a_metric_of_another_length_is_named_with_its_cell(lm, n: int) -> None:
    given = {"mine": vectors(lm())}
    wanted = f"'short' gave {n} values for 5 texts of 'mine' at layer 1, alpha 2, positions 'last'"
    with pytest.raises(DataError, match=wanted):
        sweep(lm(), given, questions(), [1], [2.0], "last", {"short": lambda examples, texts: [1.0] * n}, **QUIET)


def test_logits_that_are_not_finite_are_named_with_their_input_and_cell(lm) -> None:
    huge = MeanDifference.from_tensor(1, 3e38 * torch.tensor([1.0, -1.0]).repeat(16))
    with pytest.raises(DataError, match=r"propensity of 'q0' is nan under .*'method': 'v', 'layer': 1, 'alpha': 1.0"):
        sweep(lm("gpt2"), {"v": {1: huge}}, questions(), 1, (0.0, 1.0), "all", **QUIET)


def test_ids_given_twice_are_counted(lm) -> None:
    rows = [*questions(), *questions()[:2], questions()[0]]
    with pytest.raises(DataError, match=r"2 sample ids occur more than once: 'q0' \(3 times\), 'q1' \(2 times\)"):
        sweep(lm(), {"v": vectors(lm())}, rows, **QUIET)


def test_answers_that_share_their_first_token_are_refused_only_by_metrics_of_it(lm) -> None:
    given = {"v": vectors(lm())}
    with pytest.raises(
        DataError, match=r"two answers of 5 inputs begin with the same token, first \['q0', 'q1', 'q2'\]"
    ):
        sweep(lm(), given, questions(), [1], [1.0], metric=["propensity", "first_token_accuracy"], **QUIET)
    frame = sweep(lm(), given, answered("A", "B"), [1], [1.0], metric="first_token_accuracy", **QUIET)
    assert set(frame["value"]) <= {0.0, 1.0}


@pytest.mark.parametrize("answers", [("(A) yes", "(A) no"), ("the herons", "the herring"), ("A", "B"), ("AB", "ACDC")])
def test_propensity_is_that_of_hugging_face_at_the_token_where_the_answers_part(lm, answers: tuple[str, str]) -> None:
    model, rows = lm(), answered(*answers)
    frame = sweep(model, {"v": vectors(model)}, rows, [1], (0.0, 1.0), "all", **QUIET)
    for alpha, cell in frame.groupby("alpha"):
        wanted = [
            expected(model, e, 1, float(str(alpha)) * vectors(model)[1].vector_, "all")["propensity"] for e in rows
        ]
        assert cell["value"].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("metric", ["propensity", "logprob"])
def test_answers_that_never_part_are_refused(lm, metric: str) -> None:
    rows = [*questions()[:-1], questions()[-1].replace(contrast=Contrast("Yes", "Yes, it is"))]
    with pytest.raises(EncodingError, match=r"'Yes' and 'Yes, it is' never differ"):
        sweep(lm(), {"v": vectors(lm())}, rows, metric=metric, **QUIET)


def test_inputs_without_two_answers_to_the_plain_prompt_are_refused(lm) -> None:
    bare = [*questions()[:-1], questions()[-1].replace(contrast=None)]
    asked = [e.replace(contrast=Contrast("Yes", "No", suffix="Is it so?")) for e in questions()]
    for rows, wanted in ((bare, r"1 of 5 inputs have no contrast, first \['q4'\]"), (asked, "without a suffix")):
        with pytest.raises(DataError, match=wanted):
            sweep(lm(), {"v": vectors(lm())}, rows, [1], [1.0], **QUIET)
    assert len(sweep(lm(), {"v": vectors(lm())}, bare, [1], [1.0], metric=length, **QUIET)) == 5


@pytest.mark.parametrize(
    ("asked", "error", "wanted"),
    [
        ({"metric": "propensty"}, DataError, r"unknown metric 'propensty'; expected one of .*'propensity'"),
        ({"metric": ["accuracy", "accuracy"]}, DataError, r"called \['accuracy', 'accuracy'\]"),
        ({"metric": [length, length]}, DataError, r"called \['length', 'length'\]"),
        ({"metric": []}, DataError, r"called \[\]: give at least one"),
        ({"metric": {}}, DataError, r"called \[\]: give at least one"),
        ({"layers": 9}, LayoutError, "layer 9 does not exist"),
        ({"layers": []}, LayoutError, "layers is empty"),
        ({"layers": [1, Site(0, part="vision")]}, LayoutError, "no vision part"),
        ({"alphas": ()}, SteeringError, r"alphas=\[\]: give at least one"),
        ({"alphas": (1.0, math.nan)}, SteeringError, "finite"),
        ({"alphas": (1.0, 0.5, 1.0)}, DataError, r"alphas=\[1.0, 0.5, 1.0\]: one is given twice"),
    ],
)
def test_a_request_that_means_nothing_is_refused(
    lm, asked: dict[str, Any], error: type[SteerlabError], wanted: str
) -> None:
    with pytest.raises(error, match=wanted):
        sweep(lm(), {"v": vectors(lm())}, questions(), **asked, **QUIET)


def test_methods_and_layers_that_do_not_fit_together_are_refused(lm) -> None:
    one, given = vectors(lm())[1], {1: vectors(lm())[1]}
    with pytest.raises(SteeringError, match=r"fitted at layer 1, but layers=\[2\] were asked for: give train="):
        sweep(lm(), one, questions(), [2], **QUIET)
    with pytest.raises(SteeringError, match=r"given for the layers \['1'\]; \['2'\] are wanted too"):
        sweep(lm(), {"v": given}, questions(), [1, 2], **QUIET)
    with pytest.raises(SteeringError, match="a name of its own for each"):
        sweep(lm(), [one, one], questions(), **QUIET)
    with pytest.raises(SteeringError, match="no method to sweep"):
        sweep(lm(), {}, questions(), **QUIET)


@pytest.mark.parametrize("captured", [False, True])
def test_vectors_fitted_to_what_they_are_measured_on_are_warned_of(lm, captured: bool) -> None:
    rows, asked = questions(), {"layers": [1], "alphas": [1.0], **QUIET}
    train: Any = capture(lm(), rows[:3], layers=[1], progress=False) if captured else rows[:3]
    with pytest.warns(UserWarning, match=r"meandifference was fitted on 3 of the 4 inputs .*\['q0', 'q1', 'q2'\]"):
        sweep(lm(), MeanDifference(0), rows[:4], train=train, **asked)
    sweep(lm(), MeanDifference(0), rows[3:], train=train, **asked)  # a warning would be an error


@pytest.mark.parametrize("metric", ["propensity", "answer_probability"])
def test_vectors_that_reach_nothing_measured_are_refused(lm, metric: str) -> None:
    given, asked = {"mine": vectors(lm())}, {"layers": [1], "positions": "generated", "metric": metric, **QUIET}
    with pytest.raises(SteeringError, match=r"no token was steered by \['mine'\].*use 'last\+generated'"):
        sweep(lm(), given, answered("A", "B"), alphas=[0.0, 1.0], **asked)
    felt = sweep(lm(), given, questions(), alphas=[0.0, 1.0], **asked)  # these part one token later
    assert felt.groupby("example_id")["value"].nunique().eq(2).all()


def test_texts_too_short_to_feel_a_vector_are_refused(lm) -> None:
    asked = {"positions": "generated", "metric": length, "progress": False, "generation": {"max_new_tokens": 1}}
    with pytest.raises(SteeringError, match="more new tokens"):
        sweep(lm(), {"v": vectors(lm())}, questions(), [1], [1.0], **asked)
