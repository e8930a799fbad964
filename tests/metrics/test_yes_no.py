"""Yes/no answers from first-token logits."""

import pytest
import torch

import steerlab
from steerlab import SteeringVector
from steerlab.errors import DataError
from steerlab.metrics import pope_scores, yes_no_ids, yes_no_logits
from steerlab.testing import tiny_lm, tiny_tokenizer

PROMPTS = ["Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep?"]


class Words:
    """A tokenizer that knows some words and spells out the others."""

    unk_token_id = 0

    def __init__(self, *words: str) -> None:
        self.words = {word: i for i, word in enumerate(words, start=1)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [self.words[text]] if text in self.words else [100 + ord(c) for c in text]
        return [99, *ids] if add_special_tokens else ids


def test_ids_are_single_tokens_in_any_spelling() -> None:
    assert yes_no_ids(Words("no", " Yes", "yes", "Yesterday", "NO", "Yes,")) == ((2, 3), (1, 5))


def test_tokenizers_without_the_words_are_refused() -> None:
    unknown = Words()
    unknown.words = {" Yes": 0, "Yes": 0, " No": 0}
    for tokenizer, word in ((Words("yes"), "'no'"), (tiny_tokenizer(), "'yes'"), (unknown, "")):
        with pytest.raises(DataError, match=f"no single token for {word}"):
            yes_no_ids(tokenizer)


def test_margin_is_the_log_odds_summed_over_variants() -> None:
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 3
    read = yes_no_logits(logits.to(torch.bfloat16), yes=[1, 4], no=[2])
    shares = logits.to(torch.bfloat16).double().softmax(1)
    expected = ((shares[:, 1] + shares[:, 4]) / shares[:, 2]).log()
    assert torch.allclose(torch.from_numpy(read.margin), expected)
    assert read.answers == ["yes" if value > 0 else "no" for value in expected]
    assert pope_scores(read.answers, read.answers).parse_failures == 0


def test_margin_is_antisymmetric_and_independent_of_shifts() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = yes_no_logits(logits, [0, 1], [2, 3]).margin
    assert one == pytest.approx(-yes_no_logits(logits, [2, 3], [0, 1]).margin)
    assert one == pytest.approx(yes_no_logits(logits + 50, [0, 0, 1], [2, 3]).margin)
    assert yes_no_logits(torch.zeros(1, 2), [0], [1]).answers == ["no"]


def test_infinite_logit_of_another_token_is_accepted() -> None:
    assert yes_no_logits(torch.tensor([[1.0, 0.0, torch.inf]]), [0], [1]).answers == ["yes"]


def test_rows_with_neither_yes_nor_no_as_likeliest_token_are_counted() -> None:
    logits = torch.tensor([[2.0, 1.0, 5.0, 0.0], [0.0, 3.0, 0.0, 3.0], [1.0, 2.0, 0.0, -9.0]])
    read = yes_no_logits(logits, yes=[0], no=[1])
    assert read.neither.tolist() == [True, False, False] and read.parse_failures == 1
    assert read.answers == ["yes", "no", "no"]


@pytest.mark.parametrize("steered", [False, True])
def test_neither_agrees_with_the_first_generated_token(steered: bool) -> None:
    """Read from three columns, from the whole vocabulary, and from the first generated token."""
    model = tiny_lm("llama", backend="hooks")
    vector = SteeringVector({1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))})
    options = {"steer": vector, "positions": "last"} if steered else {"steer": ()}
    first = [row[0] for row in steerlab.generate(model, PROMPTS, max_new_tokens=1, **options).ids]
    yes, no = [first[0], 5], [6]
    few = steerlab.next_token_logits(model, PROMPTS, [*yes, *no], max_other=True, **options)
    read = yes_no_logits(few, range(2), range(2, 3))
    assert read.neither.tolist() == [token not in (*yes, *no) for token in first] and 0 < read.parse_failures < 3
    whole = yes_no_logits(steerlab.next_token_logits(model, PROMPTS, **options), yes, no)
    assert whole.neither.tolist() == read.neither.tolist() and whole.answers == read.answers
    assert yes_no_logits(few[:, :3], range(2), range(2, 3)).parse_failures == 0, "forced to choose"


def test_max_other_is_the_maximum_over_the_other_tokens() -> None:
    model = tiny_lm("llama", backend="hooks")
    whole = steerlab.next_token_logits(model, PROMPTS)
    best = whole.argmax(1).tolist()
    found = steerlab.next_token_logits(model, PROMPTS, [best[0], 3], max_other=True, batch_size=2)
    others = torch.tensor([t for t in range(whole.shape[1]) if t not in (best[0], 3)])
    wanted = torch.cat([whole[:, [best[0], 3]], whole[:, others].amax(1, keepdim=True)], 1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6), "batches of other sizes are rounded differently"
    with pytest.raises(DataError, match="needs tokens"):
        steerlab.next_token_logits(model, PROMPTS, max_other=True)
