"""Properties that hold exactly for every steerer, model family and engine."""

from statistics import mean

import plain
import pytest
import torch
from comparisons import check_hooks, check_padding, edits_of, encoded, states
from fitted import ANSWERS, HIDDEN, LAYER, PROMPTS, STEPS, Fixed, backends, make_lm, make_steerers, own_vector, sides
from torch import Tensor

from steerlab import SteeringVector, generate, score, steer
from steerlab.data.inputs import as_examples
from steerlab.errors import SteeringError
from steerlab.methods.base import Intervention
from steerlab.models.model import Model
from steerlab.models.positions import Match
from steerlab.models.sites import Site
from steerlab.steering import Request
from steerlab.steering.batches import active_steering
from steerlab.steering.requests import resolve_interventions
from steerlab.testing import FAMILIES

EARLIER = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi there!"})
ALPHA = 2.5
families = pytest.mark.parametrize("family", FAMILIES)
# plain hooks on three families only: `test_nnsight_and_hooks_generate_the_same` covers the others
engines = pytest.mark.parametrize(
    ("family", "backend"), [(f, "nnsight") for f in FAMILIES] + [(f, "hooks") for f in ("llama", "gemma2", "gpt2")]
)
kinds = pytest.mark.parametrize("kind", ("mean", "p2s", "l2s", "random"))
per_row = pytest.mark.parametrize("kind", ["p2s", "l2s"])  # a vector per row is the harder case
all_positions = pytest.mark.parametrize("positions", list(plain.COLUMNS))


# --- alpha 0 ---------------------------------------------------------------------------------------------------


@engines
def test_alpha_zero_is_bit_identical_to_no_steering(family, backend):
    model, steerer = make_lm(family, backend), make_steerers(family)["l2s"]
    before, scored = generate(model, PROMPTS, max_new_tokens=STEPS), score(model, PROMPTS, ANSWERS)
    for alpha in (0.0, torch.zeros(3)):
        with steer(model, steerer, alpha=alpha) as run:
            assert run.generate(PROMPTS, max_new_tokens=STEPS).ids == before.ids
            assert run.score(PROMPTS, ANSWERS)["logprob"].tolist() == scored["logprob"].tolist()


@engines
def test_zero_vector_is_bit_identical_to_no_steering(family, backend):
    model, zero = make_lm(family, backend), SteeringVector({LAYER: torch.zeros(HIDDEN)})
    batch = encoded(model)
    inputs, edits = model.inputs(batch), edits_of(model, batch, Request(zero, ALPHA, "all"))
    assert edits, "the zero vector is really added"
    assert torch.equal(model.engine.logits(inputs, edits, 5), model.engine.logits(inputs, {}, 5))
    unsteered = generate(model, PROMPTS, max_new_tokens=STEPS)
    assert generate(model, PROMPTS, steer=zero, max_new_tokens=STEPS).ids == unsteered.ids


# --- steered minus unsteered -----------------------------------------------------------------------------------


def expected_tokens(model: Model) -> list[dict[str, list[int]]]:
    """Per row, the unpadded tokens of each position, from the rendered text alone."""
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids, n = plain.chat_ids(model, prompt, answer, EARLIER)
        text = model.tokenizer.decode(ids)
        places = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        system, first = text.index("<|im_start|>system"), text.index("<|im_start|>user")
        user, header = text.rindex("<|im_start|>user"), text.rindex("<|im_start|>assistant")
        matches = [i for i in range(len(text)) if text.startswith("i", i)]
        found.append(
            {
                **{name: columns(n, len(ids)) for name, columns in plain.COLUMNS.items()}, "text": list(range(n)),
                "system": [i for i, (a, _) in enumerate(places) if system <= a < first],
                "history": [i for i, (a, _) in enumerate(places) if first <= a < user],
                "user": [i for i, (a, _) in enumerate(places) if user <= a < header],
                "last_user": [i for i, (_, b) in enumerate(places) if b == header],
                "header": [i for i, (a, _) in enumerate(places[:n]) if a >= header], "answer": list(range(n, len(ids))),
                "int": [3], "negative int": [n - 2], "slice": [1, 2, 3, 4],
                "match": [i for i, (a, b) in enumerate(places[:n]) if any(a <= x < b for x in matches)],
                "mask": [0, 5, 6],
            }
        )  # fmt: skip
    return found


@engines
@sides
def test_alpha_v_is_added_at_the_positions_and_nowhere_else(family, backend, side):
    model, steerer = make_lm(family, backend), make_steerers(family)["p2s"]
    turns = [[*EARLIER, {"role": "user", "content": prompt}] for prompt in PROMPTS]
    batch, tokens = encoded(model, side, turns), expected_tokens(model)
    before = states(model, batch, {})
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, [0, 5, 6]] = True
    given = {"int": 3, "negative int": -2, "slice": slice(1, 5), "match": Match("i"), "mask": mask}
    for positions in tokens[0]:
        request = Request(steerer, ALPHA, given.get(positions, positions))
        steered = states(model, batch, edits_of(model, batch, request))
        expected = before.clone()
        for row, of_row in enumerate(tokens):
            assert of_row[positions], "every row is steered somewhere"
            columns = [batch.offsets[row] + t for t in of_row[positions]]
            expected[row, LAYER, columns] += torch.tensor(ALPHA) * steerer.table_[row]
        assert torch.equal(steered[:, :LAYER], before[:, :LAYER]), positions
        assert torch.equal(steered[:, LAYER], expected[:, LAYER]), positions
        assert not torch.equal(steered[:, LAYER + 1], before[:, LAYER + 1]), "later blocks get the steered state"


@engines
@kinds
def test_every_steerer_adds_its_vector(family, backend, kind):
    model, steerer = make_lm(family, backend), make_steerers(family)[kind]
    batch = encoded(model)
    (setting,) = resolve_interventions(model, [Request(steerer)], as_examples(PROMPTS), 16)
    vectors = setting.interventions[0].vectors.clone()
    for number, prompt in enumerate(PROMPTS):
        expected = own_vector(model, steerer, prompt, number)
        torch.testing.assert_close(vectors[number], expected, rtol=1e-4, atol=1e-5)
    before, steered = states(model, batch, {}), states(model, batch, edits_of(model, batch, Request(steerer, ALPHA)))
    real = batch.attention_mask.bool()[:, :, None]
    expected = torch.where(real, before[:, LAYER] + (ALPHA * vectors)[:, None], before[:, LAYER])
    assert torch.equal(steered[:, LAYER], expected)


# --- batches and padding ---------------------------------------------------------------------------------------


@pytest.fixture
def poison():
    """Put large values in the embeddings of pads; in prefill only, where a pad id is a pad."""
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
def test_batch_equals_smaller_batches_with_poisoned_pads(poison, family, backend, kind):
    model, steerer = make_lm(family, backend), make_steerers(family)[kind]
    with steer(model, steerer, alpha=ALPHA) as run:
        texts = [run.generate(PROMPTS, max_new_tokens=STEPS, batch_size=size) for size in (1, 2)]
        scores = [run.score(PROMPTS, ANSWERS, batch_size=size) for size in (1, 2)]
        poison(model)
        batch, scored = run.generate(PROMPTS, max_new_tokens=STEPS), run.score(PROMPTS, ANSWERS)
    tolerance = 1e-5 if kind == "p2s" else 1e-4  # L2S reads states, and those differ a little by batch
    for found, frame in zip(texts, scores, strict=True):
        assert batch.ids == found.ids and batch.steered_tokens == found.steered_tokens
        assert scored["logprob"].tolist() == pytest.approx(frame["logprob"].tolist(), abs=tolerance)
        assert scored.attrs["steered_tokens"] == frame.attrs["steered_tokens"]


@engines
@sides
def test_states_do_not_depend_on_padding(poison, family, backend, side):
    model = make_lm(family, backend)
    poison(model)
    check_padding(model, Request(make_steerers(family)["p2s"], ALPHA, "last+generated"), side)


# --- cached generation -----------------------------------------------------------------------------------------


@engines
@all_positions
def test_padded_batch_equals_single_rows_with_plain_hooks(family, backend, positions):
    model, steerer = make_lm(family, backend), make_steerers(family)["p2s"]
    ratios: list[list[list[float]]] = [[] for _ in PROMPTS]  # of every row, in every forward, of every steered state
    by_token: dict[int, dict[int, float]] = {}  # of every row, by the place after its last prompt token

    def hooks(number, prompt):
        n, delta = plain.chat_ids(model, prompt)[1], ALPHA * steerer.table_[number]

        def change(h: Tensor) -> Tensor:
            columns = plain.COLUMNS[positions](n, h.shape[1])
            ratios[number].append((delta.norm() / h[0, columns].norm(dim=-1)).tolist())
            numbered = torch.arange(h.shape[1])[columns] - n + 1
            by_token[number] = dict(zip(numbered.tolist(), ratios[number][-1], strict=True))
            return plain.adding(delta, columns)(h)

        return [plain.hooked(model, LAYER, change)]

    scored, cached, uncached = check_hooks(model, Request(steerer, ALPHA, positions), hooks)
    answer_ratios, text_ratios = ([ratio for of_row in ratios for ratio in of_row[i]] for i in (0, -1))
    assert scored.attrs["steered_tokens"] == len(answer_ratios) and cached.steered_tokens == len(text_ratios)
    assert scored.attrs["norm_ratio"] == pytest.approx(mean(answer_ratios), rel=1e-5)
    assert cached.norm_ratio == pytest.approx(mean(text_ratios), rel=1e-4)
    assert cached.norm_ratio == pytest.approx(uncached.norm_ratio, rel=0.2)
    for one in cached.norm_ratios.itertuples():
        here = [of_row[one.token] for of_row in by_token.values() if one.token in of_row]
        assert (one.layer, one.states) == (LAYER, len(here)) and one.norm_ratio == pytest.approx(mean(here), rel=1e-4)
    assert sorted({k for of_row in by_token.values() for k in of_row}) == cached.norm_ratios["token"].tolist()
    if positions == "generated":
        unsteered = generate(model, PROMPTS, max_new_tokens=1)
        assert [ids[0] for ids in cached.ids] == [ids[0] for ids in unsteered.ids], "the first token is not steered"


@families
@per_row
def test_nnsight_and_hooks_generate_the_same(family, kind):
    for positions in ("all", "last+generated"):
        options = dict(steer=make_steerers(family)[kind], alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
        one, other = (generate(make_lm(family, backend), PROMPTS, **options) for backend in ("nnsight", "hooks"))
        assert (one.ids, one.steered_tokens) == (other.ids, other.steered_tokens)
        assert one.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-5)


# --- afterwards ------------------------------------------------------------------------------------------------


def fail(h: Tensor) -> Tensor:
    raise ZeroDivisionError("in the middle of a forward")


@engines
def test_model_is_bit_identical_after_steering_and_after_exceptions(family, backend):
    model, steerer = make_lm(family, backend), make_steerers(family)["l2s"]
    failing = Fixed(Intervention(Site(LAYER), vector_fn=fail))
    generate(model, PROMPTS[:1], max_new_tokens=2)  # an engine may prepare the model when first used
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
    with pytest.raises(Exception, match="in the middle of a forward"):
        generate(model, PROMPTS, steer=failing, max_new_tokens=2)
    with pytest.raises(Exception, match="in the middle of a forward"):
        score(model, PROMPTS, ANSWERS, steer=failing)
    check()


# --- counts ----------------------------------------------------------------------------------------------------


@backends
@all_positions
@pytest.mark.parametrize("given", ["option", "generation config"])
def test_states_after_a_row_has_ended_are_not_counted(monkeypatch, backend, positions, given):
    model, steerer = make_lm("llama", backend), make_steerers("llama")["p2s"]
    options = dict(steer=steerer, alpha=ALPHA, positions=positions, max_new_tokens=STEPS)
    long = generate(model, PROMPTS, **options)
    eos = long.ids[0][2]
    if given == "option":
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
    assert short.steered_tokens == expected and short.norm_ratio > 0


@backends
def test_no_steered_token_raises_unless_alpha_is_zero(backend):
    model, options = make_lm("llama", backend), dict(positions="generated", max_new_tokens=1)
    steerer = make_steerers("llama")["mean"]
    with pytest.raises(SteeringError, match="no token was steered"):
        generate(model, PROMPTS, steer=steerer, **options)
    unsteered = generate(model, PROMPTS, max_new_tokens=1)
    for alpha in (0.0, [0.0] * 3):
        found = generate(model, PROMPTS, steer=steerer, alpha=alpha, **options)
        assert found.ids == unsteered.ids and found.steered_tokens == 0
