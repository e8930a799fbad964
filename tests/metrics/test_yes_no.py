"""Yes and no from logits, and answers that did not change."""

from __future__ import annotations

import pytest
import torch

from steerlab._support.errors import DataError
from steerlab.metrics import pope_scores, yes_no_ids, yes_no_logits
from steerlab.testing import tiny_tokenizer


class Words:
    """A tokenizer that knows some words and spells out the others."""

    unk_token_id = 0

    def __init__(self, *words: str) -> None:
        self.words = {word: i for i, word in enumerate(words, start=1)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [self.words[text]] if text in self.words else [100 + ord(c) for c in text]
        return [99, *ids] if add_special_tokens else ids


def test_ids_are_those_of_single_tokens_in_any_spelling() -> None:
    tokenizer = Words("no", " Yes", "yes", "Yesterday", "NO", "Yes,")
    assert yes_no_ids(tokenizer) == ((2, 3), (1, 5))


def test_a_tokenizer_without_the_words_is_refused() -> None:
    with pytest.raises(DataError, match="no single token for 'no'"):
        yes_no_ids(Words("yes"))
    with pytest.raises(DataError, match="no single token for 'yes'"):
        yes_no_ids(tiny_tokenizer())


def test_an_unknown_token_is_no_answer() -> None:
    tokenizer = Words()
    tokenizer.words = {" Yes": 0, "Yes": 0, " No": 0}
    with pytest.raises(DataError, match="no single token"):
        yes_no_ids(tokenizer)


def test_margin_is_the_log_odds_of_all_variants() -> None:
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 3
    read = yes_no_logits(logits.to(torch.bfloat16), yes=[1, 4], no=[2])
    shares = logits.to(torch.bfloat16).double().softmax(1)
    expected = ((shares[:, 1] + shares[:, 4]) / shares[:, 2]).log()
    assert torch.allclose(torch.from_numpy(read.margin), expected)
    assert read.answers == ["yes" if value > 0 else "no" for value in expected]
    assert pope_scores(read.answers, read.answers).parse_failures == 0


def test_sides_swap_and_shifts_do_not_matter() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = yes_no_logits(logits, [0, 1], [2, 3]).margin
    assert one == pytest.approx(-yes_no_logits(logits, [2, 3], [0, 1]).margin)
    assert one == pytest.approx(yes_no_logits(logits + 50, [0, 0, 1], [2, 3]).margin)


def test_equal_logits_are_a_no() -> None:
    assert yes_no_logits(torch.zeros(1, 2), [0], [1]).answers == ["no"]


@pytest.mark.parametrize(
    ("logits", "yes", "no", "message"),
    [
        (torch.zeros(0, 3), [0], [1], "one row of logits"),
        (torch.zeros(1, 3), [], [1], "expected some for each"),
        (torch.zeros(1, 3), [0, 1], [1], "none for both"),
        (torch.zeros(1, 3), [3], [1], r"the ids \[3\] are outside the 3 logits"),
        (torch.zeros(1, 3), [-1], [1], "outside"),
        (torch.tensor([[0.0, torch.nan, 0.0]]), [0], [1], "NaN"),
        (torch.full((1, 3), -torch.inf), [0], [1], "every yes- and no-token"),
    ],
)
def test_bad_input_is_refused(logits: torch.Tensor, yes: list[int], no: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        yes_no_logits(logits, yes, no)


def test_a_masked_other_token_is_fine() -> None:
    assert yes_no_logits(torch.tensor([[1.0, 0.0, torch.inf]]), [0], [1]).answers == ["yes"]
