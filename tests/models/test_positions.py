"""The language of positions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlab._support.errors import PositionError
from steerlab.models.encoded_prompt import EncodedPrompt, Span
from steerlab.models.positions import NAMES, Match, describe, includes_generated, resolve, resolve_nonempty
from steerlab.testing import tiny_lm

# one token a character: ^ ss uuuu hh aaa
TEXT = "^ssuserhhans"
PARTS = (("template", 0, 1), ("system", 1, 3), ("user", 3, 7), ("header", 7, 9), ("answer", 9, 12))
ROW = EncodedPrompt(
    tuple(range(100, 112)),
    tuple(Span(*part) for part in PARTS),
    9,
    TEXT,
    tuple((i, i + 1) for i in range(12)),
    "mine",
)
MEANING = {
    "last": [8],
    "prompt": list(range(9)),
    "text": list(range(9)),
    "images": [],
    "last_image": [],
    "after_image": [],
    "generated": [9, 10, 11],
    "answer": [9, 10, 11],
    "all": list(range(12)),
    "system": [1, 2],
    "history": [],
    "user": [3, 4, 5, 6],
    "header": [7, 8],
    "last_user": [6],
    "first_difference": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name(name: str) -> None:
    assert resolve(name, ROW) == MEANING[name]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
def test_a_union_is_the_union_of_the_sets(names: list[str]) -> None:
    assert resolve("+".join(names), ROW) == sorted(set().union(*(MEANING[name] for name in names)))


@given(st.integers(-20, 20))
def test_ints_count_as_in_python(place: int) -> None:
    if -12 <= place < 12:
        assert resolve(place, ROW) == [range(12)[place]]
    else:
        with pytest.raises(PositionError, match=rf"position {place} is outside a row of 12 tokens \('mine'\)"):
            resolve(place, ROW)


ends = st.none() | st.integers(-15, 15)


@given(ends, ends, st.none() | st.integers(-3, 3).filter(bool))
def test_slices_mean_the_same_tokens_as_in_python_ascending(start: Any, stop: Any, step: Any) -> None:
    assert resolve(slice(start, stop, step), ROW) == sorted(range(12)[start:stop:step])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("user", [3, 4, 5, 6]), ("s", [1, 2, 4, 11]), ("ss", [1, 2]), ("rh", [6, 7]), ("nowhere", []), ("", [])],
)
def test_match_finds_every_occurrence(text: str, tokens: list[int]) -> None:
    assert resolve(Match(text), ROW) == tokens


def test_match_takes_tokens_that_only_overlap() -> None:
    row = EncodedPrompt((1, 2, 3), (Span("user", 0, 3),), 3, "aabbcc", ((0, 2), (2, 4), (4, 6)))
    assert resolve(Match("bc"), row) == [1, 2]


@given(st.lists(st.booleans(), min_size=12, max_size=15))
def test_masks_count_unpadded_tokens_of_their_own_row(marks: list[bool]) -> None:
    mask = torch.zeros(3, len(marks), dtype=torch.bool)
    mask[1] = torch.tensor(marks)
    tokens = [i for i, mark in enumerate(marks) if mark]
    if tokens and tokens[-1] >= 12:
        with pytest.raises(PositionError, match=rf"marks token {tokens[-1]} of a row of 12 tokens \('mine'\)"):
            resolve(mask, ROW, 1)
    else:
        assert resolve(mask, ROW, 1) == tokens
    assert resolve(mask, ROW, 0) == []


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 12), torch.ones(12, dtype=torch.bool), torch.ones(1, 12, dtype=torch.long)]
)
def test_masks_of_another_type_or_shape(mask: torch.Tensor) -> None:
    with pytest.raises(
        PositionError, match=re.escape(f"bool tensor (rows, tokens), got {mask.dtype} {tuple(mask.shape)}")
    ):
        resolve(mask, ROW)


def test_masks_with_too_few_rows() -> None:
    with pytest.raises(PositionError, match="has 2 rows but there is a row 2"):
        resolve(torch.ones(2, 12, dtype=torch.bool), ROW, 2)


@pytest.mark.parametrize("name", ["Last", "", "last+", "last + generated", "image"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(PositionError, match=r"unknown position .*expected one of last, prompt, .*'last\+generated'"):
        resolve(name, ROW)


def test_nothing_meant_names_the_sample_and_its_parts() -> None:
    bare = EncodedPrompt((1, 2), (Span("user", 0, 2),), 2, "ab", ((0, 1), (1, 2)), "mine")
    assert resolve("answer", bare) == []
    with pytest.raises(PositionError, match=r"answer matches no token of the row \('mine'\); it has user 0:2"):
        resolve_nonempty("answer", bare)
    with pytest.raises(PositionError, match="match:kill matches no token"):
        resolve_nonempty(Match("kill"), bare)
    assert resolve_nonempty("user", bare) == [0, 1]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", True),
        ("last+generated", True),
        ("answer", True),
        ("last+prompt", False),
        (3, False),
        (Match("x"), False),
    ],
)
def test_which_positions_mean_tokens_to_come(positions: Any, expected: bool) -> None:
    assert includes_generated(positions) is expected


def test_short_names_for_tables() -> None:
    cases = {"last": "last", "3": 3, "-1": -1, "0:4": slice(0, 4), ":4": slice(4), "0:4:2": slice(0, 4, 2)}
    assert {name: describe(position) for name, position in cases.items()} == {name: name for name in cases}
    assert describe(Match("kill")) == "match:kill" and describe(torch.ones(1, 1, dtype=torch.bool)) == "mask"


def test_positions_table_agrees_with_resolve() -> None:
    model = tiny_lm(backend="hooks")
    row = model.encode("hello there", answer="you")
    table = model.positions_table("hello there", answer="you")
    assert table["id"].tolist() == list(row.ids) and "".join(table["string"]) == row.text
    for name in NAMES:
        assert table.index[table[name]].tolist() == resolve(name, row)
    assert set(table.loc[table["answer"], "span"]) == {"answer"}


def test_show_positions_writes_a_line_per_name(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_lm(backend="hooks")
    last = len(model.encode("hello there")) - 1
    model.show_positions("hello there")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{last + 1} tokens: template 0:1, system 1:")
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert lines[0].split() == ["last", "1", "token", str(last), r"'\n'"]
    assert "(none in this row)" in lines[NAMES.index("answer")] and "more" in lines[NAMES.index("prompt")]
    model.show_positions("hello there", Match("there"))
    assert capsys.readouterr().out.splitlines()[1].startswith("match:there ")
