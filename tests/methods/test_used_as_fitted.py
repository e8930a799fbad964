"""What was fitted is used as it was fitted: exported, moved, fitted again, wrapped or scaled, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from synthetic_acts import activations, normal

import steerlab
from steerlab import Contrast, Example, MeanDifference, SteeringVector
from steerlab.cli.talk import Talk
from steerlab.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.methods import (
    L2S,
    W2S,
    ConditionVector,
    Context,
    Gated,
    GradientField,
    LinearProbe,
    NearestNeighbors,
    Operation,
    Spherical,
    kl_then_steer,
)
from steerlab.methods.exchange import from_vllm_lens, to_easysteer, to_gguf, to_hotwire, to_vllm_lens
from steerlab.methods.kts.config import KTSConfig
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

WORDS = ("cat", "dog", "sun", "tree", "sky", "car", "map", "pen", "cup", "hat", "key", "box")


def examples() -> list[Example]:
    kinds = ("refuse", "answer")
    return [
        Example(f"Tell me of the {word}", Contrast("Yes sure", "No never"), id=word, behavior=kinds[i % 2])
        for i, word in enumerate(WORDS)
    ]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def acts(model: Model) -> steerlab.Activations:
    return steerlab.capture(model, examples(), layers=[1, 2])


@pytest.mark.parametrize("export", [to_vllm_lens, to_easysteer, lambda one: to_hotwire(one, "x")])
def test_what_is_not_added_is_not_exported_as_a_vector_to_add(acts: Any, export: Callable[[Any], Any]) -> None:
    with pytest.raises(SteeringError, match="something else than to add"):
        export(Spherical(2).fit(acts))


def test_gguf_and_positions_of_vllm_lens_are_refused_too(model: Model, acts: Any, tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match="something else than to add"):
        to_gguf(model, Spherical(2).fit(acts), tmp_path / "x.gguf")
    request = to_vllm_lens(MeanDifference(2).fit(acts))
    some = request["apply_steering_vectors"].replace('"position_indices": null', '"position_indices": [0, 3]')
    with pytest.raises(DataError, match="at all tokens"):
        from_vllm_lens({"apply_steering_vectors": some})


def test_a_talk_moves_a_vector_with_its_operator(model: Model, acts: Any) -> None:
    talk = Talk(model, {"turn": Spherical(2).fit(acts)})
    talk.set_layer(1)
    moved = talk.steerers["turn"]
    assert isinstance(moved, Spherical) and [site.layer for site in moved.directions] == [1]


def test_a_threshold_belongs_to_the_scores_that_it_was_set_on(acts: Any) -> None:
    probe = LinearProbe(2, positive=["refuse"]).fit(acts).calibrate(acts.select(behavior="answer"), fpr=0.5)
    with pytest.raises(ActivationError, match="no threshold"):
        probe.fit(acts).detect(Context.of(acts.select(side="prompt")))


@pytest.mark.parametrize("name", ["field", "l2s", "neighbors", "gated"])
def test_a_refused_fit_leaves_what_was_fitted_before(model: Model, acts: Any, name: str) -> None:
    one = acts.select(example_id=["cat"])
    bad = steerlab.Activations(one.values * 10, one.index, one.sites, one.info)
    if name == "field":  # which also learns from one
        index = acts.index.assign(behavior="able")
        bad = steerlab.Activations(torch.ones_like(acts.values), index, acts.sites, acts.info)
    steerer = {
        "field": lambda: GradientField(1, epochs=5), "l2s": lambda: L2S(1, max_norm=0.5),
        "neighbors": lambda: NearestNeighbors(1, k=3),
        "gated": lambda: Gated(L2S(1, max_norm=0.5), LinearProbe(1).fit(acts), threshold=0.0),
    }[name]().fit(acts)  # fmt: skip
    before = steerlab.score(model, ["Tell me of it"], ["Yes"], steer=steerer, progress=False)
    with pytest.raises((DataError, ActivationError)):
        steerer.fit(bad)
    again = steerlab.score(model, ["Tell me of it"], ["Yes"], steer=steerer, progress=False)
    pd.testing.assert_frame_equal(before, again)


def test_a_wrapper_that_is_fitted_to_more_layers_has_no_single_one(model: Model, acts: Any) -> None:
    gated = Gated(MeanDifference("all"), LinearProbe(1).fit(acts), threshold=0.5)
    assert gated.fit(steerlab.capture(model, examples(), layers=[1])).site == steerlab.Site(1)
    assert not hasattr(gated.fit(acts), "site") and len(gated.sites) == 2


def test_states_of_another_model_are_refused(acts: Any) -> None:
    theirs = steerlab.capture(tiny_lm("llama", seed=1), examples(), layers=[1, 2])
    probe, l2s = LinearProbe(1).fit(acts).calibrate(acts, fpr=0.5), L2S(1).fit(acts)
    condition = ConditionVector(1, positive=["refuse"], negative=["answer"]).fit(acts)
    near = NearestNeighbors(1, k=3).fit(acts)
    for read in (probe.detect, probe.score, condition.score, l2s.vectors, near.vectors, Gated(l2s, probe).vectors):
        assert len(read(Context.of(acts))) == len(WORDS)
        with pytest.raises(MismatchError, match="was fitted on"):
            read(Context.of(theirs))
    assert len(l2s.fit(theirs).vectors(Context.of(theirs))) == len(WORDS)


def test_a_sweep_leaves_a_calibrated_detector_as_it_is(model: Model, acts: Any) -> None:
    probe = LinearProbe(2, positive=["refuse"]).fit(acts).calibrate(acts.select(behavior="answer"), fpr=0.5)
    weights, threshold = probe.w_.clone(), probe.threshold_
    others = [e.replace(id=f"other {e.id}", prompt=e.prompt[::-1], behavior="refuse") for e in examples()]
    steerlab.sweep(model, examples(), Gated(MeanDifference(2), probe), [1, 2], [1.0], train=others)
    assert torch.equal(probe.w_, weights) and probe.threshold_ == threshold


def test_w2s_of_steerers_of_another_model_is_refused() -> None:
    acts = activations(normal(4, 1, 8), [1], {"weights": "here"}, example_id=list("abcd"))
    parts = [SteeringVector({k: normal(8)}) for k in (1, 2)]
    parts[0].info_ = {"weights": "elsewhere", "model": "elsewhere"}
    slopes = pd.DataFrame([(i, k, 0.0) for i in "abcd" for k in (1, 2)], columns=["example_id", "layer", "slope"])
    with pytest.raises(MismatchError, match="use the same model for both"):
        W2S(parts, 1).fit(acts, slopes=slopes)


def test_settings_of_a_wrapped_operation_are_not_dropped(acts: Any) -> None:
    probe = LinearProbe(2, positive=["refuse"]).fit(acts).calibrate(acts.select(behavior="answer"), fpr=0.5)
    inner = Gated(Operation(MeanDifference(2).fit(acts), first=2), probe)
    with pytest.raises(SteeringError, match="give all settings to one Operation"):
        Operation(inner, decay=0.9).interventions(Context.of(acts.select(side="prompt")))


def test_what_was_fitted_after_it_was_wrapped_is_known_by_its_model(model: Model, acts: Any) -> None:
    mean = MeanDifference(2)
    wrapped = Operation(mean, first=3)
    mean.fit(acts)
    assert steerlab.generate(model, ["Hi"], steer=wrapped, max_new_tokens=1)
    with pytest.raises(MismatchError, match="meandifference was fitted on a model called"):
        steerlab.generate(tiny_lm("qwen2"), ["Hi"], steer=wrapped, max_new_tokens=1)


def test_every_part_of_a_method_belongs_to_the_model(model: Model, acts: Any, tmp_path: Path) -> None:
    other = tiny_lm("llama", seed=1)
    theirs = steerlab.capture(other, examples(), layers=[1, 2])
    probe = LinearProbe(1, negative=["answer"]).fit(acts).calibrate(acts, fpr=0.0)
    gated = Gated(MeanDifference(2).fit(acts), probe)
    probe.fit(theirs).calibrate(theirs, fpr=0.0)
    with pytest.raises(MismatchError, match="linearprobe was fitted on a model called"):
        steerlab.generate(model, ["Hi"], steer=gated, max_new_tokens=2)
    Operation(MeanDifference(2).fit(acts), "replace").save_pretrained(tmp_path / "wrapped")
    accepted = steerlab.load_steerer(tmp_path / "wrapped", other, force=True)
    steerlab.generate(other, ["Hi"], steer=accepted, max_new_tokens=2)
    direction = Spherical(2).fit(acts)
    steerlab.generate(other, ["Hi"], steer=steerlab.Request(-direction, any_model=True), max_new_tokens=2)
    with pytest.raises(MismatchError, match="was fitted on a model called"):
        steerlab.generate(other, ["Hi"], steer=direction, max_new_tokens=2)


def test_a_direction_has_no_length_to_scale(acts: Any) -> None:
    spherical = Spherical(2).fit(acts)
    torch.testing.assert_close((-1 * spherical).at(2), -spherical.at(2))
    with pytest.raises(SteeringError, match="give alpha="):
        0.1 * spherical


def test_training_with_another_estimator_does_not_go_on_in_its_folder(model: Model, tmp_path: Path) -> None:
    def train(estimator: Any) -> None:
        kl_then_steer(
            model, [f"a {w}" for w in WORDS], [" yes"] * 12, {"refuse": examples()}, layers=[1], folder=tmp_path,
            estimator=estimator, config=KTSConfig(steps=1, measure_every=1, coefficients=(0.0, 1.0)), progress=False,
        )  # fmt: skip

    train(lambda sites: MeanDifference(sites))
    with pytest.raises(MismatchError, match="estimator"):
        train(lambda sites: MeanDifference(list(sites)))
