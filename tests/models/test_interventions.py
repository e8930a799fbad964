"""The plan: additions at absolute columns, whatever way the forwards are cut."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from steerlab._support.errors import SteeringError
from steerlab.models.interventions import Edit, apply_edits, check_edits, last_column
from steerlab.models.sites import Site

HIDDEN = 4


def state(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def mask_of(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_an_edit_is_the_same_after_a_journey_though_vectors_go_once(distinct: int, each: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(distinct, 64, generator=draw)[torch.randperm(distinct * each, generator=draw) % distinct]
    edit = Edit(vectors, torch.rand(distinct * each, 3, generator=draw) > 0.5, generated=True)
    blob = pickle.dumps(edit)
    there = pickle.loads(blob)
    assert torch.equal(there.vectors, vectors) and torch.equal(there.prompt, edit.prompt)
    assert there.affects(0, 3) == edit.affects(0, 3) and there.generated
    once = pickle.dumps(Edit(torch.unique(vectors, dim=0), edit.prompt[:distinct], generated=True))
    assert len(blob) <= len(once) + edit.prompt.numel() * 9
    empty = pickle.loads(pickle.dumps(Edit(None, edit.prompt, True)))
    assert empty.vectors is None


def test_nothing_meant_hands_the_state_itself_back() -> None:
    h = state(2, 3)
    nowhere = Edit(torch.ones(2, HIDDEN), torch.zeros(2, 3, dtype=torch.bool), generated=False)
    later = Edit(torch.ones(2, HIDDEN), torch.zeros(2, 3, dtype=torch.bool), generated=True)
    assert apply_edits([nowhere, later], h, 3) is h
    assert apply_edits([nowhere], h, 9) is h
    assert later.stats.totals() == (0, 0.0) and later.stats.forwards == 0


def test_a_zero_vector_changes_no_bit() -> None:
    h = state(2, 3).to(torch.bfloat16)
    assert torch.equal(apply_edits([Edit(torch.zeros(2, HIDDEN), torch.ones(2, 3, dtype=torch.bool), True)], h, 3), h)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3), st.integers(0, 2**16))
def test_exactly_the_mask_is_shifted(marks: list[list[bool]], seed: int) -> None:
    mask = torch.tensor(marks)
    h, vectors = state(len(marks), 5, seed), state(len(marks), 1, seed + 1)[:, 0]
    edit = Edit(vectors, mask, generated=False)
    out = apply_edits([edit], h, 5)
    assert torch.equal(out[~mask], h[~mask])
    assert torch.equal(out[mask], (h + vectors[:, None])[mask])
    written, ratio = edit.stats.totals()
    assert written == int(mask.sum())
    expected = (vectors.norm(dim=-1)[:, None] / h.norm(dim=-1))[mask].sum()
    assert ratio == pytest.approx(float(expected), rel=1e-5)


def test_edits_add_up_in_float32_and_are_cast_once() -> None:
    h = torch.full((1, 2, HIDDEN), 1.0, dtype=torch.bfloat16)
    small = torch.full((1, HIDDEN), 2.0**-9)  # half a unit of bfloat16's last place at 1, rounded away alone
    edits = [Edit(small, torch.ones(1, 2, dtype=torch.bool), False) for _ in range(4)]
    assert torch.equal(apply_edits(edits[:1], h, 2), h), "the premise"
    out = apply_edits(edits, h, 2)
    assert out.dtype == torch.bfloat16 and torch.equal(out, h + torch.tensor(2.0**-7, dtype=torch.bfloat16))


def test_edits_of_one_site_do_not_see_each_other() -> None:
    h, everywhere = state(1, 3), torch.ones(1, 3, dtype=torch.bool)
    double = Edit(None, everywhere, False, lambda own: own, torch.tensor([2]))
    out = apply_edits([Edit(torch.ones(1, HIDDEN), everywhere, False), double], h, 3)
    assert torch.equal(out, h + (1.0 + h[:, 2:3]))


@st.composite
def cuts(draw: Any) -> tuple[int, int, list[int]]:
    width = draw(st.integers(1, 6))
    total = width + draw(st.integers(0, 5))
    inner = draw(st.sets(st.integers(1, total - 1)) if total > 1 else st.just(set()))
    return width, total, [0, *sorted(inner), total]


@given(cut=cuts(), generated=st.booleans(), rows=st.integers(1, 3), data=st.data())
def test_any_chunks_give_what_one_forward_gives(
    cut: tuple[int, int, list[int]], generated: bool, rows: int, data: st.DataObject
) -> None:
    width, total, ends = cut
    marks = data.draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    h, vectors = state(rows, total), state(rows, 1, 1)[:, 0]

    def edit() -> Edit:
        return Edit(vectors, torch.tensor(marks), generated)

    whole, apart = edit(), edit()
    chunks = [apply_edits([apart], h[:, a:b], b) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(chunks, 1), apply_edits([whole], h, total))
    assert whole.stats.totals()[0] == apart.stats.totals()[0]
    expected = sum(map(sum, marks)) + (rows * (total - width) if generated else 0)
    assert whole.stats.totals()[0] == expected


@pytest.mark.parametrize("copies", [1, 3])
def test_beams_repeat_each_row(copies: int) -> None:
    h, vectors = state(2 * copies, 3), state(2, 1, 1)[:, 0]
    mask = mask_of([[1, 0, 0], [0, 1, 1]])
    out = apply_edits([Edit(vectors, mask, False)], h, 3)
    one = apply_edits([Edit(vectors.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), False)], h, 3)
    assert torch.equal(out, one)


def test_rows_that_do_not_fit() -> None:
    edit = Edit(torch.ones(2, HIDDEN), torch.ones(2, 3, dtype=torch.bool), False)
    with pytest.raises(SteeringError, match="3 rows can't be matched to a plan for 2 rows"):
        apply_edits([edit], state(3, 3), 3)


@pytest.mark.parametrize("scope", ["all", "generated"])
@pytest.mark.parametrize("copies", [1, 2])
def test_in_flight_reads_the_unshifted_last_prompt_state_once(copies: int, scope: str) -> None:
    h = state(2, 4).repeat_interleave(copies, 0)
    seen: list[Tensor] = []

    def double(own: Tensor) -> Tensor:
        seen.append(own.clone())
        return 2 * own

    last = torch.tensor([3, 1])
    mask = torch.full((2, 4), scope == "all")
    edit = Edit(None, mask, True, double, last)
    other = Edit(torch.ones(2, HIDDEN), torch.ones(2, 4, dtype=torch.bool), True)
    own = h[torch.arange(2 * copies), last.repeat_interleave(copies)]
    out = apply_edits([other, edit], h, 4)
    assert torch.equal(out, h + (1 + 2 * own[:, None] * (scope == "all")))
    for step in (5, 6):
        new = state(2 * copies, 1, step)
        assert torch.allclose(apply_edits([edit], new, step), new + 2 * own[:, None])
    assert len(seen) == 1 and torch.equal(seen[0], own)


def test_in_flight_for_the_prompt_alone_leaves_decoding_alone() -> None:
    edit = Edit(None, torch.ones(1, 2, dtype=torch.bool), False, lambda own: own, torch.tensor([1]))
    h, new = state(1, 2), state(1, 1, 1)
    assert torch.equal(apply_edits([edit], h, 2), h + h[:, 1:])
    assert apply_edits([edit], new, 3) is new


def test_in_flight_without_a_prompt() -> None:
    edit = Edit(None, torch.ones(1, 2, dtype=torch.bool), True, lambda own: own, torch.tensor([1]))
    with pytest.raises(SteeringError, match="before any prompt"):
        apply_edits([edit], state(1, 1), 3)


def test_check_plan_refuses_other_widths_and_nan() -> None:
    def plan(vectors: Tensor | None) -> dict[Site, list[Edit]]:
        return {Site(3): [Edit(vectors, torch.ones(1, 2, dtype=torch.bool), True, lambda own: own)]}

    check_edits(plan(torch.ones(1, HIDDEN)), HIDDEN)
    check_edits(plan(None), HIDDEN)
    with pytest.raises(SteeringError, match="width 4 can't be added at layer 3, whose states are 8 wide"):
        check_edits(plan(torch.ones(1, HIDDEN)), 8)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SteeringError, match="layer 3 holds NaN or infinity"):
            check_edits(plan(torch.full((1, HIDDEN), bad)), HIDDEN)


def test_last_column_from_the_mask() -> None:
    ids = torch.zeros(2, 1, dtype=torch.long)
    assert last_column({"input_ids": ids, "attention_mask": torch.ones(2, 7)}) == 7


def test_last_column_without_a_mask_counts_the_cache() -> None:
    ids, cache = torch.zeros(2, 3, dtype=torch.long), DynamicCache()
    assert last_column({"input_ids": ids, "past_key_values": None}) == 3
    assert last_column({"input_ids": ids, "attention_mask": None, "past_key_values": cache}) == 3
    cache.update(torch.zeros(2, 1, 5, 2), torch.zeros(2, 1, 5, 2), 0)
    assert last_column({"input_ids": ids, "past_key_values": cache}) == 8
    assert last_column({"inputs_embeds": torch.zeros(2, 4, HIDDEN), "past_key_values": cache}) == 9
    with pytest.raises(SteeringError, match="neither token ids nor embeddings"):
        last_column({})
