"""CONFST spans, one vector per token, against plain hooks: in `generate`, `score` and `sweep`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import plain
import pytest
import torch
from comparisons import check_copies, check_hooks
from fitted import ANSWERS, HIDDEN, LAYER, PROMPTS, STEPS, backends, make_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from nightly import by_day
from torch import Tensor

from steerlab import Contrast, Example, Request, SteeringVector, capture, generate, score, steer, sweep
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods import Context, Intervention
from steerlab.methods.confst import CONFST
from steerlab.models.layout import blocks
from steerlab.models.model import Model
from steerlab.models.positions import Match

ALPHA = 2.5
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


def by_hand(model: Model, one: CONFST, prompt: str, alpha: float = ALPHA) -> AbstractContextManager:
    """A plain hook with the vectors of one prompt."""
    at = places(one.span, one.start, plain.chat_ids(model, prompt)[1])
    return plain.hooked(model, LAYER, plain.adding(alpha * one.steering_vectors[list(at.values())], list(at)))


def total(model: Model, span: int, start: int | None) -> int:
    return sum(len(places(span, start, plain.chat_ids(model, prompt)[1])) for prompt in PROMPTS)


@pytest.mark.parametrize("family", MODELS, ids="-".join)
@pytest.mark.parametrize(("span", "start"), SPANS)
def test_each_token_of_a_span_gets_its_vector(family: tuple[str, str], span: int, start: int | None) -> None:
    model, one = make_lm(*family), made(span, start)
    scored, found, _ = check_hooks(model, Request(one, ALPHA), lambda _, prompt: [by_hand(model, one, prompt)])
    assert scored.attrs["steered_tokens"] == found.steered_tokens == total(model, span, start)


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


@backends
@pytest.mark.parametrize(("span", "start"), SPANS)
@pytest.mark.parametrize("verb", ["score", "generate"])
def test_states_change_at_the_tokens_of_the_span_only(backend: str, span: int, start: int | None, verb: str) -> None:
    """Read from the input of the next block: the three prompts in one batch, padded on the left."""
    model, one = make_lm("llama", backend), made(span, start)

    def seen(alpha: float) -> list[Tensor]:
        states: list[Tensor] = []
        with blocks(model.hf, model.layout)[LAYER + 1].register_forward_pre_hook(
            lambda _, args: states.append(args[0].detach().clone())
        ):
            if verb == "score":
                score(model, PROMPTS, ANSWERS, steer=one, alpha=alpha)
            else:
                generate(model, PROMPTS, steer=one, alpha=alpha, max_new_tokens=3)
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
        torch.testing.assert_close(after[row] - before[row], expected, rtol=0, atol=1e-5)
        assert torch.equal(after[row][~expected.any(-1)], before[row][~expected.any(-1)])


@backends
def test_beams_and_sequences_share_the_span_of_their_row(backend: str) -> None:
    model = make_lm("llama", backend)
    assert check_copies(model, Request(made(3, 44), ALPHA)).steered_tokens == 2 * total(model, 3, 44)


def test_single_vector_goes_to_the_requested_positions_or_the_prompt() -> None:
    model, one = make_lm(), made(1, None)
    mean = SteeringVector({LAYER: one.steering_vectors[0]})
    for positions in ("all", "last", "last+generated", "prompt", None):
        found = score(model, PROMPTS, ANSWERS, steer=one, alpha=ALPHA, positions=positions)
        wanted = score(model, PROMPTS, ANSWERS, steer=mean, alpha=ALPHA, positions=positions or "prompt")
        assert found.equals(wanted) and found.attrs == wanted.attrs


def test_span_and_other_steerers_add_up() -> None:
    model, span = make_lm(), made(2, None)
    mean = SteeringVector({LAYER: torch.ones(HIDDEN)})
    found = score(model, PROMPTS, ANSWERS, steer=[span, mean], alpha=ALPHA, positions="last")
    both = made(2, None)
    both.vectors_ = {"a": span.steering_vectors + torch.tensor([[0.0], [1.0]])}
    with steer(model, both, alpha=ALPHA) as run:
        wanted = run.score(PROMPTS, ANSWERS)
    assert found["logprob"].tolist() == pytest.approx(wanted["logprob"].tolist(), abs=1e-4)
    assert found.attrs["steered_tokens"] == 2 * 3 + 3


def test_span_beyond_every_prompt_is_refused() -> None:
    for act in (lambda **k: generate(make_lm(), PROMPTS, **k), lambda **k: score(make_lm(), PROMPTS, ANSWERS, **k)):
        with pytest.raises(SteeringError, match="no token was steered"):
            act(steer=made(2, 89), alpha=ALPHA)
    wide = made(2, None)
    wide.vectors_, wide.info_ = {"a": torch.ones(2, 48)}, {}
    with pytest.raises(MismatchError, match="48"):
        generate(make_lm(), PROMPTS, steer=wide, max_new_tokens=2)


def test_fit_on_captured_spans_equals_class_mean_difference() -> None:
    model = make_lm("llama", "hooks")
    words = {"birds": ("heron", "crane", "stork", "egret", "swan"), "fish": ("trout", "carp", "eel", "pike", "perch")}
    rows = [
        Example(f"{w} {i} {w}", id=f"{w}{i}", behavior=label)
        for label, ws in words.items()
        for w in ws
        for i in range(2)
    ]
    method = CONFST(LAYER, "birds", span=4, threshold=0.0, center="others")
    acts = capture(model, rows, layers=[LAYER], positions=list(method.positions), progress=False)
    fitted = method.fit(acts)
    means = {
        label: torch.stack([acts.select(behavior=label, position=p).at(LAYER).mean(0) for p in method.positions])
        for label in words
    }
    torch.testing.assert_close(fitted.steering_vectors, means["birds"] - means["fish"], rtol=1e-4, atol=1e-5)
    assert generate(model, ["perch"], steer=fitted, max_new_tokens=2).steered_tokens == 4


def pairs_of(prompts: Sequence[str] = PROMPTS) -> list[Example]:
    return [Example(p, Contrast("(A)", "(B)", position="first_difference"), id=f"q{i}") for i, p in enumerate(prompts)]


def difference(model: Model, prompt: str) -> float:
    return plain.answer_logprob(model, prompt, "(A)") - plain.answer_logprob(model, prompt, "(B)")


def propensity(model: Model, prompt: str) -> float:
    """The logits of the token after the shared "(" of both answers."""
    ids, _ = plain.chat_ids(model, prompt, "(")
    last = plain.logits(model, ids)[-1]
    a, b = (model.tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in "AB")
    return float(last[a] - last[b])


@pytest.mark.parametrize(
    ("backend", "batch_size"), by_day((("nnsight", 1), ("hooks", None), ("nnsight", 4)), lambda _, size: size == 1)
)
@pytest.mark.parametrize(
    ("metric", "reference"),
    by_day((("logprob_difference", difference), ("propensity", propensity)), lambda name, _: name == "propensity"),
)
def test_sweep_of_spans_equals_plain_hooks(backend: str, batch_size: int | None, metric: str, reference) -> None:
    """All spans and a mean vector in one sweep, with shared prefixes and restarts where possible."""
    model, prompts = make_lm("llama", backend), [*PROMPTS, "Do fish sleep at all by night, or do they not?", "Why?"]
    methods: dict[str, Any] = {f"{span} from {start}": made(span, start, seed=span) for span, start in SPANS}
    given_: Any = {name: {LAYER: one} for name, one in methods.items()}
    given_["mean"] = {LAYER + 1: SteeringVector({LAYER + 1: torch.ones(HIDDEN)})}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    frame = sweep(model, pairs_of(prompts), given_, None, (-1.0, 0.0, ALPHA), "last", metric, **options)
    assert len(frame) == 9 * 3 * len(prompts)
    spans = frame[frame["method"] != "mean"]
    for (name, alpha, example_id), rows in spans.groupby(["method", "alpha", "example_id"]):
        prompt = prompts[int(example_id[1:])]
        with by_hand(model, methods[name], prompt, alpha):
            wanted = reference(model, prompt)
        assert rows["value"].tolist() == pytest.approx([wanted], abs=1e-3), (name, alpha, prompt)
    clipped = spans[spans["method"] == "3 from 44"].pivot_table(index="example_id", columns="alpha", values="value")
    assert (clipped[ALPHA] - clipped[0.0]).abs().gt(1e-3).all(), "a clipped span still has an effect"


def test_sweep_of_generated_texts_equals_generate() -> None:
    model, rows, generated = make_lm(), pairs_of(), []
    methods: dict[str, Any] = {f"{span} from {start}": made(span, start) for span, start in SPANS}
    given_: Any = {name: {LAYER: one} for name, one in methods.items()}

    def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        generated.append(list(texts))
        return [float(len(text)) for text in texts]

    generation = {"max_new_tokens": STEPS}
    sweep(model, rows, given_, None, (ALPHA,), "last", length, generation=generation, progress=False)
    assert generated == [list(generate(model, rows, steer=s, alpha=ALPHA, **generation)) for s in methods.values()]


def test_sweep_of_a_span_beyond_every_prompt_is_refused() -> None:
    model, rows = make_lm(), pairs_of()
    for metric in ("logprob_difference", lambda examples, texts: [0.0] * len(texts)):
        with pytest.raises(SteeringError, match=r"prompt\[900\].*none of the 3 prompts is that long"):
            sweep(model, rows, {"span": {LAYER: made(2, 900)}}, None, (ALPHA,), "all", metric, progress=False)


def test_sweep_of_a_span_that_only_the_answers_have_is_refused() -> None:
    model, rows = make_lm(), [Example("Why?", Contrast("It is so", "It is not"))]

    class Fixed(SteeringVector):
        """A vector at places of its own."""

        def interventions(self, context: Context) -> tuple[Intervention, ...]:
            return tuple(replace(one, positions=Match("It is")) for one in super().interventions(context))

    with pytest.raises(SteeringError, match="match:It is, and none of the 1 prompts is that long"):
        sweep(model, rows, Fixed({LAYER: torch.ones(32)}), None, (ALPHA,), "all", "logprob", progress=False)


def test_sweep_of_two_position_masks_is_refused() -> None:
    model, rows = make_lm(), pairs_of()
    masks = [torch.zeros(3, 30, dtype=torch.bool).index_fill(1, torch.tensor([k]), True) for k in (3, 20)]
    mean = SteeringVector({LAYER: torch.ones(32)})
    with pytest.raises(SteeringError, match=r"\['mask'\] were given more than once"):
        sweep(model, rows, mean, None, (ALPHA,), masks, progress=False)
