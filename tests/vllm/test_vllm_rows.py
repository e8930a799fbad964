"""From a padded batch to requests and back, without any engine."""

from __future__ import annotations

import pytest
import torch

from steerlab import RemoteError
from steerlab.capture.jobs import TokenSelector
from steerlab.models._nnsight.vllm_rows import check_answers, put_back, rows_of
from steerlab.models._nnsight.vllm_traces import Row, read
from steerlab.models.interventions import Edit, apply_edits
from steerlab.models.sites import Site

IDS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3], [0, 4, 2, 1]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


def rows(select=lambda h: h) -> list[Row]:
    return rows_of(INPUTS, [], {}, [], select, read, "embed")


def edit(generated: bool = True) -> Edit:
    prompt = MASK.bool() & torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]).bool()
    return Edit(torch.randn(3, 8), prompt, generated, row_mask=torch.tensor([True, False, True]))


def test_a_row_is_its_own_tokens() -> None:
    made = [(row.number, row.ids, row.offset) for row in rows()]
    assert made == [(0, [5, 6], 2), (1, [7, 8, 9, 3], 0), (2, [4, 2, 1], 1)]


def test_a_rows_edit_does_to_the_row_what_the_batchs_does_to_the_batch() -> None:
    torch.manual_seed(0)
    h, whole = torch.randn(3, 6, 8), edit()  # two new columns after the prompt's four
    padded = apply_edits([whole], h, 6)
    for row in rows():
        own = whole.row(row.number, row.offset, 4)
        alone = apply_edits([own], h[row.number : row.number + 1, row.offset :], 6 - row.offset)
        assert torch.equal(alone[0], padded[row.number, row.offset :])
        assert own.stats.totals()[0] == int(whole.stats.rows()[0][row.number])


def test_an_edit_that_never_writes_is_left_out() -> None:
    shut = Edit(
        torch.randn(3, 8), torch.zeros(3, 4, dtype=torch.bool), True, row_mask=torch.tensor([True, False, True])
    )
    assert [shut.row(i, 0, 4).idle for i in range(3)] == [False, True, False]
    made = rows_of(INPUTS, [], {Site(0): [shut]}, [], lambda h: h, read, "embed")
    assert [len(row.edits) for row in made] == [1, 0, 1]


def test_an_in_flight_edit_asks_about_its_own_row() -> None:
    factors = torch.tensor([[1.0], [2.0], [3.0]])
    flight = Edit(None, MASK.bool(), False, lambda h: factors * h, torch.tensor([3, 3, 3]))
    h = torch.randn(3, 4, 8)
    padded = apply_edits([flight], h, 4)
    for row in rows():
        own = flight.row(row.number, row.offset, 4)
        alone = apply_edits([own], h[row.number : row.number + 1, row.offset :], 4 - row.offset)
        assert torch.equal(alone[0], padded[row.number, row.offset :])


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [2, 1, 2]])
def test_what_is_selected_row_by_row_is_what_is_selected_of_the_batch(lengths: list[int]) -> None:
    places = torch.tensor([[0, 2], [0, 3], [1, 0], [2, 1], [2, 3]])
    selector = TokenSelector(places[:, 0], places[:, 1], torch.tensor(lengths), torch.float32)
    h = torch.randn(3, 4, 8)
    made = rows(selector)
    found = [
        torch.stack([selector.row(r.number, r.offset)[0](h[r.number : r.number + 1, r.offset :])] * 2, 1) for r in made
    ]
    assert torch.equal(put_back(found, made, selector, 4), torch.stack([selector(h)] * 2, 1))


def test_whole_rows_are_padded_again() -> None:
    h = torch.randn(3, 4, 8) * MASK[:, :, None]
    made = rows()
    found = [h[r.number : r.number + 1, r.offset :][:, None] for r in made]
    assert torch.equal(put_back(found, made, lambda x: x, 4)[:, 0], h)


@pytest.mark.parametrize("swapped", ["numbers", "ids", "cut short"])
def test_an_answer_of_another_row_is_refused(swapped: str) -> None:
    made = rows()
    answers = [{"number": r.number, "ids": r.ids, "stats": []} for r in made]
    check_answers(answers, made)
    if swapped == "cut short":
        del answers[1]["stats"]
    else:
        key = swapped.removesuffix("s") if swapped == "numbers" else swapped
        answers[0][key], answers[1][key] = answers[1][key], answers[0][key]
    with pytest.raises(RemoteError, match="mixed up") as caught:
        check_answers(answers, made)
    assert caught.value.kind == "code"
    with pytest.raises(RemoteError, match="2 answers"):
        check_answers(answers[:2], made)
