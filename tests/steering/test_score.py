"""`score` equals a plain forward and a log-softmax, steered and unsteered."""

from typing import Any

import plain
import pytest
import torch
from fitted import HIDDEN, IDS, LAYER, PROMPTS, make_lm, make_steerers

from steerlab import Contrast, Example, SteeringVector, generate, score, sweep
from steerlab.analysis.calibration import measure_dose
from steerlab.analysis.token_effects import token_effects
from steerlab.errors import DataError, PositionError
from steerlab.models.model import Model
from steerlab.models.positions import Match, resolve
from steerlab.testing import FAMILIES, tiny_lm

ANSWERS = ("the reeds", "no", "fish, and in the reeds by night, mostly")
ALPHA = 2.0


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_log_softmax(family: str) -> None:
    model = make_lm(family)
    frame = score(model, PROMPTS, ANSWERS)
    expected = [plain.answer_logprob(model, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert frame["logprob"].tolist() == pytest.approx(expected, abs=1e-4)
    assert frame["example_id"].tolist() == list(IDS)
    assert frame["n_tokens"].tolist() == [len(model.tokenizer(a, add_special_tokens=False).input_ids) for a in ANSWERS]


def test_generated_and_answer_are_the_same_tokens() -> None:
    options = dict(steer=make_steerers("llama")["p2s"], alpha=ALPHA)
    one, other = (score(make_lm(), PROMPTS, ANSWERS, positions=p, **options) for p in ("generated", "answer"))
    assert one.equals(other) and one.attrs == other.attrs
    assert one.attrs["steered_tokens"] == one["n_tokens"].sum()


def test_greedy_is_the_share_of_argmax_tokens() -> None:
    """The answers are the first tokens that the steered model generates, so the shares are not all 0."""
    model, options = make_lm(), dict(steer=make_steerers("llama")["mean"], alpha=ALPHA)
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


def test_positive_alpha_makes_the_target_token_likelier() -> None:
    """The vector is the head's direction of a token, added at the last layer."""
    model: Model = make_lm("llama")
    token = model.tokenizer("z", add_special_tokens=False).input_ids[0]
    towards = SteeringVector({model.n_layers - 1: model.hf.lm_head.weight[token].clone()})
    down, plain_, up = (score(model, ["Hi"], ["z"], steer=towards, alpha=a)["logprob"][0] for a in (-3.0, 0.0, 3.0))
    assert down < plain_ < up


COUNTED = [(-1, "last"), (slice(-1, None), "last"), (slice(None), "prompt"), (slice(0, 999), "prompt")]


@pytest.mark.parametrize(("places", "name"), [*COUNTED, (Match("T"), "prompt[{}]")])
def test_counted_places_are_the_prompts_as_while_generating(places: Any, name: str) -> None:
    """An answer that is given is no place to count to: `generate` counts before there is one."""
    model, prompts, vector = tiny_lm("llama"), ["HeyTo"], SteeringVector({1: torch.ones(32)})
    (first,) = resolve(Match("T"), model.encode("HeyTo"))
    assert len(resolve(Match("T"), model.encode("HeyTo", answer="To tell"))) == 2
    row = Example("HeyTo", Contrast("To tell", "No"))

    def found(positions: Any) -> list[Any]:
        given: dict[str, Any] = {"steer": vector, "positions": positions}
        texts = generate(model, prompts, max_new_tokens=4, **given).ids
        dose = measure_dose(model, prompts, vector, positions=positions, max_new_tokens=4)
        swept = sweep(model, [row], vector, positions=positions, metric="logprob", progress=False)
        scored = score(model, prompts, ["To tell"], **given)["logprob"].tolist()
        return [texts, dose.kl, swept["value"].tolist(), scored, token_effects(model, prompts, texts, **given)]

    assert found(places) == found(name.format(first))
    n = len(model.encode("HeyTo"))
    with pytest.raises(PositionError, match=f"marks token {n} of a row of {n} tokens"):
        score(model, prompts, ["To tell"], steer=vector, positions=torch.arange(n + 1)[None] == n)


def test_invalid_answers_are_refused() -> None:
    with pytest.raises(DataError, match="3 prompts but 2 answers"):
        score(make_lm(), PROMPTS, ANSWERS[:2])
    with pytest.raises(DataError, match=r"number \[1\] \(from 0\) are empty"):
        score(make_lm(), PROMPTS, ["a", "", "b"])
    with pytest.raises(DataError, match="empty"):
        score(make_lm(), [], [])
    with pytest.raises(DataError, match="shape"):
        SteeringVector({LAYER: torch.zeros(1, HIDDEN)})
