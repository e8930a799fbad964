"""What holds exactly for every steerer, family and back end: the list of the design, in its order."""

from __future__ import annotations

import math

import plain
import pytest
import torch
from fitted import CONTEXT_LAYER, HIDDEN, LAYER, PROMPTS
from torch import Tensor

from steerlab import L2S, P2S, Match, MeanDifference, Model, SteeringError, generate, score, steer
from steerlab.capture.rows import as_examples
from steerlab.methods.base import Steerer
from steerlab.models.encoding import Batch
from steerlab.models.sites import Site
from steerlab.steering import Request
from steerlab.steering.interventions import build_edits, resolve_interventions
from steerlab.steering.steer import active_steering
from steerlab.testing import FAMILIES

STEERERS = ("mean", "p2s", "l2s", "random")
BACKENDS = ("nnsight", "hooks")
ANSWERS = ("the reeds", "ok", "fish, in the reeds by night")
EARLIER = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi there!"})
STEPS = 6
ALPHA = 2.5
families = pytest.mark.parametrize("family", FAMILIES)
backends = pytest.mark.parametrize("backend", BACKENDS)
# plain hooks on three families only: `test_nnsight_and_hooks_agree` covers the others
engines = pytest.mark.parametrize(
    ("family", "backend"), [(f, "nnsight") for f in FAMILIES] + [(f, "hooks") for f in ("llama", "gemma2", "gpt2")]
)
kinds = pytest.mark.parametrize("kind", STEERERS)
per_row = pytest.mark.parametrize("kind", ["p2s", "l2s"])  # a vector per row is the harder case


def vectors_of(model: Model, steerer: Steerer, prompts=PROMPTS) -> Tensor:
    """One vector per prompt, as the steerer gives them for these inputs."""
    ((_, (shift,)),) = resolve_interventions(model, [Request(steerer)], as_examples(prompts), 16)
    assert shift.vectors is not None
    return shift.vectors.clone()


def by_hand(model: Model, steerer: Steerer, prompt: str, number: int) -> Tensor:
    """The same vector from what was learned, with nothing but matrices."""
    if isinstance(steerer, P2S):
        return steerer.table_[number]
    if not isinstance(steerer, L2S):
        return steerer.vector_
    ids, n_prompt = plain.chat_ids(model, prompt)
    context = plain.hidden(model, ids)[CONTEXT_LAYER][n_prompt - 1]
    weights = dict(steerer.net_.state_dict())
    code = torch.tanh(weights["encoder.weight"] @ context + weights["encoder.bias"])
    return weights["decoder.weight"] @ code


def encoded(model: Model, side: str, answers=ANSWERS, earlier=()) -> Batch:
    asked = [[*earlier, {"role": "user", "content": p}] for p in PROMPTS]
    rows = [model.encode(p, answer=a, example_id=str(i)) for i, (p, a) in enumerate(zip(asked, answers, strict=True))]
    return model.batch(rows, side)


def states(model: Model, batch: Batch, plan) -> Tensor:
    """`(batch, layer, tokens, hidden)` of every layer under a plan."""
    inputs = model.inputs(batch)
    sites = [Site(k) for k in range(model.n_layers)]
    return model.engine.capture_states(inputs, plan, sites, lambda h: h.clone())


def plan_of(model: Model, steerer: Steerer, batch: Batch, positions, alpha: float = ALPHA):
    examples = as_examples(PROMPTS)
    prepared = resolve_interventions(model, [Request(steerer, alpha, positions)], examples, 16)
    return build_edits(model, prepared, batch, range(len(PROMPTS)), len(PROMPTS))


# --- alpha 0 ---------------------------------------------------------------------------------------------------


@engines
@kinds
def test_alpha_zero_is_bit_identical_to_no_steering(lm, steerers, family, backend, kind):
    model, steerer = lm(family, backend), steerers(family)[kind]
    before = generate(model, PROMPTS, max_new_tokens=STEPS)
    scored = score(model, PROMPTS, ANSWERS)
    for alpha in (0.0, torch.zeros(3)):
        with steer(model, steerer, alpha=alpha) as run:
            assert run.generate(PROMPTS, max_new_tokens=STEPS).ids == before.ids
            assert run.score(PROMPTS, ANSWERS)["logprob"].tolist() == scored["logprob"].tolist()


@engines
def test_an_all_zero_vector_is_bit_identical_to_no_steering(lm, family, backend):
    model, zero = lm(family, backend), MeanDifference.from_tensor(LAYER, torch.zeros(HIDDEN))
    batch = encoded(model, "left")
    inputs = model.inputs(batch)
    plan = plan_of(model, zero, batch, "all")
    assert plan, "the zero vector really goes through the model"
    assert torch.equal(model.engine.logits(inputs, plan, 5), model.engine.logits(inputs, {}, 5))
    plain_ids = generate(model, PROMPTS, max_new_tokens=STEPS).ids
    assert generate(model, PROMPTS, steer=zero, max_new_tokens=STEPS).ids == plain_ids


def test_strengths_that_are_all_zero_need_no_steered_token(lm, steerers):
    model = lm()
    found = generate(
        model, PROMPTS, steer=steerers("llama")["mean"], alpha=[0.0] * 3, positions="generated", max_new_tokens=1
    )
    assert found.ids == generate(model, PROMPTS, max_new_tokens=1).ids and found.steered_tokens == 0


# --- steered minus unsteered -----------------------------------------------------------------------------------


def wanted_columns(model: Model, positions: str) -> list[list[int]]:
    """The unpadded tokens each position means, from the rendered text alone."""
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids, n = plain.chat_ids(model, prompt, answer, EARLIER)
        text = model.tokenizer.decode(ids)
        places = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        system, first = text.index("<|im_start|>system"), text.index("<|im_start|>user")
        user, header = text.rindex("<|im_start|>user"), text.rindex("<|im_start|>assistant")
        at = [i for i in range(len(text)) if text.startswith("i", i)]
        found.append(
            {
                "all": list(range(len(ids))),
                "prompt": list(range(n)),
                "last": [n - 1],
                "text": list(range(n)),
                "system": [i for i, (a, _) in enumerate(places) if system <= a < first],
                "history": [i for i, (a, _) in enumerate(places) if first <= a < user],
                "user": [i for i, (a, _) in enumerate(places) if user <= a < header],
                "last_user": [i for i, (_, b) in enumerate(places) if b == header],
                "header": [i for i, (a, _) in enumerate(places[:n]) if a >= header],
                "generated": list(range(n, len(ids))),
                "answer": list(range(n, len(ids))),
                "last+generated": list(range(n - 1, len(ids))),
                "int": [3],
                "negative int": [len(ids) - 2],
                "slice": [1, 2, 3, 4],
                "match": [i for i, (a, b) in enumerate(places) if any(a <= x < b for x in at)],
                "mask": [0, 5, 6],
            }[positions]
        )
    return found


def asked(positions: str):
    if positions == "mask":
        mask = torch.zeros(3, 7, dtype=torch.bool)
        mask[:, [0, 5, 6]] = True
        return mask
    return {"int": 3, "negative int": -2, "slice": slice(1, 5), "match": Match("i")}.get(positions, positions)


@engines
@pytest.mark.parametrize("side", ["left", "right"])
def test_steered_minus_unsteered_is_alpha_v_on_the_positions_and_nothing_elsewhere(lm, steerers, family, backend, side):
    model, steerer = lm(family, backend), steerers(family)["p2s"]
    batch = encoded(model, side, earlier=EARLIER)
    before = states(model, batch, {})
    for positions in (
        "all", "prompt", "last", "system", "history", "user", "last_user", "header", "text", "generated", "answer",
        "last+generated", "int", "negative int", "slice", "match", "mask",
    ):  # fmt: skip
        steered = states(model, batch, plan_of(model, steerer, batch, asked(positions)))
        expected = before.clone()
        for row, tokens in enumerate(wanted_columns(model, positions)):
            shift = 0 if side == "right" else batch.width - len(batch.rows[row])
            assert tokens, "every row is written to somewhere"
            expected[row, LAYER, [shift + t for t in tokens]] += torch.tensor(ALPHA) * steerer.table_[row]
        assert torch.equal(steered[:, :LAYER], before[:, :LAYER]), positions
        assert torch.equal(steered[:, LAYER], expected[:, LAYER]), positions
        assert not torch.equal(steered[:, LAYER + 1], before[:, LAYER + 1]), "the model sees what was written"


@engines
@kinds
def test_every_steerer_adds_its_own_vector(lm, steerers, family, backend, kind):
    model, steerer = lm(family, backend), steerers(family)[kind]
    batch = encoded(model, "left")
    vectors = vectors_of(model, steerer)
    for number, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(vectors[number], by_hand(model, steerer, prompt, number), rtol=1e-4, atol=1e-5)
    before, steered = states(model, batch, {}), states(model, batch, plan_of(model, steerer, batch, "all"))
    real = batch.attention_mask.bool()[:, :, None]
    expected = torch.where(real, before[:, LAYER] + (ALPHA * vectors)[:, None], before[:, LAYER])
    assert torch.equal(steered[:, LAYER], expected)


@families
def test_what_lies_above_is_what_the_model_makes_of_the_steered_state(lm, steerers, family):
    model, steerer = lm(family), steerers(family)["p2s"]
    batch = encoded(model, "left")
    steered = states(model, batch, plan_of(model, steerer, batch, "prompt"))
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, n = plain.chat_ids(model, prompt, answer)
        with plain.hooked(model, LAYER, plain.adding(ALPHA * steerer.table_[number], range(n))):
            expected = torch.stack(plain.hidden(model, ids))
        torch.testing.assert_close(steered[number, :, -len(ids) :], expected, rtol=1e-4, atol=1e-4)


# --- batches and padding ---------------------------------------------------------------------------------------


@pytest.fixture
def poison(request):
    """Large values in the embeddings of pads, for one model; in prefill only, where a pad id is a pad."""
    handles = []

    def put(model: Model) -> None:
        def after(_, args, output):
            ids = args[0]
            pads = (ids == model.tokenizer.pad_token_id)[:, :, None] if ids.shape[1] > 1 else torch.zeros(1, 1, 1) > 0
            return output + 50.0 * pads

        handles.append(model.hf.get_input_embeddings().register_forward_hook(after))

    yield put
    for handle in handles:
        handle.remove()


@engines
@per_row
def test_a_batch_equals_its_rows_one_by_one_with_poison_in_the_pads(lm, steerers, poison, family, backend, kind):
    model, steerer = lm(family, backend), steerers(family)[kind]
    with steer(model, steerer, alpha=ALPHA) as run:
        single = run.generate(PROMPTS, max_new_tokens=STEPS, batch_size=1)
        one = run.score(PROMPTS, ANSWERS, batch_size=1)
        poison(model)
        batch = run.generate(PROMPTS, max_new_tokens=STEPS)
        many = run.score(PROMPTS, ANSWERS)
    assert batch.ids == single.ids and batch.steered_tokens == single.steered_tokens
    assert many["logprob"].tolist() == pytest.approx(one["logprob"].tolist(), abs=1e-4)


@engines
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_do_not_depend_on_padding(lm, steerers, poison, family, backend, side):
    model, steerer = lm(family, backend), steerers(family)["p2s"]
    poison(model)
    batch = encoded(model, side)
    together = states(model, batch, plan_of(model, steerer, batch, "last+generated"))
    for number, row in enumerate(batch.rows):
        alone = model.batch([row])
        prepared = resolve_interventions(model, [Request(steerer, ALPHA, "last+generated")], as_examples(PROMPTS), 16)
        expected = states(model, alone, build_edits(model, prepared, alone, [number], 3))[0]
        here = together[number, :, batch.offsets[number] :][:, : len(row)]
        torch.testing.assert_close(here, expected, rtol=1e-5, atol=1e-5)


# --- cached generation -----------------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("positions", list(plain.COLUMNS))
def test_cached_generation_equals_recomputation_and_a_loop_by_hand(lm, steerers, family, backend, positions):
    model, steerer = lm(family, backend), steerers(family)["p2s"]
    options = dict(steer=steerer, alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
    cached = generate(model, PROMPTS, **options)
    again = generate(model, PROMPTS, use_cache=False, **options)
    assert cached.ids == again.ids
    assert cached.steered_tokens == again.steered_tokens
    assert cached.norm_ratio == pytest.approx(again.norm_ratio, rel=0.2)
    loops = [
        plain.greedy(model, p, LAYER, ALPHA * steerer.table_[i], plain.COLUMNS[positions], STEPS)
        for i, p in enumerate(PROMPTS)
    ]
    assert cached.ids == tuple(ids for ids, _ in loops)
    ratios = [ratio for _, row in loops for ratio in row]
    assert cached.steered_tokens == len(ratios)
    assert cached.norm_ratio == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


@families
@kinds
def test_every_steerer_generates_as_by_hand(lm, steerers, family, kind):
    model, steerer = lm(family), steerers(family)[kind]
    found = generate(model, PROMPTS, steer=steerer, alpha=ALPHA, max_new_tokens=STEPS)
    for number, prompt in enumerate(PROMPTS):
        delta = ALPHA * by_hand(model, steerer, prompt, number)
        assert found.ids[number] == plain.greedy(model, prompt, LAYER, delta, plain.COLUMNS["all"], STEPS)[0]


@engines
def test_generated_leaves_the_prompt_and_the_first_new_token_alone(lm, steerers, family, backend):
    model, steerer = lm(family, backend), steerers(family)["p2s"]
    before = generate(model, PROMPTS, max_new_tokens=STEPS)
    after = generate(model, PROMPTS, steer=steerer, alpha=20.0, positions="generated", max_new_tokens=STEPS)
    assert [ids[0] for ids in after.ids] == [ids[0] for ids in before.ids]
    assert after.ids != before.ids
    batch = encoded(model, "left")
    steered, unsteered = states(model, batch, plan_of(model, steerer, batch, "generated")), states(model, batch, {})
    for number, row in enumerate(batch.rows):
        prompt = slice(batch.offsets[number], batch.offsets[number] + row.n_prompt)
        assert torch.equal(steered[number, :, prompt], unsteered[number, :, prompt])


# --- afterwards ------------------------------------------------------------------------------------------------


@engines
def test_afterwards_the_model_is_bit_identical(lm, steerers, family, backend):
    model, steerer = lm(family, backend), steerers(family)["l2s"]
    generate(model, PROMPTS[:1], max_new_tokens=2)  # a back end may prepare the model when first used
    weights = {k: v.clone() for k, v in model.hf.state_dict().items()}
    hooks, (ids, _) = plain.hook_count(model), plain.chat_ids(model, PROMPTS[0])
    before = plain.logits(model, ids)

    def check() -> None:
        assert active_steering(model) == [] and plain.hook_count(model) == hooks
        assert torch.equal(plain.logits(model, ids), before)
        assert all(torch.equal(v, weights[k]) for k, v in model.hf.state_dict().items())

    with steer(model, steerer, alpha=ALPHA) as run:
        run.generate(PROMPTS, max_new_tokens=STEPS)
        run.score(PROMPTS, ANSWERS)
    check()
    with pytest.raises(ZeroDivisionError), steer(model, steerer, alpha=ALPHA) as run:
        run.generate(PROMPTS, max_new_tokens=2)
        raise ZeroDivisionError
    check()


@backends
def test_an_exception_inside_the_forward_leaves_the_model_as_it_was(lm, backend):
    class Breaks(MeanDifference):
        def interventions(self, context):
            from steerlab.methods.base import Intervention

            calls = []

            def fail(h: Tensor) -> Tensor:
                calls.append(1)
                raise ZeroDivisionError("in the middle of a forward")

            return (Intervention(Site(LAYER), vector_fn=fail),)

    model = lm("llama", backend)
    generate(model, PROMPTS[:1], max_new_tokens=2)
    hooks, before = plain.hook_count(model), generate(model, PROMPTS, max_new_tokens=STEPS)
    with pytest.raises(Exception, match="in the middle of a forward"):
        generate(model, PROMPTS, steer=Breaks(LAYER), max_new_tokens=2)
    with pytest.raises(Exception, match="in the middle of a forward"):
        score(model, PROMPTS, ANSWERS, steer=Breaks(LAYER))
    assert active_steering(model) == [] and plain.hook_count(model) == hooks
    assert generate(model, PROMPTS, max_new_tokens=STEPS).ids == before.ids


# --- the two back ends -----------------------------------------------------------------------------------------


@families
@per_row
def test_nnsight_and_hooks_agree(lm, steerers, family, kind):
    steerer = steerers(family)[kind]
    for positions in ("all", "last+generated"):
        options = dict(steer=steerer, alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
        one, other = (generate(lm(family, backend), PROMPTS, **options) for backend in BACKENDS)
        assert (one.ids, one.steered_tokens) == (other.ids, other.steered_tokens)
        assert one.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-5)


# --- counts ----------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("positions", list(plain.COLUMNS))
@pytest.mark.parametrize("where", ["option", "generation config"])
def test_states_after_a_row_has_ended_are_not_counted(lm, steerers, monkeypatch, backend, positions, where):
    model, steerer = lm("llama", backend), steerers("llama")["p2s"]
    options = dict(steer=steerer, alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
    long = generate(model, PROMPTS, **options)
    eos = long.ids[0][2]
    if where == "option":
        options["eos_token_id"] = eos
    else:
        monkeypatch.setattr(model.hf.generation_config, "eos_token_id", [model.tokenizer.eos_token_id, eos])
    short = generate(model, PROMPTS, **options)
    ends = [ids.index(eos) + 1 if eos in ids else len(ids) for ids in long.ids]
    assert short.ids == tuple(ids[:end] for ids, end in zip(long.ids, ends, strict=True))
    assert min(ends) <= 3, "a row ends early"
    expected = 0
    for prompt, ids in zip(PROMPTS, short.ids, strict=True):
        n = plain.chat_ids(model, prompt)[1]
        expected += len(plain.COLUMNS[positions](n, n + len(ids) - 1))  # the last new token is never fed back
    assert short.steered_tokens == expected
    assert short.norm_ratio > 0


def test_rows_that_end_early_and_are_waited_for_are_cut_at_their_end(lm):
    model = lm()
    long = generate(model, PROMPTS, max_new_tokens=STEPS)
    eos = next(t for t in long.ids[0] if any(t not in ids for ids in long.ids))
    short = generate(model, PROMPTS, max_new_tokens=STEPS, eos_token_id=[eos])
    assert len({len(ids) for ids in short.ids}) > 1
    for full, cut in zip(long.ids, short.ids, strict=True):
        assert cut == (full[: full.index(eos) + 1] if eos in full else full)


@backends
def test_no_steered_token_is_an_error(lm, steerers, backend):
    model, steerer = lm("llama", backend), steerers("llama")["mean"]
    with pytest.raises(SteeringError, match="no token was steered"):
        generate(model, PROMPTS, steer=steerer, positions="generated", max_new_tokens=1)
    assert generate(model, PROMPTS, steer=steerer, alpha=0.0, positions="generated", max_new_tokens=1)


@families
def test_norm_ratio_is_that_of_the_written_states(lm, steerers, family):
    model, steerer = lm(family), steerers(family)["p2s"]
    ratios = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, n = plain.chat_ids(model, prompt, answer)
        h = plain.hidden(model, ids)[LAYER][n - 1 :]
        ratios += (ALPHA * steerer.table_[number].norm() / h.norm(dim=-1)).tolist()
    with steer(model, steerer, alpha=ALPHA, positions="last+generated") as run:
        assert math.isnan(run.norm_ratio) and run.steered_tokens == 0
        frame = run.score(PROMPTS, ANSWERS)
    assert frame.attrs["steered_tokens"] == run.steered_tokens == len(ratios)
    assert frame.attrs["norm_ratio"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    assert run.norm_ratio == pytest.approx(frame.attrs["norm_ratio"])
