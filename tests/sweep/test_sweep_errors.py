"""What a sweep refuses, and the messages."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reference import expected, questions, text_length, vectors

from steerlab import Contrast, Example, MeanDifference, Site, SteeringVector, capture, sweep
from steerlab.errors import DataError, EncodingError, LayoutError, SteeringError, SteerlabError
from steerlab.methods import Prompt

QUIET: dict[str, Any] = {"progress": False, "generation": {"max_new_tokens": 3}}


def with_answers(positive: str, negative: str) -> list[Example]:
    """The questions with other answers."""
    return [e.replace(contrast=Contrast(positive, negative)) for e in questions()]


@pytest.mark.parametrize(("bad", "named"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_metric_that_is_not_finite_is_named_with_its_setting(lm, bad: float, named: str) -> None:
    calls: list[int] = []

    def odd(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        calls.append(1)
        return [0.0, 1.0, bad, 3.0, bad] if len(calls) == 4 else [0.0] * 5

    given = {"v": vectors(lm()), "w": vectors(lm(), 1)}
    message = rf"'odd' gave {named} for 2 of 5 texts of 'w' at layer 2, alpha 0.5, positions 'all', .* number 2"
    with pytest.raises(DataError, match=message):
        sweep(lm(), questions(), given, [2], (-1.0, 0.5), "all", odd, **QUIET)


@pytest.mark.parametrize("n", [0, 4, 6])
def test_metric_with_another_number_of_values_is_named_with_its_setting(lm, n: int) -> None:
    message = f"'short' gave {n} values for 5 texts of 'mine' at layer 1, alpha 2, positions 'last'"
    metric = {"short": lambda examples, texts: [1.0] * n}
    with pytest.raises(DataError, match=message):
        sweep(lm(), questions(), {"mine": vectors(lm())}, [1], [2.0], "last", metric, **QUIET)


def test_logits_that_are_not_finite_are_named_with_input_and_setting(lm) -> None:
    huge = SteeringVector({1: 3e38 * torch.tensor([1.0, -1.0]).repeat(16)})
    with pytest.raises(DataError, match=r"propensity of 'q0' is nan under .*'method': 'v', 'layer': 1, 'alpha': 1.0"):
        sweep(lm("gpt2"), questions(), {"v": {1: huge}}, 1, (0.0, 1.0), "all", **QUIET)


def test_answers_with_the_same_first_token_are_refused_by_first_token_metrics(lm) -> None:
    given = {"v": vectors(lm())}
    message = r"two answers of 5 examples begin with the same token, first \['q0', 'q1', 'q2'\]"
    with pytest.raises(DataError, match=message):
        sweep(lm(), questions(), given, [1], [1.0], metric=["propensity", "first_token_accuracy"], **QUIET)
    frame = sweep(lm(), with_answers("A", "B"), given, [1], [1.0], metric="first_token_accuracy", **QUIET)
    assert set(frame["value"]) <= {0.0, 1.0}


@pytest.mark.parametrize("answers", [("(A) yes", "(A) no"), ("the herons", "the herring"), ("A", "B"), ("AB", "ACDC")])
def test_propensity_is_read_at_the_first_token_that_differs(lm, answers: tuple[str, str]) -> None:
    model, rows = lm(), with_answers(*answers)
    frame = sweep(model, rows, {"v": vectors(model)}, [1], (0.0, 1.0), "all", **QUIET)
    for alpha, of_alpha in frame.groupby("alpha"):
        delta = float(str(alpha)) * vectors(model)[1].vector_
        wanted = [expected(model, e, Site(1), delta, "all")["propensity"] for e in rows]
        assert of_alpha["value"].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("metric", ["propensity", "logprob"])
def test_answers_that_never_differ_are_refused(lm, metric: str) -> None:
    rows = [*questions()[:-1], questions()[-1].replace(contrast=Contrast("Yes", "Yes, it is"))]
    with pytest.raises(EncodingError, match=r"'Yes' and 'Yes, it is' never differ"):
        sweep(lm(), rows, {"v": vectors(lm())}, metric=metric, **QUIET)


def test_inputs_without_two_answers_to_the_plain_prompt_are_refused(lm) -> None:
    bare = [*questions()[:-1], questions()[-1].replace(contrast=None)]
    suffixed = [e.replace(contrast=Contrast("Yes", "No", suffix="Is it so?")) for e in questions()]
    for rows, message in ((bare, r"1 of 5 inputs have no contrast, first \['q4'\]"), (suffixed, "of two answers")):
        with pytest.raises(DataError, match=message):
            sweep(lm(), rows, {"v": vectors(lm())}, [1], [1.0], **QUIET)
    assert len(sweep(lm(), bare, {"v": vectors(lm())}, [1], [1.0], metric=text_length, **QUIET)) == 5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"metric": "propensty"}, DataError, r"unknown metric 'propensty'; expected one of .*'propensity'"),
        ({"metric": ["accuracy", "accuracy"]}, DataError, r"called \['accuracy', 'accuracy'\]"),
        ({"metric": [text_length, text_length]}, DataError, r"called \['text_length', 'text_length'\]"),
        ({"metric": []}, DataError, r"called \[\]: give at least one"),
        ({"metric": {}}, DataError, r"called \[\]: give at least one"),
        ({"data": [*questions(), questions()[0]]}, DataError, "'q0'"),
        ({"layers": 9}, LayoutError, "layer 9 does not exist"),
        ({"layers": []}, LayoutError, "layers is empty"),
        ({"layers": [1, Site(0, part="vision")]}, LayoutError, "no vision part"),
        ({"alphas": ()}, SteeringError, r"alphas=\[\]: give at least one"),
        ({"alphas": (1.0, math.nan)}, SteeringError, "finite"),
        ({"alphas": (1.0, 0.5, 1.0)}, DataError, r"alphas=\[1.0, 0.5, 1.0\]: one is given twice"),
        ({"positions": ["all", "last", "all"]}, SteeringError, r"\['all'\] were given more than once"),
        ({"metric": {"norm_ratio": "accuracy"}}, DataError, "with a name that no column has"),
        ({"metric": text_length, "generation": {"num_return_sequences": 2}}, SteeringError, "one text for each"),
        ({"steer": {}}, SteeringError, "no method to sweep"),
        ({"steer": {"v": {2: SteeringVector({1: torch.ones(32)})}}}, SteeringError, "for layer 2 steers at 1"),
        ({"steer": [MeanDifference(1), MeanDifference(2)]}, SteeringError, "a different name for each"),
        ({"steer": {"told": Prompt("Be kind.")}}, SteeringError, "told changes the prompt, and a sweep does not"),
    ],
)
def test_invalid_arguments_are_refused(lm, given: dict[str, Any], error: type[SteerlabError], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep(lm(), **QUIET | {"steer": {"v": vectors(lm())}, "data": questions()} | given)


def test_layers_without_a_fitted_steerer_are_refused(lm) -> None:
    one = vectors(lm())[1]
    with pytest.raises(SteeringError, match=r"fitted at layer 1, but the sweep has layers=\[2\]: give train="):
        sweep(lm(), questions(), one, [2], **QUIET)
    with pytest.raises(SteeringError, match=r"given for the layers \['1'\]; \['2'\] are missing"):
        sweep(lm(), questions(), {"v": {1: one}}, [1, 2], **QUIET)


@pytest.mark.parametrize("captured", [False, True])
def test_overlap_of_training_and_measured_inputs_is_warned_of(lm, captured: bool) -> None:
    rows, given = questions(), {"layers": [1], "alphas": [1.0], **QUIET}
    train: Any = capture(lm(), rows[:3], layers=[1], progress=False) if captured else rows[:3]
    with pytest.warns(UserWarning, match=r"meandifference was fitted on 3 of the 4 inputs .*\['q0', 'q1', 'q2'\]"):
        sweep(lm(), rows[:4], MeanDifference(0), train=train, **given)
    sweep(lm(), rows[3:], MeanDifference(0), train=train, **given)  # a warning would be an error


@pytest.mark.parametrize("metric", ["propensity", "answer_probability"])
def test_vectors_after_the_measured_token_are_refused(lm, metric: str) -> None:
    given, options = {"mine": vectors(lm())}, {"layers": [1], "positions": "generated", "metric": metric, **QUIET}
    with pytest.raises(SteeringError, match=r"no token was steered by \['mine'\].*use 'last\+generated'"):
        sweep(lm(), with_answers("A", "B"), given, alphas=[0.0, 1.0], **options)
    frame = sweep(lm(), questions(), given, alphas=[0.0, 1.0], **options)  # these differ one token later
    assert frame.groupby("example_id")["value"].nunique().eq(2).all()
    options |= {"metric": text_length, "generation": {"max_new_tokens": 1}}
    with pytest.raises(SteeringError, match="more new tokens"):
        sweep(lm(), questions(), given, alphas=[1.0], **options)
