"""`steer` and `generate`: sums, alphas, beams, seeds, blocks, errors, and every kind of intervention."""

from concurrent.futures import ThreadPoolExecutor
from math import isnan

import plain
import pytest
import torch
from comparisons import check_copies, check_hooks
from fitted import ANSWERS, HIDDEN, IDS, LAYER, PROMPTS, STEPS, Fixed, backends, make_lm, make_steerers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steerlab import Example, MeanDifference, Request, SteeringVector, generate, score, steer
from steerlab.errors import ActivationError, EncodingError, LayoutError, MismatchError, PositionError, SteeringError
from steerlab.methods import P2S, Prompt
from steerlab.methods.base import Intervention, Steerer
from steerlab.models.layout import blocks
from steerlab.models.sites import Site
from steerlab.steering.batches import active_steering

ALPHA = 2.5
DRAW = torch.Generator().manual_seed(5)
V, W = torch.randn(HIDDEN, generator=DRAW), torch.randn(HIDDEN, generator=DRAW)
OPTIONS = dict(max_new_tokens=STEPS)
verbs = pytest.mark.parametrize(
    "verb", [generate, lambda m, p, **k: score(m, p, ANSWERS, **k)], ids=["generate", "score"]
)


def mean(vector: Tensor, layer: int = LAYER) -> MeanDifference:
    return SteeringVector({layer: vector})


def everywhere(delta: Tensor):
    return lambda h: h + delta


# --- sums and strengths ----------------------------------------------------------------------------------------


def test_several_steerers_add_up() -> None:
    model = make_lm()
    whole = generate(model, PROMPTS, steer=mean(2 * V + 3 * W), **OPTIONS)
    assert generate(model, PROMPTS, steer=[Request(mean(V), 2.0), Request(mean(W), 3.0)], **OPTIONS).ids == whole.ids
    assert generate(model, PROMPTS, steer=[mean(2 * V), mean(3 * W)], **OPTIONS).ids == whole.ids
    with steer(model, mean(V), alpha=2.0) as outer:
        one = outer.generate(PROMPTS, **OPTIONS)
        with steer(model, mean(W), alpha=3.0) as inner:
            assert inner.generate(PROMPTS, **OPTIONS).ids == whole.ids
            assert generate(model, PROMPTS, **OPTIONS).ids == whole.ids
        assert outer.generate(PROMPTS, **OPTIONS).ids == one.ids, "the inner block is over"
    assert one.ids == generate(model, PROMPTS, steer=mean(2 * V), **OPTIONS).ids


def test_each_request_has_its_positions_and_layer() -> None:
    model = make_lm()
    found = score(model, PROMPTS, ANSWERS, steer=[Request(mean(V), 2.0, "prompt"), Request(mean(W, 2), 3.0, "last")])
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        n = plain.chat_ids(model, prompt)[1]
        with (
            plain.hooked(model, LAYER, plain.adding(2 * V, range(n))),
            plain.hooked(model, 2, plain.adding(3 * W, [n - 1])),
        ):
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-4)


@given(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), st.sampled_from([1, 2, 3]))
def test_each_row_has_its_alpha(alphas: list[float], batch_size: int) -> None:
    model = make_lm()
    alpha = torch.tensor(alphas) if batch_size == 2 else alphas
    found = score(model, PROMPTS, ANSWERS, steer=mean(V), alpha=alpha, batch_size=batch_size)
    for number, one in enumerate(alphas):
        single = score(model, PROMPTS[number : number + 1], ANSWERS[number : number + 1], steer=mean(V), alpha=one)
        assert found["logprob"][number] == pytest.approx(single["logprob"][0], abs=1e-4)


def test_scale_norm_is_in_units_of_each_rows_state() -> None:
    model = make_lm()
    found = score(model, PROMPTS, ANSWERS, steer=mean(7 * V), alpha=0.5, scale="norm")
    ratio = score(model, PROMPTS, ANSWERS, steer=mean(V), alpha=0.5, scale="norm", positions="last")
    assert ratio.attrs["norm_ratio"] == pytest.approx(0.5, rel=1e-5)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, n = plain.chat_ids(model, prompt, answer)
        delta = 0.5 * plain.hidden(model, ids)[LAYER][n - 1].norm() * V / V.norm()
        with plain.hooked(model, LAYER, plain.adding(delta, range(len(ids)))):
            assert found["logprob"][number] == pytest.approx(plain.answer_logprob(model, prompt, answer), abs=1e-4)
    zero = score(model, PROMPTS, ANSWERS, steer=mean(0 * V), scale="norm")
    assert zero["logprob"].tolist() == score(model, PROMPTS, ANSWERS)["logprob"].tolist()


# --- beams, samples, order -------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3), dict(num_beams=3, num_return_sequences=2), dict(do_sample=True, num_return_sequences=3),
        dict(num_beams=2, do_sample=True),
    ],
    ids=str,
)  # fmt: skip
def test_every_copy_of_a_row_gets_the_vector_of_the_row(backend: str, options: dict) -> None:
    model, copies = make_lm("llama", backend), options.get("num_return_sequences", 1)
    options = options | OPTIONS
    one = P2S.from_table(LAYER, dict(zip(IDS, (0 * V, 4 * V, 0 * V), strict=True)))
    before = generate(model, PROMPTS, **options)
    after = generate(model, PROMPTS, steer=one, **options)
    assert after.example_ids == tuple(i for i in IDS for _ in range(copies)) and len(after) == 3 * copies
    if not options.get("do_sample"):  # the rows of a batch draw from one stream of random numbers
        assert after.ids[:copies] == before.ids[:copies] and after.ids[2 * copies :] == before.ids[2 * copies :]
        single = generate(model, PROMPTS[1:2], steer=mean(V), alpha=4.0, **options)
        assert after.ids[copies : 2 * copies] == single.ids
    assert after.ids[copies : 2 * copies] != before.ids[copies : 2 * copies]
    for more in ({}, {"use_cache": False}):
        assert generate(model, PROMPTS, steer=one, **options, **more).ids == after.ids


@backends
@pytest.mark.parametrize("positions", list(plain.COLUMNS))
@pytest.mark.parametrize("returned", [1, 2])
def test_beams_count_the_states_behind_the_returned_texts(backend: str, positions: str, returned: int) -> None:
    model, columns = make_lm("llama", backend), plain.COLUMNS[positions]
    options = dict(num_beams=3, num_return_sequences=returned, **OPTIONS)
    found = generate(model, PROMPTS, steer=mean(V), alpha=ALPHA, positions=positions, **options)
    prompts = [plain.chat_ids(model, p)[1] for p in PROMPTS for _ in range(returned)]
    expected = sum(len(columns(n, n + len(ids) - 1)) for n, ids in zip(prompts, found.ids, strict=True))
    assert found.steered_tokens == expected


@backends
def test_norm_ratio_of_beams_is_the_mean_over_all_beams(backend: str) -> None:
    """Measured at the block after the steered one, whose input is every steered state of every beam."""
    model, delta, ratios = make_lm("llama", backend), ALPHA * V, []

    def note(_, args) -> None:
        ratios.extend((delta.norm() / (args[0][:, -1] - delta).norm(dim=-1)).tolist())

    options = dict(positions="last+generated", num_beams=3, **OPTIONS)
    with blocks(model.hf, model.layout)[LAYER + 1].register_forward_pre_hook(note):
        found = generate(model, PROMPTS, steer=mean(V), alpha=ALPHA, **options)
    assert len(ratios) == 3 * 3 * STEPS > found.steered_tokens == 3 * STEPS
    assert found.norm_ratio == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_sampling_follows_its_seed_and_restores_the_callers_random_state() -> None:
    model = make_lm()
    options = dict(steer=mean(V), do_sample=True, num_return_sequences=2, **OPTIONS)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert generate(model, PROMPTS, seed=3, **options).ids == first.ids
    assert generate(model, PROMPTS, seed=4, **options).ids != first.ids


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_order_of_the_prompts_is_kept(batch_size: int) -> None:
    model = make_lm()
    prompts = ["why? " * n for n in (3, 1, 8, 2, 5, 1, 13)]
    rows = [Example(p, id=f"row-{i}") for i, p in enumerate(prompts)]
    table = P2S.from_table(LAYER, {e.id: V * (i - 3) for i, e in enumerate(rows)})
    found = generate(model, rows, steer=table, batch_size=batch_size, max_new_tokens=4)
    assert found.example_ids == tuple(e.id for e in rows)
    for i, prompt in enumerate(prompts):
        with plain.hooked(model, LAYER, everywhere(V * (i - 3))):
            assert found.ids[i] == plain.new_ids(model, prompt, 4)


# --- blocks ----------------------------------------------------------------------------------------------------


def test_steer_none_means_the_enclosing_block_and_empty_means_nothing() -> None:
    model = make_lm()
    before, other = generate(model, PROMPTS, **OPTIONS), generate(model, PROMPTS, steer=mean(W), alpha=ALPHA, **OPTIONS)
    scored = score(model, PROMPTS, ANSWERS)
    with steer(model, mean(V), alpha=ALPHA) as run:
        inside = run.generate(PROMPTS, **OPTIONS)
        assert inside.ids != before.ids
        assert generate(model, PROMPTS, **OPTIONS).ids == inside.ids
        assert generate(model, PROMPTS, steer=(), **OPTIONS).ids == before.ids
        assert generate(model, PROMPTS, steer=mean(W), alpha=ALPHA, **OPTIONS).ids == other.ids
        assert score(model, PROMPTS, ANSWERS).equals(run.score(PROMPTS, ANSWERS))
        assert score(model, PROMPTS, ANSWERS, steer=()).equals(scored)
        assert not score(model, PROMPTS, ANSWERS).equals(scored)
    assert generate(model, PROMPTS, **OPTIONS).ids == before.ids


def test_run_counts_its_tokens_and_ends_with_its_block() -> None:
    with steer(make_lm(), mean(V), alpha=ALPHA) as run:
        assert isnan(run.norm_ratio) and run.steered_tokens == 0
        one, two = run.generate(PROMPTS, max_new_tokens=2), run.score(PROMPTS, ANSWERS)
        assert run.steered_tokens == one.steered_tokens + two.attrs["steered_tokens"]
        total = one.norm_ratio * one.steered_tokens + two.attrs["norm_ratio"] * two.attrs["steered_tokens"]
        assert run.norm_ratio == pytest.approx(total / run.steered_tokens)
    for call in (lambda: run.generate(PROMPTS), lambda: run.score(PROMPTS, ANSWERS)):
        with pytest.raises(SteeringError, match="this run has ended"):
            call()


def test_prompt_baseline_changes_the_prompt_and_adds_no_vector() -> None:
    model = make_lm()
    found = generate(model, PROMPTS, steer=Prompt("Be brief."), **OPTIONS)
    changed = generate(model, [f"{p} Be brief." for p in PROMPTS], **OPTIONS)
    assert found.ids == changed.ids and found.steered_tokens == 0


@backends
@pytest.mark.parametrize("sampling", [False, True])
def test_two_threads_give_what_one_gives(backend: str, sampling: bool) -> None:
    model = make_lm("llama", backend)
    options = dict(batch_size=1, do_sample=sampling, **OPTIONS)

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


# --- errors ----------------------------------------------------------------------------------------------------


@verbs
def test_vectors_of_another_model_are_refused_by_width_or_name(verb) -> None:
    with pytest.raises((MismatchError, SteeringError), match=r"48.*32|32.*48"):
        verb(make_lm(), PROMPTS, steer=mean(torch.ones(48)))
    for kind in ("l2s", "random"):
        with pytest.raises(MismatchError, match=r"fitted on a model .*'tiny-llama'.*'tiny-qwen2'.*any_model=True"):
            verb(make_lm("qwen2"), PROMPTS, steer=make_steerers("llama")[kind])


def test_any_model_accepts_vectors_of_another_model_of_the_same_width() -> None:
    model, random = make_lm("qwen2"), make_steerers("llama")["random"]
    request = Request(random, ALPHA, any_model=True)
    check_hooks(model, request, lambda *_: [plain.hooked(model, LAYER, everywhere(ALPHA * random.vector_))])
    with pytest.raises(MismatchError, match=r"hidden_size 48; this model has 32"):
        generate(model, PROMPTS, steer=Request(mean(torch.ones(48)), any_model=True), **OPTIONS)


NAN, INFINITE = (P2S.from_table(LAYER, {i: V * float(x) for i in IDS}) for x in ("nan", "inf"))


@pytest.mark.parametrize(
    ("steerer", "options", "error", "message"),
    [
        (mean(V), {"alpha": [1.0, 2.0]}, SteeringError, r"shape \(2,\) but there are 3 inputs"),
        (mean(V), {"alpha": float("nan")}, SteeringError, "alpha=nan .*without NaN or infinity"),
        (mean(V), {"alpha": float("inf")}, SteeringError, "alpha=inf .*without NaN or infinity"),
        (NAN, {}, SteeringError, "NaN or infinity"),
        (INFINITE, {}, SteeringError, "NaN or infinity"),
        (mean(V, 4), {}, LayoutError, "layer 4 does not exist: the model has 4"),
        (mean(V, -5), {}, LayoutError, "layer -5"),
        (mean(V), {"positions": "lats"}, PositionError, "unknown position 'lats'"),
        (mean(V), {"positions": 400}, PositionError, "outside a prompt"),
        (P2S.from_table(LAYER, {IDS[0]: V, IDS[1]: V}), {}, ActivationError, rf"no vector for \['{IDS[2]}'\]"),
    ],
)
def test_invalid_requests_are_refused(steerer: Steerer, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        generate(make_lm(), PROMPTS, steer=steerer, max_new_tokens=2, **options)


def test_each_prompt_is_encoded_once_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """L2S reads the unsteered prompts first; it is given the rows that are generated from or scored."""
    model, l2s = make_lm("llama", "hooks"), make_steerers("llama")["l2s"]
    encode, encoded = model.encode, []
    monkeypatch.setattr(model, "encode", lambda prompt, **options: encoded.append(prompt) or encode(prompt, **options))
    generate(model, PROMPTS, steer=l2s, max_new_tokens=2)
    score(model, PROMPTS, ANSWERS, steer=l2s)
    assert encoded == [*PROMPTS, *PROMPTS]


def test_negative_layers_count_from_the_end() -> None:
    last, third = (generate(make_lm(), PROMPTS, steer=mean(V, k), alpha=ALPHA, max_new_tokens=3).ids for k in (-1, 3))
    assert last == third


def test_prompt_and_new_tokens_must_fit_the_context() -> None:
    model = make_lm()
    n = plain.chat_ids(model, PROMPTS[0])[1]
    room = model.context_length - n
    with pytest.raises(EncodingError, match=f"{n} tokens; with {room + 1} new ones it exceeds .* 512"):
        generate(model, PROMPTS[:1], max_new_tokens=room + 1)
    with pytest.raises(EncodingError, match="512"):
        generate(model, ["x" * 600], max_new_tokens=1)


# --- every kind of intervention, compared with hooks by hand ------------------------------------------------------

LAYERS = {0: V, 2: -W, 3: V + W}
GATE = torch.tensor([1.0, 0.0, 0.25])
MATRIX = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(2)) / 4


def state_function(*sites: Site, matrix: Tensor = MATRIX) -> Fixed:
    """A matrix times the state at the last prompt token, at several sites (as AlphaSteer)."""
    return Fixed(*(Intervention(site, vector_fn=lambda h: h @ matrix) for site in sites))


def at_last_state(number: int, n: int):
    return lambda h: h + ALPHA * (h[:, n - 1] @ MATRIX)[:, None]


@pytest.mark.parametrize(("family", "backend"), [("llama", "nnsight"), ("gemma2", "nnsight"), ("gpt2", "hooks")])
@pytest.mark.parametrize(
    ("steerer", "changes"),
    [
        (Fixed(*(Intervention(Site(k), v.expand(3, -1)) for k, v in LAYERS.items())),
         {k: lambda i, n, v=v: everywhere(ALPHA * v) for k, v in LAYERS.items()}),
        (Fixed(Intervention(Site(LAYER), V.expand(3, -1), GATE)),
         {LAYER: lambda i, n: everywhere(ALPHA * GATE[i] * V)}),
        (state_function(Site(0), Site(2)), {0: at_last_state, 2: at_last_state}),
    ],
    ids=["layers", "gates", "functions of the state"],
)  # fmt: skip
def test_interventions_equal_hooks_by_hand(family: str, backend: str, steerer: Steerer, changes: dict) -> None:
    model = make_lm(family, backend)

    def hooks(number: int, prompt: str) -> list:
        n = plain.chat_ids(model, prompt)[1]
        return [plain.hooked(model, layer, change(number, n)) for layer, change in changes.items()]

    check_hooks(model, Request(steerer, ALPHA, "all"), hooks)


@backends
def test_functions_of_the_state_work_with_beams_and_at_a_blocks_input(backend: str) -> None:
    model, options = make_lm("llama", backend), dict(alpha=ALPHA, **OPTIONS)
    check_copies(model, Request(state_function(Site(1)), ALPHA))
    # the input of a block is the output of the one before it
    block_in = generate(model, PROMPTS, steer=state_function(Site(2, "block_in")), **options)
    assert block_in.ids == generate(model, PROMPTS, steer=state_function(Site(1)), **options).ids


def test_functions_of_the_state_with_another_shape_or_scale_are_refused() -> None:
    narrow, model = state_function(Site(1), matrix=torch.ones(HIDDEN, 1)), make_lm("llama", "hooks")
    with pytest.raises(Exception, match=r"returned .* for 3 rows of width 32"):
        generate(model, PROMPTS, steer=narrow, max_new_tokens=2)
    with pytest.raises(SteeringError, match="scale='raw'"):
        generate(model, PROMPTS, steer=state_function(Site(1)), scale="norm", max_new_tokens=2)
