"""The steerability protocol on models whose slopes are known."""

import numpy as np
import pytest
import torch
from _published import PROTOCOLS
from reference import random_vector
from torch import nn

import steerlab
from steerlab import Contrast, Example, MeanDifference, Site, SteeringVector
from steerlab.analysis.steerability import anti_steerable, slopes, steerability
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.models.model import Model
from steerlab.steering.interventions import build_edits
from steerlab.steering.requests import Request, resolve_interventions
from steerlab.testing import tiny_lm

A, B = Contrast("(A)", "(B)", position="first_difference"), Contrast("(B)", "(A)", position="first_difference")
PUBLISHED = [protocol.positions for protocol in PROTOCOLS.values()]


def letter_questions(n: int, reversed_: tuple[int, ...] = ()) -> list[Example]:
    return [
        Example(f"Is {i} less than {i * 7 % 11}?", id=f"q{i}", behavior="ask", contrast=B if i in reversed_ else A)
        for i in range(n)
    ]


@pytest.fixture
def linear() -> Model:
    """A model without a final norm: its logits are linear in the last block's output."""
    model = tiny_lm("llama", backend="hooks")
    model.hf.model.norm = nn.Identity()
    return model


@pytest.mark.parametrize("positions", [*PUBLISHED, "all"])
def test_slope_of_a_linear_model_is_the_vectors_projection_on_the_readout(linear: Model, positions: str) -> None:
    layer = linear.n_layers - 1
    mean = random_vector(layer)
    given = {"mean": {layer: mean}}
    frame = steerlab.sweep(linear, letter_questions(9), given, layer, MULTIPLIERS, positions, progress=False)
    rows = [linear.encode("?", answer=p, other_answer=q) for p, q in (("(A)", "(B)"), ("(B)", "(A)"))]
    first, second = (row.ids[row.first_difference or 0] for row in rows)
    readout = linear.hf.lm_head.weight[first] - linear.hf.lm_head.weight[second]
    found = slopes(frame)
    np.testing.assert_allclose(found["slope"], float(readout @ mean.vector_), atol=1e-5)
    assert found["residual"].max() < 1e-5, "affine in alpha"


def test_half_reversed_examples_are_half_anti_steerable(linear: Model) -> None:
    layer = linear.n_layers - 1
    rows = letter_questions(20, tuple(range(0, 20, 2)))
    found = slopes(steerlab.sweep(linear, rows, {"mean": {layer: random_vector(layer)}}, layer, progress=False))
    share = anti_steerable(found)
    assert share.value == 0.5 and share.low < 0.5 < share.high
    assert abs(steerability(found)["steerability"].item()) < 1e-5


def test_swapped_answers_negate_the_vector(lm) -> None:
    model = lm("llama")
    one, two = (
        MeanDifference(2).fit(steerlab.capture(model, rows, layers=[2], context=None, progress=False))
        for rows in (letter_questions(6), letter_questions(6, tuple(range(6))))
    )
    torch.testing.assert_close(one.vector_, -two.vector_)


def test_vector_of_randomly_swapped_answers_falls_with_the_root_of_n(lm) -> None:
    acts = steerlab.capture(lm("llama"), letter_questions(256), layers=[2], context=None, progress=False)
    _, z = acts.contrast(2)
    rng = np.random.default_rng(0)

    def norm(n: int) -> float:
        signs = torch.tensor(np.where(rng.random((30, n)) < 0.5, -1.0, 1.0), dtype=z.dtype)
        return float((signs @ z[:n] / n).norm(dim=1).square().mean().sqrt())

    size = float(z.norm(dim=1).square().mean().sqrt())
    for n in (16, 64, 256):
        assert 0.6 * size < norm(n) * np.sqrt(n) < 1.5 * size, n
    assert float(z.mean(0).norm()) > 3 * norm(256), "answers that are not swapped leave a direction"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_logits_and_log_probabilities_of_one_letter_differ_equally(lm, family: str) -> None:
    """The softmax's normalizer is the same for both letters."""
    model, pair = lm(family), Contrast("(A", "(B", position="first_difference")
    rows = [Example(f"Is {i} more?", id=f"q{i}", behavior="ask", contrast=pair) for i in range(5)]
    metrics = ["propensity", "logprob_difference", "logit_sum_difference"]
    options = {"layers": 1, "alphas": (0.0, 1.0), "progress": False}
    frame = steerlab.sweep(model, rows, {"mean": {1: random_vector(1)}}, metric=metrics, **options)
    wide = frame.pivot(index=["alpha", "example_id"], columns="metric", values="value")
    for name in metrics[1:]:
        np.testing.assert_allclose(wide[name], wide["propensity"], atol=2e-4)


@pytest.mark.parametrize("positions", PUBLISHED)
def test_states_before_the_first_steered_token_are_bit_identical(lm, positions: str) -> None:
    model = lm("llama")
    rows = [model.encode("Is it more, or less?", answer=text) for text in ("(A)", "(B)")]
    batch = model.batch(rows, "aligned")
    steerer = SteeringVector({1: 5 * torch.ones(model.hidden_size)})
    settings = resolve_interventions(model, [Request(steerer, positions=positions)], letter_questions(2), 2)
    before, after = (
        model.engine.capture_states(model.inputs(batch), edits, [Site(model.n_layers - 1)], lambda h: h)[:, 0]
        for edits in ({}, build_edits(model, settings, batch, [0, 1]))
    )
    first = batch.offsets[0] + rows[0].n_prompt - (positions == "last+generated")
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.isclose(before[:, first], after[:, first]).all(-1).any()
    assert torch.equal(after[0, :first], after[1, :first]), "both answers follow the same prompt"
