"""Who is about to say neither yes nor no: counted by first-token logits, beside the answer they are forced to."""

from __future__ import annotations

import pytest
import torch

import steerlab
from steerlab import DataError, MeanDifference
from steerlab.metrics import yes_no_logits
from steerlab.testing import tiny_lm

PROMPTS = ["Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep?"]


def test_rows_whose_likeliest_token_is_neither_are_counted_and_answered_all_the_same() -> None:
    logits = torch.tensor([[2.0, 1.0, 5.0, 0.0], [0.0, 3.0, 0.0, 3.0], [1.0, 2.0, 0.0, -9.0]])
    read = yes_no_logits(logits, yes=[0], no=[1])
    assert read.neither.tolist() == [True, False, False] and read.parse_failures == 1
    assert read.answers == ["yes", "no", "no"]


def test_the_rest_is_the_largest_of_all_others() -> None:
    model = tiny_lm("llama", backend="hooks")
    whole = steerlab.next_token_logits(model, PROMPTS)
    best = whole.argmax(1).tolist()
    found = steerlab.next_token_logits(model, PROMPTS, [best[0], 3], max_other=True, batch_size=2)
    assert torch.equal(found[:, :2], whole[:, [best[0], 3]])
    others = torch.tensor([t for t in range(whole.shape[1]) if t not in (best[0], 3)])
    assert torch.equal(found[:, 2], whole[:, others].amax(1))
    with pytest.raises(DataError, match="rest=True was asked for the whole vocabulary"):
        steerlab.next_token_logits(model, PROMPTS, max_other=True)


@pytest.mark.parametrize("steered", [False, True])
def test_who_says_neither_yes_nor_no_is_who_generates_neither(steered: bool) -> None:
    """Read from three columns, from the whole vocabulary, and from the first generated token."""
    model = tiny_lm("llama", backend="hooks")
    vector = MeanDifference.from_tensor(1, 3 * torch.randn(32, generator=torch.Generator().manual_seed(0)))
    asked = {"steer": vector, "positions": "last"} if steered else {"steer": ()}
    first = [row[0] for row in steerlab.generate(model, PROMPTS, max_new_tokens=1, **asked).ids]
    yes, no = [first[0], 5], [6]
    few = steerlab.next_token_logits(model, PROMPTS, [*yes, *no], max_other=True, **asked)
    read = yes_no_logits(few, range(2), range(2, 3))
    assert read.neither.tolist() == [token not in (*yes, *no) for token in first] and 0 < read.parse_failures < 3
    whole = yes_no_logits(steerlab.next_token_logits(model, PROMPTS, **asked), yes, no)
    assert whole.neither.tolist() == read.neither.tolist() and whole.answers == read.answers
    assert yes_no_logits(few[:, :3], range(2), range(2, 3)).parse_failures == 0, "forced to choose"
