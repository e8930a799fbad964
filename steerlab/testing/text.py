"""Small random language models of many families, and their tokenizer: no network, built in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from steerlab.errors import LoadError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model

PAD = "<|pad|>"  # pads rows
BOS = "<|bos|>"  # begins a text
EOS = "<|im_end|>"  # ends a turn
START = "<|im_start|>"  # begins a turn
# the system message of the tiny chat template
SYSTEM = "You are a tiny model."
_MERGES = ("Ġ t", "h e", "Ġt he", "i n", "a n", "e r", "o n", "r e", "Ġ a", "e s", "o u", "Ġ s", "l l")
_CHATML = (
    "{{ bos_token }}"
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MAX_POSITIONS = 512
_WINDOW = 16  # shorter than ordinary test prompts, so that they leave the window

# what differs between families, beside sizes and token ids
_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"model_type": "gemma2", "sliding_window": _WINDOW},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": _WINDOW},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
    "phi3": {},
}
# the families of tiny text models, by `model_type`
FAMILIES: tuple[str, ...] = tuple(_SETTINGS)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that round-trips every string, with a BOS and a chat template.

    The tokenizer adds a BOS to plain text, and the chat template writes one: encoding a rendered chat with special
    tokens gives two, as with real models. Padding has a special token and goes right.

    Example:
        >>> tiny_tokenizer()("hello").input_ids[0] == tiny_tokenizer().bos_token_id
        True
    """
    tokens = [PAD, BOS, EOS, START, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [(left, right) for left, right in (merge.split() for merge in _MERGES)]
    tokens += ["".join(merge) for merge in merges]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokens.index(BOS))]
    )
    core.add_special_tokens([PAD, BOS, EOS, START])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_CHATML,
        model_max_length=_MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tiny_hf(family: str = "llama", *, seed: int = 0, n_layers: int = 4, hidden_size: int = 32, **config: Any) -> Any:
    """A random model of a family: float32, eval mode, every layer changes the logits.

    Attention is "eager" by default: Gemma 2 caps its attention logits only there, and an unpadded row takes the same
    path as a padded one.

    Example:
        >>> tiny_hf("gemma2", n_layers=6).config.num_hidden_layers
        6

    Args:
        family: one of `FAMILIES`.
        seed: seed of the weights; the global random state is left as it was.
        n_layers: decoder blocks.
        hidden_size: width of the residual stream, a multiple of 8.
        config: anything else for the family's configuration.

    Raises:
        LoadError: unknown family.
    """
    if family not in _SETTINGS:
        raise LoadError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    settings = text_config(family, n_layers, hidden_size) | config
    attention = settings.pop("attn_implementation", "eager")
    shape = CONFIG_MAPPING[settings.pop("model_type", family)](**settings)
    with seeded(seed):
        hf = AutoModelForCausalLM.from_config(shape, attn_implementation=attention, dtype=torch.float32)
        randomize_vectors(hf)
    ids = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    hf.generation_config = GenerationConfig(do_sample=False, **ids)
    return hf.eval().requires_grad_(False)


def tiny_lm(family: str = "llama", *, backend: str = "nnsight", **hf: Any) -> Model:
    """A tiny random model with its tokenizer, ready for every verb.

    Example:
        >>> tiny_lm("qwen3").n_layers
        4

    Args:
        family: one of `FAMILIES`.
        backend: "nnsight" or "hooks".
        hf: passed to `tiny_hf`: seed, n_layers, hidden_size and so on.

    Raises:
        LoadError: unknown family.
    """
    model = tiny_hf(family, **hf)
    return Model(model, tiny_tokenizer(), find_layout(model), id=f"tiny-{family}", backend=backend)


def text_config(family: str, n_layers: int, hidden_size: int) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.2, **_SETTINGS.get(family, {}),
    }  # fmt: skip
    common |= dict(hidden_size=hidden_size, num_hidden_layers=n_layers, num_attention_heads=4)
    common |= dict(max_position_embeddings=_MAX_POSITIONS)
    if family == "gpt2":
        return common
    if family == "opt":
        return common | dict(ffn_dim=2 * hidden_size, word_embed_proj_dim=hidden_size, init_std=0.2)
    common |= dict(intermediate_size=2 * hidden_size)
    if family == "gpt_neox":
        return common
    common |= dict(num_key_value_heads=2, head_dim=hidden_size // 4)
    if family in ("gemma2", "gemma3"):
        kinds = ("sliding_attention", "full_attention")
        common |= dict(layer_types=[kinds[i % 2] for i in range(n_layers)])
        # tied and scaled embeddings drown four random blocks: the model would only repeat its last token
        common |= dict(query_pre_attn_scalar=hidden_size // 4, tie_word_embeddings=False)
    return common


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A seeded random state, for as long as the context lasts."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would reach accelerators as well
        yield


@torch.no_grad()
def randomize_vectors(hf: nn.Module) -> None:
    """Add noise to norms and biases: new norms are all equal and new biases 0, which would hide a swapped one."""
    for parameter in hf.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
