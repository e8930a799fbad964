"""From a padded batch to vLLM's requests and back, without vLLM."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from steerlab.capturing.rows import TokenSelector
from steerlab.errors import LayoutError, RemoteError
from steerlab.models._nnsight.traces import Visit
from steerlab.models._nnsight.vllm_requests import check_answers, copy_stats, join_states, make_requests
from steerlab.models._nnsight.vllm_traces import RowRequest, _input_parts, capture_states
from steerlab.models.engine import StateSelector, identity
from steerlab.models.interventions import Edit, apply_edits
from steerlab.models.sites import Site

IDS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3], [0, 4, 2, 1]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
SOME = torch.tensor([True, False, True])


def visits_of(*edits: Edit, select: StateSelector | None = None) -> list[Visit]:
    return [Visit("model.layers.0", False, Site(0), edits, select)]


def requests_of(visits: list[Visit]) -> list[RowRequest]:
    return make_requests({"input_ids": IDS, "attention_mask": MASK}, visits, capture_states, "embed", {})


def part_of(h: Tensor, row: RowRequest) -> Tensor:
    return h[row.number : row.number + 1, row.offset :]


def masked_edit() -> Edit:
    prompt = MASK.bool() & torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]).bool()
    return Edit(torch.randn(3, 8), prompt, True, row_mask=SOME)


def in_flight_edit() -> Edit:
    factors, last = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3, 3, 3])
    return Edit(None, MASK.bool(), False, lambda h: 2 * h, last, strengths=factors)


def test_a_request_has_the_tokens_of_its_row() -> None:
    made = [(row.number, row.ids, row.offset) for row in requests_of(visits_of(select=identity))]
    assert made == [(0, [5, 6], 2), (1, [7, 8, 9, 3], 0), (2, [4, 2, 1], 1)]


@pytest.mark.parametrize(("make", "columns"), [(masked_edit, 6), (in_flight_edit, 4)])
def test_edits_of_rows_equal_the_edits_of_the_batch(make, columns: int) -> None:
    """Six columns: two new ones after the four of the prompt."""
    torch.manual_seed(0)
    h, edit = torch.randn(3, columns, 8), make()
    rows, padded = requests_of(visits := visits_of(edit)), apply_edits([edit], h, columns)
    (writes, ratio), by_column = edit.stats.rows(), edit.stats.columns
    answers = []
    for row in rows:
        ((_, own),) = row.edits
        alone = apply_edits(row.visits[0].edits, part_of(h, row), columns - row.offset)
        assert torch.equal(alone[0], part_of(padded, row)[0])
        answers.append({"stats": {0: own.stats.totals()}, "columns": {0: own.stats.columns}})
    copy_stats(visits, answers, rows)
    assert torch.equal(edit.stats.rows()[0], writes)
    torch.testing.assert_close(edit.stats.rows()[1], ratio)
    torch.testing.assert_close(edit.stats.columns, by_column)


def test_edits_that_never_write_are_left_out() -> None:
    edit = Edit(torch.randn(3, 8), torch.zeros(3, 4, dtype=torch.bool), True, row_mask=SOME)
    rows = requests_of(visits_of(edit))
    assert [len(row.edits) for row in rows] == [len(row.visits) for row in rows] == [1, 0, 1]


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [2, 1, 2]])
def test_selections_from_rows_equal_the_selection_from_the_batch(lengths: list[int]) -> None:
    places = torch.tensor([[0, 2], [0, 3], [1, 0], [2, 1], [2, 3]])
    selector = TokenSelector(places[:, 0], places[:, 1], torch.tensor(lengths), torch.float32)
    h = torch.randn(3, 4, 8)
    rows = requests_of(visits_of(select=selector))
    found = [torch.stack([row.visits[0].select(part_of(h, row))] * 2, 1) for row in rows]
    assert torch.equal(join_states(found, rows, selector, 4), torch.stack([selector(h)] * 2, 1))


def test_whole_rows_are_padded_again() -> None:
    h = torch.randn(3, 4, 8) * MASK[:, :, None]
    rows = requests_of(visits_of(select=identity))
    found = [row.visits[0].select(part_of(h, row))[:, None] for row in rows]
    assert torch.equal(join_states(found, rows, identity, 4)[:, 0], h)


@pytest.mark.parametrize("swapped", ["number", "ids", "cut short"])
def test_the_answer_to_another_request_is_refused(swapped: str) -> None:
    rows = requests_of(visits_of(select=identity))
    answers = [{"number": row.number, "ids": row.ids, "stats": {}} for row in rows]
    check_answers(answers, rows)
    if swapped == "cut short":
        del answers[1]["stats"]
    else:
        answers[0][swapped], answers[1][swapped] = answers[1][swapped], answers[0][swapped]
    with pytest.raises(RemoteError, match="mixed up") as caught:
        check_answers(answers, rows)
    assert caught.value.kind == "execution"
    with pytest.raises(RemoteError, match="2 answers"):
        check_answers(answers[:2], rows)


def test_heads_that_are_split_over_devices_are_refused() -> None:
    """Head 3 of a part is another head of the whole."""
    given = SimpleNamespace(inputs=((torch.ones(5, 8),), {}), _module=SimpleNamespace(input_size=16))
    visit = Visit("model.layers.1.self_attn.o_proj", True, Site(1, "heads"), (), identity)
    with pytest.raises(LayoutError, match=r"vLLM has split 1\.heads over devices: only 8 numbers"):
        _input_parts(SimpleNamespace(get=lambda path: given), visit)
    given._module.input_size = 8
    assert _input_parts(SimpleNamespace(get=lambda path: given), visit)[0] is given.inputs[0][0]
