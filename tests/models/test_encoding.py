"""From prompts to token rows with known spans, and from rows to padded batches."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from steerlab import generate
from steerlab.errors import EncodingError
from steerlab.models.encoding import EncodedPrompt, Span, by_length, collate, encode
from steerlab.models.model import Model
from steerlab.models.template import with_images
from steerlab.steering.generate import decode
from steerlab.testing import SYSTEM, tiny_hf, tiny_lm, tiny_tokenizer

# a BOS in every turn, the system message inside the first user turn, nothing opens the assistant's turn
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rules = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set rules = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (rules if loop.first else '') + turn['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# no system role, strict alternation, stripped content, another name for the assistant role
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
# a thinking block before the last reply only, as in Qwen3's
THINKS = (
    "{{ bos_token }}{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' }}"
    "{% if turn['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ turn['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# another end behind the last reply, as in gpt-oss's, and none, as in Apertus's
ENDS = "('LAST' if turn['role'] == 'assistant' and loop.last else '<|im_end|>\n')"
RETURNS, OPEN = (THINKS.replace("'<|im_end|>\n'", ENDS.replace("LAST", last)) for last in ("<|end|>", ""))
# the system message inside the last user turn, as in Mistral's
LATE = LLAMA2.replace("loop.first", "loop.last")


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


CHATML = tiny_tokenizer()
TOKENIZERS = {"chatml": CHATML, "llama2": with_template(LLAMA2), "gemma": with_template(GEMMA)}
TOKENIZERS |= {"single": with_template(SINGLE), "thinks": with_template(THINKS), "late": with_template(LATE)}
TOKENIZERS |= {"returns": with_template(RETURNS), "open": with_template(OPEN)}
texts = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
templates = pytest.mark.parametrize("name", TOKENIZERS)


def text_of(row: EncodedPrompt, kind: str) -> str:
    places = [row.offsets[i] for i in row.kind(kind)]
    return row.text[places[0][0] : places[-1][1]] if places else ""


def parts_of(row: EncodedPrompt) -> list[tuple[str, str]]:
    return [(span.kind, text_of(row, span.kind)) for span in row.spans]


def assert_partition(row: EncodedPrompt) -> None:
    assert [i for span in row.spans for i in range(span.start, span.end)] == list(range(len(row)))
    assert all(span.start < span.end for span in row.spans)
    assert len(row.offsets) == len(row.ids)


@templates
@given(user=texts, answer=st.none() | texts, system=st.none() | texts, end_turn=st.booleans())
def test_spans_cover_every_token_in_order(name: str, user: str, answer: Any, system: Any, end_turn: bool) -> None:
    system = None if name in ("gemma", "single") else system
    row = encode(TOKENIZERS[name], user, answer=answer, end_turn=end_turn, system=system)
    assert_partition(row)
    assert user.strip() in text_of(row, "user")
    assert row.kind("answer") == list(range(row.n_prompt, len(row)))
    assert system is None or system.strip() in text_of(row, "system")
    space = " " if name in ("llama2", "late") else ""  # which these templates put before an answer
    assert answer is None or text_of(row, "answer").startswith(space + answer.removeprefix(space))


@templates
@given(user=texts, answers=st.tuples(texts, texts))
def test_prompt_tokens_do_not_depend_on_the_answer(name: str, user: str, answers: tuple[str, str]) -> None:
    plain, *rows = (encode(TOKENIZERS[name], user, answer=a, end_turn=True) for a in (None, *answers))
    assert plain.n_prompt == len(plain)
    for row in rows:
        assert row.n_prompt == plain.n_prompt
        assert row.ids[: row.n_prompt] == plain.ids
        assert row.spans[: len(plain.spans)] == plain.spans


@templates
def test_ids_are_those_of_the_rendered_template_with_one_bos(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    messages = [{"role": "user", "content": "hello  there"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(encode(tokenizer, "hello  there").ids) == list(encode(tokenizer, messages).ids) == expected
    assert expected[0] == CHATML.bos_token_id and expected.count(CHATML.bos_token_id) == 1


CHATML_USER = [("user", "<|im_start|>user\nHow?<|im_end|>\n"), ("header", "<|im_start|>assistant\n")]
GEMMA_USER = [("user", "<start_of_turn>user\nHow?<end_of_turn>\n"), ("header", "<start_of_turn>model\n")]
BRIEF = ("system", "<|im_start|>system\nBe brief.<|im_end|>\n")
OBEY = [("system", "[INST] <<SYS>>\nObey.\n<</SYS>>\n\n"), ("user", "How? [/INST]")]
FINE = {"answer": "Fine."}
DONE = {"answer": "Fine.", "end_turn": True}
PARTS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("chatml", {}, [("system", f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"), *CHATML_USER]),
    ("chatml", FINE, [("system", f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"), *CHATML_USER, ("answer", "Fine.")]),
    ("chatml", DONE | {"system": "Be brief."}, [BRIEF, *CHATML_USER, ("answer", "Fine.<|im_end|>\n")]),
    ("llama2", DONE | {"system": "Obey."}, [*OBEY, ("answer", " Fine. <|im_end|>")]),
    ("late", {"system": "Obey."}, OBEY),
    ("chatml", {"system": "user"}, [("system", "<|im_start|>system\nuser<|im_end|>\n"), *CHATML_USER]),
    ("thinks", {}, CHATML_USER),
    ("thinks", FINE | {"system": "Be brief."}, [BRIEF, *CHATML_USER, ("answer", "Fine.")]),
    ("returns", DONE, [*CHATML_USER, ("answer", "Fine.<|end|>")]),
    ("open", DONE | {"system": "Be brief."}, [BRIEF, *CHATML_USER, ("answer", "Fine.<|im_end|>\n")]),
    ("gemma", {}, GEMMA_USER),
    ("gemma", DONE, [*GEMMA_USER, ("answer", "Fine.<end_of_turn>\n")]),
]


@pytest.mark.parametrize(("name", "options", "parts"), PARTS)
def test_parts_of_a_rendered_conversation(name: str, options: dict[str, Any], parts: list[tuple[str, str]]) -> None:
    """System message (given or the template's), user's words, header, and the end of a finished answer."""
    words = "How?" if name in ("chatml", "thinks", "returns", "open") else " How? "  # ChatML keeps spaces
    assert parts_of(encode(TOKENIZERS[name], words, **options)) == [("template", "<|bos|>"), *parts]


@pytest.mark.parametrize("user", ["hello", "INST", "]", "SYS", "Obey"])
def test_llama2_parts(user: str) -> None:
    """System message and user's words share a turn, which is split where the words begin."""
    row = encode(TOKENIZERS["llama2"], user, system="Obey.")
    assert parts_of(row) == [("template", "<|bos|>"), OBEY[0], ("user", f"{user} [/INST]")]
    assert row.ids.count(CHATML.bos_token_id) == 1
    without_system = encode(TOKENIZERS["llama2"], f" {user} ")
    assert parts_of(without_system) == [("template", "<|bos|>"), ("user", f"[INST] {user} [/INST]")]


@pytest.mark.parametrize("user", ["hello", "turn", "user", ">"])
def test_template_that_refuses_a_second_turn_starts_the_user_span_at_the_words(user: str) -> None:
    assert text_of(encode(TOKENIZERS["single"], user), "user") == f"{user}<end_of_turn>\n"


def test_text_parts_are_one_text_where_the_template_knows_texts_alone() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Ho"}, {"type": "text", "text": "w?"}]}]
    assert encode(TOKENIZERS["gemma"], parts).ids == encode(TOKENIZERS["gemma"], "How?").ids


def test_a_template_that_closes_a_conversation_has_the_parts_of_one_that_does_not() -> None:
    closing = with_template(THINKS.removesuffix("{% endif %}") + "{% else %}{{ eos_token }}{% endif %}")
    turns = turns_of("user", "assistant", "user")
    assert parts_of(encode(closing, turns)) == parts_of(encode(TOKENIZERS["thinks"], turns))


def test_answers_that_are_read_as_thoughts_warn_until_the_template_opens_none() -> None:
    opens = THINKS.removesuffix("{% endif %}") + "{{ '<think>' }}{% if off %}{{ '</think>' }}{% endif %}{% endif %}"
    with pytest.warns(UserWarning, match="answers are read as thoughts"):
        encode(with_template(opens), "How?", answer="Fine.")
    row = encode(with_template("{% set off = true %}" + opens), "How?", answer="Fine.")
    assert text_of(row, "header").endswith("<think></think>")


def test_an_answer_has_the_tokens_that_it_has_in_its_place() -> None:
    """SentencePiece puts a space before what it reads alone; some templates put one before the answer."""
    letters = [("<unk>", 0.0), *((c, -1.0) for c in "▁abcdefghijklmnopqrstuvwxyzF.:\n"), ("▁t", -0.5), ("▁F", -0.5)]
    pieces = Tokenizer(models.Unigram(letters, unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tok = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", pad_token="<unk>")
    for opening, words in (("\n", "fine."), (" ", "the end"), ("", "fine.")):
        tok.chat_template = (
            "{% for m in messages %}{{ m['role'] + ':' + ('\n' if m['role'] == 'user' else OPENING) + m['content'] }}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:HEADER' }}{% endif %}"
        ).replace("OPENING", repr(opening)).replace("HEADER", opening.strip(" "))  # fmt: skip
        row = encode(tok, "hello", answer=words, end_turn=True)
        turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": words}]
        assert list(row.ids) == tok.apply_chat_template(turns, return_dict=True)["input_ids"]
        assert row.ids[: row.n_prompt] == encode(tok, "hello").ids
    model = Model(tiny_hf("llama", vocab_size=len(letters)), tok, tiny_lm("llama").layout, id="pieces")
    texts = generate(model, ["hello"], max_new_tokens=6)
    assert encode(tok, "hello", answer=texts[0]).ids[-len(texts.ids[0]) :] == texts.ids[0]
    spaced = tok.convert_tokens_to_ids(["▁", "▁", "▁t"])
    assert decode(model, [spaced]) == ["   t"], "no space is lost"
    unknown = [encode(tok, "what is ж", chat=False, answer=answer).kind("answer") for answer in ("щ", "щ yes")]
    assert all(unknown), "an answer of unknown letters is not one token with those before it"


def test_a_template_that_needs_a_system_message_and_leaves_the_last_reply_open_is_read() -> None:
    needs = with_template("{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}" + OPEN)
    row = encode(needs, "What does <think> mean?", system="Be brief.", answer="Fine.")
    assert "Be brief." in text_of(row, "system") and "<think>" in text_of(row, "user")


def test_a_conversation_that_the_assistant_begins_is_read() -> None:
    row = encode(TOKENIZERS["thinks"], turns_of("assistant", "user", "assistant", "user"))
    assert [span.kind for span in row.spans][-3:] == ["history", "user", "header"]


def test_a_system_message_between_turns_is_history() -> None:
    turns = [*turns_of("user", "assistant"), {"role": "system", "content": "Now rhyme."}, *turns_of("user")]
    assert "Now rhyme." in text_of(encode(TOKENIZERS["thinks"], turns), "history")


def test_earlier_turns_are_history() -> None:
    turns = [("user", "First question"), ("assistant", "First answer"), ("user", "Second question")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for name in set(TOKENIZERS) - {"single"}:
        row = encode(TOKENIZERS[name], messages)
        assert_partition(row)
        history, user = text_of(row, "history"), text_of(row, "user")
        assert "First question" in history and "First answer" in history
        assert "Second question" in user and "First" not in user
    row = encode(CHATML, [{"role": "system", "content": "Be brief."}, *messages])
    assert "Be brief." in text_of(row, "system") and "question" not in text_of(row, "system")


@pytest.mark.parametrize("text", ["hello there", "<|bos|>hello there"])
def test_plain_text_gets_one_bos(text: str) -> None:
    row = encode(CHATML, text, chat=False, answer=" you")
    assert row.ids[0] == CHATML.bos_token_id and row.ids.count(CHATML.bos_token_id) == 1
    assert text_of(row, "user").endswith("hello there") and text_of(row, "answer") == " you"
    assert row.kind("header") == []
    assert_partition(row)


def test_an_end_that_a_tokenizer_appends_is_no_part_of_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    plain = encode(tokenizer, "hello there", chat=False, answer=" you")
    ends = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id or 0)])
    tokenizer.backend_tokenizer.post_processor = ends
    assert tokenizer("hello there").input_ids[-1] == (tokenizer.eos_token_id or 0)
    assert encode(tokenizer, "hello there", chat=False, answer=" you").ids[-3:] == plain.ids[-3:]


def test_spaces_without_width_belong_to_their_part() -> None:
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


def test_prompt_longer_than_the_context_is_refused(lm: Any) -> None:
    row = encode(CHATML, "hello", answer="there")
    assert encode(CHATML, "hello", answer="there", limit=len(row)) == row
    with pytest.raises(EncodingError, match=rf"'mine' has {len(row)} tokens.* holds {len(row) - 1}"):
        encode(CHATML, "hello", answer="there", limit=len(row) - 1, example_id="mine")
    with pytest.raises(EncodingError, match="holds 512"):
        lm().encode("a b c " * 200)


def turns_of(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "hello"} for role in roles]


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    *[("chatml", text, {"chat": chat}, "'mine' is empty") for text in ("", " \n") for chat in (True, False)],
    ("chatml", [], {}, "must end with the user's turn"),
    ("chatml", turns_of("user", "assistant"), {}, "must end with the user's turn"),
    ("chatml", turns_of("system"), {}, "must end with the user's turn"),
    *[
        ("chatml", [{"role": "user", "content": content}], {}, "a message is .*expected")
        for content in (
            [{"type": "text", "text": 3}],
            [{"type": 3}],
            [{"type": "text", "text": "a"}, {"type": 3}],
            [3],
            3,
        )
    ],
    *[
        ("chatml", [{"role": "user", "content": content}], {}, "the user's last turn is empty")
        for content in (" \n", [{"type": "text", "text": " "}])
    ],
    ("bare", "hello", {}, "no chat template"),
    ("bare", turns_of("user"), {"chat": False}, "chat=True"),
    ("gemma", "hello", {"system": "Obey."}, "System role not supported"),
    ("late", turns_of("user", "assistant", "user"), {"system": "Obey."}, "leave the system message out"),
    ("upper", "hello", {}, "changes the user's words"),
    ("deaf", "hello", {"system": "user"}, "drops or changes the system message 'user'"),
]


@pytest.mark.parametrize(("name", "prompt", "options", "message"), REFUSED)
def test_prompt_that_does_not_fit_is_refused(name: str, prompt: Any, options: dict[str, Any], message: str) -> None:
    templates = {"bare": None, "upper": GEMMA.replace("| trim", "| upper")}
    templates["deaf"] = THINKS.replace("in messages", "in messages if turn['role'] != 'system'")
    tokenizer = with_template(templates[name]) if name in templates else TOKENIZERS[name]
    with pytest.raises(EncodingError, match=message):
        encode(tokenizer, prompt, example_id="mine", **options)


def row_of(n: int) -> EncodedPrompt:
    return EncodedPrompt(tuple(range(10, 10 + n)), (), n, "", ((0, 0),) * n)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    first=st.integers(0, 2),
)
def test_collate_pads_on_one_side(lengths: list[int], side: Any, first: int) -> None:
    rows = [row_of(n) for n in lengths]
    batch = collate(rows, 0, side, None, first)
    assert batch.width == max(lengths) and batch.rows == tuple(rows)
    for i, (n, offset) in enumerate(zip(lengths, batch.offsets, strict=True)):
        assert offset == (batch.width - n if side == "left" else 0)
        real = slice(offset, offset + n)
        assert batch.input_ids[i, real].tolist() == list(rows[i].ids)
        assert batch.position_ids[i, real].tolist() == list(range(first, first + n))
        assert batch.attention_mask[i, real].tolist() == [1] * n
        assert int(batch.attention_mask[i].sum()) == n and int((batch.input_ids[i] == 0).sum()) == batch.width - n
    columns = batch.columns([[n - 1] for n in lengths])
    assert torch.equal(batch.input_ids[columns], torch.tensor([9 + n for n in lengths]))
    assert [int(row[k]) for row, k in zip(batch.input_ids, batch.last_prompt_columns, strict=True)] == [
        9 + n for n in lengths
    ]


@given(n_prompt=st.integers(1, 6), n_answer=st.integers(0, 4), n=st.integers(1, 10))
def test_head_is_the_beginning_of_a_row(n_prompt: int, n_answer: int, n: int) -> None:
    spans = (Span("user", 0, n_prompt), *([Span("answer", n_prompt, n_prompt + n_answer)] if n_answer else []))
    offsets = tuple((2 * i, 2 * i + 2) for i in range(n_prompt + n_answer))
    row = EncodedPrompt(tuple(range(n_prompt + n_answer)), spans, n_prompt, "ab" * (n_prompt + n_answer), offsets)
    n = min(n, len(row))
    head = row.head(n)
    assert head.ids == row.ids[:n] and head.n_prompt == min(n, n_prompt) and head.text == "ab" * n
    assert head.kind("user") == list(range(min(n, n_prompt))) and head.kind("answer") == list(range(n_prompt, n))
    assert_partition(head)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), size=st.integers(1, 4))
def test_batches_by_length_hold_every_row_once_longest_first(lengths: list[int], size: int) -> None:
    batches = list(by_length([row_of(n) for n in lengths], size))
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths))) and all(len(batch) <= size for batch in batches)
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9), size=st.integers(1, 4), data=st.data())
def test_rows_of_other_shapes_are_in_other_batches(lengths: list[int], size: int, data: Any) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 1)), min_size=len(lengths), max_size=len(lengths)))
    batches = list(by_length([row_of(n) for n in lengths], size, shapes))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len({shapes[i] for i in batch}) == 1 and len(batch) <= size for batch in batches)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=5))
def test_aligned_prompts_end_at_one_column(parts: list[tuple[int, int]]) -> None:
    rows = [EncodedPrompt(tuple(range(1, 1 + a + b)), (), a, "", ((0, 0),) * (a + b)) for a, b in parts]
    batch = collate(rows, 0, "aligned")
    assert set(batch.last_prompt_columns) == {max(a for a, _ in parts) - 1}
    assert batch.width == max(a for a, _ in parts) + max(b for _, b in parts)
    for ids, mask, row in zip(batch.input_ids, batch.attention_mask, rows, strict=True):
        assert ids[mask.bool()].tolist() == list(row.ids)


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_first_difference_is_the_first_token_that_another_answer_lacks(name: str) -> None:
    row = encode(TOKENIZERS[name], "hello", answer="It is (A)", other_answer="It is (B)")
    other = encode(TOKENIZERS[name], "hello", answer="It is (B)")
    assert row.first_difference is not None and row.first_difference > row.n_prompt
    assert row.ids[: row.first_difference] == other.ids[: row.first_difference]
    assert row.ids[row.first_difference] != other.ids[row.first_difference]


def test_a_mark_that_opens_the_text_once_is_a_part_and_others_belong_to_turns() -> None:
    turn, bos = "{% for turn in messages %}{{ turn['content'] + '|' }}{% endfor %}", str(CHATML.bos_token)
    for template, parts in (
        (turn, [("system", "Be kind.|"), ("user", "hello|")]),
        (turn + "{{ bos_token }}", [("system", "Be kind.|"), ("user", f"hello|{bos}")]),
        ("{{ bos_token }}" + turn, [("template", bos), ("system", "Be kind.|"), ("user", "hello|")]),
        (turn.replace("{{ ", "{{ bos_token + "), [("system", f"{bos}Be kind.|"), ("user", f"{bos}hello|")]),
    ):
        assert parts_of(encode(with_template(template), "hello", system="Be kind.")) == parts


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(EncodingError, match="ByT5Tokenizer is not a fast tokenizer"):
        encode(ByT5Tokenizer(), "hello", chat=False)


def test_images_come_before_the_last_text_unless_their_places_are_marked() -> None:
    image, question = {"type": "image"}, {"type": "text", "text": "What?"}
    earlier = {"role": "user", "content": "Hi"}
    for content, expected in (
        ("What?", [image, image, question]),
        ([question], [image, image, question]),
        ([question, image], [question, image]),
        ("<image>What?", [{"type": "text", "text": "<image>What?"}]),
    ):
        first, last = with_images([dict(earlier), {"role": "user", "content": content}], 2, "<image>")
        assert first["content"] == [{"type": "text", "text": "Hi"}] and last["content"] == expected
    assert with_images("What?", 0, "<image>") == [{"role": "user", "content": [question]}]
