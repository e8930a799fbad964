"""AlphaSteer in tiny models, against Hugging Face forwards with plain hooks."""

from contextlib import contextmanager
from itertools import product

import plain
import pytest
import torch
from comparisons import check_hooks
from fitted import ANSWERS, HIDDEN, PROMPTS, STEPS, make_lm
from torch import Tensor

from steerlab import Contrast, Example, Request, capture, generate, score
from steerlab.analysis._sweep.settings import make_settings
from steerlab.errors import SteeringError
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.models.layout import blocks
from steerlab.models.sites import Site
from steerlab.testing import tiny_lm

ALPHA = 1.5
DRAW = torch.Generator().manual_seed(8)
SITES = (0, 2)
W, R = torch.randn(2, HIDDEN, generator=DRAW) / 4, torch.randn(2, HIDDEN, generator=DRAW)
QUESTIONS = ("What is a {}?", "Tell me of the {}.")
THINGS = ("heron", "reed", "river", "boat", "mill", "willow", "stone bridge", "tern")
BENIGN = [Example(q.format(t), id=f"b{i}", behavior="answer") for i, (q, t) in enumerate(product(QUESTIONS, THINGS))]
HARMFUL = [
    Example(f"How do I steal a {t}!", id=f"h{i}", behavior="refuse", contrast=Contrast("No, never.", "Yes, sure"))
    for i, t in enumerate(THINGS)
]


def made(layers=SITES, w: Tensor = W, r: Tensor = R, **options) -> AlphaSteer:
    n = len(layers)
    return AlphaSteer.from_gates(layers, w[:n], r[:n], **options)


def check(model, gates: str, prompts=PROMPTS) -> None:
    """A padded batch equals single rows: a hook adds the gate times the vector to all of the prompt."""

    def hooks(_, prompt: str) -> list:
        ids, n = plain.chat_ids(model, prompt)
        clean = plain.hidden(model, ids)

        def adding(i: int, layer: int):
            def change(h: Tensor) -> Tensor:
                state = h[0, n - 1] if gates == "cumulative" else clean[layer][n - 1]
                return plain.adding(ALPHA * (state @ W[i]) * R[i], range(n))(h)

            return plain.hooked(model, layer, change)

        return [adding(i, layer) for i, layer in enumerate(SITES)]

    _, found, _ = check_hooks(model, Request(made(gates=gates), ALPHA), hooks, prompts)
    expected = len(SITES) * sum(plain.chat_ids(model, prompt)[1] for prompt in prompts)
    assert found.steered_tokens == expected, "all of the prompt, and nothing of the answer"


@pytest.fixture(params=[("llama", "nnsight"), ("gemma2", "nnsight"), ("gpt2", "hooks")], ids="-".join)
def model(request):
    return make_lm(*request.param)


@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_padded_batch_equals_single_rows_with_hooks(model, gates: str) -> None:
    check(model, gates)


def test_frozen_and_cumulative_gates_agree_at_one_site_and_differ_at_two(model) -> None:
    def logprobs(layers, gates):
        return torch.tensor(score(model, PROMPTS, ANSWERS, steer=made(layers, gates=gates), alpha=ALPHA)["logprob"])

    torch.testing.assert_close(logprobs((2,), "cumulative"), logprobs((2,), "frozen"), atol=1e-4, rtol=0)
    assert float((logprobs(SITES, "cumulative") - logprobs(SITES, "frozen")).abs().max()) > 1e-2


@contextmanager
def recorded(model, layer: int):
    """Record the outputs of a block before the engine's hook, by wrapping `forward`, and after it."""
    block = blocks(model.hf, model.layout)[layer]
    before, after, forward = [], [], block.forward

    def first_of(output):
        return (output[0] if isinstance(output, tuple) else output).detach().clone()

    def wrapped(*args, **kwargs):
        output = forward(*args, **kwargs)
        before.append(first_of(output))
        return output

    block.forward = wrapped
    with block.register_forward_hook(lambda _, args, output: after.append(first_of(output))):
        try:
            yield before, after
        finally:
            del block.forward


@pytest.mark.parametrize("alpha", [ALPHA, 2.0, -1.0])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_same_vector_is_added_to_every_prompt_token_and_none_while_decoding(family: str, alpha: float) -> None:
    model, options = make_lm(family, "hooks"), dict(max_new_tokens=STEPS, eos_token_id=-1)
    with recorded(model, 2) as (before, after):
        said = generate(model, PROMPTS[:1], steer=made((2,)), alpha=alpha, **options)
    assert len(after) == len(before) == STEPS == len(said.ids[0])
    expected = alpha * (before[0][0, -1] @ W[0]) * R[0]
    torch.testing.assert_close((after[0] - before[0])[0], expected.expand_as(after[0][0]), atol=1e-5, rtol=1e-4)
    for one, other in zip(after[1:], before[1:], strict=True):
        assert one.shape[1] == 1 and torch.equal(one, other)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_prompt_of_one_token_is_steered(backend: str) -> None:
    model = tiny_lm("llama", backend=backend)
    model.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    assert plain.chat_ids(model, "N")[1] == 1
    check(model, "cumulative", ("N", "hi", "K"))


def test_steering_a_block_input_equals_steering_the_previous_output(model) -> None:
    options = dict(alpha=ALPHA, max_new_tokens=STEPS)
    for gates in ("cumulative", "frozen"):
        released = generate(model, PROMPTS, steer=made((Site(2, "block_in"),), gates=gates), **options)
        assert released.ids == generate(model, PROMPTS, steer=made((1,), gates=gates), **options).ids
        found, other = (
            score(model, PROMPTS, ANSWERS, steer=made((site,), gates=gates), alpha=ALPHA)["logprob"]
            for site in (Site(2, "block_in"), Site(2))
        )
        assert float((found - other).abs().max()) > 1e-2


def test_fit_at_a_block_input_equals_fit_at_the_previous_output() -> None:
    model = make_lm("llama", "hooks")
    sites = [Site(2, "block_in"), Site(1), Site(2)]
    acts = capture(model, [*BENIGN, *HARMFUL], layers=sites, progress=False)
    released, before, aligned = (AlphaSteer(s, target=R[:1], ratio=0.5, ridge=1e-4).fit(acts) for s in sites)
    assert torch.equal(released.w_, before.w_) and not torch.allclose(released.w_, aligned.w_)
    assert torch.equal(released.r_, aligned.r_)


@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_input_in_the_dead_zone_is_unsteered(gates: str) -> None:
    model = make_lm("llama", "nnsight")
    ids = [plain.chat_ids(model, prompt)[0] for prompt in PROMPTS]
    found = sorted((abs(float(plain.hidden(model, row)[2][-1] @ W[0])), i) for i, row in enumerate(ids))
    steerer = made((2,), dead_zone=(found[0][0] + found[1][0]) / 2, gates=gates)
    before, after = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in ((), steerer))
    assert before[found[0][1]] == after[found[0][1]]
    assert all(abs(before[i] - after[i]) > 1e-3 for _, i in found[1:])


def test_norm_scale_keeps_frozen_gates_and_is_refused_for_cumulative_ones() -> None:
    model = make_lm("llama", "hooks")
    options = dict(alpha=0.5, scale="norm")
    found = score(model, PROMPTS, ANSWERS, steer=made((2,), gates="frozen", w=W * 1e-6), **options)["logprob"]
    assert found.to_numpy() == pytest.approx(score(model, PROMPTS, ANSWERS)["logprob"].to_numpy(), abs=1e-4)
    with pytest.raises(Exception, match="scale='raw'"):
        score(model, PROMPTS, ANSWERS, steer=made((2,)), **options)


def test_requested_positions_override_the_default() -> None:
    model = make_lm("llama", "hooks")
    n = [plain.chat_ids(model, prompt)[1] for prompt in PROMPTS]
    default = generate(model, PROMPTS, steer=made((2,)), max_new_tokens=2)
    last = generate(model, PROMPTS, steer=Request(made((2,)), positions="last"), max_new_tokens=2)
    assert default.steered_tokens == sum(n) and last.steered_tokens == len(n)


@pytest.mark.parametrize("target", ["mean", "each"])
@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_fit_on_captured_states_steers_harmful_inputs_only(target: str, gates: str) -> None:
    """With as many benign inputs as excluded directions, their leakage is zero."""
    model = make_lm("llama", "hooks")
    acts = capture(model, [*BENIGN, *HARMFUL], layers=[1], progress=False)
    steerer = AlphaSteer(1, target=target, ratio=0.5, ridge=1e-4, gates=gates).fit(acts)
    examples = [*BENIGN[:3], *HARMFUL[:3]]
    before, after = (
        score(model, [e.prompt for e in examples], ["Yes"] * 6, steer=s, alpha=1.0)["logprob"] for s in ((), steerer)
    )
    moved = (after - before).abs()
    assert steerer.leakage_[0] < 1e-3 and moved[:3].max() < 1e-2 < 5e-2 < moved[3:].min()


def test_chunked_prefill_is_refused_for_cumulative_gates_only() -> None:
    model, options = make_lm("llama", "hooks"), dict(max_new_tokens=3)
    cumulative, frozen = (made((1,), gates=gates) for gates in ("cumulative", "frozen"))
    with pytest.raises(SteeringError, match=r"leave prefill_chunk_size out"):
        generate(model, PROMPTS, steer=cumulative, prefill_chunk_size=4, **options)
    chunked = generate(model, PROMPTS, steer=frozen, prefill_chunk_size=4, **options)
    assert chunked.ids == generate(model, PROMPTS, steer=frozen, **options).ids


def test_sweep_settings_differ_by_dead_zone() -> None:
    given = dict(layers=None, alphas=(1.0,), positions=["prompt"], scale="raw", train=None, batch_size=2)
    model, steerers = make_lm("llama", "hooks"), [made((1,), dead_zone=zone) for zone in (0.0, 5.0)]
    settings = [make_settings(model, steerer, [Example("Hi", id="a")], **given) for steerer in steerers]
    assert len({setting.fitted_hash for of_zone in settings for setting in of_zone}) == 2
