"""Methods of every kind share a sweep, and each setting equals `steer` with the same method."""

from typing import Any

import pytest
import torch
from fitted import QUICK, Fixed
from reference import KINDS, AnyIntervention, Recorder, by_score, check_settings, questions, random_vector

import steerlab
from steerlab import L2S, MeanDifference, Site, capture, sweep
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods import P2S, AlphaSteer, Clamp, Operation, Operator, Scale, Spherical
from steerlab.methods.base import Intervention
from steerlab.models.operators import EditRule

POSITIONS = ("all", "last+generated")
both_backends = pytest.mark.parametrize("backend", [pytest.param("hooks", marks=pytest.mark.nightly), "nnsight"])
either_positions = pytest.mark.parametrize("positions", POSITIONS)


@both_backends
def test_methods_of_every_kind_share_a_sweep_and_equal_steer(lm, backend: str) -> None:
    model, rows = lm("llama", backend), questions()
    acts = capture(model, rows, layers=[1, 3], progress=False)
    methods: dict[str, Any] = {kind: AnyIntervention(kind, Site(1)) for kind in KINDS}
    methods |= {"at the input": AnyIntervention("function", Site(1, "block_in")), "mean": random_vector(2)}
    methods["p2s"] = P2S(1).fit(acts)
    methods["l2s"] = L2S(1, context_layer=3, hidden_units=3, config=QUICK, progress=False).fit(acts)
    given: Any = {name: {one.site: one} for name, one in methods.items()}
    frame = sweep(model, rows, given, None, (0.0, 2.0), list(POSITIONS), "logprob_difference", progress=False)
    check_settings(frame, methods, lambda one, alpha, where: by_score(lm(), one, rows, alpha, where))


def test_methods_are_fitted_at_every_layer_and_oracles_to_the_measured_inputs(lm) -> None:
    model, rows = lm(), questions()
    train = [e.replace(id=f"train/{e.id}", prompt=f"Well. {e.prompt}") for e in rows]
    fresh = {"p2s": P2S(0), "l2s": L2S(0, hidden_units=3, config=QUICK, progress=False), "mean": MeanDifference(0)}
    frame = sweep(model, rows, fresh, [0, 2], (0.0, 1.0), "all", "logprob_difference", train=train, progress=False)
    of_train, of_rows = (capture(model, data, layers=[0, 2], progress=False) for data in (train, rows))
    for layer in (0, 2):
        fitted = {k: one.with_layer(layer).fit(of_rows if one.oracle else of_train) for k, one in fresh.items()}
        at_layer = frame[frame["layer"] == layer]
        check_settings(at_layer, fitted, lambda one, alpha, where: by_score(model, one, rows, alpha, where))


def test_fitted_oracle_is_swept_with_its_own_vectors_at_its_own_layer(lm) -> None:
    """It was fitted anew to the inputs at every layer, whatever vectors it held."""
    model, rows = lm(), questions()
    own = P2S(2).fit(capture(model, rows, layers=[2], progress=False))
    other = P2S.from_table(2, dict(zip(own.ids_, own.table_.roll(1, 0), strict=True)))
    both = {"own": own, "other": other}
    frame = sweep(model, rows, both, None, (0.0, 1.0), "all", "logprob_difference", progress=False)
    assert set(frame["layer"]) == {2}
    check_settings(frame, both, lambda one, alpha, where: by_score(model, one, rows, alpha, where))
    with pytest.raises(SteeringError, match="an unfitted one"):
        sweep(model, rows, own, [1, 2], progress=False)
    wrapped = sweep(model, rows, Operation(P2S(0), "add"), [1, 2], (1.0,), "all", "logprob_difference", progress=False)
    plain = sweep(model, rows, P2S(0), [1, 2], (1.0,), "all", "logprob_difference", progress=False)
    values = [frame["value"].tolist() for frame in (wrapped, plain)]
    assert values[0] == pytest.approx(values[1], abs=1e-5), "one inside a wrapper is fitted"


def test_what_operators_gates_and_wrapped_methods_hold_makes_another_sweep(lm, tmp_path) -> None:
    model, rows, v = lm(), questions(), random_vector(1)

    def above(limit: float) -> Any:
        return lambda h: (h[..., 0] > limit).float()

    def alphasteer(seed: int) -> Operation:
        w, r = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(seed))
        return Operation(AlphaSteer.from_gates(1, w, r), "add")

    def shift(by: float) -> Fixed:
        return Fixed(Intervention(Site(1), rule=EditRule(Shift(by))))

    one, other = AnyIntervention("function", Site(1)), AnyIntervention("function", Site(1))
    one.bias_, other.bias_ = 1.0, 2.0  # a trailing underscore marks what was fitted
    pairs: list[tuple[Any, Any, Any]] = [
        (Operation(v, gate=above(-0.1)), Operation(v, gate=above(-0.1)), Operation(v, gate=above(-0.2))),
        (alphasteer(0), alphasteer(0), alphasteer(1)), (shift(0.1), shift(0.1), shift(0.2)),
        (one, one, other),
    ]  # fmt: skip
    for number, (one, same, other) in enumerate(pairs):
        options: Any = {"alphas": (1.0,), "positions": "all", "folder": tmp_path / str(number), "progress": False}
        first = sweep(model, rows, {"odd": {1: one}}, None, **options)
        assert sweep(model, rows, {"odd": {1: same}}, None, **options)["value"].equals(first["value"])
        with pytest.raises(MismatchError, match="vectors"):
            sweep(model, rows, {"odd": {1: other}}, None, **options)
    both = sweep(model, rows, {"a": {1: shift(5.0)}, "b": {1: shift(-5.0)}}, None, (1.0,), "all")
    values = both.pivot(index="example_id", columns="method", values="value")
    assert (values["a"] != values["b"]).all()


class Shift(Operator):
    """A user's operator that is no dataclass."""

    uses = "nothing"

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, h: Any, vector: Any, strength: Any) -> Any:
        return h + strength * self.by * torch.arange(h.shape[-1])


def test_fitted_spherical_keeps_its_operator_at_every_layer_of_a_sweep(lm) -> None:
    model, rows = lm(), questions()
    spherical = Spherical([1, 2]).fit(capture(model, rows, layers=[1, 2], progress=False))
    frame = sweep(model, rows, spherical, [1, 2], (0.0, 0.7), "all", "logprob_difference", progress=False)
    for layer in (1, 2):
        at_layer = frame[(frame["layer"] == layer) & (frame["alpha"] != 0)]
        wanted = by_score(model, spherical.part(layer), rows, 0.7, "all")
        assert at_layer["value"].tolist() == pytest.approx(wanted, abs=2e-4)


def test_batches_with_all_gates_closed_are_measured_unsteered(lm) -> None:
    model, rows, gated = lm(), questions(), AnyIntervention("gate", Site(1))  # the gate of the first input is 0
    options: dict[str, Any] = {"metric": "logprob_difference", "batch_size": 2, "progress": False}
    frame = sweep(model, rows, {"gated": {1: gated}}, None, (2.0,), "all", **options)
    assert frame["value"].tolist() == pytest.approx(by_score(lm(), gated, rows, 2.0, "all"), abs=2e-4)
    assert frame["norm_ratio"][0] == 0 and (frame["norm_ratio"][1:] > 0).all()


@either_positions
def test_texts_of_every_kind_equal_steer(lm, positions: str) -> None:
    model, rows, recorder = lm(), questions(), Recorder()
    methods: dict[str, Any] = {kind: AnyIntervention(kind, Site(1)) for kind in KINDS}
    given: Any = {name: {one.site: one} for name, one in methods.items()}

    sweep(model, rows, given, None, (2.0,), positions, recorder, generation={"max_new_tokens": 5}, progress=False)
    options: Any = {"alpha": 2.0, "positions": positions, "max_new_tokens": 5}
    assert recorder.calls == [list(steerlab.generate(model, rows, steer=one, **options)) for one in methods.values()]
    assert list(steerlab.generate(model, rows, max_new_tokens=5)) not in recorder.calls


@both_backends
def test_operators_share_a_sweep_and_equal_steer(lm, backend: str, tmp_path) -> None:
    model, rows, v = lm("llama", backend), questions(), random_vector(1)
    methods: dict[str, Any] = {name: Operation(v, name) for name in ("project_out", "replace", "rotate")}
    methods |= {
        "clamp": Operation(v, Clamp(-0.1, 0.1)), "scale": Operation(1, Scale(0.3)), "mean": random_vector(1, 1),
        "first": Operation(v, first=1), "decay": Operation(v, "rotate", decay=0.5),
        "gate": Operation(v, "replace", gate=lambda h: (h[..., 0] > 0).float()),
        "heads": Operation(random_vector(Site(2, "heads")), "replace", heads=[0, 3]),
    }  # fmt: skip
    given: Any = {name: {one.site: one} for name, one in methods.items()}
    options: dict[str, Any] = {"folder": tmp_path, "progress": False}
    plan = sweep(model, rows, given, None, (0.0, 0.5, 1.0), list(POSITIONS), "logprob_difference", dry_run=True)
    assert "restarts at the cached output" in plan.explain()
    frame = sweep(model, rows, given, None, (0.0, 0.5, 1.0), list(POSITIONS), "logprob_difference", **options)
    check_settings(frame, methods, lambda one, alpha, where: by_score(lm(), one, rows, alpha, where))
    recorder = Recorder()
    sweep(model, rows, given, None, (1.0,), "all", recorder, generation={"max_new_tokens": 5}, progress=False)
    texts = {"alpha": 1.0, "positions": "all", "max_new_tokens": 5}
    assert recorder.calls == [list(steerlab.generate(model, rows, steer=one, **texts)) for one in methods.values()]
    again = given | {"clamp": {1: Operation(v, Clamp(-0.1, 0.2))}}
    with pytest.raises(MismatchError, match="vectors"):
        sweep(model, rows, again, None, (0.0, 0.5, 1.0), list(POSITIONS), "logprob_difference", **options)
    with pytest.raises(SteeringError, match="strength 2 by Rotate"):
        sweep(model, rows, given, None, (1.0, 2.0), progress=False)


@either_positions
def test_alphas_in_units_of_each_inputs_norm_equal_steer(lm, positions: str) -> None:
    model, rows, one = lm(), questions(), random_vector(1)
    options: dict[str, Any] = {"scale": "norm", "metric": "logprob_difference", "progress": False}
    frame = sweep(model, rows, {"v": {1: one}}, 1, (0.0, 0.5), positions, **options)
    check_settings(frame, {"v": one}, lambda v, alpha, where: by_score(model, v, rows, alpha, where, scale="norm"))
