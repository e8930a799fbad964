"""CONFST on synthetic classes with known means: selection by confidence, vectors, spans, targets, storage, errors."""

from collections.abc import Sequence
from copy import copy
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic_acts import activations, check_saved, make_acts, normal, shuffled
from torch import Tensor

from steerlab import Activations, Site
from steerlab.errors import ActivationError, DataError, SteeringError
from steerlab.methods import Context
from steerlab.methods.confst import CONFST, _select_confident

NAMES = ("arts", "news", "science", "sports")
LAYER, BETAS = 3, (0.0, 0.3, 0.5, 0.7, 0.9)


def history(
    states: Tensor, labels: Sequence[Any], positions: Sequence[str] = ("last",), side: str = "prompt", **columns: Any
) -> Activations:
    """Items `(item, span, hidden)`, one row per position, of the samples s0000, s0001, ..."""
    n, span = states.shape[:2]
    columns |= {"example_id": [f"s{i:04d}" for i in range(n)], "behavior": labels}
    repeated = {name: np.repeat(np.array(values, dtype=object), span) for name, values in columns.items()}
    info = {"model": "tiny", "layers": 9}
    return activations(states.flatten(0, 1)[:, None], [LAYER], info, side=side, position=[*positions] * n, **repeated)


def concatenated(*parts: Activations) -> Activations:
    index = pd.concat([part.index for part in parts], ignore_index=True)
    return Activations(torch.cat([part.values for part in parts]), index, parts[0].sites)


def two_classes(span: int = 1, offset: float = 5.0) -> tuple[Tensor, list[str]]:
    """Forty items of two well separated classes, and their labels."""
    states = torch.randn(40, span, 6) + offset * torch.eye(6)[torch.arange(40) % 2][:, None]
    return states, [NAMES[i % 2] for i in range(40)]


@cache
def world(noise: float, seed: int = 0, n: int = 1200, hidden: int = 64) -> tuple[Activations, Tensor]:
    """Gaussian classes with a share of random labels, and the true class means."""
    draw = np.random.default_rng(seed)
    centers = 0.47 * draw.normal(size=(4, hidden))
    truth = draw.integers(0, 4, n)
    states = centers[truth] + draw.normal(size=(n, hidden))
    message = np.where(draw.random(n) < noise, draw.integers(0, 4, n), truth)
    acts = make_acts(torch.tensor(states).float(), None, behaviors=[NAMES[k] for k in message], layer=LAYER)
    return acts, torch.tensor(centers).float()


@cache
def measured(noise: float, threshold: float, normalize: bool = False) -> dict[str, float]:
    """Means over two worlds of four classes: cosine to the true mean, what lies along it, norm, items."""
    rows = []
    for seed in range(2):
        acts, centers = world(noise, seed)
        fitted = CONFST(LAYER, "news", threshold=threshold, center=None, normalize=normalize).fit(acts)
        vectors, units = torch.cat([fitted.vectors_[n] for n in NAMES]), torch.nn.functional.normalize(centers)
        along, norms = (vectors * units).sum(1), vectors.norm(dim=1)
        items = np.mean(list(fitted.n_selected_.values()))
        rows.append({"cosine": (along / norms).mean(), "along": along.mean(), "norm": norms.mean(), "items": items})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_noisy_labels_moderate_threshold_beats_the_mean_and_a_high_one_does_not() -> None:
    """Cosine to the true mean: .96 for the mean of all items, .99 at threshold .3, below .9 at .9 with few items."""
    found = {beta: measured(0.4, beta) for beta in BETAS}
    cosine = {beta: each["cosine"] for beta, each in found.items()}
    assert cosine[0.0] == pytest.approx(0.96, abs=0.015) and cosine[0.3] == pytest.approx(0.987, abs=0.006)
    assert cosine[0.3] > cosine[0.0] + 0.01
    assert cosine[0.3] > cosine[0.5] > cosine[0.7] > cosine[0.9]
    assert cosine[0.7] == pytest.approx(0.96, abs=0.02) and cosine[0.9] < 0.9 < cosine[0.0]
    assert found[0.0]["items"] == 300 and found[0.9]["items"] < 20


@pytest.mark.nightly
def test_threshold_matters_little_with_little_label_noise() -> None:
    some, none = ([measured(noise, beta)["cosine"] for beta in BETAS] for noise in (0.2, 0.0))
    assert 0 < some[1] - some[0] < 0.01 and some[1] > some[2] > some[3] > some[4]
    assert max(none) - min(none) < 0.004 and min(none) > 0.985


def test_norm_grows_with_the_threshold_unless_normalized() -> None:
    raw, unit = ({beta: measured(0.4, beta, normalize) for beta in BETAS} for normalize in (False, True))
    norms = [raw[beta]["norm"] for beta in BETAS]
    assert norms == sorted(norms) and norms[-1] > 1.3 * norms[0]
    # at one alpha the worst direction goes furthest along the true one; at one norm, the best does
    assert raw[0.9]["along"] > raw[0.3]["along"] and raw[0.9]["cosine"] < raw[0.3]["cosine"]
    for beta in BETAS:
        assert unit[beta]["norm"] == pytest.approx(1, abs=1e-5)
        assert unit[beta]["along"] == pytest.approx(raw[beta]["cosine"], abs=1e-5)
    assert max(BETAS, key=lambda beta: unit[beta]["along"]) == 0.3


def test_threshold_zero_gives_the_exact_class_mean() -> None:
    acts, _ = world(0.2)
    fitted = CONFST(LAYER, "arts", threshold=0.0, center=None).fit(acts)
    below = CONFST(LAYER, "arts", threshold=float(fitted.item_probability_.min()) / 2, center=None).fit(acts)
    for name in NAMES:
        members = acts.select(behavior=name)
        mean = members.at(LAYER).double().mean(0).float()
        assert torch.equal(fitted.vectors_[name][0], mean) and torch.equal(below.vectors_[name][0], mean)
        assert fitted.n_selected_[name] == len(members)
    assert fitted.vectors_["arts"].dtype == torch.float32


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_vectors_are_means_of_the_items_above_the_threshold(threshold: float) -> None:
    acts, _ = world(0.4)
    options = dict(layer=LAYER, target="arts", threshold=threshold)
    made = {center: CONFST(**options, center=center).fit(acts) for center in (None, "grand", "others")}
    table, states = made[None].table, acts.at(LAYER).double()  # samples are in order already
    assert table["item"].tolist() == acts.index["example_id"].tolist()
    assert table["label"].tolist() == acts.index["behavior"].tolist()
    assert (table["selected"] == (table["probability"] > threshold)).all()
    for name in NAMES:
        members = (table["label"] == name).to_numpy()
        mean = states[members & table["selected"].to_numpy()].mean(0)
        expected = {None: mean, "grand": mean - states.mean(0), "others": mean - states[~members].mean(0)}
        for center, fitted in made.items():
            torch.testing.assert_close(fitted.vectors_[name][0], expected[center].float(), rtol=1e-6, atol=1e-6)
            assert fitted.n_selected_ == made[None].n_selected_


def test_common_component_dominates_plain_means_and_is_absent_from_centered_ones() -> None:
    """The states of language models have such a large common component."""
    acts, centers = world(0.2)
    shared = 20 * torch.nn.functional.normalize(normal(64, seed=1), dim=0)
    moved = Activations(acts.values + shared, acts.index, acts.sites)
    plain, grand, others = (
        CONFST(LAYER, "arts", threshold=0.3, center=center).fit(moved) for center in (None, "grand", "others")
    )
    still = CONFST(LAYER, "arts", threshold=0.3).fit(acts)
    mean = moved.at(LAYER).double().mean(0)
    for name, center in zip(NAMES, centers, strict=True):
        assert plain.cosine_to_mean_[name] > 0.97
        assert max(abs(grand.cosine_to_mean_[name]), abs(others.cosine_to_mean_[name])) < 0.5
        message = torch.cosine_similarity(grand.vectors_[name].double().flatten(), mean, dim=0)
        assert grand.cosine_to_mean_[name] == pytest.approx(float(message), abs=1e-6)
        torch.testing.assert_close(grand.vectors_[name], still.vectors_[name], rtol=1e-3, atol=1e-3)
        expected = center - centers.mean(0)
        cosines = [float(torch.cosine_similarity(m.vectors_[name][0], expected, dim=0)) for m in (plain, grand)]
        assert cosines[0] < 0.4 and cosines[1] > 0.95


def test_fit_is_independent_of_row_order_and_the_seed_changes_the_folds() -> None:
    acts, _ = world(0.4, n=300)
    one, two = (CONFST(LAYER, "news").fit(data) for data in (acts, shuffled(acts, 3)))
    assert torch.equal(one.item_probability_, two.item_probability_) and one.item_ids_ == two.item_ids_
    assert all(torch.equal(one.vectors_[name], two.vectors_[name]) for name in NAMES)
    assert not torch.equal(one.item_probability_, CONFST(LAYER, "news", seed=1).fit(acts).item_probability_)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.floats(-0.5, 1.5, width=32), st.integers(1, 12))
def test_selection_takes_all_above_the_threshold_or_the_most_probable(values: list[float], beta: float, n: int) -> None:
    probability = torch.tensor(values, dtype=torch.float64)
    chosen = _select_confident(probability, beta, n)
    above = probability > beta
    if beta <= 0:
        assert bool(chosen.all())
        return
    assert bool(chosen[above].all()) and int(chosen.sum()) == max(int(above.sum()), min(n, len(values)))
    if bool(chosen.any()) and not bool(chosen.all()):
        assert probability[chosen].min() >= probability[~chosen].max()


@pytest.mark.parametrize("threshold", [0.999, 1.0, 1.7])
def test_too_few_confident_items_warn_and_the_most_probable_are_selected(threshold: float) -> None:
    acts, _ = world(0.4, n=300)
    message = rf"above {threshold:g}: [01] of \d+ of 'arts' \(the 7 surest are taken\); 0 of \d+ of 'news'"
    with pytest.warns(UserWarning, match=message):
        fitted = CONFST(LAYER, "news", threshold=threshold, min_items=7).fit(acts)
    assert fitted.n_selected_["arts"] == fitted.n_selected_["news"] == min(fitted.n_selected_.values()) == 7
    for _, part in fitted.table.groupby("label"):
        assert part.loc[part["selected"], "probability"].min() > part.loc[~part["selected"], "probability"].max()


def test_probabilities_are_out_of_fold() -> None:
    """With more numbers per item than items, a classifier is sure of every label it was fitted to, right or not."""
    states, labels = normal(80, 5, 100, seed=2), [NAMES[i % 4] for i in range(80)]  # 80 items of 500 numbers
    confst = CONFST(LAYER, "news", span=5, min_items=1)
    acts = history(states, labels, confst.positions)
    flat = states.flatten(1).double().numpy()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(flat, labels)
    assert fitted.score(flat, labels) == 1 and fitted.predict_proba(flat).max(1).min() > 0.95
    confst.fit(acts)
    assert float(confst.selected_mask_.double().mean()) < 0.5 and confst.accuracy_ < 0.45
    assert float(confst.item_probability_.median()) < 0.4


def test_items_of_one_example_are_in_one_fold() -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(60, 1, 64, generator=draw)
    twin = states + 0.01 * torch.randn(60, 1, 64, generator=draw)
    labels = [NAMES[i % 2] for i in torch.randperm(60, generator=draw).tolist()]  # noise
    parts = [history(x, labels, ["answer"], side) for x, side in ((states, "positive"), (twin, "negative"))]
    both = concatenated(*parts)
    fitted = CONFST(LAYER, "arts", side=None, position="answer", threshold=0.0).fit(both)
    assert len(fitted.item_ids_) == 120 and {"s0000:negative", "s0000:positive"} < set(fitted.item_ids_)
    assert fitted.accuracy_ < 0.7, "one of the two tells the other's label"
    single = CONFST(LAYER, "arts", side="positive", position="answer", threshold=0.0, center=None).fit(both)
    assert single.item_ids_[:2] == ("s0000", "s0001")
    assert torch.equal(single.vectors_["arts"][0], states[np.array(labels) == "arts", 0].double().mean(0).float())
    prompt = concatenated(*(history(states, labels, ["last"], side) for side in ("positive", "negative")))
    with pytest.raises(DataError, match="before the two answers differ"):
        CONFST(LAYER, "arts", side="positive").fit(prompt)


def test_label_column_can_be_chosen_and_unlabeled_items_are_left_out() -> None:
    states, _ = two_classes(offset=4.0)
    users: list[Any] = [7, 8] * 15 + [None, "", float("nan"), None, ""] * 2
    fitted = CONFST(LAYER, "7", label="user", threshold=0.0, center=None).fit(history(states, ["x"] * 40, user=users))
    assert fitted.n_selected_ == {"7": 15, "8": 15}
    torch.testing.assert_close(fitted.vectors_["7"][0], states[:30:2, 0].mean(0))


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({}, ("last",)), ({"position": "answer"}, ("answer",)), ({"position": 3}, ("3",)),
        ({"span": 3}, ("last-2", "last-1", "last")), ({"start": 4}, ("prompt[4]",)),
        ({"start": 0, "span": 3}, ("prompt[0]", "prompt[1]", "prompt[2]")),
    ],
)  # fmt: skip
def test_positions_and_vectors_of_a_span_have_the_same_order(options: dict, positions: tuple[str, ...]) -> None:
    states, labels = two_classes(len(positions))
    method = CONFST(LAYER, "news", threshold=0.0, center=None, **options)
    assert method.positions == positions
    fitted = method.fit(shuffled(history(states, labels, positions), 1))
    for name in NAMES[:2]:
        torch.testing.assert_close(fitted.vectors_[name], states[np.array(labels) == name].mean(0))
    interventions = fitted.interventions(Context(("a", "b")))
    expected = [None] if positions[0] in ("last", "answer", "3") else [*positions]
    assert [shift.positions for shift in interventions] == expected
    for shift, vector in zip(interventions, fitted.vectors_["news"], strict=True):
        assert shift.site == Site(LAYER) and torch.equal(shift.vectors, vector.expand(2, -1))


def test_normalized_span_has_norm_one_and_no_single_vector() -> None:
    method = CONFST(LAYER, "news", span=3, normalize=True)
    fitted = method.fit(history(*two_classes(3), method.positions))
    assert float(fitted.steering_vectors.norm()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(SteeringError, match="a span of 3 tokens has a vector for each"):
        fitted.vectors(Context(("a",)))


def test_items_captured_at_part_of_the_span_are_left_out_with_a_warning() -> None:
    acts = history(*two_classes(2), ("last-1", "last"))
    short = acts.index["example_id"].isin(["s0003", "s0008"]) & (acts.index["position"] == "last-1")
    with pytest.warns(UserWarning, match=r"2 of 40 items are left out, first 's0003'.*\['last-1', 'last'\]"):
        fitted = CONFST(LAYER, "news", span=2, threshold=0.0).fit(acts.rows(~short))
    assert fitted.n_selected_ == {"arts": 19, "news": 19} and "s0003" not in fitted.item_ids_
    mixed = concatenated(history(*two_classes(1), ("last",)), history(*two_classes(1), ["answer"], "positive"))
    with pytest.warns(UserWarning, match="40 of 80 items are left out"):
        CONFST(LAYER, "news", side=None, threshold=0.0).fit(mixed)


weight = st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3)


@given(st.dictionaries(st.sampled_from(NAMES), weight, min_size=1))
def test_combined_target_is_the_weighted_sum_of_vectors(weights: dict[str, float]) -> None:
    mixed = news(weights)
    expected = sum(w * mixed.vectors_[name].double() for name, w in weights.items())
    torch.testing.assert_close(mixed.steering_vectors, expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(mixed.vectors(Context(("a", "b"))), mixed.steering_vectors.expand(2, -1))
    assert torch.equal(news().steering_vectors, mixed.vectors_["news"])


@cache
def fitted_once() -> CONFST:
    return CONFST(LAYER, "news", threshold=0.3).fit(world(0.2)[0])


def news(target: Any = "news") -> CONFST:
    """The same fit with another target."""
    steerer = copy(fitted_once())
    steerer.target = target
    return steerer


def test_target_may_be_weights_or_one_name() -> None:
    weights = {"arts": 1.0, "sports": -0.5}
    fitted = CONFST(LAYER, weights, threshold=0.3).fit(world(0.2)[0])
    assert torch.equal(fitted.steering_vectors, news(weights).steering_vectors)
    assert torch.equal(news("arts").steering_vectors, news().vectors_["arts"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("new", r"names \['new'\]; the preferences are \['arts', 'news', 'science', 'sports'\]"),
        ({"arts": 1.0, "spots": 1.0}, r"\['spots'\]"), ({}, "no preference"), ({"arts": float("nan")}, "finite"),
        ({"arts": 0.0, "news": 0.0}, "not all of them 0"),
    ],
)  # fmt: skip
def test_invalid_targets_are_refused(target: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ = news(target).steering_vectors
    with pytest.raises(DataError, match=message):
        CONFST(LAYER, target).fit(world(0.2)[0])


@pytest.mark.parametrize("target", ["news", {"news": 1.0, "arts": 0.25}], ids=["one", "several"])
def test_saved_steerer_is_restored_exactly(target: Any, tmp_path) -> None:
    method = CONFST(Site(LAYER), target, span=2, threshold=0.6, center="others")
    fitted = method.fit(history(*two_classes(2), method.positions))
    loaded = check_saved(fitted, tmp_path / "run", Context(("a", "b")))
    assert loaded.table.equals(fitted.table) and loaded.target == target
    assert loaded.info_ == {"model": "tiny", "layers": 9, "hidden_size": 6}


def test_with_layer_keeps_settings_and_is_unfitted() -> None:
    method = CONFST(LAYER, {"news": 2.0}, threshold=0.4, label="user", span=2, start=1, center=None, folds=3, C=0.1)
    moved = method.with_layer(7)
    assert moved.site == Site(7) and {**vars(moved), "layer": LAYER, "site": Site(LAYER)} == vars(method)
    with pytest.raises(ActivationError, match="not fitted"):
        moved.interventions(Context(("a",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": float("nan")}, "threshold=nan: give a probability"),
        ({"threshold": float("inf")}, "threshold=inf"), ({"span": 0}, "span=0: give a number of tokens"),
        ({"start": -1}, "start=-1"), ({"folds": 1}, "folds=1"), ({"min_items": 0}, "min_items=0"),
        ({"C": 0.0}, "C=0.0"), ({"C": float("nan")}, "C=nan"),
        ({"center": "mean"}, "center='mean': give 'grand', 'others' or None"),
        ({"position": "answer", "span": 2}, r"position='answer' has no meaning for a span \(\('last-1', 'last'\)\)"),
        ({"position": "answer", "start": 2}, r"position='answer' has no meaning for a span \(\('prompt\[2\]',\)\)"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CONFST(LAYER, "news", **options).fit(world(0.2)[0])


def small(labels: Sequence[str], positions: Sequence[str] = ("last",)) -> Activations:
    return history(normal(len(labels), len(positions), 6), labels, positions)


def relabeled(acts: Activations) -> Activations:
    acts.index.loc[1, "behavior"] = "news"
    return acts


LABELS = ["arts", "news"] * 10


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (small, {"label": "user"}, ActivationError, r"no label 'user'.*'behavior'"),
        (small, {"side": "positive"}, ActivationError, r"no row has side in \['positive'\]"),
        (small, {"span": 2}, ActivationError, r"\['last-1'\] were not captured; .*positions=\['last-1', 'last'\]"),
        (small, {"layer": 5}, ActivationError, "site 5 was not captured"),
        (lambda names: concatenated(*[small(names)] * 2), {}, DataError, r"'s0000' \(prompt\) has two rows at 'last'"),
        (lambda _: small([""] * 20), {}, DataError, "no item has both a label in 'behavior'"),
        (lambda _: small(["arts"] * 20), {}, DataError, "all 20 items are 'arts'"),
        (lambda _: small([*["arts"] * 20, "news"]), {"folds": 2}, DataError, r"'news': 1}.*folds=2 or fewer"),
        (lambda _: small(["arts"] * 20 + ["news"] * 4), {}, DataError,
         r"\['news'\] have fewer members .* \(5\).*'arts': 20, 'news': 4.*folds=4"),
        (lambda labels: history(torch.ones(20, 1, 6), labels), {}, DataError,
         r"all 20 items have the same state at \['last'\] of site 3.*template"),
        (lambda labels: relabeled(small(labels, ("last-1", "last"))), {"span": 2}, DataError,
         r"'s0000' \(prompt\) has two labels: 'arts' and 'news'"),
    ],
)  # fmt: skip
def test_bad_histories_are_refused(make, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CONFST(**({"layer": LAYER, "target": "arts"} | options)).fit(make(LABELS))
