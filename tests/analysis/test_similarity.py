"""Cosines, CKA, principal angles, the geometry table, maps and neighbors, against plain loops and known answers."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_similarity
from synthetic_acts import clusters, make_acts, shuffled
from synthetic_acts import normal as randn
from torch import Tensor

from steerlab import L2S, Activations, MeanDifference, Site
from steerlab.analysis.cka import cka_matrix, linear_cka
from steerlab.analysis.geometry import geometry, map_2d, principal_angles
from steerlab.analysis.similarity import cosine_matrix, cosine_table, nearest_neighbors, norms, vectors_by_layer
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods import Context

seeds = st.integers(0, 10_000)


def rotation(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(size, size, seed=seed).double()).Q


@given(seeds, st.integers(1, 6), st.integers(1, 9))
def test_cosines_are_those_of_numpy_symmetric_and_blind_to_length(seed: int, n: int, hidden: int) -> None:
    rows = randn(n, hidden, seed=seed) + 0.01
    named = {f"v{i}": row for i, row in enumerate(rows)}
    got = cosine_matrix(named)
    np.testing.assert_allclose(got, cosine_similarity(rows.double().numpy()), atol=1e-12)
    assert list(got.index) == list(got.columns) == list(named)
    assert (np.diag(got) == 1).all() and (got == got.T).all(axis=None)
    scaled = cosine_matrix({name: v * float(10.0 ** (i - 2)) for i, (name, v) in enumerate(named.items())})
    np.testing.assert_allclose(scaled, got, atol=1e-6)
    np.testing.assert_allclose(cosine_matrix({name: -v for name, v in named.items()}), got, atol=1e-12)


def test_cosines_of_extreme_lengths_do_not_overflow() -> None:
    v = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert cosine_matrix({"tiny": v * 1e-200, "huge": v * 1e200}).loc["tiny", "huge"] == pytest.approx(1)


def test_the_table_holds_each_pair_once_and_tuples_make_levels() -> None:
    named = {("refuse", 1): randn(4), ("refuse", 2): randn(4, seed=1), ("defer", 1): randn(4, seed=2)}
    square, table = cosine_matrix(named), cosine_table(named)
    assert square.index.nlevels == 2 and square.loc["refuse", "defer"].shape == (2, 1)
    assert [*zip(table["a"], table["b"], strict=True)] == [*combinations(named, 2)]
    for a, b, cosine in table.itertuples(index=False):
        assert cosine == square.loc[a, b]
    assert cosine_table({"one": randn(4)}).empty


def test_norms() -> None:
    got = norms({"a": torch.tensor([3.0, 4.0]), "zero": torch.zeros(3)})
    assert got.to_dict("list") == {"name": ["a", "zero"], "norm": [5.0, 0.0]}


def test_vectors_without_a_cosine_are_named() -> None:
    v = randn(4)
    with pytest.raises(MismatchError, match=r"'other' has width 5, 'mine' has 4"):
        cosine_matrix({"mine": v, "other": randn(5)})
    with pytest.raises(DataError, match=r"'nothing' is exactly zero"):
        cosine_matrix({"mine": v, "nothing": torch.zeros(4)})
    with pytest.raises(DataError, match=r"'two' has shape \(2, 4\)"):
        norms({"mine": v, "two": randn(2, 4)})
    with pytest.raises(DataError, match="'nan'"):
        norms({"nan": v * float("nan")})
    with pytest.raises(DataError, match="no vectors"):
        cosine_table({})


def many(n: int = 24, hidden: int = 6, layers: tuple[int, ...] = (2, 5), seed: int = 0) -> Activations:
    """Prompt rows and contrasts of two behaviors at several layers, and a behavior without contrast."""
    behaviors = [("refuse", "defer", "answer")[i % 3] for i in range(n)]
    bare = [f"s{i:04d}" for i in range(n) if behaviors[i] == "answer"]
    parts = [
        make_acts(randn(n, hidden, seed=seed + k), randn(n, hidden, seed=seed + 50 + k), behaviors=behaviors, bare=bare)
        for k in layers
    ]
    values = torch.cat([part.values for part in parts], dim=1)
    return Activations(values, parts[0].index, tuple(Site(k) for k in layers))


def test_vectors_by_layer_are_the_mean_contrasts() -> None:
    acts = many()
    got = vectors_by_layer(shuffled(acts))
    assert set(got) == set(product(("refuse", "defer"), (2, 5)))
    for (behavior, layer), vector in got.items():
        _, own = acts.select(behavior=behavior).contrast(layer)
        torch.testing.assert_close(vector, own.double().mean(0).float())
    named = vectors_by_layer(acts, lambda site: MeanDifference(site, position="answer"))
    torch.testing.assert_close(named["refuse", 5], got["refuse", 5])
    with pytest.raises(DataError, match="0 are sides of one"):
        vectors_by_layer(acts.select(side="prompt"))


@given(seeds, st.integers(4, 30), st.integers(1, 8), st.integers(1, 8))
def test_cka_equals_hsic_is_symmetric_and_invariant_to_rotation_and_scale(seed: int, n: int, p: int, q: int) -> None:
    """With more inputs than columns, and with fewer, which takes other matrix products."""
    x, y = randn(n, p, seed=seed).double(), randn(n, q, seed=seed + 1).double()
    center = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> float:
        return float(torch.trace(a @ a.T @ center @ b @ b.T @ center))

    found = linear_cka(x, y)
    assert 0 <= found <= 1
    assert found == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), abs=1e-10)
    assert linear_cka(y, x) == pytest.approx(found, abs=1e-10)
    rotated = 7.0 * x @ rotation(p, seed) + 3.0
    assert linear_cka(x, rotated) == pytest.approx(1, abs=1e-9)
    assert linear_cka(rotated, y) == pytest.approx(found, abs=1e-9)


def test_cka_of_independent_states_is_small_only_with_many_inputs() -> None:
    assert linear_cka(randn(20_000, 10), randn(20_000, 10, seed=1)) < 0.005
    assert linear_cka(randn(12, 100), randn(12, 100, seed=1)) > 0.7


@pytest.mark.parametrize("hidden", [4, 40])  # n above and below the width: both forms
def test_cka_between_layers_joins_by_sample(hidden: int) -> None:
    acts, theirs = many(hidden=hidden), many(hidden=hidden, layers=(0, 1, 3), seed=7)
    got = cka_matrix(acts)
    assert list(got.index) == list(got.columns) == [2, 5]
    assert (np.diag(got) == 1).all() and got.loc[2, 5] == got.loc[5, 2]
    prompts = acts.select(side="prompt")
    assert got.loc[2, 5] == pytest.approx(linear_cka(prompts.at(2), prompts.at(5)))
    across = cka_matrix(acts, other=shuffled(theirs))
    assert across.shape == (2, 3) and list(across.columns) == [0, 1, 3]
    assert across.loc[5, 3] == pytest.approx(linear_cka(prompts.at(5), theirs.select(side="prompt").at(3)))
    np.testing.assert_allclose(cka_matrix(acts, other=shuffled(acts)), got, atol=1e-9)
    assert cka_matrix(acts, "negative", "answer").loc[2, 5] != got.loc[2, 5]


def test_cka_refuses_what_has_none() -> None:
    x = randn(10, 3)
    with pytest.raises(MismatchError, match="x has 10 rows, y has 9"):
        linear_cka(x, x[:9])
    with pytest.raises(DataError, match="y is the same for all 10"):
        linear_cka(x, torch.full((10, 3), 0.1))
    with pytest.raises(DataError, match="x is the same for all 1 "):
        linear_cka(x[:1], x[:1])
    with pytest.raises(DataError, match="NaN"):
        linear_cka(x, x / torch.zeros(3))
    acts = many()
    with pytest.raises(MismatchError, match=r"1 examples .*'s0003'"):
        cka_matrix(acts, other=acts.rows(acts.index["example_id"] != "s0003"))
    double = pd.concat([acts.index, acts.index.assign(position="mean")], ignore_index=True)
    with pytest.raises(ActivationError, match="several rows"):
        cka_matrix(Activations(acts.values.repeat(2, 1, 1), double, acts.sites))


@given(st.floats(0, 90), seeds)
def test_the_angle_of_a_known_rotation_comes_back(degrees: float, seed: int) -> None:
    angle, turn = np.deg2rad(degrees), rotation(6, seed)
    a = torch.zeros(2, 6, dtype=torch.float64)
    a[0, 0] = a[1, 1] = 1
    b = a.clone()
    b[1, 1], b[1, 2] = np.cos(angle), np.sin(angle)
    # any basis of the same subspaces, in any coordinates
    got = principal_angles(rotation(2, seed) @ a @ turn, randn(5, 2, seed=seed).double() @ b @ turn, k=2)
    np.testing.assert_allclose(got, [0, degrees], atol=1e-5)


def test_angles_see_the_mean_unless_centered() -> None:
    shared = 10 * torch.eye(8)[0]
    a = shared + torch.cat([randn(50, 3), torch.zeros(50, 5)], 1) * torch.tensor([0.0, 1, 1, 0, 0, 0, 0, 0])
    b = shared + torch.cat([torch.zeros(50, 4), randn(50, 4, seed=1)], 1) * torch.tensor([0.0, 0, 0, 0, 1, 1, 0, 0])
    assert principal_angles(a, b, 1)[0] < 5
    np.testing.assert_allclose(principal_angles(a, b, 2, centered=True), [90, 90], atol=1e-3)


def test_angles_raise_if_dimensions_are_missing() -> None:
    flat = randn(20, 2) @ randn(2, 10, seed=1)  # rank 2, and rounding
    with pytest.raises(DataError, match=r"k=3, but b, \(20, 10\) has rank 2"):
        principal_angles(randn(20, 10), flat, 3)
    with pytest.raises(DataError, match=r"a, \(4, 10\), centered, has rank 3"):
        principal_angles(randn(4, 10), randn(20, 10), 4, centered=True)
    with pytest.raises(DataError, match="k=0"):
        principal_angles(flat, flat, 0)
    with pytest.raises(MismatchError, match="a has width 10, b has 9"):
        principal_angles(flat, randn(20, 9), 1)


def test_geometry_against_loops() -> None:
    acts = many(n=18)
    got = geometry(shuffled(acts), 5, n_boot=200).set_index(["a", "b"])
    assert list(got.index) == [("defer", "defer"), ("refuse", "refuse"), ("defer", "refuse")]
    ids, z = acts.contrast(5)
    labels = acts.labels(ids)
    for (a, b), row in got.iterrows():
        pairs = [(i, j) for i, j in combinations(range(len(ids)), 2) if {labels[i], labels[j]} == {a, b}]
        cosines = [float(torch.cosine_similarity(z[i], z[j], dim=0)) for i, j in pairs]
        assert row["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert row["pairs"] == len(cosines) and row["kind"] == ("within" if a == b else "between")
        assert row["low"] <= row["cosine"] <= row["high"] and (row["n_a"], row["n_b"]) == (6, 6)
    pd.testing.assert_frame_equal(got.reset_index(), geometry(acts, Site(5), n_boot=200)[got.reset_index().columns])


def test_geometry_of_clusters_and_their_shuffle() -> None:
    _, targets, which = clusters(90, 12, 3, seed=0)
    got = geometry(make_acts(None, targets + 1e-3 * randn(90, 12), behaviors=[f"b{int(k)}" for k in which]), 3)
    within, between = (got[got["kind"] == kind] for kind in ("within", "between"))
    assert len(within) == len(between) == 3
    assert (within["cosine"] > 0.99).all() and (between["cosine"].abs() < 0.01).all()
    assert (within["high"] - within["low"] < 0.01).all()
    # unit vectors along three orthogonal lines: two at random are alike as often as they share a line
    share = np.bincount(which.numpy()) / 90
    np.testing.assert_allclose(got["shuffled"], (90 * (share**2).sum() - 1) / 89, atol=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    mean, hits = torch.tensor([1.0, 0.5, 0, 0]), 0
    truth = float(torch.nn.functional.normalize(mean + randn(6000, 4, seed=99)).mean(0).square().sum())
    for seed in range(60):
        row = geometry(make_acts(None, mean + randn(25, 4, seed=seed)), 3, n_boot=300).iloc[0]
        hits += row["low"] <= truth <= row["high"]
    assert 50 <= hits <= 60


def test_geometry_by_another_label_and_its_refusals() -> None:
    acts = many(n=18)
    acts.index["topic"] = ["law" if int(s[1:]) % 2 else "health" for s in acts.index["example_id"]]
    assert set(geometry(acts, 2, label="topic", n_boot=10)["a"]) == {"law", "health"}
    with pytest.raises(ActivationError, match="no label 'subject'"):
        geometry(acts, 2, label="subject")
    with pytest.raises(DataError, match="n_boot=0"):
        geometry(acts, 2, n_boot=0)
    lone = acts.rows((acts.index["behavior"] != "defer") | (acts.index["example_id"] == "s0001"))
    with pytest.raises(DataError, match="'defer' has one contrast only"):
        geometry(lone, 2)
    targets = randn(6, 4)
    targets[3] = 0
    with pytest.raises(DataError, match="'s0003' is exactly zero"):
        geometry(make_acts(None, targets), 3)
    with pytest.raises(ActivationError, match="no row has side"):
        geometry(acts.select(side="prompt"), 2)


def test_a_pca_map_is_the_same_whatever_the_order_and_turns_with_its_points() -> None:
    points, labels = randn(40, 7) * torch.arange(1, 8), [f"l{i % 3}" for i in range(40)]
    got = map_2d(points, labels)
    pd.testing.assert_frame_equal(got, map_2d(points, labels))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    again = map_2d(points[order], [labels[i] for i in order])
    np.testing.assert_allclose(again[["x", "y"]], got[["x", "y"]].iloc[order.numpy()], atol=1e-9)
    assert again["label"].tolist() == got["label"].iloc[order.numpy()].tolist()
    turned = map_2d(points.double() @ rotation(7) + 5, labels)
    np.testing.assert_allclose(pdist(turned[["x", "y"]]), pdist(got[["x", "y"]]), atol=1e-9)
    np.testing.assert_allclose(turned.attrs["explained"], got.attrs["explained"])
    x = points.double().numpy() - points.double().numpy().mean(0)
    shares = np.linalg.svd(x, compute_uv=False) ** 2
    np.testing.assert_allclose(got.attrs["explained"], (shares / shares.sum())[:2])


def test_maps_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(DataError, match="9 points but 8 labels"):
        map_2d(randn(9, 4), ["a"] * 8)
    with pytest.raises(DataError, match=r"\(2, 4\)"):
        map_2d(randn(2, 4), ["a"] * 2)
    with pytest.raises(DataError, match="all the same"):
        map_2d(torch.ones(4, 3), ["a"] * 4)
    with pytest.raises(DataError, match="NaN"):
        map_2d(torch.full((4, 3), float("nan")), ["a"] * 4)


@pytest.fixture(scope="module")
def clustered() -> tuple[L2S, Activations]:
    def world(n: int, seed: int) -> Activations:
        contexts, targets, which = clusters(n, 16, 3, seed=seed)
        ids = [f"{seed}/{i:03d}" for i in range(n)]
        return make_acts(contexts, targets, behaviors=[f"b{int(k)}" for k in which], ids=ids)

    return L2S(3, seed=0, progress=False).fit(world(200, 1)), world(60, 2)


def test_nearest_neighbors_equal_brute_force(clustered: tuple[L2S, Activations]) -> None:
    l2s, acts = clustered
    got = nearest_neighbors(l2s, shuffled(acts), k=4)
    assert len(got) == 60 * 4 and not (got["example_id"] == got["neighbor"]).any()
    ids = sorted(set(acts.index["example_id"]))
    cosines = cosine_similarity(l2s.vectors(Context(tuple(ids), acts)).double())
    np.fill_diagonal(cosines, -2)
    label = dict(zip(ids, acts.labels(ids), strict=True))
    for i, example_id in enumerate(ids):
        rows = got[got["example_id"] == example_id]
        assert rows["rank"].tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(rows["cosine"], np.sort(cosines[i])[:-5:-1], atol=1e-9)
        for row in rows.itertuples():
            assert cosines[i, ids.index(row.neighbor)] == pytest.approx(row.cosine)
            assert row.same_behavior == (label[row.neighbor] == label[example_id])
    assert got.attrs["same_behavior"] == got["same_behavior"].mean() > 0.95
    assert got.attrs["chance"] == pytest.approx(np.mean([label[a] == label[b] for a in ids for b in ids if a != b]))


def test_nearest_neighbors_refuse_more_than_there_are(clustered: tuple[L2S, Activations]) -> None:
    l2s, acts = clustered
    for k in (0, 60):
        with pytest.raises(DataError, match=f"{k} neighbors of each of 60"):
            nearest_neighbors(l2s, acts, k=k)
    with pytest.raises(ActivationError, match="not fitted"):
        nearest_neighbors(L2S(3), acts)
