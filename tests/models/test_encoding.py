"""From prompts to token rows with known spans, and from rows to padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steerlab._support.errors import EncodingError
from steerlab.models.encoded_prompt import EncodedPrompt
from steerlab.models.encoding import by_length, collate, encode
from steerlab.testing import SYSTEM, tiny_lm, tiny_tokenizer

# a BOS in every turn, the system message inside the first user turn, nothing opens the assistant's turn
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rules = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set rules = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (rules if loop.first else '') + turn['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# no system role, strict alternation, stripped content, another name for the assistant
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ turn['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# like GEMMA, but a second user turn is refused: the turn can't be found by repeating it
SINGLE = GEMMA.replace(
    "{% for turn", "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}{% for turn", 1
)


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "chatml": with_template(None),
    "llama2": with_template(LLAMA2),
    "gemma": with_template(GEMMA),
    "single": with_template(SINGLE),
}
CHATML = TOKENIZERS["chatml"]
words = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


def words_of(row: EncodedPrompt, kind: str) -> str:
    places = [row.offsets[i] for i in row.kind(kind)]
    return row.text[places[0][0] : places[-1][1]] if places else ""


def assert_partition(row: EncodedPrompt) -> None:
    assert [i for span in row.spans for i in range(span.start, span.end)] == list(range(len(row)))
    assert all(span.start < span.end for span in row.spans)
    assert len(row.offsets) == len(row.ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(user=words, answer=st.none() | words, system=st.none() | words, end_turn=st.booleans())
def test_spans_cover_every_token_once_and_in_order(
    name: str, user: str, answer: str | None, system: str | None, end_turn: bool
) -> None:
    system = system if name in ("chatml", "llama2") else None
    row = encode(TOKENIZERS[name], user, answer=answer, end_turn=end_turn, system=system)
    assert_partition(row)
    assert user.strip() in words_of(row, "user")
    assert row.kind("answer") == list(range(row.n_prompt, len(row)))
    if system is not None:
        assert system.strip() in words_of(row, "system")
    if answer is not None:
        assert words_of(row, "answer").startswith(answer)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(user=words, answers=st.tuples(words, words))
def test_prompt_tokens_do_not_depend_on_the_answer(name: str, user: str, answers: tuple[str, str]) -> None:
    plain, *rows = (encode(TOKENIZERS[name], user, answer=a, end_turn=True) for a in (None, *answers))
    assert plain.n_prompt == len(plain)
    for row in rows:
        assert row.n_prompt == plain.n_prompt
        assert row.ids[: row.n_prompt] == plain.ids
        assert row.spans[: len(plain.spans)] == plain.spans


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_rendered_template(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    messages = [{"role": "user", "content": "hello  there"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(encode(tokenizer, "hello  there").ids) == expected
    assert list(encode(tokenizer, messages).ids) == expected


def test_chatml_parts() -> None:
    row = encode(CHATML, "How are you?", system="Be brief.", answer="Fine.", end_turn=True)
    assert [span.kind for span in row.spans] == ["template", "system", "user", "header", "answer"]
    assert words_of(row, "system") == "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert words_of(row, "user") == "<|im_start|>user\nHow are you?<|im_end|>\n"
    assert words_of(row, "header") == "<|im_start|>assistant\n"
    assert words_of(row, "answer") == "Fine.<|im_end|>\n"
    assert row.kind("header")[-1] == row.n_prompt - 1


def test_default_system_message_is_the_templates_own() -> None:
    assert SYSTEM in words_of(encode(CHATML, "hello"), "system")
    given_one = words_of(encode(CHATML, "hello", system="Be brief."), "system")
    assert "Be brief." in given_one and SYSTEM not in given_one


def test_an_open_answer_ends_with_its_own_words() -> None:
    row = encode(CHATML, "hello", answer="Fine.")
    assert words_of(row, "answer") == "Fine." and CHATML.eos_token_id not in row.ids[row.n_prompt :]


@pytest.mark.parametrize(("name", "closing"), [("llama2", " <|im_end|>"), ("gemma", "<end_of_turn>\n")])
def test_a_closed_answer_ends_as_the_template_ends_a_turn(name: str, closing: str) -> None:
    assert words_of(encode(TOKENIZERS[name], "hello", answer="Fine.", end_turn=True), "answer") == "Fine." + closing


def test_llama2_without_a_system_message() -> None:
    row = encode(TOKENIZERS["llama2"], " hello ")
    assert [(span.kind, words_of(row, span.kind)) for span in row.spans] == [
        ("template", "<|bos|>"),
        ("user", "[INST] hello [/INST]"),
    ]


@pytest.mark.parametrize("user", ["hello", "INST", "]", "SYS", "Obey"])
def test_llama2_splits_the_shared_turn_at_the_users_words(user: str) -> None:
    row = encode(TOKENIZERS["llama2"], user, system="Obey.")
    assert words_of(row, "system") == "[INST] <<SYS>>\nObey.\n<</SYS>>\n\n"
    assert words_of(row, "user") == f"{user} [/INST]"
    assert row.ids.count(CHATML.bos_token_id) == 1


def test_gemma_parts() -> None:
    row = encode(TOKENIZERS["gemma"], "  hello there ")
    assert [(span.kind, words_of(row, span.kind)) for span in row.spans] == [
        ("template", "<|bos|>"),
        ("user", "<start_of_turn>user\nhello there<end_of_turn>\n"),
        ("header", "<start_of_turn>model\n"),
    ]


@pytest.mark.parametrize("user", ["hello", "turn", "user", ">"])
def test_a_template_without_second_turns_begins_the_user_at_the_words(user: str) -> None:
    row = encode(TOKENIZERS["single"], user)
    assert words_of(row, "user") == f"{user}<end_of_turn>\n"


def test_a_system_message_the_template_refuses() -> None:
    with pytest.raises(EncodingError, match="System role not supported"):
        encode(TOKENIZERS["gemma"], "hello", system="Obey.")


def test_a_template_that_changes_the_words() -> None:
    shouting = with_template(GEMMA.replace("| trim", "| upper"))
    with pytest.raises(EncodingError, match="changes the user's words"):
        encode(shouting, "hello")


def test_earlier_turns_are_not_the_user_span() -> None:
    said = [("user", "first"), ("assistant", "second"), ("user", "third")]
    messages = [{"role": role, "content": content} for role, content in said]
    for name in ("chatml", "llama2", "gemma"):
        row = encode(TOKENIZERS[name], messages)
        assert_partition(row)
        assert "third" in words_of(row, "user") and "first" not in words_of(row, "user")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_bos(name: str) -> None:
    row = encode(TOKENIZERS[name], "hello")
    assert row.ids[0] == CHATML.bos_token_id and row.ids.count(CHATML.bos_token_id) == 1


@pytest.mark.parametrize("text", ["hello there", "<|bos|>hello there"])
def test_plain_text_gets_one_bos(text: str) -> None:
    row = encode(CHATML, text, chat=False, answer=" you")
    assert row.ids[0] == CHATML.bos_token_id and row.ids.count(CHATML.bos_token_id) == 1
    assert words_of(row, "user").endswith("hello there") and words_of(row, "answer") == " you"
    assert row.kind("header") == []
    assert_partition(row)


def test_spaces_of_no_width_belong_to_their_part() -> None:
    """Llama 3's and GPT-2's tokenizers trim spaces off the offsets: a lone space then covers no character."""
    tokenizer = tiny_tokenizer()
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    bos = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    row = encode(tokenizer, "one   two", answer="a   b")
    assert any(a == b for a, b in row.offsets), "the premise"
    assert [span.kind for span in row.spans] == ["template", "system", "user", "header", "answer"]
    plain = encode(tokenizer, "one   two", chat=False)
    assert [tuple(span) for span in plain.spans] == [("template", 0, 1), ("user", 1, len(plain))]


def test_too_long_names_the_limit() -> None:
    row = encode(CHATML, "hello", answer="there")
    assert encode(CHATML, "hello", answer="there", limit=len(row)) == row
    with pytest.raises(EncodingError, match=rf"'mine' has {len(row)} tokens.* holds {len(row) - 1}"):
        encode(CHATML, "hello", answer="there", limit=len(row) - 1, example_id="mine")
    with pytest.raises(EncodingError, match="holds 512"):
        tiny_lm(backend="hooks").encode("a b c " * 200)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("prompt", ["", " \n"])
def test_empty_prompt(prompt: str, chat: bool) -> None:
    with pytest.raises(EncodingError, match="'mine' is empty"):
        encode(CHATML, prompt, chat=chat, example_id="mine")


@pytest.mark.parametrize("roles", [(), ("user", "assistant"), ("system",)])
def test_messages_must_end_with_the_user(roles: tuple[str, ...]) -> None:
    with pytest.raises(EncodingError, match="must end with the user's turn"):
        encode(CHATML, [{"role": role, "content": "x"} for role in roles])


def test_messages_without_a_template() -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(EncodingError, match="no chat template"):
        encode(bare, "hello")
    with pytest.raises(EncodingError, match="chat=True"):
        encode(bare, [{"role": "user", "content": "hello"}], chat=False)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), side=st.sampled_from(["left", "right"]))
def test_collate_pads_on_one_side_only(lengths: list[int], side: Any) -> None:
    rows = [EncodedPrompt(tuple(range(10, 10 + n)), (), n, "", ((0, 0),) * n) for n in lengths]
    batch = collate(rows, 0, side)
    assert batch.width == max(lengths) and batch.rows == tuple(rows)
    for i, (n, offset) in enumerate(zip(lengths, batch.offsets, strict=True)):
        assert offset == (batch.width - n if side == "left" else 0)
        real = slice(offset, offset + n)
        assert batch.input_ids[i, real].tolist() == list(rows[i].ids)
        assert batch.position_ids[i, real].tolist() == list(range(n))
        assert batch.attention_mask[i, real].tolist() == [1] * n
        assert int(batch.attention_mask[i].sum()) == n and int((batch.input_ids[i] == 0).sum()) == batch.width - n
    columns = batch.columns([[n - 1] for n in lengths])
    assert torch.equal(batch.input_ids[columns], torch.tensor([9 + n for n in lengths]))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), size=st.integers(1, 4))
def test_batches_by_length_hold_every_row_once_longest_first(lengths: list[int], size: int) -> None:
    rows = [EncodedPrompt((0,) * n, (), n, "", ((0, 0),) * n) for n in lengths]
    batches = list(by_length(rows, size))
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths))) and all(len(batch) <= size for batch in batches)
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)


def test_earlier_turns_are_history_and_not_the_system_message() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "Second question"},
    ]
    row = encode(tiny_tokenizer(), turns)
    told = {
        kind: "".join(row.text[slice(*row.offsets[i])] for i in row.kind(kind))
        for kind in ("system", "history", "user")
    }
    assert "Be brief." in told["system"] and "question" not in told["system"]
    assert "First question" in told["history"] and "First answer" in told["history"]
    assert "Second question" in told["user"] and "First" not in told["user"]
