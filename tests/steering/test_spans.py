"""CONFST spans, one vector per token, against plain hooks: in `generate`, `score` and `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import plain
import pytest
import torch
from fitted import HIDDEN, LAYER, PROMPTS, make_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerlab import (
    Contrast,
    Example,
    MeanDifference,
    MismatchError,
    Model,
    SteeringError,
    capture,
    generate,
    score,
    steer,
    sweep,
)
from steerlab.methods.confst import CONFST
from steerlab.models.layout import blocks

STEPS, ALPHA = 6, 2.5
ANSWERS = ("the reeds", "no, never", "fish by night")
# the prompts have 59, 45 and 89 tokens: "Hi" is too short for the last ones, wholly or for some of their tokens
SPANS = ((2, None), (3, None), (50, None), (1, 7), (3, 0), (3, 44), (4, 46), (4, 57))
MODELS = (("llama", "nnsight"), ("gemma2", "hooks"), ("gpt2", "nnsight"))


def made(span: int, start: int | None, seed: int = 0) -> CONFST:
    """A span's steerer with random vectors, as `fit` leaves it."""
    one = CONFST(LAYER, "a", span=span, start=start)
    one.vectors_ = {"a": torch.randn(span, HIDDEN, generator=torch.Generator().manual_seed(seed))}
    one.info_ = {"hidden_size": HIDDEN}
    return one


def places(span: int, start: int | None, n_prompt: int) -> dict[int, int]:
    """Token by token of a prompt, which of the span's vectors belongs to it."""
    first = n_prompt - span if start is None else start
    return {first + k: k for k in range(span) if 0 <= first + k < n_prompt}


def adding(steering_vectors: Tensor, at: dict[int, int]) -> Callable[[Tensor], Tensor]:
    def change(h: Tensor) -> Tensor:
        h = h.clone()
        for token, k in at.items():
            h[:, token] += ALPHA * steering_vectors[k]
        return h

    return change


@contextmanager
def by_hand(model: Model, one: CONFST, prompt: str) -> Iterator[int]:
    """A plain hook with the vectors of one prompt; gives how many tokens it writes to."""
    at = places(one.span, one.start, plain.chat_ids(model, prompt)[1])
    with plain.hooked(model, LAYER, adding(one.steering_vectors, at)):
        yield len(at)


def said_by_hand(model: Model, one: CONFST, prompt: str) -> tuple[int, ...]:
    with by_hand(model, one, prompt):
        return plain.new_ids(model, prompt, STEPS)


def total(model: Model, span: int, start: int | None) -> int:
    return sum(len(places(span, start, plain.chat_ids(model, prompt)[1])) for prompt in PROMPTS)


# --- generate and score ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS, ids="-".join)
@pytest.mark.parametrize(("span", "start"), SPANS)
def test_each_token_of_a_span_gets_its_vector(lm, family: tuple[str, str], span: int, start: int | None) -> None:
    model, one = lm(*family), made(span, start)
    options: dict[str, Any] = {"steer": one, "alpha": ALPHA}
    scored = score(model, PROMPTS, ANSWERS, **options)
    said = generate(model, PROMPTS, max_new_tokens=STEPS, **options)
    again = generate(model, PROMPTS, max_new_tokens=STEPS, use_cache=False, **options)
    assert again.ids == said.ids
    assert scored.attrs["steered_tokens"] == said.steered_tokens == again.steered_tokens == total(model, span, start)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        with by_hand(model, one, prompt):
            assert scored["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-3)
        assert said.ids[number] == said_by_hand(model, one, prompt)


@settings(max_examples=8)
@given(
    st.integers(1, 60), st.none() | st.integers(0, 90), st.integers(1, 3), st.sampled_from(["all", "last", "prompt"])
)
def test_spans_ignore_batch_size_and_requested_positions(span, start, batch_size: int, positions: str) -> None:
    model = make_lm("llama", "hooks")
    one = made(span, start, seed=span)
    if (start is None and span == 1) or not total(model, span, start):
        return  # no span, or beyond every prompt
    options: dict[str, Any] = {"steer": one, "alpha": ALPHA, "positions": positions, "batch_size": batch_size}
    scored = score(model, PROMPTS, ANSWERS, **options)
    assert scored.attrs["steered_tokens"] == total(model, span, start)
    assert generate(model, PROMPTS, max_new_tokens=2, **options).steered_tokens == total(model, span, start)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        with by_hand(model, one, prompt):
            assert scored["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-3)


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
@pytest.mark.parametrize(("span", "start"), SPANS)
@pytest.mark.parametrize("verb", ["score", "generate"])
def test_states_change_at_the_tokens_of_the_span_only(
    lm, backend: str, span: int, start: int | None, verb: str
) -> None:
    """Read from the input of the next block: the three prompts in one batch, padded on the left."""
    model, one = lm("llama", backend), made(span, start)

    def seen(alpha: float) -> list[Tensor]:
        states: list[Tensor] = []
        handle = blocks(model.hf, model.layout)[LAYER + 1].register_forward_pre_hook(
            lambda _, args: states.append(args[0].detach().clone())
        )
        try:
            if verb == "score":
                score(model, PROMPTS, ANSWERS, steer=one, alpha=alpha)
            else:
                generate(model, PROMPTS, steer=one, alpha=alpha, max_new_tokens=3)
        finally:
            handle.remove()
        return states

    before, after = seen(0.0)[0], seen(ALPHA)[0]
    assert before.shape == after.shape == (3, after.shape[1], HIDDEN)
    answers = [a if verb == "score" else "" for a in ANSWERS]
    lengths = [len(plain.chat_ids(model, p, a)[0]) for p, a in zip(PROMPTS, answers, strict=True)]
    for row, number in enumerate(sorted(range(3), key=lambda i: -lengths[i])):  # batches go by length
        at = places(span, start, plain.chat_ids(model, PROMPTS[number])[1])
        offset = after.shape[1] - lengths[number]
        expected = torch.zeros_like(after[row])
        for token, k in at.items():
            expected[offset + token] = ALPHA * one.steering_vectors[k]
        difference = after[row] - before[row]
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)
        untouched = [c for c in range(after.shape[1]) if c - offset not in at]
        assert not difference[untouched].any()


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_beams_and_sequences_share_the_span_of_their_row(lm, backend: str) -> None:
    model, options = lm("llama", backend), dict(steer=made(3, 44), alpha=ALPHA, max_new_tokens=STEPS, num_beams=3)
    together = generate(model, PROMPTS, **options)
    assert list(together.ids) == [generate(model, [p], **options).ids[0] for p in PROMPTS]
    assert together.steered_tokens == total(model, 3, 44)
    cold = generate(
        model, PROMPTS, steer=made(3, 44), alpha=ALPHA, max_new_tokens=STEPS, do_sample=True, temperature=1e-4,
        num_return_sequences=2,
    )  # fmt: skip
    greedy = generate(model, PROMPTS, steer=made(3, 44), alpha=ALPHA, max_new_tokens=STEPS)
    assert cold.ids == tuple(ids for ids in greedy.ids for _ in range(2))


def test_single_vector_goes_to_the_requested_positions_or_the_prompt(lm) -> None:
    model, one = lm(), made(1, None)
    mean = MeanDifference.from_tensor(LAYER, one.steering_vectors[0])
    for positions in ("all", "last", "last+generated", "prompt"):
        found, wanted = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA, positions=positions) for s in (one, mean))
        assert found.equals(wanted) and found.attrs == wanted.attrs
    assert score(model, PROMPTS, ANSWERS, steer=one, alpha=ALPHA).equals(
        score(model, PROMPTS, ANSWERS, steer=mean, alpha=ALPHA, positions="prompt")
    )


def test_span_and_other_steerers_add_up(lm) -> None:
    model, span = lm(), made(2, None)
    mean = MeanDifference.from_tensor(LAYER, torch.ones(HIDDEN))
    found = score(model, PROMPTS, ANSWERS, steer=[span, mean], alpha=ALPHA, positions="last")
    both = made(2, None)
    both.vectors_ = {"a": span.steering_vectors + torch.tensor([[0.0], [1.0]])}
    with steer(model, both, alpha=ALPHA) as run:
        wanted = run.score(PROMPTS, ANSWERS)
    assert found["logprob"].tolist() == pytest.approx(wanted["logprob"].tolist(), abs=1e-4)
    assert found.attrs["steered_tokens"] == 2 * 3 + 3


def test_span_beyond_every_prompt_is_refused(lm) -> None:
    for act in (lambda **k: generate(lm(), PROMPTS, **k), lambda **k: score(lm(), PROMPTS, ANSWERS, **k)):
        with pytest.raises(SteeringError, match="no token was steered"):
            act(steer=made(2, 89), alpha=ALPHA)
    wide = made(2, None)
    wide.vectors_, wide.info_ = {"a": torch.ones(2, 48)}, {}
    with pytest.raises(MismatchError, match="48"):
        generate(lm(), PROMPTS, steer=wide, max_new_tokens=2)


def test_fit_on_captured_spans_equals_class_mean_difference(lm) -> None:
    model = lm("llama", "hooks")
    words = {"birds": ("heron", "crane", "stork", "egret", "swan"), "fish": ("trout", "carp", "eel", "pike", "perch")}
    rows = [Example(f"{w}{i}", f"{w} {i} {w}", label) for label, ws in words.items() for w in ws for i in range(2)]
    method = CONFST(LAYER, "birds", span=4, threshold=0.0, center="others")
    acts = capture(model, rows, layers=[LAYER], positions=list(method.positions), progress=False)
    fitted = method.fit(acts)
    means = {
        label: torch.stack([acts.select(behavior=label, position=p).at(LAYER).mean(0) for p in method.positions])
        for label in words
    }
    torch.testing.assert_close(fitted.steering_vectors, means["birds"] - means["fish"], rtol=1e-4, atol=1e-5)
    assert generate(model, ["perch"], steer=fitted, max_new_tokens=2).steered_tokens == 4


# --- sweep -------------------------------------------------------------------------------------------------------


def pairs_of(prompts: Sequence[str] = PROMPTS) -> list[Example]:
    return [
        Example(f"q{i}", p, contrast=Contrast("(A)", "(B)", position="first_difference")) for i, p in enumerate(prompts)
    ]


def difference(model: Model, prompt: str) -> float:
    return plain.answer_logprob(model, prompt, "(A)") - plain.answer_logprob(model, prompt, "(B)")


def propensity(model: Model, prompt: str) -> float:
    """The logits of the token after the shared "(" of both answers."""
    ids, _ = plain.chat_ids(model, prompt, "(")
    last = plain.logits(model, ids)[-1]
    a, b = (model.tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in "AB")
    return float(last[a] - last[b])


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
@pytest.mark.parametrize(("metric", "reference"), [("logprob_difference", difference), ("propensity", propensity)])
def test_sweep_of_spans_equals_plain_hooks(lm, backend: str, metric: str, reference) -> None:
    """All spans and a mean vector in one sweep, with shared prefixes and restarts where possible."""
    model, rows = lm("llama", backend), pairs_of()
    methods: dict[str, Any] = {f"{span} from {start}": made(span, start, seed=span) for span, start in SPANS}
    given_: Any = {name: {LAYER: one} for name, one in methods.items()}
    given_["mean"] = {LAYER + 1: MeanDifference.from_tensor(LAYER + 1, torch.ones(HIDDEN))}
    frame = sweep(model, given_, rows, None, (0.0, ALPHA), ["last", "all"], metric, progress=False)
    assert len(frame) == 9 * 2 * 2 * 3
    unsteered = [reference(model, prompt) for prompt in PROMPTS]
    for (name, alpha, _), setting in frame.groupby(["method", "alpha", "positions"]):
        if name == "mean":
            continue
        found = setting.set_index("example_id")["value"]
        for number, prompt in enumerate(PROMPTS):
            with by_hand(model, methods[name], prompt):
                wanted = reference(model, prompt) if alpha else unsteered[number]
            assert found[f"q{number}"] == pytest.approx(wanted, abs=1e-3), (name, alpha, prompt)
    clipped = frame[(frame["alpha"] != 0) & (frame["method"] == "3 from 44")].groupby("example_id")["value"].first()
    assert all(abs(clipped[f"q{i}"] - unsteered[i]) > 1e-3 for i in range(3)), "a clipped span still has an effect"


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_sweep_of_spans_equals_score_at_any_batch_size(lm, batch_size: int | None) -> None:
    model, rows = lm(), pairs_of([*PROMPTS, "Do fish sleep at all by night, or do they not?", "Why?"])
    methods: dict[str, Any] = {
        "tail": made(3, None), "head": made(3, 0), "clipped": made(4, 44), "beyond the second": made(4, 46),
    }  # fmt: skip
    given_: Any = {name: {LAYER: one} for name, one in methods.items()}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    frame = sweep(model, given_, rows, None, (-1.0, 2.0), "all", "logprob_difference", **options)
    for (name, alpha), setting in frame.groupby(["method", "alpha"]):
        with steer(model, methods[name], alpha=alpha) as run:
            plus, minus = (run.score(rows, [answer] * len(rows))["logprob"] for answer in ("(A)", "(B)"))
        assert setting["value"].tolist() == pytest.approx((plus - minus).tolist(), abs=1e-3), (name, alpha)


def test_sweep_of_generated_texts_equals_generate(lm) -> None:
    model, rows, generated = lm(), pairs_of(), []
    methods: dict[str, Any] = {f"{span} from {start}": made(span, start) for span, start in SPANS}
    given_: Any = {name: {LAYER: one} for name, one in methods.items()}

    def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        generated.append(list(texts))
        return [float(len(text)) for text in texts]

    generation = {"max_new_tokens": STEPS}
    sweep(model, given_, rows, None, (ALPHA,), "last", length, generation=generation, progress=False)
    assert generated == [list(generate(model, rows, steer=s, alpha=ALPHA, **generation)) for s in methods.values()]


def test_sweep_of_a_span_beyond_every_prompt_is_refused(lm) -> None:
    model, rows = lm(), pairs_of()
    for metric in ("logprob_difference", lambda examples, texts: [0.0] * len(texts)):
        with pytest.raises(SteeringError, match=r"prompt\[900\].*none of the 3 prompts is that long"):
            sweep(model, {"span": {LAYER: made(2, 900)}}, rows, None, (ALPHA,), "all", metric, progress=False)


def test_sweep_of_two_position_masks_is_refused(lm) -> None:
    model, rows = lm(), pairs_of()
    masks = [torch.zeros(3, 30, dtype=torch.bool).index_fill(1, torch.tensor([k]), True) for k in (3, 20)]
    mean = MeanDifference.from_tensor(LAYER, torch.ones(32))
    with pytest.raises(SteeringError, match=r"\['mask'\] were given more than once"):
        sweep(model, mean, rows, None, (ALPHA,), masks, progress=False)
