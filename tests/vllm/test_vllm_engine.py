"""Every verb in vLLM gives the numbers of plain hooks on the same weights, for rows of several lengths and vectors."""

from typing import Any

import numpy as np
import pytest
import torch
from steerers import ANSWERS, OPERATIONS, PROMPTS, examples, fitted_l2s, operations, steerers

import steerlab
from steerlab import SteeringVector, capture, generate, score, sweep
from steerlab.analysis.patching import LogitDifference, patch
from steerlab.data.inputs import as_examples
from steerlab.errors import LayoutError, LoadError, RemoteError, SteeringError
from steerlab.methods import Operation
from steerlab.models.interventions import Edit
from steerlab.models.sites import Site

pytestmark = pytest.mark.vllm
WIDTH, STEPS, ALPHA = 256, 8, 12.0
SITES = (Site(0, "block_in"), Site(0), Site(1, "block_in"), Site(1, "attn_out"), Site(1, "mlp_out"), Site(2), Site(3))
HEADS = (Site(0, "heads"), Site(2, "heads"))
IDS = torch.tensor([[5, 6, 7]])
GIVEN = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def near_to(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    a, b = torch.tensor(np.asarray(a)), torch.tensor(np.asarray(b))
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("position", ["last", "prompt", "all"])
@pytest.mark.parametrize(("reduce", "sites"), [("mean", SITES), ("none", SITES), ("none", HEADS)])
def test_captured_states_match_hooks(remote, near, position: str, reduce: str, sites) -> None:
    options = dict(layers=sites, positions=position, reduce=reduce, progress=False)
    ours, theirs = capture(remote(), PROMPTS, **options), capture(near(), PROMPTS, **options)
    assert ours.index.drop(columns="order", errors="ignore").equals(theirs.index.drop(columns="order", errors="ignore"))
    assert near_to(ours.values, theirs.values)


def test_captured_contrasts_match_hooks(remote, near) -> None:
    options = dict(layers="all", context=["last"], progress=False, batch_size=7)
    ours, theirs = capture(remote(), examples(10), **options), capture(near(), examples(10), **options)
    assert list(ours.index["side"]) == list(theirs.index["side"])
    assert near_to(ours.values, theirs.values)


def test_states_do_not_depend_on_other_rows(remote) -> None:
    whole = capture(remote(), PROMPTS, layers="all", progress=False)
    for i, prompt in enumerate(PROMPTS):
        assert near_to(capture(remote(), [prompt], layers="all", progress=False).values[0], whole.values[i])
    assert near_to(capture(remote(), PROMPTS[::-1], layers="all", progress=False).values.flip(0), whole.values)


@pytest.mark.parametrize("kind", ["mean", "per row", "gates"])
@pytest.mark.parametrize("positions", ["all", "last", "generated", "last+generated"])
def test_steered_texts_match_hooks(remote, near, kind: str, positions: str) -> None:
    options = dict(steer=steerers(WIDTH)[kind], alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
    ours, theirs = generate(remote(), PROMPTS, **options), generate(near(), PROMPTS, **options)
    assert ours.ids == theirs.ids
    assert ours.steered_tokens == theirs.steered_tokens
    assert ours.norm_ratio == pytest.approx(theirs.norm_ratio, rel=0.1)
    # here, rows that have ended are counted until the last one ends
    both = ours.norm_ratios.merge(theirs.norm_ratios, on=["layer", "token", "states"])
    assert len(both) >= 1 and both["norm_ratio_x"].tolist() == pytest.approx(both["norm_ratio_y"].tolist(), rel=0.02)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_operators_match_hooks(remote, near, kind: str) -> None:
    options = dict(steer=operations(WIDTH)[kind], alpha=0.8, positions="all")
    ours, theirs = (generate(model(), PROMPTS, max_new_tokens=STEPS, **options) for model in (remote, near))
    assert ours.ids == theirs.ids and ours.steered_tokens == theirs.steered_tokens
    assert near_to(*(score(model(), PROMPTS, ANSWERS, **options)["logprob"] for model in (remote, near)))


def test_patched_cells_match_hooks(remote, near) -> None:
    pair = [["Is it late or early now?"], ["Is it late or early then?"]]
    options = dict(metric=LogitDifference(7, 11), layers=[1, Site(2, "attn_out")], alignment="start")
    assert near_to(*(patch(model(), *pair, **options)["value"] for model in (remote, near)))


def test_steering_changes_texts_and_leaves_nothing_behind(remote) -> None:
    plain = generate(remote(), PROMPTS, max_new_tokens=STEPS).ids
    steered = generate(remote(), PROMPTS, steer=steerers(WIDTH)["per row"], alpha=ALPHA, max_new_tokens=STEPS).ids
    assert all(a != b for a, b in zip(plain, steered, strict=True))
    assert generate(remote(), PROMPTS, max_new_tokens=STEPS).ids == plain


def test_l2s_vectors_come_from_the_unsteered_prompt(remote, near) -> None:
    """The net reads states that vLLM captured beforehand, also above the steered block."""
    l2s = fitted_l2s(near(), 16)
    for options in (dict(steer=l2s, alpha=3.0), dict(steer=Operation(l2s, "rotate"), alpha=0.8)):
        ours, theirs = (generate(model(), PROMPTS, max_new_tokens=STEPS, **options) for model in (remote, near))
        assert ours.ids == theirs.ids != generate(remote(), PROMPTS, max_new_tokens=STEPS).ids
    assert near_to(*(score(model(), PROMPTS, ANSWERS, steer=l2s, alpha=3.0)["logprob"] for model in (remote, near)))


def test_several_steerers_add_up_with_an_alpha_per_row(remote, near) -> None:
    both = [steerers(WIDTH)["mean"], steerers(WIDTH)["per row"]]
    options = dict(steer=both, alpha=[0.5, 1.0, -1.5, 2.0, 0.0], max_new_tokens=STEPS)
    assert generate(remote(), PROMPTS, **options).ids == generate(near(), PROMPTS, **options).ids


def test_texts_end_as_under_hooks(remote, near) -> None:
    """Rows that end early leave the batch; the others are still steered, and the result is padded."""
    texts = generate(near(), PROMPTS, steer=steerers(WIDTH)["mean"], max_new_tokens=STEPS).ids
    ends = sorted({texts[0][2], texts[1][4], texts[2][1]})
    options = dict(steer=steerers(WIDTH)["mean"], max_new_tokens=STEPS, eos_token_id=ends)
    ours, theirs = generate(remote(), PROMPTS, **options), generate(near(), PROMPTS, **options)
    assert ours.ids == theirs.ids
    assert len({len(row) for row in ours.ids}) > 1
    longer = options | {"min_new_tokens": 6}
    assert generate(remote(), PROMPTS, **longer).ids == generate(near(), PROMPTS, **longer).ids


def test_generated_ids_are_padded_as_by_hugging_face(remote, near) -> None:
    model, other = remote(), near()
    batch = model.batch([model.encode(p) for p in PROMPTS], "left")
    end = generate(other, PROMPTS, max_new_tokens=STEPS).ids[0][3]
    options = dict(max_new_tokens=STEPS, do_sample=False, eos_token_id=end, pad_token_id=0)
    given = model.inputs(batch, positions=False)
    ours, theirs = model.engine.generate(given, {}, **options), other.engine.generate(given, {}, **options)
    assert torch.equal(ours, theirs)


def test_sampling_is_reproducible_with_a_seed(remote) -> None:
    options = dict(do_sample=True, temperature=1.5, num_return_sequences=3, max_new_tokens=STEPS)
    first = generate(remote(), PROMPTS, seed=1, **options)
    assert first.example_ids == tuple(e.id for e in as_examples(PROMPTS) for _ in range(3))
    assert len(set(first.ids)) > len(PROMPTS)
    assert generate(remote(), PROMPTS, seed=1, **options).ids == first.ids
    assert generate(remote(), PROMPTS, seed=2, **options).ids != first.ids


@pytest.mark.parametrize("kind", ["mean", "per row", "gates"])
def test_scores_and_next_token_logits_match_hooks(remote, near, kind: str) -> None:
    options = dict(steer=steerers(WIDTH)[kind], alpha=ALPHA)
    ours, theirs = (score(model(), PROMPTS, ANSWERS, **options) for model in (remote, near))
    assert near_to(ours["logprob"], theirs["logprob"])
    assert ours["greedy"].equals(theirs["greedy"]) and ours.attrs["steered_tokens"] == theirs.attrs["steered_tokens"]
    for more in ({}, {"tokens": [5, 9, 7], "max_other": True}):
        assert near_to(*(steerlab.next_token_logits(model(), PROMPTS, **more, **options) for model in (remote, near)))


def test_logits_of_given_columns_match_hooks(remote, near) -> None:
    model, other = remote(), near()
    given = model.inputs(model.batch([model.encode(p) for p in PROMPTS], "left"))
    real = given["attention_mask"].bool()
    columns = torch.tensor([3, real.shape[1] - 1, 0, real.shape[1] - 4])
    ours, theirs = (m.engine.logits(given, {}, columns) for m in (model, other))
    assert near_to(ours[real[:, columns]], theirs[real[:, columns]])
    assert not ours[~real[:, columns]].any()


def test_a_sweep_matches_hooks(remote, near) -> None:
    vector = {layer: SteeringVector({layer: torch.ones(WIDTH) / 3}) for layer in (1, 3)}
    options: dict[str, Any] = dict(layers=[1, 3], alphas=(-1.0, 0.0, 2.0), positions=["last", "all"], progress=False)
    ours, theirs = (sweep(model(), examples(6), {"mean": vector}, **options) for model in (remote, near))
    keys = ["method", "layer", "alpha", "positions", "metric", "example_id"]
    ours, theirs = (frame.sort_values(keys).reset_index(drop=True) for frame in (ours, theirs))
    assert ours[keys].equals(theirs[keys]) and len(ours) > 12
    assert near_to(ours["value"], theirs["value"], 1e-3)


def test_a_model_in_vllm_is_remote(remote) -> None:
    assert remote().backend == "vllm" and remote().is_remote and not remote().engine.supports_forward_state
    with pytest.raises(RemoteError, match="weights of this model"):
        remote().hf(torch.tensor([[1]]))


def test_gradients_and_prefill_are_refused(remote) -> None:
    vector = torch.zeros(1, WIDTH, requires_grad=True)
    with pytest.raises(RemoteError, match="requires gradients") as caught:
        remote().engine.logits(GIVEN, {Site(1): [Edit(vector, IDS > 0, True)]}, 1)
    assert caught.value.kind == "unsupported"
    with pytest.raises(RemoteError, match="keys and values"):
        remote().engine.prefill(GIVEN)


@pytest.mark.parametrize(
    ("name", "value"), [("num_beams", 3), ("no_repeat_ngram_size", 2), ("typical_p", 0.5), ("num_return_sequences", 2)]
)
def test_unsupported_options_are_refused_by_name(remote, name: str, value: float) -> None:
    with pytest.raises(SteeringError, match=f"{name}={value}"):
        generate(remote(), PROMPTS[:1], max_new_tokens=2, **{name: value})


def test_missing_sites_are_refused(remote) -> None:
    with pytest.raises(LayoutError, match="layer 9 does not exist"):
        capture(remote(), PROMPTS, layers=[9], progress=False)
    with pytest.raises(LayoutError, match="no vision"):
        capture(remote(), PROMPTS, layers=[Site(0, part="vision")], progress=False)


def test_an_error_in_vllm_does_not_affect_later_calls(remote) -> None:
    model = remote()
    with pytest.raises(RemoteError, match="request failed in vLLM") as caught:
        model.engine.logits(GIVEN, {Site(1): [Edit(torch.ones(1, 7), IDS > 0, True)]}, 1)
    assert caught.value.kind == "execution"
    assert generate(model, PROMPTS[:1], steer=steerers(WIDTH)["mean"], max_new_tokens=2).ids


def test_a_row_longer_than_the_context_is_refused(remote) -> None:
    with pytest.raises(steerlab.errors.SteerlabError, match=r"max_model_len|context"):
        generate(remote(), [" word" * 600], max_new_tokens=2)


def test_an_option_unknown_to_vllm_is_a_load_error(with_vllm, folders) -> None:
    with pytest.raises(LoadError, match="no_such_option"):
        steerlab.load(folders("tiny"), engine="vllm", no_such_option=1)
