"""Steering worked out where the model runs: the same as read, predicted and steered from here.

`near` runs every row whole under plain hooks. `far` is the engine for a server, whose requests are carried out in this
process instead of being sent: the same blocks, read, met and counted in the same way.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import make_acts
from torch import Tensor

import steerlab
from steerlab import L2S, P2S, Activations, AlphaSteer, Contrast, Example, MeanDifference, Request, load
from steerlab._support.errors import ActivationError, DataError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.models._nnsight import ndif
from steerlab.models._nnsight.ndif import RemoteEngine
from steerlab.models._nnsight.wire import NdifBackend
from steerlab.models.engine import Inputs
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.testing import tiny_hf, tiny_tokenizer

LAYER, CONTEXT = 1, 3
PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
PAIRS = [Example(str(i), p, "b", Contrast("No, never.", "Yes, sure")) for i, p in enumerate(PROMPTS)]
ANSWERS = ["No, never.", "Yes", "It depends on the heron"]
NETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one unit": {"hidden_units": 1},
    "wide": {"hidden_units": 40},
    "relu": {"activation": "relu"},
    "cosine": {"loss": "mse_l1_cos"},
    "standardized": {"standardize": True},
    "standardized, cosine": {"standardize": True, "loss": "mse_l1_cos", "hidden_units": 5},
    "shortened": {"max_norm": 0.2},
    "of its own layer": {"context_layer": None},
    "of another layer": {"context_layer": 9},
}
Lm = Callable[..., Model]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def net_of(acts: Activations, layer: int, options: dict[str, Any]) -> L2S:
    recipe: dict[str, Any] = {"loss": "mse", "epochs": 4, "learning_rate": 1e-2}
    recipe |= {name: value for name, value in options.items() if name in ("loss", "standardize")}
    max_other = {name: value for name, value in options.items() if name not in recipe}
    return L2S(layer, progress=False, config=TrainingConfig(**recipe), **{"hidden_units": 8} | max_other).fit(acts)


@cache
def acts_of(width: int) -> Activations:
    """Two layers, 3 and 9, of which a net may read either."""
    here, there = (make_acts(draw(30, width, seed=s), draw(30, width, seed=s + 1)) for s in (0, 2))
    return Activations(torch.cat([here.values, there.values], 1), here.index, (Site(3), Site(9)), {})


@cache
def fitted(name: str, width: int) -> L2S:
    return net_of(acts_of(width), 3, NETS[name])


def flight(steerer: Steerer) -> Callable[[Tensor], Tensor]:
    interventions = steerer.remote_interventions()
    assert interventions is not None and len(interventions) == 1 and interventions[0].vector_fn is not None
    return interventions[0].vector_fn


# --- what is sent


@pytest.mark.parametrize("width", [6, 24])
@pytest.mark.parametrize("name", NETS)
def test_a_net_computes_from_a_state_what_it_predicts_from_it(name: str, width: int) -> None:
    l2s, context = fitted(name, width), Context.of(acts_of(width))
    (shift,) = l2s.remote_interventions() or ()
    assert (shift.site, shift.read_site) == (Site(3), Site(NETS[name].get("context_layer") or 3))
    assert shift.vectors is None and shift.gate is None and shift.positions is None
    assert torch.equal(flight(l2s)(context.get_states(l2s.required_activations[0])), l2s.vectors(context))
    for scale in (0.1, 1.0, 30.0):
        states = scale * draw(5, width, seed=7)
        vectors = flight(l2s)(states)
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        assert torch.equal(vectors, l2s.predict(states))
        assert torch.equal(flight(l2s)(states.bfloat16()), l2s.predict(states.bfloat16().float()))


def test_a_shortened_net_is_shortened_there_too() -> None:
    l2s = fitted("shortened", 24)
    norms = flight(l2s)(100 * draw(50, 24)).norm(dim=-1)
    assert norms.max() <= 0.2 * l2s.target_norm_ * (1 + 1e-5) and (norms > 0.199 * l2s.target_norm_).any()


@given(st.sampled_from(sorted(NETS)), st.permutations(range(6)), st.integers(1, 6))
def test_rows_may_come_in_any_order_and_in_any_parts(name: str, order: list[int], at_once: int) -> None:
    states, l2s = draw(6, 6, seed=3), fitted(name, 6)
    parts = [flight(l2s)(part) for part in states[order].split(at_once)]
    torch.testing.assert_close(torch.cat(parts), l2s.predict(states)[order], rtol=1e-5, atol=1e-6)


def test_what_is_sent_is_a_copy_that_survives_the_way() -> None:
    l2s, states = net_of(acts_of(6), 3, {}), draw(4, 6)
    before, sent = l2s.predict(states), flight(l2s)
    with torch.no_grad():
        l2s.net_.decoder.weight.mul_(2)
    assert torch.equal(sent(states), before), "training on changes nothing that is under way"
    assert not torch.equal(flight(l2s)(states), before)
    assert all(p.requires_grad for p in l2s.net_.parameters()), "and what is sent changes nothing here"
    assert torch.equal(pickle.loads(pickle.dumps(sent))(states), before)


@pytest.mark.parametrize("position", ["user", 2, -1])
def test_a_net_that_reads_elsewhere_than_at_the_last_token_is_asked_here(position: str | int) -> None:
    made = L2S(3, context_position=position)
    made.net_ = fitted("plain", 6).net_
    assert made.remote_interventions() is None
    made.context_position = "last"
    assert made.remote_interventions() is not None


def test_a_net_that_would_give_no_numbers_is_not_sent() -> None:
    broken = copy.deepcopy(fitted("plain", 6))
    with torch.no_grad():
        next(broken.net_.parameters())[0] = float("nan")
    with pytest.raises(SteeringError, match="not finite"):
        broken.remote_interventions()


def test_a_net_that_is_not_fitted_is_refused() -> None:
    with pytest.raises(ActivationError, match="not fitted"):
        L2S(3).remote_interventions()
    made = L2S(3, max_norm=2.0)
    made.net_ = fitted("plain", 6).net_
    with pytest.raises(DataError, match="max_norm=None"):
        made.remote_interventions()


def test_other_methods_are_asked_here() -> None:
    rows, gates = P2S.from_table(1, {"a": draw(6)}), AlphaSteer.from_gates(1, draw(1, 6), draw(1, 6))
    for steerer in (MeanDifference.from_tensor(1, draw(6)), rows, gates, NotSent(fitted("plain", 6))):
        assert steerer.remote_interventions() is None


# --- what is done with it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("models")

    def saved(family: str) -> Path:
        if not (place / family).exists():
            tiny_hf(family).save_pretrained(place / family)
            tiny_tokenizer().save_pretrained(place / family)
        return place / family

    return saved


FAMILIES = pytest.mark.parametrize("near", ["llama", "gpt2"], indirect=True)


@pytest.fixture(scope="module")
def near(request: pytest.FixtureRequest, folder: Callable[[str], Path]) -> Model:
    """GPT-2 unless a test says otherwise: its positions are learned, so padding that is counted would be seen."""
    family = getattr(request, "param", "gpt2")
    return load(folder(family), device="cpu", backend="hooks", prefix_caching=False, check=False)


class InPlace(NdifBackend):
    """Carries a request out in this process as a server would: without gradients, with a random state of its own."""

    def __call__(self, tracer: Any = None) -> None:
        self.client.traffic.requests += 1
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tracer.execute(tracer.info.code)


def copied(sent: Callable[..., Any], root: Any, wire: NdifBackend, block: Any, *arguments: Any) -> Any:
    """What is sent is a copy: what happens to it is only known from the answer."""
    visits = [v for given in (arguments[0], arguments[2]) for part in given if isinstance(part, list) for v in part]
    own = {id(visit.envoy): visit.envoy for visit in visits}
    return sent(root, wire, block, *copy.deepcopy(arguments, own))


@pytest.fixture
def far(near: Model, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(ndif, "NdifBackend", InPlace)
    monkeypatch.setattr(ndif, "_sent", partial(copied, ndif._sent))
    return load(folder(near.id), remote="http://127.0.0.1:9", check=False)


@cache
def fit(model: Model) -> dict[str, Any]:
    acts = steerlab.capture(model, PAIRS, layers=[LAYER, CONTEXT], progress=False)
    nets = {
        "l2s": net_of(acts, LAYER, {"context_layer": CONTEXT}),
        "l2s of its own layer": net_of(acts, LAYER, {"standardize": True, "max_norm": 1.0}),
        "l2s of a lower layer": net_of(acts, CONTEXT, {"context_layer": LAYER, "loss": "mse_l1_cos"}),
    }
    norm = float(acts.values.norm(dim=-1).mean())
    rows = torch.nn.functional.normalize(draw(len(PAIRS) + 2, acts.values.shape[-1], seed=1), dim=1) * norm
    return nets | {
        "mean": MeanDifference.from_tensor(LAYER, rows[-1]),
        "rows": P2S.from_table(LAYER, {pair.id: row for pair, row in zip(PAIRS, rows, strict=False)}),
        "gates": AlphaSteer.from_gates(LAYER, rows[-2:-1] / norm**2, rows[-1:]),
    }


def requests(model: Model) -> int:
    assert isinstance(model.engine, RemoteEngine)
    return model.engine.client.traffic.requests


VERBS: dict[str, Callable[..., tuple[Any, float, int]]] = {}


def verb(run: Callable[..., tuple[Any, float, int]]) -> Callable[..., tuple[Any, float, int]]:
    VERBS[run.__name__] = run
    return run


@verb
def texts(model: Model, **options: Any) -> tuple[Any, float, int]:
    made = steerlab.generate(model, PAIRS, max_new_tokens=5, **options)
    return made.ids, made.norm_ratio, made.steered_tokens


@verb
def draws(model: Model, **options: Any) -> tuple[Any, float, int]:
    return texts(model, do_sample=True, seed=3, num_return_sequences=2, **options)


@verb
def scores(model: Model, **options: Any) -> tuple[Any, float, int]:
    made = steerlab.score(model, PAIRS, ANSWERS, **options)
    return made.logprob.tolist() + made.greedy.tolist(), made.attrs["norm_ratio"], made.attrs["steered_tokens"]


@verb
def first(model: Model, **options: Any) -> tuple[Any, float, int]:
    return steerlab.next_token_logits(model, PAIRS, [5, 9], max_other=True, **options).flatten().tolist(), 0.0, 0


def agree(there: tuple[Any, float, int], here: tuple[Any, float, int]) -> None:
    close = partial(pytest.approx, rel=1e-5, abs=1e-5)
    assert there[0] == (here[0] if isinstance(here[0], tuple) else close(here[0]))
    assert there[1] == close(here[1]) and there[2] == here[2]


@FAMILIES
@pytest.mark.parametrize("what", VERBS)
def test_a_net_that_is_sent_steers_as_it_does_here_in_one_request(near: Model, far: Model, what: str) -> None:
    plain = VERBS[what](near)
    wanted: dict[str, dict[str, Any]] = {
        "l2s": {"alpha": 4.0},
        "l2s of its own layer": {"alpha": [4.0, 0.0, 6.0], "positions": "last+generated"},
        "l2s of a lower layer": {"alpha": -8.0, "positions": "prompt"},
    }
    for name, how in wanted.items():
        options, before = {"steer": fit(near)[name], **how}, requests(far)
        there, here = VERBS[what](far, **options), VERBS[what](near, **options)
        assert requests(far) - before == 1, name
        agree(there, here)
        assert here[0] != plain[0], "the vectors are long enough to be felt"


@pytest.mark.parametrize("what", ["texts", "scores"])
def test_methods_that_are_not_sent_steer_as_they_do_here(near: Model, far: Model, what: str) -> None:
    for name in ("mean", "rows", "gates"):
        options, before = {"steer": fit(near)[name], "alpha": 1.0}, requests(far)
        agree(VERBS[what](far, **options), VERBS[what](near, **options))
        assert requests(far) - before == 1, "nothing has to be read for them"


@pytest.mark.parametrize("what", ["texts", "scores"])
@pytest.mark.parametrize("case", ["norm", "together", "own position", "not sent"])
def test_what_can_not_be_left_to_the_server_is_read_beforehand(near: Model, far: Model, what: str, case: str) -> None:
    fits = fit(near)
    steered: dict[str, dict[str, Any]] = {
        "norm": {"steer": fits["l2s"], "scale": "norm", "alpha": 0.5},
        "together": {"steer": [fits["l2s"], Request(fits["mean"], 0.5)]},
        "own position": {"steer": net_read_at(fits["l2s"], -2)},
        "not sent": {"steer": NotSent(fits["l2s"])},
    }
    before = requests(far)
    agree(VERBS[what](far, **steered[case]), VERBS[what](near, **steered[case]))
    assert requests(far) - before == 2, "a capture and the verb"


def net_read_at(l2s: Steerer, position: int) -> Steerer:
    assert isinstance(l2s, L2S)
    made = L2S(l2s.layer, context_layer=l2s.context_layer, context_position=position)
    made.net_ = l2s.net_
    return made


class NotSent(Steerer):
    """A method of a user's own, which knows of no trace."""

    def __init__(self, inner: Steerer) -> None:
        self.inner, self.site = inner, inner.site

    @property
    def required_activations(self) -> Any:
        return self.inner.required_activations

    def fit(self, acts: Activations) -> Steerer:
        return self

    def vectors(self, context: Context) -> Tensor:
        return self.inner.vectors(context)


def test_several_nets_are_all_sent_and_add_up(near: Model, far: Model) -> None:
    both, before = [fit(near)["l2s"], Request(fit(near)["l2s of a lower layer"], -1.0)], requests(far)
    there, here = texts(far, steer=both), texts(near, steer=both)
    assert requests(far) - before == 1
    agree(there, here)
    assert here[0] != texts(near, steer=both[:1])[0] != texts(near, steer=both[1:])[0]


@pytest.mark.parametrize("what", ["texts", "draws"])
def test_every_batch_meets_its_own_rows_and_goes_on_with_the_draws(near: Model, far: Model, what: str) -> None:
    options, before = {"steer": fit(near)["l2s"], "batch_size": 2}, requests(far)
    there, here = VERBS[what](far, **options), VERBS[what](near, **options)
    assert requests(far) - before == 2
    agree(there, here)


def test_a_sweep_reads_once_for_all_of_its_cells(near: Model, far: Model) -> None:
    wanted: dict[str, Any] = {"alphas": (-1.0, 0.0, 1.0), "batch_size": 64, "progress": False}
    counts = [requests(far)]
    for name in ("mean", "l2s"):
        there, here = (steerlab.sweep(m, fit(near)[name], PAIRS, **wanted) for m in (far, near))
        counts.append(requests(far))
        numbers = ["value", "norm_ratio"]
        assert there.drop(columns=numbers).equals(here.drop(columns=numbers))
        torch.testing.assert_close(*(torch.tensor(f[numbers].to_numpy()) for f in (there, here)), rtol=1e-5, atol=1e-5)
    assert counts[2] - counts[1] == counts[1] - counts[0] + 1, "a capture more than one vector for all takes"


def test_a_local_model_never_asks_for_what_would_be_sent(near: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L2S, "remote_interventions", lambda self: pytest.fail("asked"))
    assert texts(near, steer=fit(near)["l2s"])[2] > 0


def test_an_engine_that_reads_nothing_beforehand_says_so(lm: Lm) -> None:
    model = lm()
    inputs = inputs_of(model, PROMPTS)
    edit = edit_of(inputs, Intervention(Site(LAYER), vector_fn=lambda h: h, read_site=Site(CONTEXT)))
    with pytest.raises(steerlab.SteeringError, match="3 was not read beforehand"):
        model.engine.logits(inputs, {Site(LAYER): [edit]}, 1)


# --- shared prompts


PARTNERS = [Example(f"{i}{k}", f"{'The heron sleeps by the river. ' * 3}{p}", "b", Contrast("No, never.", "Yes"))
            for k in range(2) for i, p in enumerate(PROMPTS)]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_rows_run_whole_and_on_shared_prompts_hold_the_same(
    family: str, lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[bool] = []
    capturing: Any = sys.modules[steerlab.capture.__module__]
    true = capturing.share

    def seen(*args: Any) -> Any:
        shares.append((found := true(*args)) is not None)
        return found

    monkeypatch.setattr(capturing, "share", seen)
    default = lm(family)
    apart = Model(default.hf, default.tokenizer, default.layout, id="x", backend="hooks", prefix_caching=False)
    together, whole = (steerlab.capture(m, PARTNERS, layers="all", progress=False) for m in (default, apart))
    assert shares == [True, False], "else there is nothing to compare"
    assert together.index.equals(whole.index)
    torch.testing.assert_close(together.values, whole.values, rtol=1e-5, atol=1e-5)
    wanted: dict[str, Any] = {"alphas": (0.0, 2.0), "positions": "last+generated", "progress": False}
    mean = MeanDifference.from_tensor(2, 3 * draw(32))
    a, b = (steerlab.sweep(m, mean, PARTNERS, **wanted) for m in (default, apart))
    torch.testing.assert_close(torch.tensor(a.value.to_numpy()), torch.tensor(b.value.to_numpy()), rtol=0, atol=1e-4)


def test_load_hands_on_that_rows_are_to_be_run_whole(folder: Callable[[str], Path]) -> None:
    for shares in (True, False):
        model = load(folder("llama"), device="cpu", check=False, prefix_caching=shares)
        assert model.supports_prefix_cache == model.supports_layer_restart == shares
        assert model.engine.supports_forward_state, "it is not for want of an engine"


# --- what is asked of the logits


def inputs_of(model: Model, prompts: Sequence[str]) -> Inputs:
    return model.inputs(model.batch([model.encode(prompt) for prompt in prompts]))


def edit_of(inputs: Inputs, shift: Intervention) -> Edit:
    mask = inputs["attention_mask"].bool()
    last = torch.full((len(mask),), mask.shape[1] - 1)
    return Edit(shift.vectors, mask, True, shift.vector_fn, last, read_site=shift.read_site)


def plan_of(inputs: Inputs) -> SiteEdits:
    return {Site(1): [edit_of(inputs, Intervention(Site(1), 4 * draw(len(inputs["input_ids"]), 32)))]}


TOLD: dict[str, Callable[[Tensor], Any]] = {
    "the best": lambda logits: logits.argmax(-1),
    "a pair": lambda logits: (logits.amax(-1), logits.shape),
    "the mean as a number": lambda logits: float(logits.double().mean()),
    "nothing": lambda logits: None,
    "all": lambda logits: logits,
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(a[0], Tensor):
        return all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 2, 5])], ids=str)
@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_what_is_asked_of_the_logits_is_what_one_would_ask_of_them_here(lm: Lm, backend: str, keep: Any) -> None:
    model = lm("llama", backend)
    inputs = inputs_of(model, PROMPTS)
    answers = []
    for plan in (dict, partial(plan_of, inputs)):
        logits = model.engine.logits(inputs, plan(), keep)
        assert logits.shape[:2] == (len(PROMPTS), 3 if isinstance(keep, Tensor) else keep)
        answers.append(logits)
        for name, reduce in TOLD.items():
            assert equal(model.engine.logits(inputs, plan(), keep, reduce=reduce), reduce(logits)), name
    assert not torch.equal(*answers), "the plan is felt"


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 2, 5])], ids=str)
def test_the_same_is_asked_where_the_weights_are(near: Model, far: Model, keep: Any) -> None:
    inputs = inputs_of(near, PROMPTS)
    for plan in (dict, partial(plan_of, inputs)):
        logits = near.engine.logits(inputs, plan(), keep)
        for reduce in TOLD.values():
            ours, before = reduce(logits), requests(far)
            theirs = far.engine.logits(inputs, plan(), keep, reduce=reduce)
            assert requests(far) - before == 1
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


# --- the same blocks, in one request


def test_a_capture_there_is_a_request_for_each_batch(near: Model, far: Model) -> None:
    wanted: dict[str, Any] = {"layers": "all", "positions": ["last", "answer"], "batch_size": 2, "progress": False}
    before = requests(far)
    there, here = (steerlab.capture(model, PAIRS, **wanted) for model in (far, near))
    assert requests(far) - before == 3, "six rows"
    assert there.index.equals(here.index)
    torch.testing.assert_close(there.values, here.values, rtol=0, atol=1e-5)


def test_sites_come_in_the_order_in_which_they_were_asked_for(near: Model, far: Model) -> None:
    inputs, sites = inputs_of(near, PROMPTS), [Site(3), Site(1, "mlp_out"), Site(0), Site(1)]
    there, here = (model.engine.capture_states(inputs, {}, sites, lambda h: h) for model in (far, near))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    assert there.shape[1] == 4 and not torch.allclose(there[:, 0], there[:, 2])


def test_what_was_written_there_is_noted_here(near: Model, far: Model) -> None:
    inputs = inputs_of(near, PROMPTS)
    plans = [plan_of(inputs) for _ in range(2)]
    for model, plan in zip((far, near), plans, strict=True):
        model.engine.generate({k: t for k, t in inputs.items() if k != "position_ids"}, plan, max_new_tokens=4)
    (theirs, total), (ours, expected) = (plan[Site(1)][0].stats.totals() for plan in plans)
    assert theirs == ours > int(inputs["attention_mask"].sum()) and total == pytest.approx(expected, rel=1e-5)


def test_the_check_of_a_far_model_compares_its_blocks_with_the_stream(
    far: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = far.engine
    assert isinstance(engine, RemoteEngine) and engine.in_process is None
    ids = torch.tensor([[3, 5, 7, 11, 13]])
    engine.check(ids)
    assert engine.in_process is True
    monkeypatch.setattr(ndif.traces, "_pass", twisted(ndif.traces._pass))
    with pytest.raises(steerlab.LayoutError, match=r"block 1 .* does not give the residual stream"):
        engine.check(ids)


def twisted(true: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def read(visit: Any, stop: int) -> Tensor:
        h = true(visit, stop)
        return h + 1 if visit.site == Site(1) else h

    return read
