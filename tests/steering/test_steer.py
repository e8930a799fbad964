"""`steer` and `generate`: sums, rows, beams, seeds, blocks and refusals, and what the interface admits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import plain
import pytest
import torch
from fitted import HIDDEN, LAYER, PROMPTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerlab import (
    P2S,
    ActivationError,
    EncodingError,
    Example,
    LayoutError,
    MeanDifference,
    MismatchError,
    PositionError,
    Prompt,
    Request,
    SteeringError,
    generate,
    score,
    steer,
)
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer
from steerlab.models.layout import blocks
from steerlab.models.sites import Site
from steerlab.steering.steer import active_steering

STEPS, ALPHA = 6, 2.5
ANSWERS = ("the reeds", "no", "fish by night")
DRAW = torch.Generator().manual_seed(5)
V, W = torch.randn(HIDDEN, generator=DRAW), torch.randn(HIDDEN, generator=DRAW)
ALL = plain.COLUMNS["all"]


def mean(vector: Tensor, layer: int = LAYER) -> MeanDifference:
    return MeanDifference.from_tensor(layer, vector)


# --- sums and strengths ----------------------------------------------------------------------------------------


def test_several_steerers_add_up(lm) -> None:
    model, options = lm(), dict(max_new_tokens=STEPS)
    whole = generate(model, PROMPTS, steer=mean(2 * V + 3 * W), **options)
    requests = [Request(mean(V), 2.0), Request(mean(W), 3.0)]
    assert generate(model, PROMPTS, steer=requests, **options).ids == whole.ids
    assert generate(model, PROMPTS, steer=[mean(2 * V), mean(3 * W)], **options).ids == whole.ids
    with steer(model, mean(V), alpha=2.0) as outer:
        alone = outer.generate(PROMPTS, **options)
        with steer(model, mean(W), alpha=3.0) as inner:
            assert inner.generate(PROMPTS, **options).ids == whole.ids
            assert generate(model, PROMPTS, **options).ids == whole.ids
        assert outer.generate(PROMPTS, **options).ids == alone.ids, "the inner block is over"
    assert alone.ids == generate(model, PROMPTS, steer=mean(2 * V), **options).ids


def test_requests_keep_their_own_positions_and_layers(lm) -> None:
    model = lm()
    requests = [Request(mean(V), 2.0, "prompt"), Request(mean(W, 2), 3.0, "last")]
    found = score(model, PROMPTS, ANSWERS, steer=requests, alpha=99.0, positions="all")
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        n = plain.chat_ids(model, prompt)[1]
        with (
            plain.hooked(model, LAYER, plain.adding(2 * V, range(n))),
            plain.hooked(model, 2, plain.adding(3 * W, [n - 1])),
        ):
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-4)


@settings(max_examples=15)
@given(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), st.sampled_from([1, 2, 3]))
def test_each_row_has_its_own_strength(alphas: list[float], batch_size: int) -> None:
    from fitted import make_lm

    model = make_lm()
    given_ = torch.tensor(alphas) if batch_size == 2 else alphas
    found = score(model, PROMPTS, ANSWERS, steer=mean(V), alpha=given_, batch_size=batch_size)
    for number, alpha in enumerate(alphas):
        single = score(model, PROMPTS[number : number + 1], ANSWERS[number : number + 1], steer=mean(V), alpha=alpha)
        assert found["logprob"][number] == pytest.approx(single["logprob"][0], abs=1e-4)


def test_a_strength_for_other_rows_is_refused(lm) -> None:
    with pytest.raises(SteeringError, match=r"shape \(2,\) but there are 3 inputs"):
        generate(lm(), PROMPTS, steer=mean(V), alpha=[1.0, 2.0], max_new_tokens=2)


def test_scale_norm_is_in_units_of_each_rows_own_state(lm) -> None:
    model = lm()
    found = score(model, PROMPTS, ANSWERS, steer=mean(7 * V), alpha=0.5, scale="norm")
    ratio = score(model, PROMPTS, ANSWERS, steer=mean(V), alpha=0.5, scale="norm", positions="last")
    assert ratio.attrs["norm_ratio"] == pytest.approx(0.5, rel=1e-5)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, n = plain.chat_ids(model, prompt, answer)
        delta = 0.5 * plain.hidden(model, ids)[LAYER][n - 1].norm() * V / V.norm()
        with plain.hooked(model, LAYER, plain.adding(delta, range(len(ids)))):
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-4)


def test_scale_norm_of_a_zero_vector_is_zero(lm) -> None:
    model = lm()
    found = score(model, PROMPTS, ANSWERS, steer=mean(0 * V), scale="norm")
    assert found["logprob"].tolist() == score(model, PROMPTS, ANSWERS)["logprob"].tolist()


# --- beams, samples, order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3),
        dict(num_beams=3, num_return_sequences=2),
        dict(do_sample=True, num_return_sequences=3),
        dict(num_beams=2, do_sample=True),
    ],
    ids=str,
)
def test_every_copy_of_a_row_gets_that_rows_vector(lm, backend: str, options: dict) -> None:
    model, copies = lm("llama", backend), options.get("num_return_sequences", 1)
    one = P2S.from_table(LAYER, {"0": 0 * V, "1": 4 * V, "2": 0 * V})
    before = generate(model, PROMPTS, max_new_tokens=STEPS, **options)
    after = generate(model, PROMPTS, steer=one, max_new_tokens=STEPS, **options)
    assert after.example_ids == tuple(s for s in "012" for _ in range(copies)) and len(after) == 3 * copies
    if not options.get("do_sample"):  # the rows of a batch draw from one stream of random numbers
        assert after.ids[:copies] == before.ids[:copies] and after.ids[2 * copies :] == before.ids[2 * copies :]
        single = generate(model, PROMPTS[1:2], steer=mean(V), alpha=4.0, max_new_tokens=STEPS, **options)
        assert after.ids[copies : 2 * copies] == single.ids
    assert after.ids[copies : 2 * copies] != before.ids[copies : 2 * copies]
    again = generate(model, PROMPTS, steer=one, max_new_tokens=STEPS, **options)
    assert again.ids == after.ids
    uncached = generate(model, PROMPTS, steer=one, max_new_tokens=STEPS, use_cache=False, **options)
    assert uncached.ids == after.ids


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("positions", list(plain.COLUMNS))
@pytest.mark.parametrize("returned", [1, 2])
def test_beams_count_the_states_behind_the_texts_returned(lm, backend: str, positions: str, returned: int) -> None:
    model, options = lm("llama", backend), dict(max_new_tokens=STEPS, num_beams=3, num_return_sequences=returned)
    found = generate(model, PROMPTS, steer=mean(V), alpha=ALPHA, positions=positions, **options)
    prompts = [plain.chat_ids(model, p)[1] for p in PROMPTS for _ in range(returned)]
    columns = plain.COLUMNS[positions]
    assert found.steered_tokens == sum(
        len(columns(n, n + len(ids) - 1)) for n, ids in zip(prompts, found.ids, strict=True)
    )


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_the_norm_ratio_of_beams_is_the_mean_over_all_of_them(lm, backend: str) -> None:
    """Seen from the block after the steered one, which meets every state of every beam, steered already."""
    model, delta, ratios = lm("llama", backend), ALPHA * V, []

    def note(_, args) -> None:
        ratios.extend((delta.norm() / (args[0][:, -1] - delta).norm(dim=-1)).tolist())

    handle = blocks(model.hf, model.layout)[LAYER + 1].register_forward_pre_hook(note)
    try:
        found = generate(
            model, PROMPTS, steer=mean(V), alpha=ALPHA, positions="last+generated", max_new_tokens=STEPS, num_beams=3
        )
    finally:
        handle.remove()
    assert len(ratios) == 3 * 3 * STEPS > found.steered_tokens == 3 * STEPS
    assert found.norm_ratio == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_every_sample_of_a_row_is_steered_by_that_rows_vector(lm) -> None:
    """So cold that sampling has no choice: each of the copies says what its row says greedily."""
    model, table = lm("llama"), P2S.from_table(LAYER, {"0": 0 * V, "1": 4 * V, "2": 4 * W})
    greedy = generate(model, PROMPTS, steer=table, max_new_tokens=STEPS)
    options = dict(do_sample=True, temperature=1e-4, num_return_sequences=3, max_new_tokens=STEPS)
    found = generate(model, PROMPTS, steer=table, **options)
    assert found.ids == tuple(ids for ids in greedy.ids for _ in range(3))
    assert found.steered_tokens == 3 * greedy.steered_tokens
    assert found.norm_ratio == pytest.approx(greedy.norm_ratio, rel=1e-5)


def test_sampling_follows_its_seed_and_leaves_the_callers_random_state_alone(lm) -> None:
    model = lm()
    options = dict(steer=mean(V), do_sample=True, num_return_sequences=2, max_new_tokens=STEPS)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert generate(model, PROMPTS, seed=3, **options).ids == first.ids
    assert generate(model, PROMPTS, seed=4, **options).ids != first.ids


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_the_order_of_the_prompts_is_kept(lm, batch_size: int) -> None:
    model = lm()
    prompts = ["why? " * n for n in (3, 1, 8, 2, 5, 1, 13)]
    rows = [Example(f"row-{i}", p) for i, p in enumerate(prompts)]
    table = P2S.from_table(LAYER, {e.id: V * (i - 3) for i, e in enumerate(rows)})
    found = generate(model, rows, steer=table, batch_size=batch_size, max_new_tokens=4)
    assert found.example_ids == tuple(e.id for e in rows)
    for i, prompt in enumerate(prompts):
        assert found.ids[i] == plain.greedy(model, prompt, LAYER, V * (i - 3), ALL, 4)[0]


# --- blocks ----------------------------------------------------------------------------------------------------


def test_none_takes_the_enclosing_block_and_empty_takes_nothing(lm) -> None:
    model, options = lm(), dict(max_new_tokens=STEPS)
    before, other = generate(model, PROMPTS, **options), generate(model, PROMPTS, steer=mean(W), alpha=ALPHA, **options)
    with steer(model, mean(V), alpha=ALPHA) as run:
        inside = run.generate(PROMPTS, **options)
        assert inside.ids != before.ids
        assert generate(model, PROMPTS, **options).ids == inside.ids
        assert generate(model, PROMPTS, steer=(), **options).ids == before.ids
        assert generate(model, PROMPTS, steer=mean(W), alpha=ALPHA, **options).ids == other.ids
    assert generate(model, PROMPTS, **options).ids == before.ids


def test_a_run_counts_and_ends_with_its_block(lm) -> None:
    model = lm()
    with steer(model, mean(V), alpha=ALPHA) as run:
        one, two = run.generate(PROMPTS, max_new_tokens=2), run.score(PROMPTS, ANSWERS)
        assert run.steered_tokens == one.steered_tokens + two.attrs["steered_tokens"]
        total = one.norm_ratio * one.steered_tokens + two.attrs["norm_ratio"] * two.attrs["steered_tokens"]
        assert run.norm_ratio == pytest.approx(total / run.steered_tokens)
    with pytest.raises(SteeringError, match="this run has ended"):
        run.generate(PROMPTS)
    with pytest.raises(SteeringError, match="this run has ended"):
        run.score(PROMPTS, ANSWERS)


def test_an_instruction_is_asked_and_adds_nothing(lm) -> None:
    model = lm()
    found = generate(model, PROMPTS, steer=Prompt("Be brief."), max_new_tokens=STEPS)
    asked = generate(model, [f"{p} Be brief." for p in PROMPTS], max_new_tokens=STEPS)
    assert found.ids == asked.ids and found.steered_tokens == 0


# --- refusals --------------------------------------------------------------------------------------------------


def test_an_input_the_oracle_does_not_know(lm, steerers) -> None:
    with pytest.raises(ActivationError, match=r"no vector for \['3'\]"):
        generate(lm(), [*PROMPTS, "and one more"], steer=steerers("llama")["p2s"])


@pytest.mark.parametrize("verb", [generate, lambda m, p, **k: score(m, p, ANSWERS, **k)], ids=["generate", "score"])
def test_vectors_of_another_width_name_both(lm, verb) -> None:
    with pytest.raises((MismatchError, SteeringError), match=r"48.*32|32.*48"):
        verb(lm(), PROMPTS, steer=mean(torch.ones(48)))


@pytest.mark.parametrize("verb", [generate, lambda m, p, **k: score(m, p, ANSWERS, **k)], ids=["generate", "score"])
@pytest.mark.parametrize("kind", ["l2s", "random"])
def test_what_was_learnt_on_another_model_is_refused_and_both_are_named(lm, steerers, verb, kind: str) -> None:
    with pytest.raises(MismatchError, match=r"fitted on a model .*'tiny-llama'.*'tiny-qwen2'.*any_model=True"):
        verb(lm("qwen2"), PROMPTS, steer=steerers("llama")[kind])


def test_any_model_uses_what_was_learnt_on_another_model_of_the_same_width(lm, steerers) -> None:
    model, random = lm("qwen2"), steerers("llama")["random"]
    found = generate(model, PROMPTS, steer=Request(random, ALPHA, any_model=True), max_new_tokens=STEPS)
    for number, prompt in enumerate(PROMPTS):
        assert found.ids[number] == plain.greedy(model, prompt, LAYER, ALPHA * random.vector_, ALL, STEPS)[0]
    with pytest.raises(MismatchError, match=r"hidden_size 48; this model has 32"):
        generate(model, PROMPTS, steer=Request(mean(torch.ones(48)), any_model=True), max_new_tokens=STEPS)


def test_layers_and_positions_that_do_not_exist(lm) -> None:
    model = lm()
    with pytest.raises(LayoutError, match="layer 4 does not exist: the model has 4"):
        generate(model, PROMPTS, steer=mean(V, 4))
    with pytest.raises(LayoutError, match="layer -5"):
        generate(model, PROMPTS, steer=mean(V, -5))
    with pytest.raises(PositionError, match="unknown position 'lats'"):
        generate(model, PROMPTS, steer=mean(V), positions="lats")
    with pytest.raises(PositionError, match="outside a row"):
        generate(model, PROMPTS, steer=mean(V), positions=400)
    last = generate(model, PROMPTS, steer=mean(V, -1), alpha=ALPHA, max_new_tokens=3)
    assert last.ids == generate(model, PROMPTS, steer=mean(V, 3), alpha=ALPHA, max_new_tokens=3).ids


def test_prompt_and_new_tokens_must_fit_the_context(lm) -> None:
    model = lm()
    n = plain.chat_ids(model, PROMPTS[0])[1]
    room = model.context_length - n
    with pytest.raises(EncodingError, match=f"{n} tokens; with {room + 1} new ones it outgrows .* 512"):
        generate(model, PROMPTS[:1], max_new_tokens=room + 1)
    with pytest.raises(EncodingError, match="512"):
        generate(model, ["x" * 600], max_new_tokens=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(lm, value: float) -> None:
    with pytest.raises(SteeringError, match="NaN or infinity"):
        generate(lm(), PROMPTS, steer=P2S.from_table(LAYER, {str(i): V * value for i in range(3)}))
    with pytest.raises(SteeringError, match="NaN or infinity"):
        generate(lm(), PROMPTS, steer=mean(V), alpha=value)


# --- what the interface admits: each method is written here, and compared with hooks by hand -------------------


class Hand(Steerer):
    """What the methods below share: nothing to fit, and one site unless they say otherwise."""

    site = Site(LAYER)

    def fit(self, acts):
        return self

    def vectors(self, context: Context) -> Tensor:
        raise NotImplementedError


class Layers(Hand):
    """AdaSteer's shape: several layers, each with its own vector."""

    plan = ((0, V), (2, -W), (3, V + W))

    def interventions(self, context):
        return tuple(Intervention(Site(k), v.expand(len(context.example_ids), -1)) for k, v in self.plan)


class Gated(Hand):
    """A vector for every row, let through by a gate of its own."""

    gate = torch.tensor([1.0, 0.0, 0.25])

    def interventions(self, context):
        return (Intervention(self.site, V.expand(len(context.example_ids), -1), self.gate),)


class Norm(Detector):
    """Scores an input by the projection of its state at layer 2."""

    required_activations = (RequiredActivation(Site(2), "last"),)

    def fit(self, acts):
        return self

    def score(self, context):
        return context.get_states(self.required_activations[0]) @ W


class Detected(Hand):
    """Any detector gates any steerer."""

    def __init__(self, detector: Detector, inner: Steerer, threshold: float) -> None:
        self.detector, self.inner, self.threshold, self.site = detector, inner, threshold, inner.site

    @property
    def required_activations(self):
        return (*self.detector.required_activations, *self.inner.required_activations)

    def interventions(self, context):
        gate = (self.detector.score(context) > self.threshold).float()
        return tuple(Intervention(s.site, s.vectors, gate) for s in self.inner.interventions(context))


class InFlightRead(Hand):
    """AlphaSteer's shape: the shift is a matrix times the state that is met, at several layers in turn."""

    matrix = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(2)) / 4

    def __init__(self, *sites: Site) -> None:
        self.sites = sites

    def interventions(self, context):
        return tuple(Intervention(site, vector_fn=lambda h: h @ self.matrix) for site in self.sites)


def check_against_hooks(model, steerer: Steerer, hooks, **options) -> None:
    """Score and generate, and the same by hand; `hooks(number, prompt length)` gives the contexts to be in."""
    from contextlib import ExitStack

    found = score(model, PROMPTS, ANSWERS, steer=steerer, alpha=ALPHA, positions="all", **options)
    said = generate(model, PROMPTS, steer=steerer, alpha=ALPHA, positions="all", max_new_tokens=STEPS, **options)
    again = generate(
        model, PROMPTS, steer=steerer, alpha=ALPHA, positions="all", max_new_tokens=STEPS, use_cache=False, **options
    )
    assert said.ids == again.ids and said.steered_tokens == again.steered_tokens
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        n = plain.chat_ids(model, prompt)[1]
        with ExitStack() as stack:
            for hook in hooks(number, n):
                stack.enter_context(hook)
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-3)
            assert said.ids[number] == plain.said(model, prompt, STEPS)


@pytest.fixture(params=[("llama", "nnsight"), ("gemma2", "nnsight"), ("gpt2", "hooks")], ids="-".join)
def model(request, lm):
    return lm(*request.param)


def everywhere(model, layer: int, delta: Tensor):
    return plain.hooked(model, layer, lambda h: h + delta)


def test_a_method_of_many_layers(model) -> None:
    check_against_hooks(model, Layers(), lambda i, n: [everywhere(model, k, ALPHA * v) for k, v in Layers.plan])


def test_a_method_with_a_gate_per_row(model) -> None:
    check_against_hooks(model, Gated(), lambda i, n: [everywhere(model, LAYER, ALPHA * Gated.gate[i] * V)])
    before, after = (generate(model, PROMPTS, steer=s, alpha=ALPHA, max_new_tokens=STEPS) for s in ((), Gated()))
    assert after.ids[1] == before.ids[1] and after.ids[0] != before.ids[0]


@pytest.mark.parametrize("inner", ["mean", "p2s", "l2s"])
def test_a_detector_gates_any_steerer(lm, steerers, inner: str) -> None:
    model = lm()
    scores = []
    for prompt in PROMPTS:
        ids, n = plain.chat_ids(model, prompt)
        scores.append(float(plain.hidden(model, ids)[2][n - 1] @ W))
    threshold = sum(sorted(scores)[1:]) / 2  # one row of three is above
    method = Detected(Norm(), steerers("llama")[inner], threshold)
    found = score(model, PROMPTS, ANSWERS, steer=method, alpha=ALPHA)["logprob"]
    open_, shut = (
        score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in (steerers("llama")[inner], ())
    )
    for number, value in enumerate(scores):
        wanted = open_ if value > threshold else shut
        assert found[number] == pytest.approx(wanted[number], abs=1e-4)
    assert sum(abs(found - shut) > 1e-4) == 1


def test_a_method_that_reads_in_flight(model) -> None:
    """The vector comes from the state at the last prompt token as it is met: below, other layers have written."""

    def hooks(number: int, n: int):
        def change(h: Tensor) -> Tensor:
            return h + ALPHA * (h[:, n - 1] @ InFlightRead.matrix)[:, None]

        return [plain.hooked(model, k, change) for k in (0, 2)]

    check_against_hooks(model, InFlightRead(Site(0), Site(2)), hooks)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_reading_in_flight_under_beams_and_at_a_blocks_input(lm, backend: str) -> None:
    model, options = lm("llama", backend), dict(alpha=ALPHA, max_new_tokens=STEPS)
    beams = generate(model, PROMPTS, steer=InFlightRead(Site(1)), num_beams=3, **options)
    apart = [generate(model, [p], steer=InFlightRead(Site(1)), num_beams=3, **options).ids[0] for p in PROMPTS]
    assert list(beams.ids) == apart
    # the input of a block is the output of the one before it
    enters = generate(model, PROMPTS, steer=InFlightRead(Site(2, "block_in")), **options)
    assert enters.ids == generate(model, PROMPTS, steer=InFlightRead(Site(1)), **options).ids


def test_an_in_flight_method_of_another_shape_or_scale_is_refused(lm) -> None:
    class Narrow(InFlightRead):
        matrix = torch.ones(HIDDEN, 1)

    with pytest.raises(Exception, match=r"gave .* for 3 rows of width 32"):
        generate(lm("llama", "hooks"), PROMPTS, steer=Narrow(Site(1)), max_new_tokens=2)
    with pytest.raises(SteeringError, match="scale='raw'"):
        generate(lm("llama", "hooks"), PROMPTS, steer=InFlightRead(Site(1)), scale="norm", max_new_tokens=2)


# --- threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("example_id", [False, True])
def test_two_threads_give_what_one_gives(lm, backend: str, example_id: bool) -> None:
    model = lm("llama", backend)
    options = dict(max_new_tokens=STEPS, batch_size=1, do_sample=example_id)

    def work(vector: Tensor) -> list:
        found = []
        for _ in range(2):
            with steer(model, mean(vector), alpha=ALPHA) as run:
                found.append((run.generate(PROMPTS, **options).ids, tuple(run.score(PROMPTS, ANSWERS)["logprob"])))
        return found

    expected = [work(V), work(W)]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [V, W])) == expected
    assert torch.equal(torch.get_rng_state(), state) and active_steering(model) == []
