"""Sparse shift autoencoder: concepts found where theory says so, and not found where it says not."""

from pathlib import Path

import pytest
import torch
from nightly import by_day
from synthetic_acts import activations, make_acts, normal
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steerlab import capture, generate, pairs
from steerlab.analysis.ssae_levels import level_sweep, stability
from steerlab.data import concept_shifts
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import SSAE
from steerlab.metrics import match_codes, match_directions
from steerlab.testing import tiny_lm


def true_level(made) -> float:
    return float(made.codes.abs().sum(1).mean() / made.differences.norm(dim=1).mean())


def fitted(made, level: float | None = -1.0, **options) -> SSAE:
    level = true_level(made) if level == -1.0 else level
    return SSAE(3, made.codes.shape[1], level, **{"steps": 1500, **options}).fit_differences(made.differences)


GOOD = {
    "uniform": {}, "positive": {"codes": "positive"}, "around 1": {"codes": "normal"},
    "five of nine": {"n_concepts": 9, "hidden": 36, "changed": (1, 5)}, "few pairs": {"n": 240},
}  # fmt: skip


@pytest.mark.parametrize("name", by_day(GOOD, lambda name: name == "uniform"))
def test_concepts_of_continuous_sparse_changes_are_recovered(name: str) -> None:
    made = concept_shifts(**GOOD[name])
    ssae = fitted(made)
    assert match_codes(made.codes, ssae.encode(made.differences)).mean > 0.99
    found = match_directions(made.concepts, ssae.decoder_, signed=False)
    assert found.similarity.min() > 0.99
    # adding a direction changes the true code of one concept alone
    changes = (ssae.decoder_[found.order] @ torch.linalg.pinv(made.concepts)).abs()
    others = changes - torch.diag(changes.diag())
    assert (others.max(1).values / changes.diag()).max() < 0.01
    assert torch.allclose(ssae.decoder_.norm(dim=1), torch.ones(len(found.order)), atol=1e-5)
    assert ssae.reached_["level"] <= 1.05 * true_level(made) and ssae.reached_["error"] < 1e-3


@pytest.mark.parametrize("share", [0.7, pytest.param(0.8, marks=pytest.mark.nightly)])
def test_directions_point_where_pairs_change_also_where_most_pairs_do(share: float) -> None:
    """The constant then holds the change, and the pairs without it have the code."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(600, 3, generator=generator) < torch.tensor([share, 0.25, 0.25])
    codes = (active * (1 + 0.3 * torch.randn(600, 3, generator=generator)))[active.any(1)]
    ssae = SSAE(0, 3, 0.8, steps=1500).fit_differences(codes @ torch.eye(3, 8))
    assert match_directions(torch.eye(3, 8), ssae.decoder_).similarity.min() > 0.95


@pytest.mark.nightly
def test_without_sparsity_or_in_bad_regimes_concepts_are_not_recovered() -> None:
    def mcc(level: float | None = -1.0, **options) -> float:
        several = [concept_shifts(seed=seed, **options) for seed in range(3)]
        return sum(match_codes(m.codes, fitted(m, level).encode(m.differences)).mean for m in several) / 3

    assert 0.5 < mcc(level=None) < 0.7, "no bound: any rotation does"
    assert 0.6 < mcc(codes="binary") < 0.85, "changes of one size"
    assert 0.5 < mcc(changed=(8, 8)) < 0.7, "nothing is sparse"
    assert 0.65 < mcc(hidden=8, coherent=True) < 0.9, "square mixing of concepts that are alike"


def test_directions_move_along_the_sphere() -> None:
    """A gradient along a direction would shrink the step of the others: Adam scales by it, and the norm is undone."""
    along = []

    def look(adam: torch.optim.Optimizer, *_) -> None:
        decoder = adam.param_groups[0]["params"][2]
        along.append(float((decoder.grad * decoder).sum(1).abs().max() / decoder.grad.norm()))

    with register_optimizer_step_pre_hook(look):
        fitted(concept_shifts(300, 3, 12, changed=(1, 2)), None, steps=50)
    assert len(along) == 50 and max(along) < 1e-6


def test_concepts_of_many_rows_are_not_taken_for_rounding() -> None:
    made = concept_shifts(100_000, 9, 9, changed=(1, 5), coherent=True, seed=1)
    SSAE(0, 9, None, steps=1).fit_differences(made.differences)  # torch's own limit says rank 8
    states = 80 * made.differences[:, :1]  # long states, rounded before they are subtracted
    few = (states + concept_shifts(100_000, 3, 9).differences) - states
    with pytest.raises(DataError, match="n_concepts=4, and 100000 differences have rank 3"):
        SSAE(0, 4, None, steps=1).fit_differences(few)


def test_one_concept_is_the_mean_contrast_direction_with_its_size() -> None:
    made = concept_shifts(400, 1, 20, codes="normal", changed=(1, 1), noise=0.02)
    ssae = fitted(made)
    vector = ssae.direction(0).at(3)
    assert torch.cosine_similarity(vector, made.concepts[0], dim=0) > 0.999
    assert float(vector.norm()) == pytest.approx(1.0, abs=0.05), "alpha 1 is the median change"
    assert not ssae.decoder_offset_.any(), "a constant would take what changes in every pair"
    two = SSAE(3, 1, None, steps=500).fit_differences(torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
    assert float(two.scales_) == pytest.approx(2.5, abs=0.02), "the mean of two middle values"


@pytest.mark.parametrize("changed", [(1, 3), pytest.param((1, 1), marks=pytest.mark.nightly)])
def test_scale_of_noisy_concepts_is_that_of_the_pairs_that_use_them(changed: tuple[int, int]) -> None:
    """Every code has some size; a threshold at a share of the largest counted half of the unused ones."""
    made = concept_shifts(3000, codes="normal", changed=changed, noise=0.05)
    ssae = fitted(made, 0.9 * true_level(made))
    found = match_directions(made.concepts, ssae.decoder_, signed=False)
    assert found.similarity.min() > 0.97
    torch.testing.assert_close(ssae.usage_[found.order], (made.codes != 0).float().mean(0), atol=0.05, rtol=0)
    assert ssae.scales_.min() > 0.75 and ssae.scales_.max() < 1.15


def test_concepts_that_no_pair_uses_are_refused_and_left_out_of_agreement() -> None:
    made = concept_shifts(300, 2, 12, changed=(1, 1))
    ssae = fitted(made)
    ssae.decoder_ = torch.cat([ssae.decoder_, normal(1, 12)])
    ssae.encoder_ = torch.cat([ssae.encoder_, torch.zeros(12, 1)], dim=1)
    ssae.encoder_offset_, ssae.n_concepts = torch.cat([ssae.encoder_offset_, torch.ones(1)]), 3
    ssae._orient(made.differences)
    assert ssae.usage_.tolist()[2] == 0, "a code that is always 1 is an offset"
    with pytest.raises(SteeringError, match="no pair uses concept 2"):
        ssae.direction(2)
    other = fitted(made, seed=1)
    assert stability([ssae, other])["lowest"].min() > 0.99
    other.usage_ = torch.tensor([1.0, 0.0])
    half = stability([ssae, other])
    assert half["lowest"].item() == 0 and abs(half["cosine"].item() - 0.5) < 0.01, "a concept that one fit lacks"


def test_codes_directions_and_decoder_are_consistent() -> None:
    made = concept_shifts(2000, 5, 20)
    ssae = fitted(made)
    codes = ssae.encode(made.differences)
    torch.testing.assert_close(ssae.decode(codes), made.differences, atol=0.05, rtol=0)
    for k in range(5):
        torch.testing.assert_close(ssae.direction(k).at(3), ssae.scales_[k] * ssae.decoder_[k])
        used = codes[:, k].abs() >= codes[:, k].abs().quantile(1 - float(ssae.usage_[k]))
        assert abs(float(codes[used, k].abs().median() - ssae.scales_[k])) < 0.03 and codes[used, k].sum() >= 0
    assert ssae.direction(0).info_ == ssae.info_


@pytest.mark.nightly
def test_seeds_agree_at_the_right_level_and_not_without_one() -> None:
    made = concept_shifts(2000, 4, 20, changed=(1, 2))
    level = true_level(made)
    frame = level_sweep(SSAE(0, 4, None, steps=1500), made.differences, [None, level, 0.6 * level], seeds=(0, 1))
    means = frame.groupby("level", dropna=False)[["error", "agreement"]].mean()
    assert means.loc[level, "agreement"] > 0.99 > 0.9 > means.loc[float("nan"), "agreement"]
    assert means.loc[level, "error"] < 1e-3 < means.loc[0.6 * level, "error"]
    unreached = level_sweep(SSAE(0, 4, None, steps=20), made.differences, [0.05], seeds=(0,))
    assert unreached[["error", "reached", "agreement"]].isna().all(axis=None)
    with pytest.raises(DataError, match="agrees with itself"):
        level_sweep(SSAE(0, 4, None), made.differences, [None], seeds=(0, 0))
    table = stability([fitted(made, seed=seed, steps=1500) for seed in (1, 2, 3)])
    assert len(table) == 3 and table["lowest"].min() > 0.98
    assert list(table.columns) == ["first", "second", "cosine", "lowest"]


def test_same_seed_gives_the_same_fit_and_files_give_it_back(tmp_path: Path) -> None:
    made = concept_shifts(500, 3, 12, changed=(1, 2))
    acts = make_acts(None, made.differences)
    one, two = (SSAE(3, 3, true_level(made), steps=400).fit(acts) for _ in range(2))
    assert torch.equal(one.decoder_, two.decoder_) and one.info_["hidden_size"] == 12
    one.save_pretrained(tmp_path / "ssae")
    loaded = SSAE.from_pretrained(tmp_path / "ssae", force=True)
    assert torch.equal(loaded.encode(made.differences), one.encode(made.differences))
    assert loaded.reached_ == one.reached_ and torch.equal(loaded.direction(1).at(3), one.direction(1).at(3))
    assert not torch.equal(one.with_options(seed=1).fit(acts).decoder_, one.decoder_)


def test_fit_to_a_model_and_steering_with_a_concept() -> None:
    model = tiny_lm("llama")
    texts = [("A red box.", "A blue box."), ("A red cup.", "A red box."), ("A blue cup.", "A red box."), ("I.", "You.")]
    ssae = SSAE(1, 2, 1.1, steps=300).fit(model, pairs(texts))
    acts = capture(model, pairs(texts), layers=[1], context=None, progress=False)
    assert torch.equal(SSAE(1, 2, 1.1, steps=300).fit(acts).decoder_, ssae.decoder_)
    assert generate(model, ["Hi"], steer=ssae.direction(1), alpha=2.0, max_new_tokens=3, progress=False).norm_ratio > 0


@pytest.mark.parametrize("concepts", [1, 5])
def test_concepts_read_at_one_layer_are_added_at_another(concepts: int) -> None:
    """The other layer mixes the same concepts in another way, and in other sizes."""
    made = concept_shifts(4000, concepts, 20, changed=(1, min(2, concepts)))
    sizes = torch.arange(1.0, concepts + 1)
    there = torch.nn.functional.normalize(normal(concepts, 20), dim=1) * sizes[:, None]
    acts, other = make_acts(None, made.differences), make_acts(None, made.codes @ there)
    acts = activations(torch.cat([acts.values, other.values], 1), [3, 7], acts.info, **acts.index)
    ssae = fitted(made)
    for true, k in enumerate(match_directions(made.concepts, ssae.decoder_, signed=False).order.tolist()):
        vector = ssae.direction_at(7, k, acts).at(7)
        assert torch.cosine_similarity(vector, there[true], dim=0).abs() > 0.97
        assert float(vector.norm()) == pytest.approx(float(ssae.scales_[k] * sizes[true]), rel=0.1)
        assert torch.cosine_similarity(ssae.direction_at(3, k, acts).at(3), ssae.direction(k).at(3), dim=0) > 0.97
    if concepts > 1:
        with pytest.raises(SteeringError, match="concept 0 is used by none of these 1 pairs, or by all in one way"):
            ssae.direction_at(7, 0, acts.select(example_id=["s0000"]))
    acts.info["model"], ssae.info_["model"] = "one", "other"
    with pytest.raises(MismatchError, match="fitted on 'other', and what it is used with comes from 'one'"):
        ssae.direction_at(7, 0, acts)


def test_levels_that_bound_nothing_warn_and_unreached_ones_are_refused() -> None:
    made = concept_shifts(500, 3, 12, changed=(1, 2))
    with pytest.warns(UserWarning, match=r"level=1\.75 bounds nothing: without it the codes have 1\.62"):
        assert fitted(made, 1.75).reached_["multiplier"] < 1e-4  # just above what the codes have anyway
    assert fitted(made, 1.0).reached_["multiplier"] > 0.1
    with pytest.warns(UserWarning, match=r"0.9\d of the differences is left unexplained: give a larger level"):
        fitted(made, 0.02)
    with pytest.warns(UserWarning, match="unexplained: give more concepts") as several:
        SSAE(3, 2, 1.4, steps=300).fit_differences(concept_shifts(3000, 100, 128, changed=(1, 1)).differences)
    assert len(several) == 1
    with pytest.raises(SteeringError, match=r"the codes have a level of .*, above 0.1: give more steps"):
        fitted(made, 0.1, steps=20)


def test_wrong_input_is_refused() -> None:
    made = concept_shifts(20, 3, 12)
    with pytest.raises(DataError, match="n_concepts=13, and 20 differences have rank 3"):
        SSAE(0, 13, 1.0).fit_differences(made.differences)
    with pytest.raises(DataError, match="n_concepts=3, and 2 differences have rank 2"):
        SSAE(0, 3, 1.0).fit_differences(made.differences[:2])
    with pytest.raises(DataError, match="1 of 2 differences are zero"):
        SSAE(0, 1, 1.0).fit_differences(torch.stack([normal(12), torch.zeros(12)]))
    with pytest.raises(DataError, match=r"1 of 2 contrasts are zero \(\['b'\]\)"):
        SSAE(3, 1, 1.0).fit(make_acts(None, torch.stack([normal(12), torch.zeros(12)]), ids=["a", "b"]))
    with pytest.raises(DataError, match=r"shape \(12,\): expected \(pair, hidden\)"):
        SSAE(0, 1, 1.0).fit_differences(normal(12))
    with pytest.raises(DataError, match="NaN or infinity"):
        SSAE(0, 1, 1.0).fit_differences(torch.full((3, 12), torch.nan))
    with pytest.raises(DataError, match="level"):
        SSAE(0, 3, 0.0)
    with pytest.raises(DataError, match="concept"):
        fitted(made, None, steps=50).direction(3)
    with pytest.raises(DataError, match="n_concepts"):
        SSAE(0, 0, 1.0)
