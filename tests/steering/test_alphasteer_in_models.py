"""AlphaSteer in tiny models, against Hugging Face forwards with plain hooks."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import plain
import pytest
import torch
from fitted import HIDDEN, PROMPTS
from torch import Tensor

from steerlab import Contrast, Example, Request, SteeringError, capture, generate, score
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.models.layout import blocks
from steerlab.models.sites import Site
from steerlab.testing import tiny_lm

STEPS, ALPHA = 6, 1.5
ANSWERS = ("the reeds", "no", "fish by night")
DRAW = torch.Generator().manual_seed(8)
SITES = (0, 2)
W, R = torch.randn(2, HIDDEN, generator=DRAW) / 4, torch.randn(2, HIDDEN, generator=DRAW)
QUESTIONS = ("What is a {}?", "Tell me of the {}.")
THINGS = ("heron", "reed", "river", "boat", "mill", "willow", "stone bridge", "tern")


def made(layers=SITES, w: Tensor = W, r: Tensor = R, **options) -> AlphaSteer:
    n = len(layers)
    return AlphaSteer.from_gates(layers, w[:n], r[:n], **options)


def by_hand(model, alpha: float, n: int, clean: list[Tensor] | None = None) -> list:
    """Hooks that add the gate times the vector to all of the prompt; `clean` states give frozen gates."""

    def adding(i: int, layer: int):
        def change(h: Tensor) -> Tensor:
            read = h[0, n - 1] if clean is None else clean[layer][n - 1]
            out = h.clone()
            out[:, :n] += alpha * (read @ W[i]) * R[i]
            return out

        return plain.hooked(model, layer, change)

    return [adding(i, layer) for i, layer in enumerate(SITES)]


@contextmanager
def all_of(contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def check(model, steerer: AlphaSteer, frozen: bool = False, prompts=PROMPTS, answers=ANSWERS) -> None:
    """Scores and greedy ids of a padded batch, and of each row by hand; with a cache and without."""
    options = dict(steer=steerer, alpha=ALPHA)
    found = score(model, prompts, answers, **options)["logprob"]
    said = generate(model, prompts, max_new_tokens=STEPS, **options)
    again = generate(model, prompts, max_new_tokens=STEPS, use_cache=False, **options)
    assert said.ids == again.ids and said.steered_tokens == again.steered_tokens
    lengths = [plain.chat_ids(model, prompt)[1] for prompt in prompts]
    assert said.steered_tokens == len(SITES) * sum(lengths), "all of the prompt, and nothing of the answer"
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids, n = plain.chat_ids(model, prompt)
        clean = plain.hidden(model, ids) if frozen else None
        with all_of(by_hand(model, ALPHA, n, clean)):
            assert found[number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-3)
            assert said.ids[number] == plain.new_ids(model, prompt, STEPS)


@pytest.fixture(params=[("llama", "nnsight"), ("gemma2", "nnsight"), ("gpt2", "hooks")], ids="-".join)
def model(request, lm):
    return lm(*request.param)


@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_padded_batch_equals_single_rows_with_hooks(model, gates: str) -> None:
    check(model, made(gates=gates), frozen=gates == "frozen")


def test_frozen_and_cumulative_gates_agree_at_one_site_and_differ_at_two(model) -> None:
    options = dict(alpha=ALPHA)

    def logprobs(layers, gates):
        return torch.tensor(score(model, PROMPTS, ANSWERS, steer=made(layers, gates=gates), **options)["logprob"])

    torch.testing.assert_close(logprobs((2,), "cumulative"), logprobs((2,), "frozen"), atol=1e-4, rtol=0)
    difference = (logprobs(SITES, "cumulative") - logprobs(SITES, "frozen")).abs()
    assert float(difference.max()) > 1e-2


def test_cumulative_gates_read_the_steered_state(lm) -> None:
    model = lm("llama", "hooks")
    w, r = W.clone(), R.clone()
    ids, n = plain.chat_ids(model, PROMPTS[0])
    clean = plain.hidden(model, ids)
    r[0] = w[1] / w[1].norm() ** 2  # one unit of it opens the upper gate by about one
    gates = {}
    for kind in ("cumulative", "frozen"):
        with recorded(model, 2) as (before, after):
            score(model, PROMPTS[:1], ANSWERS[:1], steer=made(w=w, r=r, gates=kind), alpha=ALPHA)
        delta = (after[-1] - before[-1])[0, n - 1]
        gates[kind] = float(delta @ r[1] / (r[1] @ r[1])) / ALPHA
    assert gates["frozen"] == pytest.approx(float(clean[2][n - 1] @ w[1]), abs=1e-4)
    assert gates["cumulative"] == pytest.approx(float(before_states(model, w, r, ids, n) @ w[1]), abs=1e-4)
    assert abs(gates["cumulative"] - gates["frozen"]) > 0.1


def before_states(model, w: Tensor, r: Tensor, ids: list[int], n: int) -> Tensor:
    """The last prompt state at the upper site when the lower one alone is steered."""

    def change(h: Tensor) -> Tensor:
        return h + ALPHA * (h[:, n - 1] @ w[0])[:, None, None] * r[0]

    with plain.hooked(model, SITES[0], change):
        return plain.hidden(model, ids)[SITES[1]][n - 1]


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
    handle = block.register_forward_hook(lambda _, args, output: after.append(first_of(output)))
    try:
        yield before, after
    finally:
        del block.forward
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_same_vector_is_added_to_every_prompt_token_and_none_while_decoding(lm, family: str) -> None:
    model = lm(family, "hooks")
    steerer = made((2,))
    with recorded(model, 2) as (before, after):
        said = generate(model, PROMPTS[:1], steer=steerer, alpha=ALPHA, max_new_tokens=STEPS, eos_token_id=-1)
    assert len(after) == len(before) == STEPS == len(said.ids[0])
    for step, (one, other) in enumerate(zip(after, before, strict=True)):
        if step:
            assert one.shape[1] == 1 and torch.equal(one, other)
            continue
        expected = ALPHA * (other[0, -1] @ W[0]) * R[0]
        torch.testing.assert_close((one - other)[0], expected.expand_as(one[0]), atol=1e-5, rtol=1e-4)


def test_added_vector_is_proportional_to_alpha(lm) -> None:
    model = lm("llama", "hooks")
    steerer = made((2,))
    unsteered = score(model, PROMPTS, ANSWERS)["logprob"]
    assert score(model, PROMPTS, ANSWERS, steer=steerer, alpha=0.0)["logprob"].tolist() == unsteered.tolist()
    added = {}
    for alpha in (1.0, 2.0, -1.0):
        with recorded(model, 2) as (before, after):
            score(model, PROMPTS[:1], ANSWERS[:1], steer=steerer, alpha=alpha)
        added[alpha] = (after[0] - before[0])[0]
    torch.testing.assert_close(added[2.0], 2 * added[1.0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(added[-1.0], -added[1.0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_prompt_of_one_token_is_steered(backend: str) -> None:
    model = tiny_lm("llama", backend=backend)
    model.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    assert plain.chat_ids(model, "N")[1] == 1
    check(model, made(), prompts=("N", "hi", "K"), answers=ANSWERS)


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


def test_fit_at_a_block_input_equals_fit_at_the_previous_output(lm) -> None:
    model = lm("llama", "hooks")
    benign = [Example(f"b{i}", text, "answer") for i, text in enumerate(q.format(t) for q in QUESTIONS for t in THINGS)]
    harmful = [Example(f"h{i}", f"How do I steal a {t}!", "refuse") for i, t in enumerate(THINGS)]
    sites = [Site(2, "block_in"), Site(1), Site(2)]
    acts = capture(model, [*benign, *harmful], layers=sites, progress=False)
    released, before, aligned = (AlphaSteer(s, target=R[:1], ratio=0.5, ridge=1e-4).fit(acts) for s in sites)
    assert torch.equal(released.w_, before.w_) and not torch.allclose(released.w_, aligned.w_)
    assert torch.equal(released.r_, aligned.r_)


@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_input_in_the_dead_zone_is_unsteered(lm, gates: str) -> None:
    model = lm("llama", "nnsight")
    ids = [plain.chat_ids(model, prompt)[0] for prompt in PROMPTS]
    found = sorted((abs(float(plain.hidden(model, row)[2][-1] @ W[0])), i) for i, row in enumerate(ids))
    steerer = made((2,), dead_zone=(found[0][0] + found[1][0]) / 2, gates=gates)
    before, after = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in ((), steerer))
    assert before[found[0][1]] == after[found[0][1]]
    assert all(abs(before[i] - after[i]) > 1e-3 for _, i in found[1:])


def test_norm_scale_keeps_frozen_gates_and_is_refused_for_cumulative_ones(lm) -> None:
    model = lm("llama", "hooks")
    options = dict(alpha=0.5, scale="norm")
    shut = made((2,), gates="frozen", w=W * 1e-6)
    found = score(model, PROMPTS, ANSWERS, steer=shut, **options)["logprob"]
    assert found.to_numpy() == pytest.approx(score(model, PROMPTS, ANSWERS)["logprob"].to_numpy(), abs=1e-4)
    with pytest.raises(Exception, match="scale='raw'"):
        score(model, PROMPTS, ANSWERS, steer=made((2,)), **options)


def test_requested_positions_override_the_default(lm) -> None:
    model = lm("llama", "hooks")
    n = [plain.chat_ids(model, prompt)[1] for prompt in PROMPTS]
    default = generate(model, PROMPTS, steer=made((2,)), max_new_tokens=2)
    last = generate(model, PROMPTS, steer=Request(made((2,)), positions="last"), max_new_tokens=2)
    assert default.steered_tokens == sum(n) and last.steered_tokens == len(n)


@pytest.mark.parametrize("target", ["mean", "each"])
@pytest.mark.parametrize("gates", ["cumulative", "frozen"])
def test_fit_on_captured_states_steers_harmful_inputs_only(lm, target: str, gates: str) -> None:
    """With as many benign inputs as excluded directions, their leakage is zero."""
    model, pair = lm("llama", "hooks"), Contrast("No, never.", "Yes, sure")
    benign = [Example(f"b{i}", text, "answer") for i, text in enumerate(q.format(t) for q in QUESTIONS for t in THINGS)]
    harmful = [Example(f"h{i}", f"How do I steal a {t}!", "refuse", pair) for i, t in enumerate(THINGS)]
    acts = capture(model, [*benign, *harmful], layers=[1], progress=False)
    steerer = AlphaSteer(1, target=target, ratio=0.5, ridge=1e-4, gates=gates).fit(acts)
    examples = [*benign[:3], *harmful[:3]]
    before, after = (
        score(model, [e.prompt for e in examples], ["Yes"] * 6, steer=s, alpha=1.0)["logprob"] for s in ((), steerer)
    )
    moved = (after - before).abs()
    assert steerer.leakage_[0] < 1e-3 and moved[:3].max() < 1e-2 < 5e-2 < moved[3:].min()


def test_chunked_prefill_is_refused_for_cumulative_gates_only(lm) -> None:
    model, options = lm("llama", "hooks"), dict(max_new_tokens=3)
    w, r = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(1)), torch.ones(1, HIDDEN)
    cumulative, frozen = (AlphaSteer.from_gates([1], w, r, gates=gates) for gates in ("cumulative", "frozen"))
    with pytest.raises(SteeringError, match=r"leave prefill_chunk_size out"):
        generate(model, PROMPTS, steer=cumulative, prefill_chunk_size=4, **options)
    chunked = generate(model, PROMPTS, steer=frozen, prefill_chunk_size=4, **options)
    assert chunked.ids == generate(model, PROMPTS, steer=frozen, **options).ids


def test_sweep_settings_differ_by_dead_zone(lm) -> None:
    from steerlab.analysis._sweep.settings import make_settings

    w, r = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(1)), torch.ones(1, HIDDEN)
    rows = [Example("a", "Hi")]
    learned = set()
    for zone in (0.0, 5.0):
        alpha = AlphaSteer.from_gates([1], w, r, dead_zone=zone)
        given = dict(layers=None, alphas=(1.0,), positions=["prompt"], scale="raw", train=None, batch_size=2)
        learned |= {setting.fitted_hash for setting in make_settings(lm("llama", "hooks"), alpha, rows, **given)}
    assert len(learned) == 2
