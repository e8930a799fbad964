"""`sweep` equals a plain forward with one hook, for every setting and input."""

from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from nightly import by_day
from reference import ALPHAS, expected, questions, vectors

from steerlab import Site, capture, sweep
from steerlab.models.model import Model
from steerlab.testing import FAMILIES

ALL = ["propensity", "accuracy", "answer_probability", "logprob", "logprob_difference", "logit_sum_difference"]
POSITIONS = ["all", "prompt", "last", "last+generated"]


def swept(model: Model, metrics: list[str], positions: list[str], **options: Any) -> pd.DataFrame:
    """A sweep of all layers and alphas, compared with plain forwards."""
    given, rows, tolerance = vectors(model), {e.id: e for e in questions()}, 2e-4
    frame = sweep(model, questions(), {"v": given}, "all", ALPHAS, positions, metrics, progress=False, **options)
    assert len(frame) == len(metrics) * len(positions) * len(given) * len(ALPHAS) * len(rows)
    for key, found in frame.groupby(["layer", "alpha", "positions", "example_id"]):
        layer, alpha, where, example_id = key
        wanted = expected(model, rows[example_id], Site(layer), alpha * given[layer].vector_, where)
        for name, value in zip(found["metric"], found["value"], strict=True):
            if name != "accuracy" or abs(wanted["propensity"]) >= tolerance:
                assert value == pytest.approx(wanted[name], abs=tolerance, rel=1e-4), (key, name)
    return frame


FEW = ("llama", "gemma2", "gpt2")  # the others at night
families = pytest.mark.parametrize("family", by_day(FAMILIES, lambda family: family in FEW))


@families
def test_every_setting_equals_a_plain_hook(lm, family: str) -> None:
    frame = swept(lm(family), ["propensity", "accuracy", "answer_probability"], POSITIONS, batch_size=7)
    assert set(frame["positions"]) == set(POSITIONS)


@pytest.mark.parametrize(
    ("backend", "batch_size"),
    by_day(product(("nnsight", "hooks"), (1, 5, 64, None)), lambda *case: case == ("nnsight", 5)),
)
def test_whole_answers_equal_a_plain_hook_at_any_batch_size(lm, backend: str, batch_size: int | None) -> None:
    frame = swept(lm("qwen2", backend), ALL, ["all", "last+generated", "generated"], batch_size=batch_size)
    assert set(frame["metric"]) == set(ALL)


def test_little_memory_means_smaller_groups_and_the_same_numbers(lm) -> None:
    assert "5 groups of inputs" in swept(lm("gemma2"), ["propensity"], ["last+generated"], memory=1).attrs["plan"]


def test_alpha_zero_is_bit_identical_to_the_unsteered_model(lm) -> None:
    model = lm()
    frame = sweep(model, questions(), {"v": vectors(model), "w": vectors(model, 1)}, "all", (0.0, 1.0), progress=False)
    idle = frame[frame["alpha"] == 0].groupby("example_id")["value"]
    assert (idle.nunique() == 1).all()
    one = sweep(model, questions(), {"v": vectors(model)}, 0, (0.0,), progress=False)
    assert one.set_index("example_id")["value"].eq(idle.first()).all()
    assert (frame.loc[frame["alpha"] == 0, "norm_ratio"] == 0).all()


def test_norm_ratio_is_that_of_the_steered_states(lm) -> None:
    model, rows = lm(), questions()
    acts = capture(model, [e.replace(contrast=None) for e in rows], layers=[1], positions="last", progress=False)
    frame = sweep(model, rows, {"v": vectors(model)}, 1, (2.0,), "last", progress=False)
    ratio = 2 * vectors(model)[1].vector_.norm() / acts.at(1).norm(dim=-1)
    assert frame["norm_ratio"].tolist() == pytest.approx(ratio.tolist(), rel=1e-4)


def test_spent_cost_equals_the_planned_cost(lm) -> None:
    model = lm()
    frame = sweep(model, questions(), {"v": vectors(model)}, "all", ALPHAS, ["all", "last"], progress=False)
    cost = frame.attrs["forward_equivalents"]
    assert cost["spent"] == pytest.approx(cost["planned"])
    assert cost["one_per_setting"] == 2 * len(vectors(model)) * len(ALPHAS) * len(questions()) > cost["planned"]


def test_model_is_bit_identical_after_a_sweep(lm) -> None:
    model = lm()
    ids = torch.arange(5, 25)[None]
    before = model.hf(input_ids=ids).logits
    sweep(model, questions(), {"v": vectors(model)}, "all", ALPHAS, POSITIONS, progress=False)
    assert torch.equal(model.hf(input_ids=ids).logits, before)


def test_metrics_have_the_given_names(lm) -> None:
    model = lm("llama")
    options = {"layers": [1], "alphas": (0.0, 1.0), "progress": False}
    frame = sweep(model, questions(), {"v": vectors(model)}, metric={"a": "propensity", "b": "propensity"}, **options)
    values = {name: part["value"].tolist() for name, part in frame.groupby("metric", sort=False)}
    plain = sweep(model, questions(), {"v": vectors(model)}, metric="propensity", **options)
    assert values == {"a": plain["value"].tolist(), "b": plain["value"].tolist()}
