"""`score` equals a plain forward and a log-softmax, steered and unsteered."""

from __future__ import annotations

import plain
import pytest
import torch
from fitted import HIDDEN, LAYER, PROMPTS

from steerlab import DataError, MeanDifference, Model, generate, score
from steerlab.testing import FAMILIES

ANSWERS = ("the reeds", "no", "fish, and in the reeds by night, mostly")
ALPHA = 2.0


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_log_softmax(lm, family: str) -> None:
    model = lm(family)
    frame = score(model, PROMPTS, ANSWERS)
    expected = [plain.answer_logprob(model, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert frame["logprob"].tolist() == pytest.approx(expected, abs=1e-4)
    assert frame["example_id"].tolist() == ["0", "1", "2"]
    assert frame["n_tokens"].tolist() == [len(model.tokenizer(a, add_special_tokens=False).input_ids) for a in ANSWERS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", list(plain.COLUMNS))
def test_steered_equals_a_plain_hook(lm, steerers, family: str, positions: str) -> None:
    model, table = lm(family), steerers(family)["p2s"]
    found = score(model, PROMPTS, ANSWERS, steer=table, alpha=ALPHA, positions=positions)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, n = plain.chat_ids(model, prompt, answer)
        change = plain.adding(ALPHA * table.table_[number], plain.COLUMNS[positions](n, len(ids)))
        with plain.hooked(model, LAYER, change):
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-4)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_batch_equals_single_rows(lm, steerers, backend: str) -> None:
    model = lm("gemma2", backend)
    options = dict(steer=steerers("gemma2")["p2s"], alpha=ALPHA)
    together = score(model, PROMPTS, ANSWERS, **options)
    for size in (1, 2):
        separate = score(model, PROMPTS, ANSWERS, batch_size=size, **options)
        assert separate["logprob"].tolist() == pytest.approx(together["logprob"].tolist(), abs=1e-5)
        assert separate.attrs["steered_tokens"] == together.attrs["steered_tokens"]


def test_generated_and_answer_are_the_same_tokens(lm, steerers) -> None:
    options = dict(steer=steerers("llama")["p2s"], alpha=ALPHA)
    one, other = (score(lm(), PROMPTS, ANSWERS, positions=p, **options) for p in ("generated", "answer"))
    assert one.equals(other) and one.attrs == other.attrs
    assert one.attrs["steered_tokens"] == one["n_tokens"].sum()


def test_greedy_is_the_share_of_argmax_tokens(lm, steerers) -> None:
    """The answers are the first tokens that the steered model generates, so the shares are not all 0."""
    model, options = lm(), dict(steer=steerers("llama")["mean"], alpha=ALPHA)
    prompts = [f"{p}{end}" for p in PROMPTS for end in ("", "?", "!", " no")]
    answers = [text or "z" for text in generate(model, prompts, max_new_tokens=1, **options)]
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, n = plain.chat_ids(model, prompt, answer)
        with plain.hooked(model, LAYER, plain.adding(ALPHA * options["steer"].vector_, range(len(ids)))):
            first = plain.logits(model, ids).argmax(-1)[n - 1 : -1].tolist()
        expected.append(sum(a == b for a, b in zip(first, ids[n:], strict=True)) / len(first))
    assert max(expected) == 1 and min(expected) < 1
    assert score(model, prompts, answers, **options)["greedy"].tolist() == expected


def test_positive_alpha_makes_the_target_token_likelier(lm) -> None:
    """The vector is the head's direction of a token, added at the last layer."""
    model: Model = lm("llama")
    token = model.tokenizer("z", add_special_tokens=False).input_ids[0]
    towards = MeanDifference.from_tensor(model.n_layers - 1, model.hf.lm_head.weight[token].clone())
    down, plain_, up = (score(model, ["Hi"], ["z"], steer=towards, alpha=a)["logprob"][0] for a in (-3.0, 0.0, 3.0))
    assert down < plain_ < up


def test_invalid_answers_are_refused(lm) -> None:
    with pytest.raises(DataError, match="3 prompts but 2 answers"):
        score(lm(), PROMPTS, ANSWERS[:2])
    with pytest.raises(DataError, match=r"\['1'\] are empty"):
        score(lm(), PROMPTS, ["a", "", "b"])
    with pytest.raises(DataError, match="empty"):
        score(lm(), [], [])
    with pytest.raises(DataError, match="shape"):
        MeanDifference.from_tensor(LAYER, torch.zeros(1, HIDDEN))
