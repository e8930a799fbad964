"""`SteeringVector`: arithmetic, what is taken in its place, and the methods that fit one for each layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA as SklearnPCA
from synthetic_acts import activations, make_acts, shuffled

import steerlab
from steerlab import PCA, LogisticDirection, MeanDifference, Request, Site, SteeringVector
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import Gated, LinearProbe, Spherical
from steerlab.methods.base import FittedMixin
from steerlab.methods.probe import fit_logistic
from steerlab.methods.vector import as_steerer
from steerlab.testing import tiny_lm

D, N = 12, 40
DRAW = torch.Generator().manual_seed(3)
AXIS = torch.nn.functional.normalize(torch.randn(D, generator=DRAW), dim=0)
SIZES = torch.randn(N, 1, generator=DRAW).abs() * 3 + 1
CONTRASTS = SIZES * AXIS + 0.1 * torch.randn(N, D, generator=DRAW)
ACTS = make_acts(None, CONTRASTS, model="m", weights="w")
ESTIMATORS = (MeanDifference, PCA, LogisticDirection)
vectors = st.builds(lambda seed: torch.randn(D, generator=torch.Generator().manual_seed(seed)), st.integers(0, 9999))


def two_layers(**info: object) -> steerlab.Activations:
    """The contrasts at layer 3, and another multiple of them at layer 5."""
    scaled = torch.cat([ACTS.values, 2 * ACTS.values + 1], 1)
    return activations(scaled, [3, 5], ACTS.info | info, **{name: ACTS.index[name] for name in ACTS.index})


@pytest.mark.parametrize("method", ESTIMATORS)
def test_estimators_find_the_axis_in_the_direction_of_the_wanted_answers(method: type[MeanDifference]) -> None:
    fitted = method(3).fit(ACTS)
    assert fitted.cosine(SteeringVector({3: AXIS})) > 0.8
    along = (ACTS.contrast(3)[1].double() @ fitted.unit().vector_.double()).mean()
    assert fitted.norm == pytest.approx(float(along), rel=1e-5), "alpha 1 moves by the mean contrast along it"
    torch.testing.assert_close(method(3).fit(shuffled(ACTS)).vector_, fitted.vector_)
    swapped = ACTS.index.assign(side=ACTS.index["side"].replace({"positive": "negative", "negative": "positive"}))
    torch.testing.assert_close(method(3).fit(type(ACTS)(ACTS.values, swapped, ACTS.sites)).vector_, -fitted.vector_)


def test_pca_is_that_of_the_contrasts_taken_in_both_directions() -> None:
    contrasts = ACTS.contrast(3)[1].double().numpy()
    component = SklearnPCA(1).fit(np.concatenate([contrasts, -contrasts])).components_[0]
    assert abs(PCA(3).fit(ACTS).unit().vector_.double().numpy() @ component) == pytest.approx(1, abs=1e-6)


def test_logistic_direction_has_the_weights_of_the_regression() -> None:
    sides = [ACTS.select(side=side).at(3).double() for side in ("positive", "negative")]
    weights, _ = fit_logistic(torch.cat(sides).numpy(), np.repeat([1, 0], N), C=0.1)
    unit = torch.from_numpy(weights / np.linalg.norm(weights)).float()
    torch.testing.assert_close(LogisticDirection(3, C=0.1).fit(ACTS).unit().vector_, unit, rtol=1e-4, atol=1e-5)


def test_contrasts_without_a_common_direction_have_no_sign() -> None:
    balanced = make_acts(None, torch.cat([CONTRASTS, -CONTRASTS]))
    exact = balanced.values.clone()
    exact[1::2] = 0  # the negative sides: the contrasts are then exact
    exact[0::2, 0] = torch.cat([CONTRASTS, -CONTRASTS])
    with pytest.raises(DataError, match="no common direction"):
        PCA(3).fit(type(balanced)(exact, balanced.index, balanced.sites))


@pytest.mark.parametrize("method", ESTIMATORS)
def test_all_layers_at_once_are_the_layers_one_by_one(method: type[MeanDifference]) -> None:
    acts = two_layers()
    for layers in ("all", [3, 5], (5, 3), range(3, 6, 2)):
        fitted = method(layers).fit(acts)  # type: ignore[arg-type]
        for layer in (3, 5):
            assert torch.equal(fitted.at(layer), method(layer).fit(acts).vector_)
    assert [str(one.site) for one in fitted.interventions(steerlab.methods.Context(("a",)))] == ["3", "5"]
    assert list(fitted.norm.index) == [3, 5]  # type: ignore[union-attr]
    with pytest.raises(SteeringError, match="steers the sites 3, 5"):
        fitted.vector_  # noqa: B018
    with pytest.raises(SteeringError, match="no vector at layer 4, only at 3, 5"):
        fitted.at(4)


@given(vectors, vectors, st.floats(0.1, 5))
def test_arithmetic_is_that_of_the_tensors(a: torch.Tensor, b: torch.Tensor, factor: float) -> None:
    one, two = SteeringVector({2: a}), SteeringVector({2: b, 4: a})
    torch.testing.assert_close((one + two).at(2), a + b)
    torch.testing.assert_close((one - two).at(4), -a)
    torch.testing.assert_close((one + two - two).at(2), a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((factor * one / 2).at(2), a * (factor / 2))
    torch.testing.assert_close((np.float64(factor) * one * np.float32(2)).at(2), a * (factor * 2))
    torch.testing.assert_close((-one).at(2), -a)
    assert one.unit().norm == pytest.approx(1, abs=1e-6)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    assert one.cosine(two.part(2)) == pytest.approx(float(cosine), abs=1e-6)


def test_a_sum_keeps_where_its_parts_come_from_and_refuses_two_models() -> None:
    mean = MeanDifference(3).fit(ACTS)
    assert (2 * mean - SteeringVector({3: AXIS})).info_["model"] == "m"
    other = MeanDifference(3).fit(make_acts(None, CONTRASTS, model="n", weights="x"))
    with pytest.raises(MismatchError, match=r"two models.*SteeringVector\(vector.directions\)"):
        mean + other
    assert SteeringVector(other.directions) + mean
    with pytest.raises(MismatchError, match="12 and 3 wide"):
        mean + SteeringVector({3: torch.ones(3)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SteeringVector({1: AXIS, 2: torch.ones(3)}), r"widths \[3, 12\]"),
        (lambda: SteeringVector({1: torch.full((3,), float("nan"))}), "NaN"),
        (lambda: SteeringVector({1: torch.ones(2, 3)}), "pass one row"),
        (lambda: SteeringVector({1: torch.zeros(3)}).unit(), "is zero: it has no direction"),
        (lambda: SteeringVector({1: AXIS}) * float("inf"), "finite number"),
        (lambda: SteeringVector({1: AXIS}) / 0, "divided by 0"),
        (lambda: SteeringVector({1: AXIS}).cosine(SteeringVector({2: AXIS})), "of other layers: 1 and 2"),
        (lambda: SteeringVector({1: AXIS}).fit(ACTS), "has its values already"),
        (lambda: as_steerer(AXIS, 4), r"shape \(12,\) and does not say its layer: give \{layer: vector\}, or 4 rows"),
        (lambda: as_steerer(torch.ones(3, D), 4), "does not say its layer"),
        (lambda: MeanDifference(3).fit(ACTS).save("x"), r"save_pretrained\(folder\)"),
        (lambda: MeanDifference(3).fit(ACTS) + Spherical(3).fit(ACTS), "of a Spherical are not added"),
        (lambda: MeanDifference([-1, 3]), "count all layers from the first, or all from the last"),
    ],
)
def test_what_is_no_vector_is_refused_with_what_would_do(call, message: str) -> None:
    with pytest.raises(steerlab.errors.SteerlabError, match=message):
        call()


def test_vectors_and_numbers_only_are_added_and_multiplied() -> None:
    one = SteeringVector({1: AXIS})
    for wrong in (lambda: one + 3, lambda: one + AXIS, lambda: one * one, lambda: 3 - one):
        with pytest.raises(TypeError):
            wrong()


def test_tensors_and_dicts_steer_as_the_vector_does() -> None:
    model = tiny_lm("llama")
    rows = torch.randn(model.n_layers, model.hidden_size, generator=DRAW)
    options = {"max_new_tokens": 5}
    every = steerlab.generate(model, ["hello"], steer=SteeringVector(dict(enumerate(rows))), **options)
    assert every.ids == steerlab.generate(model, ["hello"], steer=rows, **options).ids
    assert every.ids == steerlab.generate(model, ["hello"], steer=rows.numpy(), **options).ids
    one = steerlab.generate(model, ["hello"], steer=SteeringVector({2: rows[2]}), alpha=2.0, **options)
    for given_ in ({2: rows[2]}, {Site(2): rows[2].numpy()}):
        assert steerlab.generate(model, ["hello"], steer=given_, alpha=2.0, **options).ids == one.ids  # type: ignore[arg-type]
    for request in (Request({2: rows[2]}, 2.0), [Request({2: rows[2]}, 2.0)]):
        assert steerlab.generate(model, ["hello"], steer=request, **options).ids == one.ids
    with steerlab.steer(model, {2: rows[2]}, alpha=2.0) as run:
        assert run.generate(["hello"], **options).ids == one.ids
    assert Gated({2: rows[2]}, LinearProbe(2)).site == Site(2)  # type: ignore[arg-type]


def test_a_gate_around_a_vector_made_by_hand_fits_its_detector_alone() -> None:
    acts = make_acts(torch.randn(8, D), CONTRASTS[:8], behaviors=["refuse", "answer"] * 4)
    gated = Gated({3: AXIS}, LinearProbe(3, positive=["refuse"])).fit(acts)
    assert hasattr(gated.detector, "w_") and torch.equal(gated.steerer.at(3), AXIS)  # type: ignore[attr-defined]


def test_an_unfitted_estimator_of_all_layers_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(steerlab.errors.ActivationError, match=r"MeanDifference is not fitted"):
        MeanDifference().save_pretrained(tmp_path)


def test_a_second_fit_of_all_layers_reads_all_layers_again() -> None:
    model, pairs = tiny_lm("llama"), steerlab.pairs([("Arr me", "Well, I"), ("Aye", "Nay")], prompts=["How?", "What?"])
    mean = MeanDifference().fit(steerlab.capture(model, pairs, layers=[0], progress=False))
    assert mean.site == Site(0)
    assert mean.fit(model, pairs).sites == tuple(map(Site, range(model.n_layers))) and not hasattr(mean, "site")
    assert MeanDifference(1, position="first_difference").fit(model, pairs).info_["positions"] == ["first_difference"]


def test_a_gate_refuses_to_be_fitted_on_another_model_than_its_vector() -> None:
    gated = Gated(2 * MeanDifference(3).fit(ACTS), LinearProbe(3, positive=["refuse"]))
    other = make_acts(torch.randn(8, D), None, behaviors=["refuse", "answer"] * 4, model="n", weights="x")
    with pytest.raises(MismatchError):
        gated.fit(other)


def test_a_sweep_takes_the_layers_of_a_vector_one_by_one_if_it_names_them() -> None:
    model = tiny_lm("llama")
    rows = torch.randn(model.n_layers, model.hidden_size, generator=DRAW)
    data = steerlab.pairs([("yes, it is", "no, never")], prompts=["Is it late?"])

    def swept(steerer: object, **options: object) -> dict[tuple[object, float], float]:
        frame = steerlab.sweep(model, data, steerer, alphas=[0.0, 1.0], progress=False, **options)
        return {(row.layer, row.alpha): row.value for row in frame.itertuples()}

    each = swept(rows, layers="all")
    for layer in range(model.n_layers):
        assert each[layer, 1.0] == pytest.approx(swept({layer: rows[layer]})[layer, 1.0], abs=1e-5)
    assert swept(rows)["0, 1, 2, 3", 1.0] not in each.values(), "without layers, all are steered at once"
    train = steerlab.pairs([("Arr me", "Well, I"), ("Aye", "Nay")], prompts=["How?", "What?"])
    assert {layer for layer, _ in swept(MeanDifference(), train=train)} == set(range(model.n_layers))
    frame = swept({"mine": {2: rows[2]}, "mean": MeanDifference(2)}, train=train, layers=[2])
    assert len(frame) == 2


@pytest.mark.parametrize("name", steerlab.methods.__all__)
def test_every_method_has_its_own_save(name: str) -> None:
    """nnsight adds `save` to every object, and that one would be called in its place."""
    method = getattr(steerlab.methods, name)
    if isinstance(method, type) and issubclass(method, FittedMixin):
        assert method.save is FittedMixin.save
