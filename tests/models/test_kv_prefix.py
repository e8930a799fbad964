"""A forward that starts from a prefix or at a block gives the numbers of a whole forward."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig

from steerlab import Site
from steerlab.errors import SteeringError
from steerlab.models import kv_prefix
from steerlab.models.attention import NAME, supports_prefix_attention
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import ForwardState, Prefix, common_columns, length_buckets, prefill_cost, split_at
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_lm

PROMPTS = ("Where do herons sleep, and for how long do they sleep there at night?", "Why?", "Is it so, or not?")
backends = pytest.mark.parametrize("backend", ["nnsight", "hooks"])
families = pytest.mark.parametrize("family", FAMILIES)
COPIES = 2


def whole_inputs(model: Model, answer: str = "yes, and no") -> tuple[dict[str, torch.Tensor], int, int]:
    """Inputs of all columns, the column of every last prompt token, and the width."""
    rows = [model.encode(p, answer=answer[: 3 + 2 * i]) for i, p in enumerate(PROMPTS)]
    batch = model.batch(rows, "aligned")
    cut = batch.offsets[0] + rows[0].n_prompt - 1
    assert all(o + r.n_prompt - 1 == cut for o, r in zip(batch.offsets, rows, strict=True))
    return model.inputs(batch), cut, batch.width


def repeated(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.repeat(COPIES, 1) for name, tensor in inputs.items()}


def assert_equal_prefixes(found: Prefix, layers: Iterable[tuple[Tensor, Tensor]], mask: Tensor) -> None:
    """At the real columns of the mask."""
    for pair, other in zip(found.layers, layers, strict=True):
        for mine, expected in zip(pair, other, strict=True):
            got, want = (t.transpose(1, 2)[mask.bool()] for t in (mine, expected))
            torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def edits_of(model: Model, width: int, cut: int, layers: list[int]) -> dict[Site, list[Edit]]:
    """A vector per row at the block of that row, from the last prompt token on."""
    torch.manual_seed(0)
    columns = torch.arange(width) >= cut
    edits = {}
    for layer in set(layers):
        mine = torch.tensor([k == layer for k in layers])
        vectors = torch.randn(len(layers), model.hidden_size) * mine[:, None]
        edits[Site(layer)] = [Edit(vectors, mine[:, None] & columns, True)]
    return edits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@backends
@families
def test_prefix_and_layer_restart_match_a_whole_forward(family: str, backend: str, attention: str) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("Hugging Face refuses to load it so")
    model = tiny_lm(family, backend=backend, attn_implementation=attention)
    assert supports_prefix_attention(model.hf) == (attention == "sdpa")
    inputs, cut, width = whole_inputs(model)
    layers = [0, 0, 0, 1, 1, 1]
    edits = edits_of(model, width, cut, layers)
    expected = model.engine.logits(repeated(inputs), edits, width - cut)

    before, tail = split_at(inputs, cut)
    prefix = model.engine.prefill(before)
    states = model.engine.capture_states(tail, {}, [Site(0)], lambda h: h, ForwardState(prefix))[:, 0]
    forward_state = ForwardState(prefix, COPIES, 0, states.repeat(COPIES, 1, 1))
    found = model.engine.logits(repeated(tail), edits_of(model, width, cut, layers), width - cut, forward_state)
    real = inputs["attention_mask"][:, cut:].bool().repeat(COPIES, 1)
    torch.testing.assert_close(found[real], expected[real], atol=2e-4, rtol=1e-4)

    edits = edits_of(model, width, 0, [1, 1, 1])
    expected = model.engine.logits(inputs, edits, 3)
    state = model.engine.capture_states(inputs, {}, [Site(1)], lambda h: h)[:, 0]
    found = model.engine.logits(inputs, edits, torch.tensor([width - 3, width - 1]), ForwardState(layer=1, state=state))
    torch.testing.assert_close(found, expected[:, [0, 2]], atol=2e-4, rtol=1e-4)


@backends
def test_refused_restart_leaves_the_model_as_it_was(lm, backend: str) -> None:
    model = lm("llama", backend)
    inputs, _, width = whole_inputs(model)
    before = model.engine.logits(inputs, {}, 2)
    state = model.engine.capture_states(inputs, {}, [Site(1)], lambda h: h)[:, 0]
    with pytest.raises(SteeringError, match=r"starts at the output of block 1 never passes 0"):
        model.engine.logits(inputs, edits_of(model, width, 0, [0, 0, 0]), 2, ForwardState(layer=1, state=state))
    with pytest.raises((RuntimeError, IndexError)):
        model.engine.logits(inputs, {}, 2, ForwardState(layer=1, state=state[:, :1, :3]))
    assert torch.equal(model.engine.logits(inputs, {}, 2), before)


def test_another_thread_runs_the_whole_model_while_this_one_skips_blocks(lm) -> None:
    model = lm("llama", "hooks")
    inputs, _, _ = whole_inputs(model)
    expected, blocks = model.hf(**inputs).logits, model.hf.model.layers[:2]
    with kv_prefix.skip_blocks(blocks, torch.zeros(3, inputs["input_ids"].shape[1], model.hidden_size), False):
        with ThreadPoolExecutor(1) as other:
            found = other.submit(lambda: model.hf(**inputs).logits).result()
        assert not torch.equal(model.hf(**inputs).logits, expected), "this thread skips them"
    assert torch.equal(found, expected)


def test_prefix_is_read_only(lm) -> None:
    model = lm()
    inputs, cut, _ = whole_inputs(model)
    before, tail = split_at(inputs, cut)
    prefix = model.engine.prefill(before)
    keys = [k.clone() for k, _ in prefix.layers]
    first = model.engine.logits(tail, {}, 1, ForwardState(prefix))
    assert torch.equal(model.engine.logits(tail, {}, 1, ForwardState(prefix)), first)
    assert all(torch.equal(a, b) for a, (b, _) in zip(keys, prefix.layers, strict=True))
    assert Cache(layers=list(prefix.cache_layers(1, True))).get_seq_length() == cut


@families
def test_prefill_with_a_common_prefix_matches_a_plain_cache(lm, family: str) -> None:
    model = lm(family)
    begin = "You are asked the same thing over and over, in the same words: "
    inputs = model.inputs(model.batch([model.encode(begin + p) for p in (*PROMPTS, "Would it not be?")], "left"))
    shared = common_columns(inputs["input_ids"], inputs["attention_mask"], model.hf.config.get_text_config())
    assert shared == (0 if getattr(model.hf.config, "sliding_window", None) else max(shared, 10))
    found = model.engine.prefill(inputs)
    cache = DynamicCache()
    with torch.no_grad():
        model.hf(**inputs, past_key_values=cache, use_cache=True)
    assert_equal_prefixes(found, [(layer.keys, layer.values) for layer in cache.layers], inputs["attention_mask"])


def test_common_columns_end_where_rows_differ_or_end() -> None:
    config = PretrainedConfig()
    ids = torch.tensor([[0, 0, *range(1, 11), 50, 51], [0, *range(1, 12), 60, 61], [*range(1, 11), 70, 71, 72, 73]])
    mask = (ids > 0).long()
    assert common_columns(ids, mask, config) == 10
    assert common_columns(ids[:, :12], mask[:, :12], config) == 9  # one token of the shortest row is left to run
    assert common_columns(ids[:2], mask[:2], config) == 0  # two rows: nothing to win
    config.sliding_window = 20
    assert common_columns(ids, mask, config) == 0
    assert prefill_cost(ids, mask, PretrainedConfig(), share_beginning=True) == 10 + 3 * 4


@backends
def test_prefill_in_buckets_matches_prefill_at_once(lm, backend: str, monkeypatch) -> None:
    model = lm("llama", backend)
    inputs = model.inputs(model.batch([model.encode(p) for p in (*PROMPTS, *PROMPTS)], "left"))
    once = model.engine.prefill(inputs)
    monkeypatch.setitem(kv_prefix.TOKENS, "cpu", 2 * inputs["input_ids"].shape[1])
    assert len(length_buckets(inputs["attention_mask"], 0)) > 2, "the premise"
    assert_equal_prefixes(model.engine.prefill(inputs), once.layers, inputs["attention_mask"])


@backends
def test_attention_is_restored_after_an_error(backend: str) -> None:
    model = tiny_lm("llama", backend=backend, attn_implementation="sdpa")
    inputs, cut, _ = whole_inputs(model)
    before, tail = split_at(inputs, cut)
    prefix = model.engine.prefill(before)
    config = model.hf.config.get_text_config()
    seen = []

    def break_off(h: torch.Tensor) -> torch.Tensor:
        seen.append(config._attn_implementation)
        raise RuntimeError("on purpose")

    with pytest.raises(Exception, match="on purpose"):
        model.engine.capture_states(tail, {}, [Site(0)], break_off, ForwardState(prefix))
    assert seen == [NAME] and config._attn_implementation == "sdpa"


def test_prefix_attention_in_half_precision_is_as_exact_as_sdpa() -> None:
    model = tiny_lm("llama", backend="hooks", attn_implementation="sdpa")
    inputs, cut, width = whole_inputs(model)
    exact = model.engine.logits(inputs, {}, width - cut)
    model.hf.to(torch.bfloat16)
    sdpa = model.engine.logits(inputs, {}, width - cut)
    before, tail = split_at(inputs, cut)
    found = model.engine.logits(tail, {}, width - cut, ForwardState(model.engine.prefill(before)))
    real = inputs["attention_mask"][:, cut:].bool()
    assert (found - exact)[real].abs().mean() < 1.2 * (sdpa - exact)[real].abs().mean()
