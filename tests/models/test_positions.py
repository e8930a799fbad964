"""Positions: the tokens that each name means, and that models read and write these tokens."""

import re
from collections.abc import Callable
from typing import Any

import nbformat
import plain
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient

from steerlab import Contrast, Example, SteeringVector, capture, generate, score
from steerlab.data.inputs import as_examples
from steerlab.errors import PositionError
from steerlab.models import positions
from steerlab.models.encoding import EncodedPrompt, Span
from steerlab.models.model import Model
from steerlab.models.positions import NAMES, Match, includes_generated, resolve, resolve_nonempty

LM = Callable[..., Model]
# one token a character: ^ ss uuuu hh aaa
TEXT = "^ssuserhhans"
SPANS = (Span("template", 0, 1), Span("system", 1, 3), Span("user", 3, 7), Span("header", 7, 9), Span("answer", 9, 12))
ROW = EncodedPrompt(tuple(range(12)), SPANS, 9, TEXT, tuple((i, i + 1) for i in range(12)), "mine")
MEANING = {
    "last": [8], "prompt": list(range(9)), "text": list(range(9)), "generated": [9, 10, 11], "answer": [9, 10, 11],
    "all": list(range(12)), "system": [1, 2], "user": [3, 4, 5, 6], "header": [7, 8], "last_user": [6],
    **{name: [] for name in ("images", "vectors", "last_image", "after_image", "history", "first_difference")},
}  # fmt: skip


def row_of(n_prompt: int, n_answer: int) -> EncodedPrompt:
    n = n_prompt + n_answer
    return EncodedPrompt(tuple(range(n)), (), n_prompt, "x" * n, tuple((i, i + 1) for i in range(n)))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves_to_its_tokens(name: str) -> None:
    assert resolve(name, ROW) == MEANING[name]


@pytest.mark.parametrize(("n_prompt", "after"), [(9, [6]), (7, [6]), (6, [])])
def test_image_names_mean_image_tokens_and_the_prompt_token_behind_them(n_prompt: int, after: list[int]) -> None:
    spans = (Span("user", 0, 2), Span("image", 2, 4), Span("image", 5, 6), Span("user", 6, 9))
    row = EncodedPrompt(tuple(range(9)), spans, n_prompt, "x" * 9, tuple((i, i + 1) for i in range(9)))
    assert resolve("images", row) == resolve("vectors", row) == [2, 3, 5] and resolve("last_image", row) == [5]
    assert resolve("after_image", row) == after


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
def test_union_of_names_is_union_of_tokens(names: list[str]) -> None:
    assert resolve("+".join(names), ROW) == sorted(set().union(*(MEANING[name] for name in names)))


@given(st.integers(1, 30), st.integers(0, 10), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_last_k_and_prompt_k_are_prompt_tokens_ascending(n_prompt: int, n_answer: int, ks: list[int]) -> None:
    row = row_of(n_prompt, n_answer)
    ends, starts = ("+".join(form.format(k) for k in ks) for form in ("last-{}", "prompt[{}]"))
    assert resolve(ends, row) == sorted({n_prompt - 1 - k for k in ks if k < n_prompt})
    assert resolve(starts, row) == sorted({k for k in ks if k < n_prompt})
    assert resolve(f"last+{ends}+{starts}", row) == sorted({n_prompt - 1, *resolve(ends, row), *resolve(starts, row)})


@given(st.integers(-20, 20))
@example(-12)
@example(11)
@example(12)
def test_int_counts_as_in_python(place: int) -> None:
    if -12 <= place < 12:
        assert resolve(place, ROW) == [range(12)[place]]
    else:
        with pytest.raises(PositionError, match=rf"position {place} is outside a row of 12 tokens \('mine'\)"):
            resolve(place, ROW)


ends = st.none() | st.integers(-15, 15)


@given(ends, ends, st.none() | st.integers(-3, 3).filter(bool))
def test_slice_selects_as_in_python_ascending(start: Any, stop: Any, step: Any) -> None:
    assert resolve(slice(start, stop, step), ROW) == sorted(range(12)[start:stop:step])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("user", [3, 4, 5, 6]), ("s", [1, 2, 4, 11]), ("ss", [1, 2]), ("rh", [6, 7]), ("nowhere", []), ("", [])],
)
def test_match_finds_every_occurrence(text: str, tokens: list[int]) -> None:
    assert resolve(Match(text), ROW) == tokens
    pairs = EncodedPrompt((1, 2, 3), (Span("user", 0, 3),), 3, "aabbcc", ((0, 2), (2, 4), (4, 6)))
    assert resolve(Match("bc"), pairs) == [1, 2], "tokens that only overlap"


@given(st.lists(st.booleans(), min_size=12, max_size=15))
def test_mask_counts_unpadded_tokens_of_its_row(marks: list[bool]) -> None:
    mask = torch.zeros(3, len(marks), dtype=torch.bool)
    mask[1] = torch.tensor(marks)
    tokens = [i for i, mark in enumerate(marks) if mark]
    if tokens and tokens[-1] >= 12:
        with pytest.raises(PositionError, match=rf"marks token {tokens[-1]} of a row of 12 tokens \('mine'\)"):
            resolve(mask, ROW, 1)
    else:
        assert resolve(mask, ROW, 1) == tokens
    assert resolve(mask, ROW, 0) == resolve(mask, ROW) == [], "the first row, where no number is given"


def test_mask_of_wrong_type_or_shape_is_refused() -> None:
    for mask in [torch.ones(1, 12), torch.ones(12, dtype=torch.bool), torch.ones(1, 12, dtype=torch.long)]:
        expected = re.escape(f"bool tensor (rows, tokens), got {mask.dtype} {tuple(mask.shape)}")
        with pytest.raises(PositionError, match=expected):
            resolve(mask, ROW)
    with pytest.raises(PositionError, match="has 2 rows but there is a row 2"):
        resolve(torch.ones(2, 12, dtype=torch.bool), ROW, 2)


@pytest.mark.parametrize("given", [True, slice(0, 2.5), slice(0, True), slice(0, 4, 0)])
def test_what_is_no_position_is_refused(given: Any) -> None:
    with pytest.raises(PositionError, match="expected a name such as 'last', a whole number"):
        resolve(given, ROW)


@pytest.mark.parametrize(
    "name",
    [
        *("Last", "", "last+", "last + generated", "image"),
        *("last-", "last--1", "last-x", "last-1.5", "prompt[]", "prompt[-1]", "prompt[1:3]"),
    ],
)
def test_unknown_name_error_lists_known_names(name: str) -> None:
    listed = r"unknown position .*expected one of last, prompt, .*'last-2', 'prompt\[3\]', .*'last\+generated'"
    with pytest.raises(PositionError, match=listed):
        resolve(name, ROW)


def test_empty_position_error_names_example_and_spans() -> None:
    bare = EncodedPrompt((1, 2), (Span("user", 0, 2),), 2, "ab", ((0, 1), (1, 2)), "mine")
    assert resolve("answer", bare) == []
    with pytest.raises(PositionError, match=r"answer matches no token of the row \('mine'\); it has user 0:2"):
        resolve_nonempty("answer", bare)
    with pytest.raises(PositionError, match="match:kill matches no token"):
        resolve_nonempty(Match("kill"), bare)
    assert resolve_nonempty("user", bare) == [0, 1]


def test_includes_generated() -> None:
    with_generated = ("all", "last+generated", "answer", "last-2+generated", "prompt[2]+generated")
    without: Any = ("last+prompt", "last-2", "prompt[2]", "prompt[0]+last", 3, Match("x"))
    assert all(map(includes_generated, with_generated)) and not any(map(includes_generated, without))


def test_describe() -> None:
    cases = {"last": "last", "3": 3, "-1": -1, "0:4": slice(0, 4), ":4": slice(4), "0:4:2": slice(0, 4, 2)}
    cases |= {"last-1+last": "last-1+last", "match:kill": Match("kill"), "mask": torch.ones(1, 1, dtype=torch.bool)}
    assert {name: positions.describe(position) for name, position in cases.items()} == {name: name for name in cases}


def test_positions_table_agrees_with_resolve(lm: LM) -> None:
    model = lm()
    row = model.encode("hello there", answer="you")
    table = positions.positions_table(model, "hello there", answer="you")
    assert table["id"].tolist() == list(row.ids) and "".join(table["string"]) == row.text
    for name in NAMES:
        assert table.index[table[name]].tolist() == resolve(name, row)
    assert set(table.loc[table["answer"], "span"]) == {"answer"}


def test_show_positions_is_plain_in_a_file_and_colored_in_a_terminal(
    lm: LM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = lm("llama"), "hello [b]there[/b] :smile: <b>"
    model.show_positions(prompt, "header")
    plain = capsys.readouterr().out
    assert plain == positions.describe_positions(model, prompt, "header") + "\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    model.show_positions(prompt, "header")
    colored = capsys.readouterr().out
    row = model.encode(prompt)
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == row.text.replace("\n", "⏎\n") + "\n" + plain
    reverse = "".join(re.findall(r"\x1b\[7(?:;[\d;]*)?m([^\x1b]*)", colored))
    assert reverse.replace("⏎", "\n") == "".join(row.text[slice(*row.offsets[i])] for i in resolve("header", row))


@pytest.mark.nightly
def test_show_positions_is_html_in_a_notebook() -> None:
    code = "from steerlab.testing import tiny_lm\ntiny_lm('llama').show_positions('Hello <b>there</b>', 'last')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,) = [one for one in notebook.cells[0].outputs if one.output_type == "display_data"]
    assert "&lt;b&gt;there" in shown.data["text/html"] and shown.data["text/html"].count("color: #") > 3


def test_describe_positions_has_a_line_per_name(lm: LM) -> None:
    model = lm()
    last = len(model.encode("hello there")) - 1
    head, *lines = positions.describe_positions(model, "hello there").splitlines()
    assert head.startswith(f"{last + 1} tokens: template 0:1, system 1:")
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert lines[0].split() == ["last", "1", "token", str(last), r"'\n'"]
    assert "(none in this row)" in lines[NAMES.index("answer")]
    shown = lines[NAMES.index("prompt")]
    assert f" 11 {model.encode('hello there').text[slice(*model.encode('hello there').offsets[11])]!r}" in shown
    assert shown.endswith(f" ... and {last + 1 - 12} more")
    twelve, more = (positions.describe_positions(model, "hello there", slice(0, n)).splitlines()[1] for n in (12, 13))
    assert "more" not in twelve and more.endswith(" ... and 1 more") and " 11 " in more and " 12 " not in more
    matched = positions.describe_positions(model, "hello there", Match("there"))
    assert matched.splitlines()[1].startswith("match:there ")


# --- in models

LAYER = 1
PROMPTS = ("Do herons sleep in the reeds?", "Hi", "Is it cold by night?")
ANSWER = "Yes"
PLACES: dict[str, Callable[[int], list[int]]] = {
    "last-0": lambda n: [n - 1], "last-1": lambda n: [n - 2], "last-5": lambda n: [n - 6],
    "last-1+last": lambda n: [n - 2, n - 1], "prompt[0]": lambda n: [0], "prompt[4]": lambda n: [4],
    "prompt[2]+last-3": lambda n: [2, n - 4],
}  # fmt: skip


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_capture_reads_the_state_of_the_named_token(lm: LM, backend: str, padding: str) -> None:
    model = lm("llama", backend)
    acts = capture(model, PROMPTS, layers=LAYER, positions=list(PLACES), padding=padding, progress=False)
    for number, prompt in enumerate(PROMPTS):
        ids, n = plain.chat_ids(model, prompt)
        whole = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
        for name, place in PLACES.items():
            row = acts.select(example_id=as_examples(PROMPTS)[number].id, position=name)
            torch.testing.assert_close(row.at(LAYER)[0], whole[place(n)].mean(0), rtol=1e-5, atol=1e-5)
            assert row.index["column"][0] == (place(n)[0] if len(place(n)) == 1 else -1)


def test_prompt_tokens_are_the_same_on_both_sides_of_a_contrast(lm: LM) -> None:
    pairs = [Example(p, id=str(i), contrast=Contrast("Yes", "No, never")) for i, p in enumerate(PROMPTS)]
    names = ["last-2", "prompt[3]"]
    acts = capture(lm(), pairs, layers=LAYER, positions=names, context=names, progress=False)
    for name in names:
        sides = [acts.select(side=side, position=name) for side in ("prompt", "positive", "negative")]
        assert len({tuple(side.index["column"]) for side in sides}) == 1
        torch.testing.assert_close(sides[0].values, sides[1].values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sides[0].values, sides[2].values, rtol=1e-5, atol=1e-5)


@settings(max_examples=12)
@given(st.sampled_from(list(PLACES)), st.sampled_from([1, 3]), st.integers(0, 99))
def test_steering_writes_to_the_named_token_of_every_row(lm: LM, name: str, batch_size: int, seed: int) -> None:
    model = lm()
    delta = 3 * torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(seed))
    options = {"steer": SteeringVector({LAYER: delta}), "positions": name, "batch_size": batch_size}
    found = score(model, PROMPTS, [ANSWER] * 3, **options)
    for number, prompt in enumerate(PROMPTS):
        with plain.hooked(model, LAYER, plain.adding(delta, PLACES[name](plain.chat_ids(model, prompt)[1]))):
            expected = plain.answer_logprob(model, prompt, ANSWER)
        assert found["logprob"][number] == pytest.approx(expected, abs=1e-4)
    assert found.attrs["steered_tokens"] == sum(len(PLACES[name](99)) for _ in PROMPTS)
    assert generate(model, PROMPTS, max_new_tokens=3, **options).steered_tokens == found.attrs["steered_tokens"]


@pytest.mark.parametrize("form", ["last-{}", "prompt[{}]"])
def test_token_beyond_the_shortest_prompt_is_refused_by_example_id(lm: LM, form: str) -> None:
    model = lm()
    beyond = form.format(min(plain.chat_ids(model, p)[1] for p in PROMPTS))  # the shortest has tokens 0 to min - 1
    steerer = SteeringVector({LAYER: torch.ones(32)})
    message = re.escape(f"position {beyond} matches no token of the row ('1:")
    with pytest.raises(PositionError, match=message):
        capture(model, PROMPTS, layers=LAYER, positions=beyond, progress=False)
    with pytest.raises(PositionError, match=message):
        score(model, PROMPTS, [ANSWER] * 3, steer=steerer, positions=beyond)
    assert len(capture(model, PROMPTS[:1], layers=LAYER, positions=beyond, progress=False)) == 1
