"""Activations: rows found by label, layers by number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlab import Activations, Site, capture
from steerlab.errors import ActivationError, DataError
from steerlab.testing import tiny_lm

SITES = (Site(3), Site(7), Site(7, "attn_out"))


def activations(rows: Sequence[tuple[str, str, str]], values: torch.Tensor | None = None) -> Activations:
    """One row per (example, side, position); the value encodes the row and the site."""
    index = pd.DataFrame(rows, columns=["example_id", "side", "position"])
    index = index.assign(
        behavior=[f"wants-{s}" for s in index["example_id"]], split="train", column=-1, token=-1, n_tokens=2
    )
    if values is None:
        numbers = 10.0 * torch.arange(len(rows))[:, None, None] + torch.arange(3.0)[None, :, None]
        values = numbers.expand(-1, -1, 4).clone()
    return Activations(values, index, SITES, {"model": "x"})


ROWS = [
    ("a", "positive", "answer"), ("a", "prompt", "last"), ("b", "negative", "answer"), ("b", "positive", "answer"),
    ("a", "negative", "answer"), ("c", "prompt", "last"),
]  # fmt: skip
ACTS = activations(ROWS)


def test_select_keeps_values_and_labels_together():
    assert len(ACTS.select(n_tokens=2)) == len(ACTS.select(n_tokens={2}))
    chosen = ACTS.select(side=["positive", "negative"], example_id="b")
    assert chosen.index["side"].tolist() == ["negative", "positive"] and list(chosen.index.index) == [0, 1]
    assert chosen.values[:, 0, 0].tolist() == [20.0, 30.0]
    assert chosen.sites == SITES and chosen.info == {"model": "x"} and len(ACTS) == 6


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"side": "both"}, r"no row has side in \['both'\].*one of \['negative', 'positive', 'prompt'\]"),
        ({"side": "positive", "example_id": "c"}, r"no row has example_id in .'c'."),
        ({"layer": "3"}, "no label 'layer'; the labels are"),
    ],
)
def test_select_without_a_match_names_the_labels(labels, message):
    with pytest.raises(ActivationError, match=message):
        ACTS.select(**labels)


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_keeps_the_marked_rows_in_order(keep):
    chosen = ACTS.rows(keep)
    marked = [i for i, k in enumerate(keep) if k]
    assert chosen.values[:, 0, 0].tolist() == [10.0 * i for i in marked]
    assert chosen.index["example_id"].tolist() == [ROWS[i][0] for i in marked]


def test_rows_are_not_marked_in_another_order() -> None:
    keep = (ACTS.index["side"] == "prompt").sample(frac=1, random_state=1)
    with pytest.raises(ActivationError, match="other row numbers"):
        ACTS.rows(keep)
    assert ACTS.rows(keep.sort_index()).index["side"].tolist() == ["prompt", "prompt"]


@pytest.mark.parametrize("keep", [[0, 1], ["False"], [float("nan"), True]])
def test_marks_that_are_no_truth_values_are_refused(keep: list[Any]) -> None:
    with pytest.raises(ActivationError, match="True or False for each row"):
        ACTS.rows((keep * len(ACTS))[: len(ACTS)])


def test_labels_of_an_example_agree_or_are_refused() -> None:
    with pytest.raises(ActivationError, match=r"no row has side in \['promt'\]"):
        ACTS.select(side=["prompt", "promt"])
    acts = activations([("a", "prompt", "last"), ("a", "positive", "answer"), ("b", "prompt", "last")])
    acts.index.loc[acts.index["side"] == "prompt", "verdict"] = ["yes", "no"]  # the answers' rows have none
    assert acts.labels(["b", "a"], "verdict") == ["no", "yes"]
    acts.index.loc[1, "verdict"] = "no"
    with pytest.raises(ActivationError, match="rows of the example 'a' differ in 'verdict'"):
        acts.labels(["b"], "verdict")


@pytest.mark.parametrize(
    "made", [torch.tensor, np.array, list, lambda keep: pd.Series(keep, ACTS.index.index, dtype="boolean")]
)
def test_rows_are_marked_by_anything_that_holds_truth_values(made: Any) -> None:
    keep = [i % 2 == 0 for i in range(len(ACTS))]
    assert ACTS.rows(made(keep)).index["example_id"].tolist() == ACTS.index["example_id"].tolist()[::2]


def test_at_finds_layers_by_number():
    assert ACTS.layers == (3, 7, 7) and ACTS.hidden_size == 4
    assert torch.equal(ACTS.at(7), ACTS.values[:, 1]) and torch.equal(ACTS.at(Site(7, "attn_out")), ACTS.values[:, 2])
    for absent in (0, 1, -1, Site(3, "mlp_out")):
        with pytest.raises(ActivationError, match=r"was not captured; captured are 3, 7, 7.attn_out"):
            ACTS.at(absent)
    model = tiny_lm("llama", backend="hooks")
    acts = capture(model, ["Hi"], layers=[-1, 1], progress=False)
    assert torch.equal(acts.at(-1), acts.at(model.n_layers - 1)) and torch.equal(acts.at(Site(-3)), acts.at(1))


def test_by_example_gives_one_row_per_example():
    ids, values = ACTS.by_example(7, side="prompt")
    assert ids == ["a", "c"] and values[:, 0].tolist() == [11.0, 51.0]
    twice = activations([("a", "prompt", "last"), ("a", "prompt", "user"), ("b", "prompt", "last")])
    with pytest.raises(ActivationError, match=r"several rows per example on side 'prompt'; .*\['last', 'user'\]"):
        twice.by_example(3, side="prompt")
    assert twice.by_example(3, side="prompt", position="last")[0] == ["a", "b"]


@given(st.permutations(list(range(10))), st.integers(0, 99))
def test_contrast_joins_by_example_id_in_any_order(order, seed):
    rows = [(f"s{i}", side, "answer") for i in range(5) for side in ("positive", "negative")]
    values = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(seed))
    ids, z = activations([rows[i] for i in order], values[order]).contrast(7)
    assert ids == [rows[i][0] for i in order if rows[i][1] == "positive"]
    for example_id, vector in zip(ids, z, strict=True):
        n = int(example_id[1:])
        assert torch.equal(vector, values[2 * n, 1] - values[2 * n + 1, 1])


def test_contrast_at_one_of_several_positions():
    acts = activations([("a", side, where) for where in ("last", "answer") for side in ("positive", "negative")])
    assert acts.contrast(3, "answer")[1].tolist() == [[-10.0] * 4]
    with pytest.raises(ActivationError, match="several rows per example"):
        acts.contrast(3)


def test_contrast_without_both_sides_raises():
    for lone in ("positive", "negative"):
        acts = activations([("a", "positive", "answer"), ("a", "negative", "answer"), ("mine", lone, "answer")])
        with pytest.raises(DataError, match=r"one side of the contrast only: \['mine'\]"):
            acts.contrast(3)
    with pytest.raises(ActivationError, match="no row has side"):
        activations([("a", "prompt", "last")]).contrast(3)


def test_contrast_names_three_of_the_examples_that_have_one_side() -> None:
    rows = [(name, "positive", "answer") for name in "edcb"] + [("a", "negative", "answer")]
    with pytest.raises(DataError, match=r"one side of the contrast only: \['a', 'b', 'c'\]$"):
        activations(rows).contrast(3)


def test_joined_batches_are_sorted_and_keep_the_columns_of_the_index() -> None:
    batches = [(ACTS.values[i].clone(), ACTS.index.iloc[i].assign(order=i)) for i in ([4, 1], [0, 3, 5, 2])]
    joined = Activations.join(batches, SITES, {"model": "x"})
    assert torch.equal(joined.values, ACTS.values) and joined.info == ACTS.info
    pd.testing.assert_frame_equal(joined.index, ACTS.index)


def test_labels_follow_the_given_order():
    assert ACTS.labels(["c", "a", "c"]) == ["wants-c", "wants-a", "wants-c"]
    assert ACTS.labels(["a"], "split") == ["train"]
    with pytest.raises(ActivationError, match=r"no activations of the examples \['x', 'y', 'z'\] .and 4 in all"):
        ACTS.labels(["x", "a", "y", "z", "w"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_raise_with_the_example(bad):
    values = torch.zeros(6, 3, 4)
    values[3:5, 1:, 2:] = bad
    with pytest.raises(
        ActivationError, match=r"2 of 6 rows hold NaN or infinity, first at site 7, first example 'b' .positive, answer"
    ):
        activations(ROWS, values)


def test_shapes_and_columns_are_checked():
    for shape in ((5, 3, 4), (6, 2, 4)):
        with pytest.raises(ActivationError, match="6 rows and there are 3 sites"):
            activations(ROWS, torch.zeros(shape))
    with pytest.raises(ActivationError, match=r"lacks the columns \['split', 'token'\]"):
        Activations(ACTS.values, ACTS.index.drop(columns=["token", "split"]), SITES)
