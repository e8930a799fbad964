"""Methods of every kind share a sweep, and each cell is what the same steerer does alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from one_run_per_setting import Odd, alone, at, check
from swept import questions

import steerlab
from steerlab import L2S, P2S, Example, MeanDifference, MismatchError, Site, capture, sweep
from steerlab.methods.l2s.config import TrainingConfig

POSITIONS = ("all", "last+generated")
QUICK = TrainingConfig(epochs=4, learning_rate=1e-2, loss="mse")


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_methods_of_every_kind_share_a_sweep_and_equal_steer(lm, backend: str) -> None:
    model, rows = lm("llama", backend), questions()
    acts = capture(model, rows, layers=[1, 3], progress=False)
    methods: dict[str, Any] = {kind: Odd(kind, Site(1)) for kind in ("flight", "gated flight", "gate", "two")}
    methods |= {"in flight at its input": Odd("flight", Site(1, "block_in")), "mean": at(2), "p2s": P2S(1).fit(acts)}
    methods["l2s"] = L2S(1, context_layer=3, hidden_units=3, config=QUICK, progress=False).fit(acts)
    given: Any = {name: {one.site: one} for name, one in methods.items()}
    frame = sweep(model, given, rows, None, (0.0, 2.0), list(POSITIONS), "logprob_difference", progress=False)
    check(frame, methods, lambda one, alpha, where: alone(lm(), one, rows, alpha, where))


def test_methods_are_fitted_at_every_layer_oracles_to_the_inputs_measured(lm) -> None:
    model, rows = lm(), questions()
    train = [e.replace(id=f"train/{e.id}", prompt=f"Well. {e.prompt}") for e in rows]
    fresh = {"p2s": P2S(0), "l2s": L2S(0, hidden_units=3, config=QUICK, progress=False), "mean": MeanDifference(0)}
    frame = sweep(model, fresh, rows, [0, 2], (0.0, 1.0), "all", "logprob_difference", train=train, progress=False)
    learned, own = (capture(model, data, layers=[0, 2], progress=False) for data in (train, rows))
    for layer in (0, 2):
        fitted = {name: one.with_layer(layer).fit(own if one.oracle else learned) for name, one in fresh.items()}
        check(frame[frame["layer"] == layer], fitted, lambda one, alpha, where: alone(model, one, rows, alpha, where))


@pytest.mark.parametrize("positions", POSITIONS)
def test_texts_of_odd_methods_equal_steer(lm, positions: str) -> None:
    model, rows, heard = lm(), questions(), []
    methods: dict[str, Any] = {kind: Odd(kind, Site(1)) for kind in ("flight", "gated flight", "gate", "two")}
    given: Any = {name: {one.site: one} for name, one in methods.items()}

    def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        heard.append(list(texts))
        return [float(len(text)) for text in texts]

    sweep(model, given, rows, None, (2.0,), positions, length, generation={"max_new_tokens": 5}, progress=False)
    wanted = [
        list(steerlab.generate(model, rows, steer=one, alpha=2.0, positions=positions, max_new_tokens=5))
        for one in methods.values()
    ]
    assert heard == wanted
    assert wanted.count(list(steerlab.generate(model, rows, max_new_tokens=5))) == 0


@pytest.mark.parametrize("positions", POSITIONS)
def test_strengths_in_units_of_each_inputs_norm_equal_steer(lm, positions: str) -> None:
    model, rows = lm(), questions()
    asked: dict[str, Any] = {"scale": "norm", "metric": "logprob_difference", "progress": False}
    frame = sweep(model, {"v": {1: at(1)}}, rows, 1, (0.0, 0.5), positions, **asked)
    check(frame, {"v": at(1)}, lambda one, alpha, where: alone(model, one, rows, alpha, where, scale="norm"))


def test_what_is_learnt_anew_is_another_sweep_also_where_vectors_come_in_flight(lm, tmp_path) -> None:
    model, rows = lm(), questions()
    one, other = Odd("flight", Site(1)), Odd("flight", Site(1))
    one.bias_, other.bias_ = 1.0, 2.0  # whatever ends in an underscore was learned
    options: Any = {"alphas": (1.0,), "positions": "all", "folder": tmp_path, "progress": False}
    first = sweep(model, {"odd": {1: one}}, rows, None, **options)
    assert sweep(model, {"odd": {1: one}}, rows, None, **options)["value"].equals(first["value"])
    with pytest.raises(MismatchError, match="vectors"):
        sweep(model, {"odd": {1: other}}, rows, None, **options)
