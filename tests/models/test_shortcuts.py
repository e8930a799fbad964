"""Shortcuts and row formats are used on a model only after they gave the numbers of plain Hugging Face on it."""

from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import steerlab
from steerlab import SteeringVector
from steerlab.capturing import capture
from steerlab.errors import EncodingError, LayoutError, SteeringError
from steerlab.models import check
from steerlab.models.check import self_check
from steerlab.models.engine import choose_columns
from steerlab.models.kv_prefix import ForwardState, local_windows, long_rotation_from, split_at
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.models.reference import difference, probe_rows, run_alone
from steerlab.models.shortcuts import find_shortcuts
from steerlab.models.sites import Site
from steerlab.steering import generate
from steerlab.testing import tiny_lm, tiny_tokenizer
from steerlab.testing.text import randomize_vectors, seeded

VOCABULARY = len(tiny_tokenizer())
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48} | IDS
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(**HEADS, is_decoder=False),
    "roberta": lambda: transformers.RobertaConfig(**HEADS, is_decoder=True, max_position_embeddings=128),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **HEADS, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "diffllama": lambda: transformers.DiffLlamaConfig(**HEADS, num_key_value_heads=2),
    "bloom": lambda: transformers.BloomConfig(**IDS, hidden_size=32, n_layer=3, n_head=4),
    "mpt": lambda: transformers.MptConfig(**IDS, d_model=32, n_heads=4, n_layers=3, max_seq_len=128),
    "marian": lambda: transformers.MarianConfig(
        **IDS, d_model=32, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=48, decoder_start_token_id=1,
        decoder_vocab_size=VOCABULARY, is_encoder_decoder=False, is_decoder=True, num_beams=1,
    ),
    "mamba": lambda: transformers.MambaConfig(**IDS, hidden_size=32, num_hidden_layers=3, state_size=4),
}  # fmt: skip


def make(name: str) -> Model:
    with seeded(0), torch.no_grad():
        hf = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        randomize_vectors(hf)
    return Model(hf.eval().requires_grad_(False), tiny_tokenizer(), find_layout(hf), id=name, chat=False)


def checked(name: str) -> Model:
    model = make(name)
    self_check(model)
    return model


@pytest.mark.parametrize(("attention", "prefix"), [("eager", "joined"), ("sdpa", "attention")])
def test_llama_uses_every_shortcut(attention: str, prefix: str) -> None:
    found = tiny_lm("llama", attn_implementation=attention).shortcuts
    assert (found.prefix, found.shared_beginning, found.layer_restart, found.generation_prefix) == (prefix, *[True] * 3)
    assert not found.refused
    assert found.numbers_per_token == 2 * 4 * 2 * 8  # keys and values, layers, heads, size


@pytest.mark.parametrize("name", ["deepseek_v3", "diffllama"])
def test_keys_changed_after_the_cache_are_joined_instead(name: str) -> None:
    found = checked(name).shortcuts
    assert found.prefix == "joined" and found.layer_restart, found.describe()
    assert "attention keys" in found.refused
    assert checked("diffllama").layout.heads_name is None, "two query heads make one head of results"


def test_prefix_that_attention_leaves_out_is_an_error_without_a_mask() -> None:
    model = make("deepseek_v3")
    rows = probe_rows(model, (12, 12))  # equal rows: Hugging Face drops the mask, and with it the old guard
    before, rest = split_at(model.inputs(model.batch(rows, "left")), 10)
    with pytest.raises(SteeringError, match="changes keys after they left the cache"):
        model.engine.logits(rest, {}, 1, ForwardState(model.engine.prefill(before)))


def test_columns_that_the_model_counts_itself_allow_no_gap_after_a_shared_beginning() -> None:
    found = checked("mpt").shortcuts
    assert found.prefix == "joined" and not found.shared_beginning
    assert found.refused["joined keys with a shared beginning"].startswith("off by ")


def test_block_that_reads_another_from_below_allows_no_restart() -> None:
    model = tiny_lm("llama", backend="hooks")
    first, last = model.hf.model.layers[0], model.hf.model.layers[3]
    kept: list[torch.Tensor] = []
    first.register_forward_hook(lambda _m, _a, out: kept.append(out))
    last.register_forward_hook(lambda _m, _a, out: out + kept[-1][:, -out.shape[1] :] if kept else out)
    found = find_shortcuts(model)
    assert not found.layer_restart and "layer restart" in found.refused
    assert found.prefix == "joined"


def test_state_that_is_no_key_or_value_allows_no_prefix() -> None:
    model = checked("mamba")
    assert model.shortcuts.prefix is None and model.shortcuts.layer_restart
    assert not model.row_format.no_generation, "it decodes right under edits, whatever its cache is called"


def test_marian_rows_are_batched_by_length_because_padding_moves_their_positions() -> None:
    model = checked("marian")
    assert model.row_format.neutral_sides == ("right",)
    rows = probe_rows(model, (9, 5, 9, 7))
    assert sorted(model.batches(rows, 8, "left")) == [[0, 2], [1], [3]]
    assert model.batches(rows, 8, "right") == [[0, 2, 3, 1]]
    with pytest.raises(EncodingError, match=r"can't take rows of \[5, 9\] tokens in one batch"):
        model.batch([rows[0], rows[1]], "left")
    texts = ["Where do herons sleep?", "Why?"]
    together = generate(model, texts, max_new_tokens=5)
    assert together.ids == sum((generate(model, [text], max_new_tokens=5).ids for text in texts), ())


def test_roberta_positions_begin_after_the_padding_token() -> None:
    model = checked("roberta")
    assert model.row_format.first_position == 1
    acts = capture(model, ["Where do herons sleep?", "Why?"], positions="last", layers=1, progress=False)
    for state, text in zip(acts.values[:, 0], ["Where do herons sleep?", "Why?"], strict=True):
        alone = run_alone(model, model.encode(text), [Site(1)]).states[Site(1)][-1]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)


def test_model_that_attends_ahead_is_refused() -> None:
    with pytest.raises(LayoutError, match="is not causal: another last token changes the states before it"):
        checked("bert")


def test_decoding_that_is_wrong_with_a_cache_runs_whole_rows() -> None:
    model, plain = tiny_lm("llama", backend="hooks"), tiny_lm("llama", backend="hooks")
    block: nn.Module = model.hf.model.layers[0]
    block.register_forward_hook(lambda _m, _a, out: out * 1.5 if out.shape[1] == 1 else out)  # a broken cached step
    self_check(model)
    assert not model.row_format.use_cache and not model.row_format.no_generation
    assert model.shortcuts.prefix is None and not model.shortcuts.generation_prefix, "a tail of one token differs too"
    texts = ["Where do herons sleep?", "Why?"]
    assert generate(model, texts, max_new_tokens=6).ids == generate(plain, texts, max_new_tokens=6).ids


def test_decoding_that_is_never_right_refuses_to_generate() -> None:
    model = tiny_lm("llama", backend="hooks")
    before, model.hf.generate = model.hf.generate, None
    self_check(model)
    model.hf.generate = before
    with pytest.raises(SteeringError, match=r"does not generate what its whole rows say .*capture it, or score"):
        generate(model, ["Why?"], max_new_tokens=2)


def test_lengths_from_which_on_attention_differs_are_read_off_the_configuration() -> None:
    config = transformers.LlamaConfig(floor_scale=100, log_scaling_n_floor=7, index_block_size=32, index_topk_blocks=3)
    assert sorted(local_windows(config)) == [7, 32, 96, 100]
    config.rope_parameters = {"a": {"rope_type": "default"}, "b": {"rope_type": "longrope", "factor": 2.0}}
    assert long_rotation_from(config) is None
    config.rope_parameters["b"]["original_max_position_embeddings"] = 160
    assert long_rotation_from(config) == 160


def test_rows_longer_than_a_window_are_compared_before_the_first_of_them_runs() -> None:
    model = tiny_lm("gemma3", backend="hooks", sliding_window=80)
    assert local_windows(model.hf.config) == [80]
    model.batches(probe_rows(model, (60, 40)), 2, "left")
    assert model.tried_length == 64 and len(probe_rows(model, (10,))[0]) == 10
    assert model.shortcuts.prefix
    model.batches(probe_rows(model, (90, 40)), 2, "left")
    assert model.tried_length == 90 and not model._shortcuts
    assert len(probe_rows(model, (10,))[0]) == 90, "rows now leave the window"


def test_comparison_that_is_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm("gemma3", backend="hooks", sliding_window=80)
    before = model.row_format

    def interrupted(model: Model) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(check, "_tolerance", interrupted)
        model.try_length(90)
    assert model.row_format == before and model.tried_length == 64
    model.try_length(90)
    assert model.tried_length == 90


def test_two_models_around_one_module_share_its_lock() -> None:
    model = tiny_lm("llama", backend="hooks")
    other = steerlab.load(model.hf, tokenizer=model.tokenizer, chat=False)
    with steerlab.steer(model, SteeringVector({1: torch.ones(32)})):
        inside = steerlab.capture(other, ["Hi"], layers=[3], progress=False).values
        model.hf(torch.tensor([[3, 4]]))
    assert other.lock is model.lock
    assert torch.equal(inside, steerlab.capture(other, ["Hi"], layers=[3], progress=False).values)


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_a_static_cache_of_bloom_steers_the_same_tokens(backend: str) -> None:
    model = steerlab.load(make("bloom").hf, tokenizer=tiny_tokenizer(), backend=backend)
    given = {"steer": {1: 20 * torch.randn(32, generator=torch.Generator().manual_seed(0))}, "positions": "last"}
    given |= {"max_new_tokens": 8, "progress": False}
    prompts = ["Why is it?", "Who is here today, my dear friend?"]
    grown = generate(model, prompts, **given)
    assert generate(model, prompts, cache_implementation="static", **given).ids == grown.ids
    assert grown.ids != generate(model, prompts, **given | {"steer": ()}).ids


def test_padding_that_is_wrong_beyond_a_window_batches_such_rows_by_length() -> None:
    model = tiny_lm("llama", backend="hooks")
    model.hf.config.attention_window = 70  # as if it attended locally, and padding were wrong there
    embed: nn.Module = model.hf.model.embed_tokens
    embed.register_forward_hook(lambda _m, args, out: out + (args[0].shape[1] > 75 and bool((args[0] == 0).any())))
    assert model.batches(probe_rows(model, (90, 40)), 2, "left") == [[0], [1]]


@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=9), st.booleans())
def test_chosen_columns_are_right_whether_the_model_obeys_or_not(width: int, columns: list[int], obeys: bool) -> None:
    keep = torch.tensor([c % width for c in columns])
    whole = torch.arange(2.0 * width * 3).reshape(2, width, 3)
    requested = len(keep) < width
    returned = whole[:, keep] if requested and obeys else whole
    assert torch.equal(choose_columns(returned, keep, requested), whole[:, keep])


def test_difference_is_relative_and_infinite_for_what_cannot_be_compared() -> None:
    one = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert difference(one, one) == 0
    assert difference(one * 1.5, one) == pytest.approx(0.5)
    assert difference(one[:1], one) == difference(one * float("nan"), one) == float("inf")
