"""`sweep` gives, for every cell and input, the number of a plain forward with one hook."""

from __future__ import annotations

import pytest
import torch
from swept import ALPHAS, expected, questions, vectors

from steerlab import Model, sweep
from steerlab.testing import FAMILIES

ALL = ["propensity", "accuracy", "answer_probability", "logprob", "logprob_difference", "logit_sum_difference"]
POSITIONS = ("all", "prompt", "last", "last+generated")


def check(model: Model, frame, metrics: list[str], positions: list[str], tolerance: float = 2e-4) -> None:
    given = vectors(model)
    rows = {e.id: e for e in questions()}
    assert len(frame) == len(metrics) * len(positions) * len(given) * len(ALPHAS) * len(rows)
    for (layer, alpha, where, example_id), cell in frame.groupby(["layer", "alpha", "positions", "example_id"]):
        wanted = expected(model, rows[example_id], layer, alpha * given[layer].vector_, where)
        for name, value in zip(cell["metric"], cell["value"], strict=True):
            if name == "accuracy" and abs(wanted["propensity"]) < tolerance:
                continue
            assert value == pytest.approx(wanted[name], abs=tolerance, rel=1e-4), (
                layer,
                alpha,
                where,
                example_id,
                name,
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_equals_a_plain_hook(lm, family: str) -> None:
    model = lm(family)
    metrics = ["propensity", "accuracy", "answer_probability"]
    frame = sweep(
        model, {"v": vectors(model)}, questions(), "all", ALPHAS, list(POSITIONS), metrics, batch_size=7, progress=False
    )
    check(model, frame, metrics, list(POSITIONS))


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("batch_size", [1, 5, 64, None])
def test_whole_answers_at_any_batch_size(lm, backend: str, batch_size: int | None) -> None:
    model = lm("qwen2", backend)
    positions = ["all", "last+generated", "generated"]
    frame = sweep(
        model, {"v": vectors(model)}, questions(), "all", ALPHAS, positions, ALL, batch_size=batch_size, progress=False
    )
    check(model, frame, ALL, positions)


def test_little_memory_means_smaller_blocks_and_the_same_numbers(lm) -> None:
    model = lm("gemma2")
    options = dict(layers="all", alphas=ALPHAS, positions=["last+generated"], metric=["propensity"], progress=False)
    one = sweep(model, {"v": vectors(model)}, questions(), memory=1, **options)
    check(model, one, ["propensity"], ["last+generated"])
    assert "5 blocks" in one.attrs["plan"]


def test_alpha_zero_is_the_unsteered_model_bit_for_bit(lm) -> None:
    model = lm()
    frame = sweep(model, {"v": vectors(model), "w": vectors(model, 1)}, questions(), "all", (0.0, 1.0), progress=False)
    idle = frame[frame["alpha"] == 0].groupby("example_id")["value"]
    assert (idle.nunique() == 1).all()
    alone = sweep(model, {"v": vectors(model)}, questions(), 0, (0.0,), progress=False)
    assert alone.set_index("example_id")["value"].eq(idle.first()).all()
    assert (frame.loc[frame["alpha"] == 0, "norm_ratio"] == 0).all()


def test_norm_ratio_is_that_of_the_states_written_to(lm) -> None:
    from steerlab import capture

    model = lm()
    rows = questions()
    acts = capture(model, [e.replace(contrast=None) for e in rows], layers=[1], positions="last", progress=False)
    frame = sweep(model, {"v": vectors(model)}, rows, 1, (2.0,), "last", progress=False)
    ratio = 2 * vectors(model)[1].vector_.norm() / acts.at(1).norm(dim=-1)
    assert frame["norm_ratio"].tolist() == pytest.approx(ratio.tolist(), rel=1e-4)


def test_spent_is_what_was_planned(lm) -> None:
    model = lm()
    frame = sweep(model, {"v": vectors(model)}, questions(), "all", ALPHAS, ["all", "last"], progress=False)
    cost = frame.attrs["forward_equivalents"]
    assert cost["spent"] == pytest.approx(cost["planned"])
    assert cost["one_a_cell"] == 2 * len(vectors(model)) * len(ALPHAS) * len(questions()) > cost["planned"]


def test_the_model_is_as_before(lm) -> None:
    model = lm()
    ids = torch.arange(5, 25)[None]
    before = model.hf(input_ids=ids).logits
    sweep(model, {"v": vectors(model)}, questions(), "all", ALPHAS, list(POSITIONS), progress=False)
    assert torch.equal(model.hf(input_ids=ids).logits, before)


def test_metrics_have_the_names_they_are_given(lm) -> None:
    model = lm("llama")
    options = {"layers": [1], "alphas": (0.0, 1.0), "progress": False}
    frame = sweep(model, {"v": vectors(model)}, questions(), metric={"a": "propensity", "b": "propensity"}, **options)
    values = {name: part["value"].tolist() for name, part in frame.groupby("metric", sort=False)}
    plain = sweep(model, {"v": vectors(model)}, questions(), metric="propensity", **options)
    assert values == {"a": plain["value"].tolist(), "b": plain["value"].tolist()}
