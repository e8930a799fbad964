"""Every verb on a real NDIF server gives exactly the numbers of the same model in this process under plain hooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from remote_fits import PAIRS, PROMPTS, fit
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


def test_weights_are_not_loaded_here(remote: Get, name: str) -> None:
    model = remote(name)
    assert model.is_remote and {p.device.type for p in model.hf.parameters()} == {"meta"}


def test_captured_states_match_local(remote: Get, near: Get, name: str) -> None:
    wanted = {"layers": "all", "positions": ["last", "answer"], "context": "last", "progress": False}
    there, here = (steerlab.capture(model, PAIRS, **wanted) for model in (remote(name), near(name)))
    assert torch.equal(there.values, here.values)
    assert there.index.equals(here.index)


def test_states_inside_a_block_match_local(remote: Get, near: Get, name: str) -> None:
    sites = [steerlab.Site(1, point) for point in ("block_in", "attn_out", "mlp_out")]
    there, here = (
        steerlab.capture(m, PROMPTS, layers=sites, positions="all", progress=False) for m in (remote(name), near(name))
    )
    assert torch.equal(there.values, here.values)


def test_a_capture_sends_one_request_per_batch(remote: Get, name: str) -> None:
    before = requests(remote(name))
    steerlab.capture(remote(name), PROMPTS, layers="all", batch_size=2, progress=False)
    assert requests(remote(name)) - before == -(-len(PROMPTS) // 2)


def test_steered_texts_match_local(remote: Get, near: Get, name: str) -> None:
    for method in ("rows", "mean", "l2s"):
        there, here = (
            steerlab.generate(m, PAIRS, steer=fit(near(name))[method], alpha=1.0, max_new_tokens=6)
            for m in (remote(name), near(name))
        )
        assert there.ids == here.ids, method
        assert there.steered_tokens == here.steered_tokens > 0
        assert there.norm_ratio == pytest.approx(here.norm_ratio, rel=1e-5)


def test_l2s_is_computed_in_the_request_that_it_steers(remote: Get, near: Get, name: str) -> None:
    l2s, before = fit(near(name))["l2s"], requests(remote(name))
    steerlab.generate(remote(name), PAIRS, steer=l2s, alpha=1.0, max_new_tokens=4)
    assert requests(remote(name)) - before == 1


def test_steering_changes_the_text(remote: Get, near: Get, name: str) -> None:
    steered = steerlab.generate(remote(name), PAIRS, steer=fit(near(name))["rows"], alpha=4.0, max_new_tokens=6)
    plain = steerlab.generate(remote(name), PAIRS, max_new_tokens=6)
    assert all(a != b for a, b in zip(steered.ids, plain.ids, strict=True))


def test_sampled_texts_match_local_or_a_sandboxed_worker_warns(remote: Get, near: Get, name: str, server: Ndif) -> None:
    wanted = {"steer": fit(near(name))["rows"], "alpha": 1.0, "max_new_tokens": 6, "do_sample": True, "seed": 3}
    if server.sandboxed:
        with pytest.warns(UserWarning, match="cannot be seeded"):
            steerlab.generate(remote(name), PAIRS, **wanted)
    else:
        assert (
            steerlab.generate(remote(name), PAIRS, **wanted).ids == steerlab.generate(near(name), PAIRS, **wanted).ids
        )


def test_scores_and_next_token_logits_match_local(remote: Get, near: Get, name: str) -> None:
    wanted = {"steer": fit(near(name))["rows"], "alpha": 1.0}
    answers = [pair.contrast.negative for pair in PAIRS if pair.contrast]
    there, here = (steerlab.score(m, PAIRS, answers, **wanted) for m in (remote(name), near(name)))
    assert np.array_equal(there.to_numpy(), here.to_numpy())
    there, here = (
        steerlab.next_token_logits(m, PAIRS, [5, 9], max_other=True, **wanted) for m in (remote(name), near(name))
    )
    assert torch.equal(there, here)


def test_several_steerers_add_up_as_locally(remote: Get, near: Get, name: str) -> None:
    fits = fit(near(name))
    texts = []
    for model in (remote(name), near(name)):
        with steerlab.steer(model, fits["l2s"], alpha=0.5), steerlab.steer(model, fits["rows"], alpha=1.0) as run:
            texts.append(run.generate(PAIRS, max_new_tokens=6).ids)
    assert texts[0] == texts[1]


def test_texts_of_a_method_that_reads_states_match_local(remote: Get, near: Get, name: str) -> None:
    wanted = {"steer": fit(near(name))["gates"], "alpha": 1.0, "max_new_tokens": 5}
    there, here = (steerlab.generate(m, PAIRS, **wanted) for m in (remote(name), near(name)))
    assert there.ids == here.ids
    assert there.steered_tokens == here.steered_tokens > 0


def test_a_sweep_matches_local_in_one_request_per_batch(remote: Get, near: Get, name: str) -> None:
    wanted = {
        "alphas": (-1.0, 0.0, 1.0),
        "metric": ["propensity", "answer_probability"],
        "progress": False,
        "batch_size": 24,
    }
    before = requests(remote(name))
    there, here = (steerlab.sweep(m, fit(near(name))["mean"], PAIRS, **wanted) for m in (remote(name), near(name)))
    columns = ["value", "norm_ratio"]
    assert there.drop(columns=columns).equals(here.drop(columns=columns))
    assert np.abs(there[columns].to_numpy() - here[columns].to_numpy()).max() <= 1e-5
    assert (
        requests(remote(name)) - before <= 2
    )  # three cells of three inputs, two metrics: one batch, whatever the cells


def test_a_capture_on_disk_is_not_sent_again(remote: Get, near: Get, name: str, tmp_path: object) -> None:
    whole = steerlab.capture(near(name), PROMPTS, layers=[1], batch_size=1, progress=False)
    store = steerlab.capture(remote(name), PROMPTS, folder=tmp_path, layers=[1], batch_size=1, progress=False)
    before = requests(remote(name))
    again = steerlab.capture(remote(name), PROMPTS, folder=tmp_path, layers=[1], batch_size=1, progress=False)
    assert requests(remote(name)) == before
    assert torch.equal(store.load().values, whole.values) and torch.equal(again.load().values, whole.values)
