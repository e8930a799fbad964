"""Methods that predict an input's vector from its context: routed means, nearest neighbors, linear L2S."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from synthetic_acts import check_saved, clusters, make_acts, normal, shuffled

from steerlab import Site
from steerlab.errors import DataError, MismatchError
from steerlab.methods import L2S, Context, NearestNeighbors, RoutedMean
from steerlab.methods.regression import PENALTIES

X, Z, WHICH = clusters(120, 16, 3, seed=1)
Z = Z + 0.2 * normal(120, 16, seed=3)
NAMES = [f"b{k}" for k in WHICH.tolist()]
ACTS = make_acts(X, Z, behaviors=NAMES)
UNSEEN = clusters(40, 16, 3, seed=2)[0]
MAKERS = {
    "hard": lambda **o: RoutedMean(3, **o), "soft": lambda **o: RoutedMean(3, soft=True, **o),
    "neighbors": lambda **o: NearestNeighbors(3, k=5, **o), "linear": lambda **o: L2S(3, net="linear", **o),
    "rank 2": lambda **o: L2S(3, net="linear", rank=2, **o),
}  # fmt: skip


def class_means() -> torch.Tensor:
    return torch.stack([Z[k == WHICH].double().mean(0).float() for k in range(3)])


def test_routed_mean_takes_the_mean_of_the_class_that_scikit_learn_predicts() -> None:
    scaler = StandardScaler().fit(X.double().numpy())
    model = LogisticRegression(max_iter=5000).fit(scaler.transform(X.double().numpy()), NAMES)
    shares = torch.from_numpy(model.predict_proba(scaler.transform(UNSEEN.double().numpy()))).float()
    hard, soft = MAKERS["hard"]().fit(ACTS), MAKERS["soft"]().fit(ACTS)
    assert hard.behaviors_ == ("b0", "b1", "b2") and hard.accuracy_ > 0.95
    torch.testing.assert_close(hard.means_, class_means())
    torch.testing.assert_close(hard.probabilities(UNSEEN), shares, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(hard.predict(UNSEEN), class_means()[shares.argmax(1)])
    torch.testing.assert_close(soft.predict(UNSEEN), shares @ class_means(), rtol=1e-3, atol=1e-4)


def test_routed_mean_of_two_behaviors_has_the_probabilities_of_the_binary_probe() -> None:
    rows = (WHICH < 2).nonzero().flatten().tolist()
    two = make_acts(X[rows], Z[rows], behaviors=[NAMES[i] for i in rows])
    scaler = StandardScaler().fit(X[rows].double().numpy())
    model = LogisticRegression(max_iter=5000).fit(scaler.transform(X[rows].double().numpy()), [NAMES[i] for i in rows])
    shares = model.predict_proba(scaler.transform(UNSEEN.double().numpy()))
    np.testing.assert_allclose(RoutedMean(3).fit(two).probabilities(UNSEEN), shares, rtol=1e-3, atol=1e-4)


def test_routed_mean_of_a_zero_behavior_is_zero() -> None:
    bare = [f"s{i:04d}" for i, name in enumerate(NAMES) if name == "b1"]
    routed = RoutedMean(3, zero_behaviors=["b1"]).fit(make_acts(X, Z, behaviors=NAMES, bare=bare))
    assert not routed.means_[1].any() and routed.means_[0].any()


def test_routed_mean_takes_the_behaviors_of_another_column() -> None:
    plain = make_acts(X, Z)
    names = plain.index["example_id"].map({f"s{i:04d}": name for i, name in enumerate(NAMES)})
    acts = type(plain)(plain.values, plain.index.assign(topic=names), plain.sites, plain.info)
    torch.testing.assert_close(RoutedMean(3, label="topic").fit(acts).means_, class_means())


def test_context_layers_are_a_layer_or_several_and_no_text() -> None:
    assert [one.site for one in L2S(3, context_layer=range(2, 4)).required_activations] == [Site(2), Site(3)]
    with pytest.raises(Exception, match="15"):
        _ = L2S(3, context_layer="15").required_activations  # type: ignore[arg-type]


def test_linear_fit_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    MAKERS["linear"]().fit(ACTS)
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_at_chance_is_warned_with_its_accuracy() -> None:
    acts = make_acts(normal(200, 16, seed=5), normal(200, 16, seed=6), behaviors=["a", "b"] * 100)
    with pytest.warns(UserWarning, match=r"balanced accuracy of 0\.[45].*chance is 0\.50"):
        RoutedMean(3).fit(acts)


def test_nearest_neighbors_equal_scikit_learn() -> None:
    scaler = StandardScaler().fit(X.double().numpy())
    model = KNeighborsRegressor(5).fit(scaler.transform(X.double().numpy()), Z.double().numpy())
    expected = model.predict(scaler.transform(UNSEEN.double().numpy()))
    np.testing.assert_allclose(MAKERS["neighbors"]().fit(ACTS).predict(UNSEEN), expected, atol=1e-5)


def test_linear_l2s_is_the_ridge_regression_of_scikit_learn_at_the_full_and_at_a_lower_rank() -> None:
    scaler = StandardScaler().fit(X.double().numpy())
    for name, rank in (("linear", 16), ("rank 2", 2)):
        left, values, right = np.linalg.svd(Z.double().numpy(), full_matrices=False)
        targets = (left[:, :rank] * values[:rank]) @ right[:rank]
        ridge = RidgeCV(PENALTIES).fit(scaler.transform(X.double().numpy()), targets)
        predicted = MAKERS[name]().fit(ACTS).predict(UNSEEN)
        np.testing.assert_allclose(predicted, ridge.predict(scaler.transform(UNSEEN.double().numpy())), atol=1e-4)
    assert torch.linalg.matrix_rank(predicted, atol=1e-4) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_fit_ignores_the_order_of_rows_and_is_saved(name: str, tmp_path) -> None:
    fitted = MAKERS[name]().fit(ACTS)
    again = MAKERS[name]().fit(shuffled(ACTS))
    torch.testing.assert_close(again.predict(UNSEEN), fitted.predict(UNSEEN), rtol=0, atol=1e-5)
    check_saved(fitted, tmp_path, Context.of(ACTS))


@pytest.mark.parametrize("name", ["soft", "linear", "neighbors"])
def test_a_feature_that_hardly_varied_stays_small_in_use(name: str) -> None:
    flat, same, moved = X.clone(), UNSEEN.clone(), UNSEEN.clone()
    flat[:, 0], same[:, 0], moved[:, 0] = 5 + 1e-5 * X[:, 0], 5.0, 5.05
    fitted = MAKERS[name]().fit(make_acts(flat, Z, behaviors=NAMES))
    assert float(torch.cosine_similarity(fitted.predict(moved), fitted.predict(same)).min()) > 0.9


@pytest.mark.parametrize("name", [*MAKERS, "mlp"])
def test_several_context_layers_are_read_side_by_side(name: str) -> None:
    make = MAKERS.get(name, lambda **options: L2S(3, net="mlp", progress=False, **options))
    other = make_acts(normal(120, 16, seed=8), Z, behaviors=NAMES)
    both = type(ACTS)(torch.cat([ACTS.values, other.values], 1), ACTS.index, (Site(3), Site(9)))
    fitted = make(context_layer=(3, 9)).fit(both)
    assert [one.site for one in fitted.required_activations] == [Site(3), Site(9)]
    vectors = fitted.vectors(Context(("s0007", "s0002"), shuffled(both)))
    torch.testing.assert_close(vectors, fitted.predict(torch.cat([X, normal(120, 16, seed=8)], 1)[[7, 2]]))
    assert vectors.shape == (2, 16) and fitted.remote_interventions() is None
    with pytest.raises(MismatchError, match=r"width 16.*32"):
        fitted.predict(X)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: RoutedMean(3).fit(make_acts(X, Z)), r"\{'b': 120\}.*at least two behaviors"),
        (lambda: RoutedMean(3).fit(make_acts(X[:3], Z[:3], behaviors=["a", "a", "b"])), r"'b': 1\}"),
        (lambda: RoutedMean(3).fit(make_acts(X[:4], Z[:4], behaviors=["a", "a", "", ""])), "one for every example"),
        (lambda: NearestNeighbors(3, k=200).fit(ACTS), "k=200 neighbors of 120"),
        (lambda: NearestNeighbors(3, k=0), "k=0"), (lambda: L2S(3, net="tree"), "'mlp' or 'linear'"),
        (lambda: L2S(3, net="linear", hidden_units=7, config="released"),
         r"\['hidden_units', 'config'\] have no effect"),
        (lambda: L2S(3, net="linear", rank=17).fit(ACTS), "rank=17"),
        (lambda: RoutedMean(3, C=0.0).fit(ACTS), "must be positive"),
        (lambda: L2S(3, net="linear", rank=0).fit(ACTS), "rank=0"),
        (lambda: L2S(3, context_layer=()).fit(ACTS), "None for the steered one"),
    ],
)  # fmt: skip
def test_bad_data_and_arguments_are_refused(fit, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit()


def test_l2s_is_a_ridge_regression_unless_an_option_of_the_published_net_is_given() -> None:
    plain, ridge = (one.fit(ACTS).predict(UNSEEN) for one in (L2S(3), L2S(3, net="linear")))
    assert torch.equal(plain, ridge) and L2S(3).net == "linear"
    for options in ({"config": "paper"}, {"hidden_units": 100}, {"activation": "tanh"}, {"validation": 0.0}):
        assert L2S(3, **options).net == "mlp", "also where the option is what the net has without it"


def test_equal_targets_are_warned_since_a_mean_will_do() -> None:
    acts = make_acts(X, Z[:1].expand_as(Z), behaviors=NAMES)
    with pytest.warns(UserWarning, match=re.escape("MeanDifference(3) steers in the same way")):
        L2S(3, net="linear").fit(acts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        L2S(3, net="linear").fit(ACTS)
