"""Every verb on a real NDIF server, against the same model here under plain hooks: the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fits import PAIRS, PROMPTS, fit
from servers.ndif import Ndif

import steerlab
from steerlab import Model
from steerlab.models._nnsight.ndif import NdifEngine

pytestmark = pytest.mark.remote
Get = Callable[[str], Model]
FAMILIES = ["tiny-llama", "smollm2"]


def requests(model: Model) -> int:
    assert isinstance(model.engine, NdifEngine)
    return model.engine.client.traffic.requests


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest, server: Ndif) -> str:
    if request.param == "smollm2" and server.sandboxed:
        pytest.skip("a sandboxed request takes seconds: the tiny model shows the same")
    return str(request.param)


def test_the_weights_are_not_here(far: Get, name: str) -> None:
    model = far(name)
    assert model.is_remote and {p.device.type for p in model.hf.parameters()} == {"meta"}


def test_captured_states_equal_the_local_ones(far: Get, near: Get, name: str) -> None:
    wanted = {"layers": "all", "positions": ["last", "answer"], "context": "last", "progress": False}
    there, here = (steerlab.capture(model, PAIRS, **wanted) for model in (far(name), near(name)))
    assert torch.equal(there.values, here.values)
    assert there.index.equals(here.index)


def test_modules_inside_a_block_are_captured_too(far: Get, near: Get, name: str) -> None:
    sites = [steerlab.Site(1, point) for point in ("block_in", "attn_out", "mlp_out")]
    there, here = (
        steerlab.capture(m, PROMPTS, layers=sites, positions="all", progress=False) for m in (far(name), near(name))
    )
    assert torch.equal(there.values, here.values)


def test_a_capture_takes_a_request_for_each_batch(far: Get, name: str) -> None:
    before = requests(far(name))
    steerlab.capture(far(name), PROMPTS, layers="all", batch_size=2, progress=False)
    assert requests(far(name)) - before == -(-len(PROMPTS) // 2)


def test_steered_texts_equal_the_local_ones_row_by_row(far: Get, near: Get, name: str) -> None:
    for method in ("rows", "mean", "l2s"):
        there, here = (
            steerlab.generate(m, PAIRS, steer=fit(near(name))[method], alpha=1.0, max_new_tokens=6)
            for m in (far(name), near(name))
        )
        assert there.ids == here.ids, method
        assert there.steered_tokens == here.steered_tokens > 0
        assert there.norm_ratio == pytest.approx(here.norm_ratio, rel=1e-5)


def test_l2s_is_evaluated_in_the_trace_that_it_steers(far: Get, near: Get, name: str) -> None:
    l2s, before = fit(near(name))["l2s"], requests(far(name))
    steerlab.generate(far(name), PAIRS, steer=l2s, alpha=1.0, max_new_tokens=4)
    assert requests(far(name)) - before == 1


def test_steering_changes_the_text(far: Get, near: Get, name: str) -> None:
    steered = steerlab.generate(far(name), PAIRS, steer=fit(near(name))["rows"], alpha=4.0, max_new_tokens=6)
    plain = steerlab.generate(far(name), PAIRS, max_new_tokens=6)
    assert all(a != b for a, b in zip(steered.ids, plain.ids, strict=True))


def test_sampling_repeats_the_local_draws_where_the_worker_runs_in_the_models_process(
    far: Get, near: Get, name: str, server: Ndif
) -> None:
    wanted = {"steer": fit(near(name))["rows"], "alpha": 1.0, "max_new_tokens": 6, "do_sample": True, "seed": 3}
    if server.sandboxed:
        with pytest.warns(UserWarning, match="can't be seeded there"):
            steerlab.generate(far(name), PAIRS, **wanted)
    else:
        assert steerlab.generate(far(name), PAIRS, **wanted).ids == steerlab.generate(near(name), PAIRS, **wanted).ids


def test_scores_and_first_tokens_equal_the_local_ones(far: Get, near: Get, name: str) -> None:
    wanted = {"steer": fit(near(name))["rows"], "alpha": 1.0}
    answers = [pair.contrast.negative for pair in PAIRS if pair.contrast]
    there, here = (steerlab.score(m, PAIRS, answers, **wanted) for m in (far(name), near(name)))
    assert np.array_equal(there.to_numpy(), here.to_numpy())
    there, here = (
        steerlab.next_token_logits(m, PAIRS, [5, 9], max_other=True, **wanted) for m in (far(name), near(name))
    )
    assert torch.equal(there, here)


def test_several_steerers_add_up_as_they_do_here(far: Get, near: Get, name: str) -> None:
    fits = fit(near(name))
    texts = []
    for model in (far(name), near(name)):
        with steerlab.steer(model, fits["l2s"], alpha=0.5), steerlab.steer(model, fits["rows"], alpha=1.0) as run:
            texts.append(run.generate(PAIRS, max_new_tokens=6).ids)
    assert texts[0] == texts[1]


def test_a_method_that_reads_in_flight_gives_the_same_texts(far: Get, near: Get, name: str) -> None:
    wanted = {"steer": fit(near(name))["gates"], "alpha": 1.0, "max_new_tokens": 5}
    there, here = (steerlab.generate(m, PAIRS, **wanted) for m in (far(name), near(name)))
    assert there.ids == here.ids
    assert there.steered_tokens == here.steered_tokens > 0


def test_a_sweep_equals_the_local_one_and_takes_a_request_for_each_batch(far: Get, near: Get, name: str) -> None:
    wanted = {
        "alphas": (-1.0, 0.0, 1.0),
        "metric": ["propensity", "answer_probability"],
        "progress": False,
        "batch_size": 24,
    }
    before = requests(far(name))
    there, here = (steerlab.sweep(m, fit(near(name))["mean"], PAIRS, **wanted) for m in (far(name), near(name)))
    columns = ["value", "norm_ratio"]
    assert there.drop(columns=columns).equals(here.drop(columns=columns))
    assert np.abs(there[columns].to_numpy() - here[columns].to_numpy()).max() <= 1e-5
    assert requests(far(name)) - before <= 2  # three cells of three inputs, two metrics: one batch, whatever the cells


def test_a_capture_on_disk_goes_on_where_it_was(far: Get, near: Get, name: str, tmp_path: object) -> None:
    whole = steerlab.capture(near(name), PROMPTS, layers=[1], batch_size=1, progress=False)
    store = steerlab.capture(far(name), PROMPTS, folder=tmp_path, layers=[1], batch_size=1, progress=False)
    before = requests(far(name))
    again = steerlab.capture(far(name), PROMPTS, folder=tmp_path, layers=[1], batch_size=1, progress=False)
    assert requests(far(name)) == before
    assert torch.equal(store.load().values, whole.values) and torch.equal(again.load().values, whole.values)
