"""Steering computed where the model runs equals steering with vectors computed locally.

`near` is a local model that runs every row whole, under plain hooks. `remote_model` is a remote model whose requests
run in this process instead of being sent to a server.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nightly import by_day
from saved import tiny_folder
from synthetic_acts import make_acts, normal
from torch import Tensor

import steerlab
from steerlab import Activations, Contrast, Example, Request, Site
from steerlab.errors import ActivationError, DataError, SteeringError
from steerlab.methods import L2S, P2S, AlphaSteer, Context, Steerer, SteeringVector, TrainingConfig
from steerlab.models._nnsight import ndif
from steerlab.models._nnsight.ndif import NdifBackend, NdifEngine
from steerlab.models.engine import Inputs
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.model import Model

LAYER, CONTEXT = 1, 3
PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
PAIRS = [Example(p, Contrast("No, never.", "Yes, sure"), id=str(i), behavior="b") for i, p in enumerate(PROMPTS)]
ANSWERS = ["No, never.", "Yes", "It depends on the heron"]
NETS: dict[str, dict[str, Any]] = {
    "plain": {}, "one unit": {"hidden_units": 1}, "wide": {"hidden_units": 40}, "relu": {"activation": "relu"},
    "cosine": {"loss": "mse_l1_cos"}, "standardized": {"standardize": True},
    "standardized, cosine": {"standardize": True, "loss": "mse_l1_cos", "hidden_units": 5},
    "limited norm": {"max_norm": 0.2}, "context of another layer": {"context_layer": 9},
}  # fmt: skip
Result = tuple[Any, float, int]
Function = Callable[..., Result]


def train_l2s(acts: Activations, layer: int, loss: Any = "mse", standardize: bool = False, **options: Any) -> L2S:
    config = TrainingConfig(loss=loss, standardize=standardize, epochs=4, learning_rate=1e-2)
    return L2S(layer, progress=False, config=config, **{"hidden_units": 8} | options).fit(acts)


@cache
def acts_of(width: int) -> Activations:
    """Activations of layers 3 and 9."""
    one, other = (make_acts(normal(30, width, seed=s), normal(30, width, seed=s + 1)) for s in (0, 2))
    return Activations(torch.cat([one.values, other.values], 1), one.index, (Site(3), Site(9)), {})


@cache
def fitted(name: str, width: int) -> L2S:
    return train_l2s(acts_of(width), 3, **NETS[name])


def vector_fn(steerer: Steerer) -> Callable[[Tensor], Tensor]:
    (intervention,) = steerer.remote_interventions() or ()
    assert intervention.vector_fn is not None
    return intervention.vector_fn


def with_net(net: torch.nn.Module, layer: Any = 3, **options: Any) -> L2S:
    """An L2S with other settings and a trained net."""
    l2s = L2S(layer, **options)
    l2s.net_ = net
    return l2s


@pytest.mark.parametrize("width", [6, 24])
@pytest.mark.parametrize("name", NETS)
def test_vector_fn_of_l2s_equals_its_predictions(name: str, width: int) -> None:
    l2s, context = fitted(name, width), Context.of(acts_of(width))
    (intervention,) = l2s.remote_interventions() or ()
    assert (intervention.site, intervention.read_site) == (Site(3), Site(NETS[name].get("context_layer") or 3))
    assert intervention.vectors is None and intervention.gate is None and intervention.positions is None
    assert torch.equal(vector_fn(l2s)(context.get_states(l2s.required_activations[0])), l2s.vectors(context))
    for scale in (0.1, 1.0, 30.0):
        states = scale * normal(5, width, seed=7)
        vectors = vector_fn(l2s)(states)
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        assert torch.equal(vectors, l2s.predict(states))
        assert torch.equal(vector_fn(l2s)(states.bfloat16()), l2s.predict(states.bfloat16().float()))
        in_parts = torch.cat([vector_fn(l2s)(part) for part in states.flip(0).split(2)])
        torch.testing.assert_close(in_parts, vectors.flip(0), rtol=1e-5, atol=1e-6)


def test_vector_fn_is_a_copy_that_can_be_pickled() -> None:
    l2s, states = train_l2s(acts_of(6), 3), normal(4, 6)
    before, sent = l2s.predict(states), vector_fn(l2s)
    with torch.no_grad():
        l2s.net_.decoder.weight.mul_(2)
    assert torch.equal(sent(states), before), "training the net further does not change what was sent"
    assert not torch.equal(vector_fn(l2s)(states), before)
    assert all(p.requires_grad for p in l2s.net_.parameters())
    assert torch.equal(pickle.loads(pickle.dumps(sent))(states), before)


def test_methods_without_one_state_at_the_last_token_are_computed_locally() -> None:
    net, vector = fitted("plain", 6).net_, normal(1, 6)
    local = [with_net(net, context_position=position) for position in ("user", 2, -1)]
    local += [SteeringVector({1: vector[0]}), AlphaSteer.from_gates(1, vector, vector)]
    assert all(steerer.remote_interventions() is None for steerer in local)
    assert with_net(net).remote_interventions() is not None


def test_unfitted_and_broken_nets_are_not_sent() -> None:
    net = copy.deepcopy(fitted("plain", 6).net_)
    with pytest.raises(ActivationError, match="not fitted"):
        L2S(3).remote_interventions()
    with pytest.raises(DataError, match="max_norm=None"):
        with_net(net, max_norm=2.0).remote_interventions()
    with torch.no_grad():
        next(net.parameters())[0] = float("nan")
    with pytest.raises(SteeringError, match="not finite"):
        with_net(net).remote_interventions()


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved GPT-2 by default: it has learned positions, so that counting padding would change its states."""
    family = getattr(request, "param", "gpt2")
    return tiny_folder(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def near(folder: Path) -> Model:
    return steerlab.load(folder, device="cpu", backend="hooks", prefix_caching=False, check=False)


class InProcessBackend(NdifBackend):
    """Executes a request in this process as a server does: without gradients and with its own random state."""

    def __call__(self, tracer: Any = None) -> None:
        self.client.traffic.requests += 1
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tracer.execute(tracer.info.code)


def send_copy(session: Callable[..., Any], root: Any, backend: NdifBackend, trace: Any, *arguments: Any) -> Any:
    """A server works on a copy of what is sent: changes to it are not seen here."""
    return session(root, backend, trace, *copy.deepcopy(arguments))


@pytest.fixture
def remote_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(ndif, "NdifBackend", InProcessBackend)
    monkeypatch.setattr(ndif, "_session", partial(send_copy, ndif._session))
    return steerlab.load(folder, remote="http://127.0.0.1:9", check=False)


@cache
def fit(model: Model) -> dict[str, Any]:
    acts = steerlab.capture(model, PAIRS, layers=[LAYER, CONTEXT], progress=False)
    norm = float(acts.values.norm(dim=-1).mean())
    rows = torch.nn.functional.normalize(normal(len(PAIRS) + 2, acts.values.shape[-1], seed=1), dim=1) * norm
    l2s = train_l2s(acts, LAYER, context_layer=CONTEXT)
    lower = train_l2s(acts, CONTEXT, context_layer=LAYER, loss="mse_l1_cos")
    mean = SteeringVector({LAYER: rows[-1]})
    return {
        "l2s": l2s, "l2s, same layer": train_l2s(acts, LAYER, standardize=True, max_norm=1.0),
        "l2s, lower context": lower,
        "l2s, other position": with_net(l2s.net_, LAYER, context_layer=CONTEXT, context_position=-2),
        "two l2s": [l2s, Request(lower, -1.0)], "l2s and mean": [l2s, Request(mean, 0.5)], "mean": mean,
        "rows": P2S.from_table(LAYER, {pair.id: row for pair, row in zip(PAIRS, rows, strict=False)}),
        "gates": AlphaSteer.from_gates(LAYER, rows[-2:-1] / norm**2, rows[-1:]),
    }  # fmt: skip


def requests(model: Model) -> int:
    assert isinstance(model.engine, NdifEngine)
    return model.engine.client.traffic.requests


def texts(model: Model, **options: Any) -> Result:
    found = steerlab.generate(model, PAIRS, max_new_tokens=5, **options)
    return found.ids, found.norm_ratio, found.steered_tokens


def draws(model: Model, **options: Any) -> Result:
    return texts(model, do_sample=True, seed=3, num_return_sequences=2, **options)


def scores(model: Model, **options: Any) -> Result:
    found = steerlab.score(model, PAIRS, ANSWERS, **options)
    return found.logprob.tolist() + found.greedy.tolist(), found.attrs["norm_ratio"], found.attrs["steered_tokens"]


def next_tokens(model: Model, **options: Any) -> Result:
    return steerlab.next_token_logits(model, PAIRS, [5, 9], max_other=True, **options).flatten().tolist(), 0.0, 0


CASES: list[tuple[str, dict[str, Any], int]] = [  # the steerer of `fit`, options, requests
    ("l2s", {"alpha": 4.0}, 1),
    ("l2s, same layer", {"alpha": [4.0, 0.0, 6.0], "positions": "last+generated"}, 1),
    ("l2s, lower context", {"alpha": -8.0, "positions": "prompt"}, 1),
    ("two l2s", {"alpha": 4.0}, 1),
    ("mean", {}, 1),
    ("rows", {}, 1),
    ("gates", {}, 1),
    ("l2s", {"batch_size": 2}, 2),
    ("l2s", {"scale": "norm", "alpha": 0.5}, 2),  # from here on with a capture first
    ("l2s and mean", {}, 2),
    ("l2s, other position", {}, 2),
]


@pytest.mark.parametrize("folder", by_day(("llama", "gpt2"), lambda family: family == "llama"), indirect=True)
@pytest.mark.parametrize("function", [texts, draws, scores, next_tokens])
def test_steering_a_remote_model_equals_steering_a_local_one(
    near: Model, remote_model: Model, function: Function
) -> None:
    unsteered, close = function(near)[0], partial(pytest.approx, rel=1e-5, abs=1e-5)
    for name, options, n_requests in CASES:
        before = requests(remote_model)
        remote, local = (function(model, steer=fit(near)[name], **options) for model in (remote_model, near))
        assert requests(remote_model) - before == n_requests, name
        assert remote[0] == (local[0] if isinstance(local[0], tuple) else close(local[0])), name
        assert remote[1] == close(local[1]) and remote[2] == local[2], name
        assert "l2s" not in name or n_requests > 1 or local[0] != unsteered, "the vectors are long enough"


def test_sweep_of_l2s_captures_once_for_all_settings(near: Model, remote_model: Model) -> None:
    options: dict[str, Any] = {"alphas": (-1.0, 0.0, 1.0), "batch_size": 64, "progress": False}
    counts = [requests(remote_model)]
    for name in ("mean", "l2s"):
        remote, local = (steerlab.sweep(model, PAIRS, fit(near)[name], **options) for model in (remote_model, near))
        counts.append(requests(remote_model))
        numbers = ["value", "norm_ratio"]
        assert remote.drop(columns=numbers).equals(local.drop(columns=numbers))
        values = (torch.tensor(frame[numbers].to_numpy()) for frame in (remote, local))
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert counts[2] - counts[1] == counts[1] - counts[0] + 1


def test_local_models_do_not_call_remote_interventions(near: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L2S, "remote_interventions", lambda self: pytest.fail("called"))
    assert texts(near, steer=fit(near)["l2s"])[2] > 0


def inputs_of(model: Model, prompts: Sequence[str] = PROMPTS) -> Inputs:
    return model.inputs(model.batch([model.encode(prompt) for prompt in prompts]))


def edit_of(inputs: Inputs, vectors: Tensor | None = None, **options: Any) -> Edit:
    mask = inputs["attention_mask"].bool()
    return Edit(vectors, mask, True, last=torch.full((len(mask),), mask.shape[1] - 1), **options)


def edits_of(inputs: Inputs) -> SiteEdits:
    return {Site(1): [edit_of(inputs, 4 * normal(len(inputs["input_ids"]), 32))]}


REDUCERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits.argmax(-1), "pair": lambda logits: (logits.amax(-1), logits.shape),
    "number": lambda logits: float(logits.double().mean()), "nothing": lambda logits: None,
    "everything": lambda logits: logits,
}  # fmt: skip


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 2, 5])], ids=str)
@pytest.mark.parametrize("kind", ["hooks", "nnsight", "remote"])
def test_logits_reduced_by_the_engine_match_reduced_logits(
    kind: str, keep: Any, lm: Callable[..., Model], near: Model, remote_model: Model
) -> None:
    local, model = (near, remote_model) if kind == "remote" else (lm("llama", kind),) * 2
    inputs, answers, before = inputs_of(local), [], requests(remote_model)
    tolerance = 1e-5 if kind == "remote" else 0.0
    for edits in (dict, partial(edits_of, inputs)):
        logits = local.engine.logits(inputs, edits(), keep)
        assert logits.shape[:2] == (len(PROMPTS), 3 if isinstance(keep, Tensor) else keep)
        answers.append(logits)
        for reduce in REDUCERS.values():
            found = model.engine.logits(inputs, edits(), keep, reduce=reduce)
            torch.testing.assert_close(found, reduce(logits), rtol=tolerance, atol=tolerance)
    assert not torch.equal(*answers), "the edits change the logits"
    assert requests(remote_model) - before == (2 * len(REDUCERS) if kind == "remote" else 0)


def test_engine_refuses_a_read_site_that_was_not_captured(lm: Callable[..., Model]) -> None:
    model = lm()
    inputs = inputs_of(model)
    edit = edit_of(inputs, vector_fn=lambda h: h, read_site=Site(CONTEXT))
    with pytest.raises(SteeringError, match="3 was not read beforehand"):
        model.engine.logits(inputs, {Site(LAYER): [edit]}, 1)


def test_remote_capture_takes_one_request_per_batch(near: Model, remote_model: Model) -> None:
    options: dict[str, Any] = {"layers": "all", "positions": ["last", "answer"], "batch_size": 2, "progress": False}
    before = requests(remote_model)
    remote, local = (steerlab.capture(model, PAIRS, **options) for model in (remote_model, near))
    assert requests(remote_model) - before == 3, "six rows"
    assert remote.index.equals(local.index)
    torch.testing.assert_close(remote.values, local.values, rtol=0, atol=1e-5)


def test_remote_states_and_edit_statistics_equal_the_local_ones(near: Model, remote_model: Model) -> None:
    inputs, sites = inputs_of(near), [Site(3), Site(1, "mlp_out"), Site(0), Site(1)]
    remote, local = (model.engine.capture_states(inputs, {}, sites, lambda h: h) for model in (remote_model, near))
    torch.testing.assert_close(remote, local, rtol=0, atol=1e-5)
    assert remote.shape[1] == 4 and not torch.allclose(remote[:, 0], remote[:, 2])
    stats = []
    for model in (remote_model, near):
        edits = edits_of(inputs)
        model.engine.generate({k: t for k, t in inputs.items() if k != "position_ids"}, edits, max_new_tokens=4)
        stats.append(edits[Site(1)][0].stats.totals())
    assert stats[0] == pytest.approx(stats[1], rel=1e-5) and stats[0][0] == stats[1][0]
    assert stats[0][0] > int(inputs["attention_mask"].sum())


def test_check_of_a_remote_model_compares_blocks_with_the_stream(
    remote_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = remote_model.engine
    assert isinstance(engine, NdifEngine) and engine.in_process is None
    ids = torch.tensor([[3, 5, 7, 11, 13]])
    engine.check(ids)
    assert engine.in_process is True
    run_block = ndif.traces._pass

    def wrong_block(root: Any, visit: Any, *columns: int) -> Tensor:
        h = run_block(root, visit, *columns)
        return h + 1 if visit.site == Site(1) else h

    monkeypatch.setattr(ndif.traces, "_pass", wrong_block)
    with pytest.raises(steerlab.errors.LayoutError, match=r"block 1 .* does not output the residual stream"):
        engine.check(ids)
