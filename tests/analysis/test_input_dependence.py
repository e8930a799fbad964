"""What of the inputs' own vectors is explained, on vectors made of known parts; contrasts that change places."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_acts import make_acts, normal

from steerlab import Contrast, Example, capture, score
from steerlab.analysis.input_dependence import input_dependence
from steerlab.analysis.shuffling import shuffle_contrasts, shuffle_effects
from steerlab.errors import DataError
from steerlab.methods import L2S, L2S_PAPER, P2S

WIDTH, N = 12, 240
NAMES = ["a", "b", "c"] * (N // 3)
IDS = [f"s{i:04d}" for i in range(N)]
CLASS = torch.tensor([0, 1, 2] * (N // 3))
RIDGE = L2S(3, net="linear")
QUICK = L2S(3, hidden_units=24, config=replace(L2S_PAPER, min_steps=400, learning_rate=3e-3), progress=False)
CONTEXTS = normal(N, WIDTH, seed=1) + 4 * normal(3, WIDTH, seed=2)[CLASS]


def frame_of(targets: torch.Tensor, l2s: L2S = RIDGE) -> pd.DataFrame:
    return input_dependence(make_acts(CONTEXTS, targets, behaviors=NAMES), l2s, folds=4).set_index("predictor")


def test_linear_part_is_explained_within_behaviors_by_what_reads_the_input_alone() -> None:
    found = frame_of(CONTEXTS @ normal(WIDTH, WIDTH, seed=3) / WIDTH**0.5 + 0.5 * normal(N, WIDTH, seed=4), QUICK)
    assert found.loc["linear", "within"] == pytest.approx(1 / 1.25, abs=0.07), "the share that is not noise"
    assert 0.4 < found.loc["net", "within"] < found.loc["linear", "within_high"]
    assert found.loc[["one vector", "class means", "routed mean"], "within"].max() < 0.05
    assert found.loc[["class means", "routed mean", "linear"], "between"].min() > 0.97
    assert found.loc["one vector", "between"] == pytest.approx(0, abs=0.05)
    assert found.loc["linear", "within_low"] < found.loc["linear", "within"] < found.loc["linear", "within_high"]
    assert (found["n"] == N).all() and found["cosine"].max() <= 1


def test_nothing_is_explained_within_behaviors_where_the_rest_is_noise() -> None:
    found = frame_of(3 * normal(3, WIDTH, seed=5)[CLASS] + 0.3 * normal(N, WIDTH, seed=6), QUICK)
    assert found["within"].max() < 0.1 and found.loc["class means", "explained"] > 0.95
    assert found.loc["class means", "cosine"] >= found.loc["one vector", "cosine"]


def test_explained_share_of_one_vector_is_that_of_the_mean() -> None:
    targets = torch.ones(N, WIDTH) + normal(N, WIDTH, seed=6)
    expected = 1 - (targets - targets.mean(0)).square().sum() / targets.square().sum()
    assert frame_of(targets).loc["one vector", "explained"] == pytest.approx(float(expected), abs=0.02)


def test_one_behavior_has_nothing_between_and_no_router() -> None:
    found = input_dependence(make_acts(CONTEXTS, normal(N, WIDTH, seed=3)), RIDGE, folds=3).set_index("predictor")
    assert found["between"].isna().all() and "routed mean" not in found.index


def test_nothing_within_behaviors_is_no_share_of_it() -> None:
    found = frame_of(normal(3, WIDTH, seed=5)[CLASS])
    assert found[["within", "within_low", "within_high"]].isna().all(axis=None)
    assert found.loc["class means", "explained"] == pytest.approx(1, abs=1e-5) and found.loc["linear", "between"] > 0.99
    flat = normal(N, WIDTH, seed=6).view(N // 3, 3, WIDTH)
    flat = (flat - flat.mean(0)).view(N, WIDTH) + 1
    assert frame_of(flat)["between"].isna().all(), "all behaviors have the same mean"


@pytest.mark.parametrize("rounding", [0, 1e-6])  # as of the same prompt in batches of other widths
def test_inputs_that_occur_twice_explain_nothing_of_each_other(rounding: float) -> None:
    """One of a pair in each fold made noise look predictable."""
    once, noise = normal(60, 128, seed=1), normal(60, 128, seed=2)
    contexts = once.repeat(2, 1) + rounding * normal(120, 128, seed=5)
    acts = make_acts(contexts, noise.repeat(2, 1), behaviors=["a", "b"] * 60)
    found = input_dependence(acts, RIDGE, folds=4).set_index("predictor")
    assert found.loc[["linear", "nearest neighbors"], "within"].max() < 0.05 and "net" not in found.index


def test_inputs_taken_for_another_behavior_are_no_error_within_their_own() -> None:
    """Behaviors that the context hardly tells, with means far apart: whole vectors are missed, the rest is not."""
    rest = CONTEXTS - 4 * normal(3, WIDTH, seed=2)[CLASS]
    blurred = rest + 0.3 * normal(3, WIDTH, seed=2)[CLASS]
    targets = 30 * normal(3, WIDTH, seed=5)[CLASS] + rest @ normal(WIDTH, WIDTH, seed=3) / WIDTH**0.5
    acts = make_acts(blurred, targets, behaviors=NAMES)
    found = input_dependence(acts, RIDGE, folds=4).set_index("predictor")
    assert found.loc["linear", "between"] < 0.7 and found.loc["linear", "within"] > 0.9
    assert found.loc["routed mean", "within"] == found.loc["class means", "within"] < 0.05


def test_zero_vectors_count_as_nothing_within_behaviors() -> None:
    targets = CONTEXTS @ normal(WIDTH, WIDTH, seed=3) / WIDTH**0.5
    bare = [name for name, behavior in zip(IDS, NAMES, strict=True) if behavior == "c"]
    acts = make_acts(CONTEXTS, targets, behaviors=NAMES, bare=bare)
    found = input_dependence(acts, L2S(3, net="linear", zero_behaviors=["c"]), folds=4).set_index("predictor")
    assert found.loc["linear", "within"] > 0.9 and found.loc["linear", "n"] == N


def test_inputs_of_one_group_are_predicted_without_each_other() -> None:
    """Each of sixty groups has a random vector of its own, which its other members would tell."""
    group = torch.arange(60).repeat_interleave(4)
    contexts = normal(60, 128, seed=1)[group] + 0.1 * normal(N, 128, seed=2)
    acts = make_acts(contexts, normal(60, 128, seed=3)[group])
    names = {name: f"g{int(number)}" for name, number in zip(IDS, group, strict=True)}
    shared = input_dependence(acts, RIDGE, folds=4).set_index("predictor")
    alone = input_dependence(acts, RIDGE, folds=4, groups=names).set_index("predictor")
    assert shared.loc["linear", "within"] > 0.8 > 0.1 > alone.loc["linear", "within"]
    rows = [frame.loc["linear"] for frame in (shared, alone)]
    widths = [float(row["within_high"] - row["within_low"]) for row in rows]
    assert widths[1] > widths[0], "sixty groups say less than 240 inputs"
    with pytest.raises(DataError, match=r"240 inputs have no group, first \['s0000'"):
        input_dependence(acts, QUICK, groups={})
    acts = make_acts(CONTEXTS, normal(N, WIDTH), behaviors=NAMES)
    groups = {i: n if n == NAMES[0] else i for n, i in zip(NAMES, IDS, strict=True)}
    with pytest.raises(DataError, match=rf"a fold holds all inputs of \['{NAMES[0]}'\]"):
        input_dependence(acts, QUICK, groups=groups)


def test_other_groups_and_contexts_are_those_of_the_l2s() -> None:
    acts = make_acts(CONTEXTS, 3 * normal(3, WIDTH, seed=5)[CLASS] + normal(N, WIDTH, seed=6))
    index = acts.index.assign(group=acts.index["example_id"].map(dict(zip(IDS, NAMES, strict=True))))
    acts = type(acts)(acts.values, index, acts.sites, acts.info)
    found = input_dependence(acts, L2S(3, net="linear", label="group"), folds=3).set_index("predictor")
    assert found.loc["routed mean", "between"] > 0.95


@pytest.mark.parametrize("options", [{"rank": 2}, {"config": replace(L2S_PAPER, equalize_norms=True)}])
def test_targets_of_another_rank_or_norm_are_refused(options) -> None:
    with pytest.raises(DataError, match="without rank and equalize_norms"):
        input_dependence(make_acts(CONTEXTS, CONTEXTS, behaviors=NAMES), L2S(3, **options))


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        (make_acts(CONTEXTS, torch.ones(1, WIDTH).expand(N, -1), behaviors=NAMES), "a mean will do"),
        (make_acts(CONTEXTS[:7], CONTEXTS[:7], behaviors=["a"] * 5 + ["b"] * 2), r"'b': 2\}.*at least 5"),
    ],
)
def test_equal_vectors_and_small_behaviors_are_refused(acts, message: str) -> None:
    with pytest.raises(DataError, match=message):
        input_dependence(acts, QUICK)


def test_contrasts_change_places_within_their_behavior_and_none_stays() -> None:
    targets = normal(N, WIDTH, seed=3)
    acts = make_acts(CONTEXTS, targets, behaviors=NAMES)
    moved = shuffle_contrasts(acts, seed=1)
    own, other = P2S(3).fit(acts), P2S(3).fit(moved)
    assert own.ids_ == other.ids_
    distances = torch.cdist(other.table_.double(), own.table_.double())
    source = distances.argmin(1)
    assert distances.min(1).values.max() < 1e-4 and (source != torch.arange(N)).all()
    assert sorted(source.tolist()) == list(range(N)) and (CLASS[source] == CLASS).all()
    prompts = [a.select(side="prompt") for a in (acts, moved)]
    assert torch.equal(prompts[0].values, prompts[1].values) and prompts[0].index.equals(prompts[1].index)
    assert "shuffled within behavior" in moved.info["contrasts"]
    with pytest.raises(DataError, match=r"'b' has one contrast only"):
        shuffle_contrasts(make_acts(CONTEXTS[:3], targets[:3], behaviors=["a", "a", "b"]))


def test_contrasts_that_change_places_take_on_all_labels_and_stay_in_their_split() -> None:
    acts = make_acts(CONTEXTS[:12], normal(12, WIDTH), behaviors=NAMES[:12])
    ids = acts.index["example_id"]
    index = acts.index.assign(topic=ids, split=ids.map(lambda name: "train" if name < "s0006" else "test"))
    moved = shuffle_contrasts(type(acts)(acts.values, index, acts.sites, acts.info))
    assert moved.index["topic"].equals(moved.index["example_id"])
    for split in ("train", "test"):
        part = moved.select(split=split)
        assert len(part.contrast(3)[0]) == 6 and set(part.index["example_id"]) == set(ids[index["split"] == split])


def test_effects_of_own_and_other_vectors_are_those_of_score(lm) -> None:
    model = lm()
    examples = [
        Example(text, id=text, behavior=name, contrast=Contrast("Yes, of course.", "No, never."))
        for text, name in (("Is it late?", "x"), ("Do birds sing loudly?", "x"), ("Go on", "y"), ("Stop now", "y"))
    ]
    acts = capture(model, examples, layers=[2], progress=False)
    found = shuffle_effects(model, examples, acts, 2, alpha=2.0).set_index("example_id")
    other = P2S(2).fit(shuffle_contrasts(acts))
    mean = P2S.from_table(2, dict(zip(other.ids_, other.table_, strict=True)))  # of two inputs, the other one's vector
    for column, steer in (("none", ()), ("own", P2S(2).fit(acts)), ("other", other), ("mean", mean)):
        options = {"steer": steer, "alpha": 2.0, "progress": False} if steer else {"progress": False}
        sides = [score(model, examples, [text] * 4, **options)["logprob"] for text in ("Yes, of course.", "No, never.")]
        expected = pd.Series((sides[0] - sides[1]).to_numpy(), index=[e.id for e in examples])
        np.testing.assert_allclose(found.loc[expected.index, column], expected, atol=1e-3, err_msg=column)
    with pytest.raises(DataError, match="alpha=0"):
        shuffle_effects(model, examples, acts, 2, alpha=0.0)
    assert list(found.columns) == ["behavior", "none", "own", "other", "mean"]
