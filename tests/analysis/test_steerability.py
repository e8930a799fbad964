"""Slopes, shares, explained variance and ratios against what must come out."""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from _generalization import match_norm, rank_correlation, relative_steerability
from _published import PROTOCOLS, paper_llama2
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from steerlab.analysis import groups
from steerlab.analysis.answer_position_bias import answer_position_bias, slopes_by_answer_position
from steerlab.analysis.steerability import anti_steerable, propensity_curves, slopes, steerability
from steerlab.analysis.sweep import MULTIPLIERS
from steerlab.data.example import Example
from steerlab.errors import DataError
from steerlab.metrics import Estimate, bootstrap_ci

GRID = np.array(MULTIPLIERS)
grids = st.lists(st.integers(-20, 20), min_size=2, max_size=7, unique=True).map(lambda g: tuple(x / 4 for x in g))


def _frame(values: object, alphas: Sequence[float] = MULTIPLIERS, **more: object) -> pd.DataFrame:
    """The long form of a (sample, alpha) table."""
    table = pd.DataFrame(np.asarray(values, float), columns=pd.Index(alphas, name="alpha"))
    table.index = pd.Index([f"openness/{i}" for i in table.index], name="example_id")
    frame = table.stack().rename("value").reset_index()
    cell = {"method": "mean", "model": "tiny", "layer": 3, "positions": "last", "behavior": "openness"}
    return frame.assign(metric="propensity", split="test", norm_ratio=0.1, **{**cell, **more})


def _slopes(values: object) -> pd.DataFrame:
    return slopes(_frame(np.outer(np.asarray(values, float), GRID)))


@given(st.integers(0, 999), grids)
def test_slopes_are_those_of_least_squares_and_of_the_mean_curve(seed: int, alphas: tuple[float, ...]) -> None:
    values = np.random.default_rng(seed).normal(size=(8, len(alphas)))
    frame = _frame(values, alphas).sample(frac=1, random_state=seed)
    found = slopes(frame).sort_values("example_id")
    slope, intercept = np.polyfit(np.array(alphas), values.T, 1)
    np.testing.assert_allclose(found["slope"], slope, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["intercept"], intercept, rtol=1e-12, atol=1e-12)
    errors = values - intercept[:, None] - np.outer(slope, alphas)
    np.testing.assert_allclose(found["residual"], np.sqrt((errors**2).mean(1)), rtol=0, atol=1e-9)
    assert set(found["n_alphas"]) == {len(alphas)}
    curve = propensity_curves(frame, n_boot=10)
    assert curve["alpha"].is_monotonic_increasing
    mean = slopes(curve.rename(columns={"mean": "value"}).assign(metric="propensity", example_id="mean"))
    assert mean["slope"].item() == pytest.approx(found["slope"].mean(), abs=1e-6)


@given(st.integers(1, 60), st.floats(0.01, 20))
def test_half_reversed_is_no_effect_and_half_anti_steerable(pairs: int, a: float) -> None:
    found = _slopes([a, -a] * pairs)
    share, row = anti_steerable(found), steerability(found, n_boot=50).iloc[0]
    assert share.low <= share.value == 0.5 <= share.high
    assert row.filter(like="anti_steerable").tolist() == [share.value, share.low, share.high]
    assert row["steerability"] == pytest.approx(0, abs=1e-9)
    assert row["std"] == pytest.approx(a)
    assert row["low"] <= row["steerability"] <= row["high"]
    assert row["n"] == share.n == 2 * pairs


def test_the_interval_is_wilsons_and_zero_is_the_wrong_way() -> None:
    # Newcombe (1998), table I: 81 of 263, 0 of 20
    got = anti_steerable(pd.DataFrame({"slope": [0.0] + [-1.0] * 80 + [1.0] * 182}))
    assert (got.value, got.n) == (81 / 263, 263)
    assert (got.low, got.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    none = anti_steerable(pd.DataFrame({"slope": [1.0] * 20}))
    assert (none.low, none.high) == pytest.approx((0, 0.1611), abs=5e-5)


def test_a_curve_that_never_moves_has_a_slope_of_exactly_zero() -> None:
    rows = [(f"e{i}", a, "b", "propensity", 0.1 * i) for i in range(40) for a in (0.0, 0.1, 0.2, 0.3, 0.5)]
    frame = pd.DataFrame(rows, columns=["example_id", "alpha", "behavior", "metric", "value"])
    assert anti_steerable(slopes(frame)).value == 1.0


def test_settings_stay_separate_and_groups_follow_them() -> None:
    settings = [("x", 1, "p", 1.0), ("x", 2, "p", 2.0), ("y", None, "p", 3.0), ("y", 2, "q", 4.0)]
    parts = [
        _frame(np.outer([a, 2 * a], GRID), behavior=name, layer=layer, train_variant=variant)
        for name, layer, variant, a in settings
    ]
    found = slopes(pd.concat(parts).sample(frac=1, random_state=0), by=("train_variant",))
    assert len(found) == 8
    table = steerability(found, n_boot=20).set_index("steerability").sort_index()
    assert list(table.index) == pytest.approx([1.5, 3, 4.5, 6])
    assert table["behavior"].tolist() == ["x", "x", "y", "y"]
    assert table["train_variant"].tolist() == ["p", "p", "p", "q"]
    assert table["median"].tolist() == pytest.approx([1.5, 3, 4.5, 6])
    with pytest.raises(DataError, match=r"count 4 examples more than once; add one of \['layer', 'train_variant'\]"):
        steerability(found, by=("behavior",))
    with pytest.raises(DataError, match=r"count 2 examples more than once; add one of \['layer'\]"):
        steerability(found[found["behavior"] == "x"], by=("behavior",))
    with pytest.raises(DataError, match=r"lacks \['slope'\]"):
        steerability(found.drop(columns="slope"))
    assert len(steerability(found[found["layer"] == 2], by=("behavior",), n_boot=20)) == 2


def test_groups_keep_their_order_and_resamples_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"group": ["b", None, "a"] * 12, "example_id": np.arange(36), "x": np.arange(36.0) % 7})
    whole = groups.group_means(frame, ["group"], "x", n_boot=50)
    assert whole["group"].isna().tolist() == [False, True, False] and whole["group"].iloc[0] == "b"
    monkeypatch.setattr(groups, "_DRAWS_AT_ONCE", 200)
    pd.testing.assert_frame_equal(groups.group_means(frame, ["group"], "x", n_boot=50), whole)
    assert len(groups._resampled(np.ones((3, 12)), 50, 0)) == 50


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=40)
    row, plain = steerability(_slopes(values), seed=3).iloc[0], bootstrap_ci(values, seed=3)
    assert tuple(row[["steerability", "low", "high"]]) == pytest.approx((plain.value, plain.low, plain.high))
    assert tuple(row[["median", "std"]]) == pytest.approx((np.median(values), values.std()))
    curve = propensity_curves(_frame(np.outer(values, GRID)), seed=3)
    assert (curve["n"] == 40).all() and len(curve) == 7
    assert curve["high"].iloc[4] == pytest.approx(0.5 * plain.high)
    assert (curve["low"].iloc[3], curve["high"].iloc[3]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="alpha"), "lacks"),
        (lambda f: f.iloc[:0], "0 rows"),
        (lambda f: f.assign(metric="other"), "other"),
        (lambda f: f.assign(value=f["value"].where(f.index != 3)), "1 of 21 rows"),
        (lambda f: f.assign(value=f["value"].where(f.index != 3, np.inf)), "infinite"),
        (lambda f: pd.concat([f, f.iloc[[4]]]), "more than once"),
        (lambda f: f.drop(index=[8, 9]), "1 of 3 curves lack some, first .'openness/1'"),
        (lambda f: f[f["alpha"] == 1.0], "at least two alphas"),
        (lambda f: pd.concat([f, f[f["alpha"] == 1.0].assign(layer=9)]), "1 of 2 settings have one, .*'layer': 9"),
    ],
)
def test_what_is_no_curve_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], words: str) -> None:
    frame = change(_frame(np.ones((3, 7))))
    for measure in (slopes, propensity_curves):
        with pytest.raises(DataError, match=words):
            measure(frame)


def test_bad_slopes_are_refused() -> None:
    with pytest.raises(DataError, match="1 NaN"):
        anti_steerable(pd.DataFrame({"slope": [1.0, np.nan]}))
    with pytest.raises(DataError, match="non-empty"):
        anti_steerable(pd.DataFrame({"slope": []}))
    with pytest.raises(DataError, match="1 NaN"):
        steerability(_slopes([1.0, 2.0]).assign(slope=[1.0, np.nan]))
    with pytest.raises(DataError, match="n_boot=0"):
        steerability(_slopes([1.0, 2.0]), n_boot=0)


def _placed(words: bool = True) -> list[Example]:
    """Eighty items in the four placements, twenty each."""
    return [
        Example(
            "?", id=f"openness/{i}", meta={"option": "AB"[i % 2], "word": ("Yes", "No")[i // 2 % 2] if words else ""}
        )
        for i in range(80)
    ]


def _is(examples: list[Example], key: str, value: str) -> np.ndarray:
    return np.array([e.meta[key] == value for e in examples], float)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_explained_variance_is_what_the_data_were_made_of(base: float, by_option: float, by_word: float) -> None:
    examples = _placed()
    values = base + by_option * _is(examples, "option", "A") + by_word * _is(examples, "word", "Yes")
    row = answer_position_bias(_slopes(values), examples).iloc[0]
    total = by_option**2 + by_word**2
    if total < 1e-6:
        return
    assert row["option"] == pytest.approx(by_option**2 / total, abs=1e-6)
    assert row["word"] == pytest.approx(by_word**2 / total, abs=1e-6)
    assert (row["both"], row["unexplained"]) == pytest.approx((1, 0), abs=1e-6)
    assert row["has_words"] and row["n"] == 80


def test_what_placement_does_not_explain_stays_unexplained() -> None:
    examples = _placed()
    both = _is(examples, "option", "A") == _is(examples, "word", "Yes")  # the interaction is in neither indicator
    row = answer_position_bias(_slopes(both.astype(float)), examples).iloc[0]
    assert tuple(row[["option", "word", "both", "unexplained"]]) == pytest.approx((0, 0, 0, 1), abs=1e-9)
    flat = answer_position_bias(_slopes(np.ones(80)), examples).iloc[0]
    assert flat[["option", "word", "both", "unexplained"]].isna().all()


def test_words_count_as_absent_where_an_item_has_none() -> None:
    examples = _placed()
    values = _is(examples, "option", "A") + _is(examples, "word", "Yes")
    row = answer_position_bias(_slopes(values), [*_placed(words=False)[:1], *examples[1:]]).iloc[0]
    assert not row["has_words"]
    assert (row["word"], row["option"], row["both"]) == pytest.approx((0, 0.5, 0.5))


def test_placement_slopes_are_the_four_means() -> None:
    examples = _placed()
    values = 3 * _is(examples, "option", "A") - _is(examples, "word", "Yes")
    found = slopes_by_answer_position(_slopes(values), examples, n_boot=20).set_index(["option", "word"])
    assert found["steerability"].to_dict() == pytest.approx(
        {("A", "No"): 3, ("A", "Yes"): 2, ("B", "No"): 0, ("B", "Yes"): -1}
    )
    assert set(found["n"]) == {20}


def test_unknown_placements_are_refused() -> None:
    examples, found = _placed(), _slopes(np.arange(80))
    with pytest.raises(DataError, match="79 slopes have no example"):
        answer_position_bias(found, examples[:1])
    with pytest.raises(DataError, match="option None"):
        answer_position_bias(found, [e.replace(meta={}) for e in examples])
    with pytest.raises(DataError, match="word 'yes'"):
        slopes_by_answer_position(found, [e.replace(meta={"option": "A", "word": "yes"}) for e in examples])


def _table(**values: float) -> pd.DataFrame:
    rows = [("openness", *pair.split("_"), value) for pair, value in values.items()]
    return pd.DataFrame(rows, columns=["behavior", "train_variant", "test_variant", "steerability"])


def test_relative_steerability_divides_by_the_vector_trained_there() -> None:
    table = _table(base_base=2.0, user_base=1.0, base_user=-1.0, user_user=0.5, base_sys=3.0, sys_sys=0.25)
    found = relative_steerability(table)
    assert found.set_index(["train_variant", "test_variant"])["relative"].to_dict() == {
        ("base", "base"): 1, ("user", "base"): 0.5, ("base", "user"): -2, ("user", "user"): 1,
    }  # fmt: skip
    assert found.attrs["dropped"] == 2
    assert list(found.columns) == [*table.columns, "relative"]


@given(st.lists(st.floats(-3, 3), min_size=9, max_size=9))
def test_a_vector_keeps_all_of_itself(values: list[float]) -> None:
    pairs = [f"{a}_{b}" for a in "abc" for b in "abc"]
    found = relative_steerability(_table(**dict(zip(pairs, values, strict=True))))
    assert (found.loc[found["train_variant"] == found["test_variant"], "relative"] == 1).all()
    assert found.attrs["dropped"] + len(found) == 9


def test_relative_steerability_refuses_incomplete_tables() -> None:
    with pytest.raises(DataError, match=r"1 pairs have a test_variant on which no vector.*'test_variant': 'user'"):
        relative_steerability(_table(base_user=1.0, base_base=1.0))
    with pytest.raises(DataError, match="more than once"):
        relative_steerability(pd.concat([_table(base_base=1.0)] * 2))
    with pytest.raises(DataError, match="threshold"):
        relative_steerability(_table(base_base=1.0), -0.1)
    with pytest.raises(DataError, match="lacks"):
        relative_steerability(_table(base_base=1.0).drop(columns="train_variant"))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=20))
def test_rank_correlation_is_scipys_over_shared_names(pairs: list[tuple[int, int]]) -> None:
    a, b = (pd.Series(x, index=[f"set{i}" for i in range(len(pairs))], dtype=float) for x in zip(*pairs, strict=True))
    if a.nunique() == 1 or b.nunique() == 1:
        with pytest.raises(DataError, match="constant"):
            rank_correlation(a, b)
        return
    got = rank_correlation(a, pd.concat([b.sample(frac=1, random_state=0), pd.Series({"alone": 3.0})]), n_boot=50)
    assert got.value == pytest.approx(spearmanr(a, b).statistic)
    assert -1 - 1e-9 <= got.low <= got.value <= got.high <= 1 + 1e-9
    assert got.n == len(pairs)


def test_rank_correlation_intervals_and_refusals() -> None:
    rng = np.random.default_rng(0)
    x = pd.Series(rng.normal(size=100))
    assert rank_correlation(x, np.exp(x)).low == pytest.approx(1)
    y = x + rng.normal(size=100)
    noisy = rank_correlation(x, y)
    # Fisher's z with Bonett and Wright's variance for ranks
    wide = 2 * 1.96 * sqrt((1 + noisy.value**2 / 2) / 97) * (1 - noisy.value**2)
    assert noisy.high - noisy.low == pytest.approx(wide, rel=0.25)
    assert isinstance(noisy, Estimate) and noisy == rank_correlation(x, y, seed=0) != rank_correlation(x, y, seed=1)
    with pytest.raises(DataError, match="there are 2"):
        rank_correlation(x.iloc[:2], x)
    with pytest.raises(DataError, match="1 NaN"):
        rank_correlation(x.where(x.index != 5), x)
    with pytest.raises(DataError, match="unique"):
        rank_correlation(pd.concat([x, x]), x)
    with pytest.raises(DataError, match="level"):
        rank_correlation(x, x, level=95.0)


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), st.floats(0.01, 100))
def test_matched_vectors_keep_direction_and_take_the_length(values: list[float], length: float) -> None:
    vector, reference = torch.tensor(values), torch.tensor([0.0, length, 0.0, 0.0])
    if float(vector.norm()) < 1e-3:
        return
    found = match_norm(vector, reference)
    assert found.dtype == vector.dtype
    assert float(found.norm()) == pytest.approx(length, rel=1e-5)
    assert float(torch.cosine_similarity(found, vector, dim=0)) == pytest.approx(1, abs=1e-5)


def test_vectors_without_direction_are_refused() -> None:
    some, zero = torch.ones(3), torch.zeros(3)
    for vector, reference in ((zero, some), (some, zero), (some * torch.nan, some)):
        with pytest.raises(DataError, match="norms"):
            match_norm(vector, reference)


def test_published_numbers_and_protocols() -> None:
    table = paper_llama2()
    assert len(table) == 27 and table["behavior"].is_unique
    assert table["median"].is_monotonic_decreasing
    assert table["anti_steerable"].between(0, 0.5).all()
    assert all(protocol.alphas == MULTIPLIERS for protocol in PROTOCOLS.values())
    assert ((GRID - GRID.mean()) ** 2).sum() == 7.0
