"""The checks of the steerability protocol on models whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import steerlab
from steerlab import Contrast, Example, MeanDifference, Model, Site
from steerlab.analysis.protocols import MULTIPLIERS, PROTOCOLS
from steerlab.analysis.steerability import anti_steerable, slopes, steerability
from steerlab.steering.batched_settings import BatchedSetting, pack
from steerlab.steering.interventions import Request, resolve_interventions
from steerlab.testing import tiny_lm

A, B = Contrast("(A)", "(B)", position="first_difference"), Contrast("(B)", "(A)", position="first_difference")


def asked(n: int, reversed_: tuple[int, ...] = ()) -> list[Example]:
    return [Example(f"q{i}", f"Is {i} less than {i * 7 % 11}?", "ask", B if i in reversed_ else A) for i in range(n)]


@pytest.fixture
def linear() -> Model:
    """A model whose logits are linear in what the last block gives: it has no final norm."""
    model = tiny_lm("llama", backend="hooks")
    model.hf.model.norm = nn.Identity()
    return model


def letters(model: Model) -> tuple[int, int]:
    ids = [model.encode("?", answer=p, other_answer=q) for p, q in (("(A)", "(B)"), ("(B)", "(A)"))]
    first, second = (row.ids[row.first_difference or 0] for row in ids)
    return first, second


@pytest.mark.parametrize("positions", [PROTOCOLS["paper"].positions, PROTOCOLS["steering-bench"].positions, "all"])
def test_a_linear_model_has_the_slope_of_its_readout(linear: Model, positions: str) -> None:
    layer = linear.n_layers - 1
    v = torch.randn(linear.hidden_size, generator=torch.Generator().manual_seed(1))
    frame = steerlab.sweep(
        linear, {"mean": {layer: MeanDifference.from_tensor(layer, v)}}, asked(9), layer, MULTIPLIERS, positions,
        progress=False,
    )  # fmt: skip
    first, second = letters(linear)
    readout = linear.hf.lm_head.weight[first] - linear.hf.lm_head.weight[second]
    found = slopes(frame)
    np.testing.assert_allclose(found["slope"], float(readout @ v), atol=1e-5)
    assert found["residual"].max() < 1e-5, "affine in alpha"


def test_half_reversed_items_are_half_anti_steerable(linear: Model) -> None:
    layer = linear.n_layers - 1
    v = torch.randn(linear.hidden_size, generator=torch.Generator().manual_seed(1))
    rows = asked(20, tuple(range(0, 20, 2)))
    steerer = {"mean": {layer: MeanDifference.from_tensor(layer, v)}}
    found = slopes(steerlab.sweep(linear, steerer, rows, layer, progress=False))
    share = anti_steerable(found)
    assert share.value == 0.5 and share.low < 0.5 < share.high
    assert abs(steerability(found)["steerability"].item()) < 1e-5


def test_swapped_answers_turn_the_vector_round(lm) -> None:
    model = lm("llama")
    layer = 2
    one, two = (
        MeanDifference(layer).fit(steerlab.capture(model, rows, layers=[layer], context=None, progress=False))
        for rows in (asked(6), asked(6, tuple(range(6))))
    )
    torch.testing.assert_close(one.vector_, -two.vector_)


def test_swapping_answers_by_chance_leaves_a_vector_that_falls_with_the_root_of_n(lm) -> None:
    model, layer = lm("llama"), 2
    acts = steerlab.capture(model, asked(256), layers=[layer], context=None, progress=False)
    _, z = acts.contrast(layer)
    rng = np.random.default_rng(0)

    def norm(n: int) -> float:
        found = []
        for _ in range(30):
            swapped = tuple(int(i) for i in np.flatnonzero(rng.random(n) < 0.5))
            signs = torch.ones(n)
            signs[list(swapped)] = -1
            found.append(float((z[:n] * signs[:, None]).mean(0).norm()))
        return float(np.sqrt(np.mean(np.square(found))))

    norms = {n: norm(n) * np.sqrt(n) for n in (16, 64, 256)}
    size = float(z.norm(dim=1).square().mean().sqrt())
    for n, scaled in norms.items():
        assert 0.6 * size < scaled < 1.5 * size, (n, scaled, size)
    assert float(z.mean(0).norm()) > 3 * norm(256), "answers that are not swapped leave a direction"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_letters_logits_differ_as_their_log_probabilities_do(lm, family: str) -> None:
    """The softmax's normalizer is the same for both; the closing bracket is what parts whole answers' scores."""
    model = lm(family)
    v = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1))
    steerer = {"mean": {1: MeanDifference.from_tensor(1, v)}}
    options = {"layers": 1, "alphas": (0.0, 1.0), "progress": False}
    pairs = [
        Example(f"q{i}", f"Is {i} more?", "ask", Contrast("(A", "(B", position="first_difference")) for i in range(5)
    ]
    frame = steerlab.sweep(
        model, steerer, pairs, metric=["propensity", "logprob_difference", "logit_sum_difference"], **options
    )
    wide = frame.pivot(index=["alpha", "example_id"], columns="metric", values="value")
    np.testing.assert_allclose(wide["logprob_difference"], wide["propensity"], atol=2e-4)
    np.testing.assert_allclose(wide["logit_sum_difference"], wide["propensity"], atol=2e-4)


@pytest.mark.parametrize("positions", [PROTOCOLS["paper"].positions, PROTOCOLS["steering-bench"].positions])
def test_nothing_before_the_first_steered_token_is_touched(lm, positions: str) -> None:
    model = lm("llama")
    rows = [model.encode("Is it more, or less?", answer=text) for text in ("(A)", "(B)")]
    batch = model.batch(rows, "aligned")
    steerer = MeanDifference.from_tensor(1, 5 * torch.ones(model.hidden_size))
    (_, interventions), *_ = resolve_interventions(model, [Request(steerer, alpha=1.0)], asked(2), 2)
    edits = pack(model, [BatchedSetting(tuple(interventions), 1.0, positions)], batch, [0, 1])
    states = [
        model.engine.position(model.inputs(batch), plan, [Site(model.n_layers - 1)], lambda h: h)[:, 0]
        for plan in ({}, edits)
    ]
    first = batch.offsets[0] + rows[0].n_prompt - (positions == "last+generated")
    assert torch.equal(states[0][:, :first], states[1][:, :first])
    assert not torch.isclose(states[0][:, first], states[1][:, first]).all(-1).any()
    assert torch.equal(states[1][0, :first], states[1][1, :first]), "both answers follow one and the same prompt"
