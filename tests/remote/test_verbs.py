"""Every verb on a real NDIF server gives exactly the numbers of the same model in this process under plain hooks."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from remote_fits import OPERATIONS, PAIRS, PROMPTS, fit, operations
from servers.ndif import Ndif

import steerlab
from steerlab import Site
from steerlab.analysis.patching import LogitDifference, patch
from steerlab.errors import SteerlabError
from steerlab.models._nnsight.ndif import NdifEngine
from steerlab.models.model import Model

pytestmark = pytest.mark.remote
Get = Callable[[str], Model]
Both = tuple[Model, Model]


def requests(model: Model) -> int:
    assert isinstance(model.engine, NdifEngine)
    return model.engine.client.traffic.requests


@pytest.fixture(params=["tiny-llama", "smollm2"])
def both(request: pytest.FixtureRequest, server: Ndif, remote: Get, near: Get) -> Both:
    """The model on the server, and the same model here."""
    if request.param == "smollm2" and server.sandboxed:
        pytest.skip("a sandboxed request takes seconds: the tiny model shows the same")
    return remote(request.param), near(request.param)


def test_weights_are_not_loaded_here(both: Both) -> None:
    assert both[0].is_remote and {p.device.type for p in both[0].hf.parameters()} == {"meta"}


def test_captured_states_match_local(both: Both) -> None:
    wanted = {"layers": "all", "positions": ["last", "answer"], "context": "last", "progress": False}
    there, here = (steerlab.capture(m, PAIRS, **wanted) for m in both)
    assert torch.equal(there.values, here.values)
    assert there.index.equals(here.index)


def test_states_inside_a_block_match_local(both: Both) -> None:
    sites = [steerlab.Site(1, point) for point in ("block_in", "attn_out", "mlp_out")]
    there, here = (steerlab.capture(m, PROMPTS, layers=sites, positions="all", progress=False) for m in both)
    assert torch.equal(there.values, here.values)


def test_a_capture_sends_one_request_per_batch(both: Both) -> None:
    before = requests(both[0])
    steerlab.capture(both[0], PROMPTS, layers="all", batch_size=2, progress=False)
    assert requests(both[0]) - before == -(-len(PROMPTS) // 2)


@pytest.mark.parametrize("method", ["rows", "mean", "l2s", "gates"])
def test_steered_texts_match_local(both: Both, method: str) -> None:
    wanted = {"steer": fit(both[1])[method], "alpha": 1.0, "max_new_tokens": 6}
    there, here = (steerlab.generate(m, PAIRS, **wanted) for m in both)
    assert there.ids == here.ids
    assert there.steered_tokens == here.steered_tokens > 0
    assert there.norm_ratio == pytest.approx(here.norm_ratio, rel=1e-5)
    pd.testing.assert_frame_equal(there.norm_ratios, here.norm_ratios, rtol=1e-5)


@pytest.mark.parametrize("method", OPERATIONS)
def test_operators_match_local(both: Both, method: str) -> None:
    wanted = {"steer": operations(both[1])[method], "alpha": 0.8, "positions": "all"}
    there, here = (steerlab.generate(m, PAIRS, max_new_tokens=6, **wanted) for m in both)
    assert there.ids == here.ids and there.steered_tokens == here.steered_tokens > 0
    there, here = (steerlab.score(m, PAIRS, ["It is."] * len(PAIRS), **wanted) for m in both)
    pd.testing.assert_frame_equal(there, here, rtol=1e-5)  # a server's process may add up in another order


def test_patched_cells_match_local(both: Both) -> None:
    prompts = [["Is it late or early now?"], ["Is it late or early then?"]]
    there, here = (
        patch(m, *prompts, metric=LogitDifference(7, 11), layers=[1, Site(2, "attn_out")], alignment="start")
        for m in both
    )
    assert there["value"].tolist() == pytest.approx(here["value"].tolist(), abs=1e-4)
    assert there["restored"].abs().max() > 0.01
    with pytest.raises(SteerlabError, match="'attribution' needs gradients"):
        patch(both[0], *prompts, metric=LogitDifference(7, 11), method="attribution")


def test_l2s_is_computed_in_the_request_that_it_steers(both: Both) -> None:
    l2s, before = fit(both[1])["l2s"], requests(both[0])
    steerlab.generate(both[0], PAIRS, steer=l2s, alpha=1.0, max_new_tokens=4)
    assert requests(both[0]) - before == 1


def test_steering_changes_the_text(both: Both) -> None:
    steered = steerlab.generate(both[0], PAIRS, steer=fit(both[1])["rows"], alpha=4.0, max_new_tokens=6)
    plain = steerlab.generate(both[0], PAIRS, max_new_tokens=6)
    assert all(a != b for a, b in zip(steered.ids, plain.ids, strict=True))


def test_sampled_texts_match_local_or_a_sandboxed_worker_warns(both: Both, server: Ndif) -> None:
    wanted = {"steer": fit(both[1])["rows"], "alpha": 1.0, "max_new_tokens": 6, "do_sample": True, "seed": 3}
    if server.sandboxed:
        with pytest.warns(UserWarning, match="cannot be seeded"):
            steerlab.generate(both[0], PAIRS, **wanted)
    else:
        there, here = (steerlab.generate(m, PAIRS, **wanted) for m in both)
        assert there.ids == here.ids


def test_scores_and_next_token_logits_match_local(both: Both) -> None:
    wanted = {"steer": fit(both[1])["rows"], "alpha": 1.0}
    answers = [pair.contrast.negative for pair in PAIRS if pair.contrast]
    there, here = (steerlab.score(m, PAIRS, answers, **wanted) for m in both)
    assert np.array_equal(there.to_numpy(), here.to_numpy())
    there, here = (steerlab.next_token_logits(m, PAIRS, [5, 9], max_other=True, **wanted) for m in both)
    assert torch.equal(there, here)


def test_several_steerers_add_up_as_locally(both: Both) -> None:
    fits = fit(both[1])
    texts = []
    for model in both:
        with steerlab.steer(model, fits["l2s"], alpha=0.5), steerlab.steer(model, fits["rows"], alpha=1.0) as run:
            texts.append(run.generate(PAIRS, max_new_tokens=6).ids)
    assert texts[0] == texts[1]


def test_a_sweep_matches_local_in_one_request_per_batch(both: Both) -> None:
    metrics = ["propensity", "answer_probability"]
    wanted = {"alphas": (-1.0, 0.0, 1.0), "metric": metrics, "progress": False, "batch_size": 24}
    before = requests(both[0])
    there, here = (steerlab.sweep(m, PAIRS, fit(both[1])["mean"], **wanted) for m in both)
    columns = ["value", "norm_ratio"]
    assert there.drop(columns=columns).equals(here.drop(columns=columns))
    assert np.abs(there[columns].to_numpy() - here[columns].to_numpy()).max() <= 1e-5
    # three cells of three inputs, two metrics: one batch, whatever the cells
    assert requests(both[0]) - before <= 2


def test_a_capture_on_disk_is_not_sent_again(both: Both, tmp_path: object) -> None:
    wanted = {"layers": [1], "batch_size": 1, "progress": False}
    whole = steerlab.capture(both[1], PROMPTS, **wanted)
    store = steerlab.capture(both[0], PROMPTS, folder=tmp_path, **wanted)
    before = requests(both[0])
    again = steerlab.capture(both[0], PROMPTS, folder=tmp_path, **wanted)
    assert requests(both[0]) == before
    assert torch.equal(store.load().values, whole.values) and torch.equal(again.load().values, whole.values)
