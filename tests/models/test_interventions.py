"""Edits: vectors added at absolute columns, whatever way the forwards are cut."""

import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from steerlab.errors import SteeringError
from steerlab.models.edit_stats import EditStats
from steerlab.models.forwards import last_column
from steerlab.models.interventions import Edit, apply_edits, check_edits
from steerlab.models.sites import Site
from steerlab.models.versions import CACHE_NAMES

HIDDEN = 4


def state(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def everywhere(rows: int, tokens: int) -> Tensor:
    return torch.ones(rows, tokens, dtype=torch.bool)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_pickled_edit_is_equal_and_holds_each_vector_once(distinct: int, each: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(distinct, 64, generator=draw)[torch.randperm(distinct * each, generator=draw) % distinct]
    edit = Edit(vectors, torch.rand(distinct * each, 3, generator=draw) > 0.5, generated=True)
    blob = pickle.dumps(edit)
    loaded = pickle.loads(blob)
    assert torch.equal(loaded.vectors, vectors) and torch.equal(loaded.prompt, edit.prompt)
    assert loaded.affects(0, 3) == edit.affects(0, 3) and loaded.generated
    once = pickle.dumps(Edit(torch.unique(vectors, dim=0), edit.prompt[:distinct], generated=True))
    assert len(blob) <= len(once) + edit.prompt.numel() * 9
    assert pickle.loads(pickle.dumps(Edit(None, edit.prompt, True))).vectors is None


def test_edit_without_columns_returns_the_state_itself() -> None:
    h = state(2, 3)
    never = Edit(torch.ones(2, HIDDEN), ~everywhere(2, 3), generated=False)
    later = Edit(torch.ones(2, HIDDEN), ~everywhere(2, 3), generated=True)
    assert apply_edits([never, later], h, 3) is h
    assert never.is_noop and not later.is_noop
    for rows in ([False, False], [True, False]):
        some = Edit(torch.ones(2, HIDDEN), ~everywhere(2, 3), generated=True, row_mask=torch.tensor(rows))
        assert some.is_noop == (not any(rows))
    prompt_only = Edit(torch.ones(2, HIDDEN), everywhere(2, 3), generated=False)
    assert prompt_only.affects(2, 3) and not prompt_only.affects(3, 4) and not prompt_only.is_noop
    assert apply_edits([never], h, 9) is h
    assert later.stats.totals() == (0, 0.0)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3), st.integers(0, 2**16))
def test_edit_writes_exactly_where_the_mask_is_set(marks: list[list[bool]], seed: int) -> None:
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


def test_edits_are_summed_in_float32_and_cast_once() -> None:
    h = torch.full((1, 2, HIDDEN), 1.0, dtype=torch.bfloat16)
    small = torch.full((1, HIDDEN), 2.0**-9)  # half a unit of bfloat16's last place at 1, rounded away alone
    edits = [Edit(small, everywhere(1, 2), False) for _ in range(4)]
    assert torch.equal(apply_edits(edits[:1], h, 2), h), "the premise"
    out = apply_edits(edits, h, 2)
    assert out.dtype == torch.bfloat16 and torch.equal(out, h + torch.tensor(2.0**-7, dtype=torch.bfloat16))


def test_edits_of_one_site_see_the_state_before_any_of_them() -> None:
    h = state(1, 3)
    double = Edit(None, everywhere(1, 3), False, lambda h: h, torch.tensor([2]))
    out = apply_edits([Edit(torch.ones(1, HIDDEN), everywhere(1, 3), False), double], h, 3)
    assert torch.equal(out, h + (1.0 + h[:, 2:3]))


@st.composite
def cuts(draw: Any) -> tuple[int, int, list[int]]:
    width = draw(st.integers(1, 6))
    total = width + draw(st.integers(0, 5))
    inner = draw(st.sets(st.integers(1, total - 1)) if total > 1 else st.just(set()))
    return width, total, [0, *sorted(inner), total]


@given(cut=cuts(), generated=st.booleans(), rows=st.integers(1, 3), data=st.data())
def test_chunked_forwards_match_one_forward(cut: Any, generated: bool, rows: int, data: st.DataObject) -> None:
    width, total, ends = cut
    marks = data.draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    h, vectors = state(rows, total), state(rows, 1, 1)[:, 0]
    whole, chunked = (Edit(vectors, torch.tensor(marks), generated) for _ in range(2))
    chunks = [apply_edits([chunked], h[:, a:b], b) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(chunks, 1), apply_edits([whole], h, total))
    expected = sum(map(sum, marks)) + (rows * (total - width) if generated else 0)
    assert whole.stats.totals()[0] == chunked.stats.totals()[0] == expected


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_rows_get_the_vector_of_their_row(copies: int) -> None:
    h, vectors = state(2 * copies, 3), state(2, 1, 1)[:, 0]
    mask = torch.tensor([[True, False, False], [False, True, True]])
    out = apply_edits([Edit(vectors, mask, False)], h, 3)
    one = apply_edits([Edit(vectors.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), False)], h, 3)
    assert torch.equal(out, one)


@pytest.mark.parametrize("scope", ["all", "prompt", "generated"])
@pytest.mark.parametrize("copies", [1, 2])
def test_vector_fn_reads_the_unsteered_last_prompt_state_once(copies: int, scope: str) -> None:
    h = state(2, 4).repeat_interleave(copies, 0)
    calls: list[Tensor] = []

    def double(h: Tensor) -> Tensor:
        calls.append(h.clone())
        return 2 * h

    last = torch.tensor([3, 1])
    edit = Edit(None, torch.full((2, 4), scope != "generated"), scope != "prompt", double, last)
    other = Edit(torch.ones(2, HIDDEN), everywhere(2, 4), True)
    last_states = h[torch.arange(2 * copies), last.repeat_interleave(copies)]
    out = apply_edits([other, edit], h, 4)
    assert torch.equal(out, h + (1 + 2 * last_states[:, None] * (scope != "generated")))
    for step in (5, 6):
        new = state(2 * copies, 1, step)
        assert torch.allclose(apply_edits([edit], new, step), new + 2 * last_states[:, None] * (scope != "prompt"))
    assert len(calls) == 1 and torch.equal(calls[0], last_states)


@pytest.mark.parametrize("computed", [False, True])
def test_edit_of_one_row_equals_its_row_of_the_padded_batch(computed: bool) -> None:
    starts, padded, later = (2, 0, 3), state(3, 6), state(3, 1, seed=1)
    columns = torch.stack([torch.arange(6) >= start for start in starts]) & (state(3, 6, 2)[..., 0] > -1)
    function = (lambda h: 2 * h) if computed else None
    edit = Edit(
        None if computed else state(3, 1, 3)[:, 0], columns, True, function, torch.tensor([5, 4, 5]),
        torch.tensor([True, False, True]),
    )  # fmt: skip
    edit.read(padded, 6)
    prompt, generated = edit.delta(padded, 6), edit.delta(later, 7)
    assert not generated[1].any() and generated[[0, 2]].ne(0).all()
    for i, start in enumerate(starts):
        one = edit.row(i, start, 6)
        one.read(padded[[i], start:], 6 - start)
        torch.testing.assert_close(one.delta(padded[[i], start:], 6 - start), prompt[[i], start:])
        torch.testing.assert_close(one.delta(later[[i]], 7 - start), generated[[i]])


def test_edits_that_do_not_fit_the_forward_are_refused() -> None:
    with pytest.raises(SteeringError, match="3 rows can't be matched to edits of 2 rows"):
        apply_edits([Edit(torch.ones(2, HIDDEN), everywhere(2, 3), False)], state(3, 3), 3)
    with pytest.raises(SteeringError, match="before any prompt"):
        apply_edits([Edit(None, everywhere(1, 2), True, lambda h: h, torch.tensor([1]))], state(1, 1), 3)


def test_check_edits_refuses_other_widths_and_nan() -> None:
    def edits(vectors: Tensor | None) -> dict[Site, list[Edit]]:
        return {Site(3): [Edit(vectors, everywhere(1, 2), True, lambda h: h)]}

    check_edits(edits(torch.ones(1, HIDDEN)), HIDDEN)
    check_edits(edits(None), HIDDEN)
    with pytest.raises(SteeringError, match="width 4 can't be added at layer 3, whose states are 8 wide"):
        check_edits(edits(torch.ones(1, HIDDEN)), 8)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SteeringError, match="layer 3 holds NaN or infinity"):
            check_edits(edits(torch.full((1, HIDDEN), bad)), HIDDEN)


def test_last_column_comes_from_the_mask_or_else_from_the_cache() -> None:
    ids, cache = torch.zeros(2, 3, dtype=torch.long), DynamicCache()
    assert last_column({"input_ids": ids[:, :1], "attention_mask": torch.ones(2, 7)}) == 7
    assert last_column({"input_ids": ids, "past_key_values": None}) == 3
    assert last_column({"input_ids": ids, "attention_mask": None, "past_key_values": cache}) == 3
    for width in (3, 7):
        mask = torch.ones(2, width)
        assert last_column({"input_ids": ids, "attention_mask": mask, "past_key_values": cache}) == width
    cache.update(torch.zeros(2, 1, 5, 2), torch.zeros(2, 1, 5, 2), 0)
    assert last_column({"input_ids": ids, "past_key_values": cache}) == 8
    assert last_column({"inputs_embeds": torch.zeros(2, 4, HIDDEN), "past_key_values": cache}) == 9
    with pytest.raises(SteeringError, match="neither token ids nor embeddings"):
        last_column({})


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_last_column_reads_the_cache_under_every_name_it_has_had(name: str) -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 5, 2), torch.zeros(2, 1, 5, 2), 0)
    one = torch.zeros(2, 1, dtype=torch.long)
    assert last_column({"input_ids": one, name: cache}, 5) == 6
    with pytest.raises(SteeringError, match="neither an attention mask nor a cache"):
        last_column({"input_ids": one})  # the first prompt token, or a step whose cache has yet another name?
    with pytest.raises(SteeringError, match="neither an attention mask nor a cache"):
        last_column({"input_ids": one, "renamed_once_more": cache}, 5)
    with pytest.raises(SteeringError, match="a cache that does not count its columns"):
        last_column({"input_ids": one, name: DynamicCache()}, 5)


def test_stats_of_two_forwards_add_up() -> None:
    stats, h = EditStats(), torch.full((1, 2, 4), 2.0)
    for _ in range(2):
        stats.add(torch.ones(1, 1, 4), h, torch.tensor([[True, True]]), 5)
    assert stats.totals() == (4, pytest.approx(4 * 0.5))
    assert stats.columns.tolist() == [[0, 0, 0, 2, 2], [0, 0, 0, 1, 1]], "the columns before the last, which is given"
