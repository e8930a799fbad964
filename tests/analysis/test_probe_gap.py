"""Where the state knows better than the answer, a probe says so; where it does not, it says that too."""

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_acts import activations

from steerlab import Activations
from steerlab.analysis.probe_gap import probe_gap
from steerlab.errors import DataError


def _acts(n: int, seed: int, signal: float) -> Activations:
    """Layer 0 is noise, layer 1 holds the truth in one direction."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    values = rng.normal(size=(n, 2, 12))
    values[:, 1, 3] += signal * (2 * truth - 1)
    columns = {"behavior": np.where(truth == 1, "yes", "no"), "split": np.where(np.arange(n) % 2, "a", "b")}
    ids = [f"{seed}-{i}" for i in range(n)]
    return activations(torch.tensor(values, dtype=torch.float32), [0, 1], {}, example_id=ids, **columns)


def test_the_probe_finds_the_layer_that_knows_and_the_interval_says_so() -> None:
    train, test = _acts(600, 0, 2.0), _acts(400, 1, 2.0)
    frame = probe_gap(train, test, dict.fromkeys(test.index["example_id"], "yes")).set_index("layer")
    assert frame.loc[1, "probe_accuracy"] > 0.95 and frame.loc[1, "low"] > 0.3
    assert abs(frame.loc[0, "gain"]) < 0.1 and frame.loc[0, "low"] <= 0 <= frame.loc[0, "high"]
    assert np.isclose(frame.loc[1, "gain"], frame.loc[1, "probe_accuracy"] - frame.loc[1, "model_accuracy"])


def test_order_of_rows_changes_nothing() -> None:
    train, test = _acts(60, 0, 0.5), _acts(60, 1, 0.5)
    said = dict.fromkeys(test.index["example_id"], "yes")
    order = np.random.default_rng(0).permutation(60)
    shuffled = [
        Activations(a.values[order], a.index.iloc[order].reset_index(drop=True), a.sites, {}) for a in (train, test)
    ]
    pd.testing.assert_frame_equal(probe_gap(*shuffled, said), probe_gap(train, test, said))


def test_groups_are_reported_separately_and_add_up() -> None:
    train, test = _acts(300, 0, 1.0), _acts(200, 1, 1.0)
    said = dict(zip(test.index["example_id"], test.index["behavior"], strict=True))
    frame = probe_gap(train, test, said, label="split")
    assert sorted(frame["group"].unique()) == ["a", "b"] and set(frame["n"]) == {100}
    assert (frame["model_accuracy"] == 1).all() and (frame["gain"] <= 0).all()


def test_bad_input_is_refused_in_words() -> None:
    train, test = _acts(60, 0, 1.0), _acts(40, 1, 1.0)
    with pytest.raises(DataError, match="have no answer"):
        probe_gap(train, test, {})
    said = dict(zip(test.index["example_id"], test.index["behavior"], strict=True))
    with pytest.raises(DataError, match=r"\['No.', 'Yes.'\] are no behaviors, but nearly: use \['no', 'yes'\]"):
        probe_gap(train, test, {name: f"{answer.title()}." for name, answer in said.items()})
    assert (probe_gap(train, test, dict.fromkeys(said, "perhaps"))["model_accuracy"] == 0).all()
    with pytest.raises(DataError, match="40 examples are in train and test"):
        probe_gap(test, test, said)
    with pytest.raises(DataError, match="two classes"):
        probe_gap(train.select(behavior="yes"), test, dict.fromkeys(test.index["example_id"], "yes"))
    for acts in (train, test):
        acts.index["behavior"] = acts.index["behavior"].map({"yes": "+1", "no": "-1"})  # the same but for their signs
    signs = dict(zip(test.index["example_id"], test.index["behavior"], strict=True))
    assert (probe_gap(train, test, signs)["model_accuracy"] == 1).all()
