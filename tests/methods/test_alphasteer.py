"""AlphaSteer: its algebra against the published closed form, its guarantees, its refusals, and what is saved."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import make_acts, shuffled

from steerlab._support.errors import ActivationError, DataError, LoadError, MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods import Context, MeanDifference, load_detector, load_steerer, save
from steerlab.methods.alphasteer.detector import NullSpaceGate
from steerlab.methods.alphasteer.null_space import GRID, find_null_space, null_space, ridge_gate, ridge_map, width
from steerlab.methods.alphasteer.published import PUBLISHED_RATIOS, published_directions
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.methods.base import RequiredActivation, steering_sites
from steerlab.models.sites import Site

D, RANK, RATIO = 64, 20, 0.6
FIXED = torch.Generator().manual_seed(11)
BASIS = torch.linalg.qr(torch.randn(D, D, generator=FIXED, dtype=torch.float64)).Q
R = torch.randn(D, generator=FIXED, dtype=torch.float64)


def benign_rows(n: int, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    """States of unit variance in 20 of 64 directions, and a little in all."""
    draw = torch.Generator().manual_seed(seed)
    inside = torch.randn(n, RANK, generator=draw, dtype=torch.float64) @ BASIS[:, :RANK].T
    return inside + noise * torch.randn(n, D, generator=draw, dtype=torch.float64)


def harmful_rows(n: int, noise: float = 0.01, seed: int = 1) -> torch.Tensor:
    """The same, three standard deviations away in a direction of their own."""
    return benign_rows(n, noise, seed) + 3 * BASIS[:, RANK]


def fitted_map(ratio=RATIO, ridge=10.0, noise=0.01, r=R):
    """S by our own algebra, float64."""
    benign = benign_rows(300, noise)
    return torch.outer(ridge_gate(null_space(benign.T @ benign, width(ratio, D)), harmful_rows(400, noise), ridge), r)


def pinv_form(benign, harmful, targets, k, ridge) -> np.ndarray:
    """S as published: by a projector and a pseudo-inverse."""
    benign, harmful, targets = (np.asarray(x, dtype=np.float64) for x in (benign, harmful, targets))
    _, _, v = np.linalg.svd(benign.T @ benign)
    p = v[-k:].T @ v[-k:]
    x = harmful @ p
    return p @ np.linalg.pinv(x.T @ x + ridge * p.T @ p, rcond=1e-11, hermitian=True) @ x.T @ targets


def world(n: int = 120, m: int = 60, noise: float = 0.01, layer: int = 3, seed: int = 0, **changes) -> Activations:
    """Captured activations of both classes; the harmful ones have contrasts around R."""
    contexts = torch.cat([benign_rows(n, noise, seed), harmful_rows(m, noise, seed + 1)])
    draw = torch.Generator().manual_seed(seed + 2)
    targets = R + 0.1 * torch.randn(n + m, D, generator=draw, dtype=torch.float64)
    options = {"behaviors": ["answer"] * n + ["refuse"] * m, "bare": [f"s{i:04d}" for i in range(n)]} | changes
    return make_acts(contexts.float(), targets.float(), layer=layer, model="tiny", layers=12, **options)


def side_by_side(*acts: Activations) -> Activations:
    """The same rows at several sites."""
    return Activations(
        torch.cat([a.values for a in acts], 1), acts[0].index, sum((a.sites for a in acts), ()), acts[0].info
    )


ACTS = world()
TWO = side_by_side(world(layer=3), world(layer=5, seed=40))
HARMFUL, BENIGN = (Context.of(ACTS.select(side="prompt", behavior=b)) for b in ("refuse", "answer"))
QUIET = {"ratio": RATIO}


# --- the algebra -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.3, RATIO, 0.95, 1.0])
def test_the_projector_is_symmetric_idempotent_and_of_the_rank_asked_for(ratio):
    benign = benign_rows(300)
    q = null_space(benign.T @ benign, width(ratio, D))
    p = q @ q.T
    assert float((p - p.T).abs().max()) < 1e-14
    assert float((p @ p - p).abs().max()) < 1e-10
    assert int(torch.linalg.matrix_rank(p)) == int(ratio * D)


def test_the_number_of_directions_is_rounded_down_but_not_by_an_error_of_rounding():
    assert (width(0.29, 100), width(0.6, 64), width(1.0, 7), width(0.01, 64)) == (29, 38, 7, 0)


def test_benign_inputs_are_left_alone_and_harmful_ones_get_the_vector():
    s = fitted_map()
    benign, harmful = benign_rows(300) @ s, harmful_rows(400) @ s
    assert float(benign.norm(dim=1).max() / R.norm()) <= 0.05
    assert float(harmful.norm(dim=1).mean() / R.norm()) >= 0.95
    assert float((torch.cosine_similarity(harmful, R[None]) - 1).abs().max()) < 1e-12


def test_without_noise_and_within_the_true_null_space_benign_inputs_get_nothing():
    s = fitted_map(noise=0.0)
    assert float((benign_rows(300, 0.0) @ s).abs().max()) < 1e-12


def test_a_stronger_ridge_shrinks_the_gate_step_by_step():
    maps = [fitted_map(ridge=x) for x in (0.0, 10.0, 1e3, 1e4)]
    shares = [float((harmful_rows(400) @ s).norm(dim=1).mean() / R.norm()) for s in maps]
    assert shares == sorted(set(shares), reverse=True)
    assert 0.2 < shares[-1] < 0.3 < 0.95 < shares[1]


@given(
    hidden=st.integers(2, 24), n=st.integers(1, 40), m=st.integers(1, 40), share=st.floats(0.05, 1),
    ridge=st.floats(1e-3, 1e4), seed=st.integers(0, 9999),
)  # fmt: skip
def test_every_form_of_the_solution_is_the_published_one(hidden, n, m, share, ridge, seed):
    draw = torch.Generator().manual_seed(seed)
    benign, harmful, targets = (
        torch.randn(rows, hidden, generator=draw, dtype=torch.float64) for rows in (max(n, hidden), m, m)
    )
    k = max(1, width(share, hidden))
    q, r = null_space(benign.T @ benign, k), targets[:1]
    same = r.expand(m, hidden)
    expected = pinv_form(benign, harmful, same, k, ridge)
    scale = max(1.0, np.abs(expected).max())
    one = torch.outer(ridge_gate(q, harmful, ridge), r[0])
    np.testing.assert_allclose(one.numpy(), expected, atol=1e-10 * scale)
    np.testing.assert_allclose(ridge_map(q, harmful, same, ridge).numpy(), expected, atol=1e-10 * scale)
    full = pinv_form(benign, harmful, targets, k, ridge)
    np.testing.assert_allclose(
        ridge_map(q, harmful, targets, ridge).numpy(), full, atol=1e-10 * max(1.0, np.abs(full).max())
    )


def test_without_ridge_it_is_still_the_published_form():
    benign, harmful = benign_rows(300), harmful_rows(400)
    expected = pinv_form(benign, harmful, R.expand(400, D), 38, 0.0)
    np.testing.assert_allclose(fitted_map(ridge=0.0).numpy(), expected, atol=1e-10)


def test_one_target_for_all_gives_a_map_of_rank_one_and_its_sign_and_size_are_the_targets():
    values = torch.linalg.svdvals(fitted_map())
    assert float(values[1] / values[0]) < 1e-12
    assert torch.equal(fitted_map(r=-R), -fitted_map())
    assert torch.equal(fitted_map(r=2 * R), 2 * fitted_map())


def test_own_targets_give_a_map_that_rank_one_cannot():
    benign, harmful = benign_rows(300), harmful_rows(400)
    harmful += 2 * torch.randn(400, 1, generator=torch.Generator().manual_seed(3)).double() * BASIS[:, RANK + 1]
    targets = torch.stack([R, R.flip(0)])[(harmful @ BASIS[:, RANK + 1] > 0).long()]
    s = ridge_map(null_space(benign.T @ benign, 38), harmful, targets, 10.0)
    values = torch.linalg.svdvals(s)
    assert float(values[1] / values[0]) > 0.1
    means = torch.stack([targets.mean(0).expand_as(targets), harmful @ s])
    off = (means - targets).norm(dim=-1).mean(-1)
    assert off[1] < 0.8 * off[0]
    assert float((benign @ s).norm(dim=1).max() / R.norm()) < 0.05


@pytest.mark.parametrize("ridge", [0.0, 10.0])
def test_harmful_rows_that_are_few_or_alike_are_no_trouble(ridge):
    benign = benign_rows(300)
    q = null_space(benign.T @ benign, 38)
    one = harmful_rows(1)
    for rows in (one, one.repeat(50, 1), torch.cat([harmful_rows(3)] * 40)):
        w = ridge_gate(q, rows, ridge)
        assert bool(torch.isfinite(w).all())
        assert float((rows @ w).min()) > 0.4
    assert not bool(ridge_gate(q, torch.zeros(4, D), ridge).any())


def test_the_guarantee_is_as_wide_as_the_benign_sample_and_no_wider():
    s = fitted_map()
    same_kind = benign_rows(500, seed=77)
    assert float((same_kind @ s).norm(dim=1).max() / R.norm()) < 0.05
    elsewhere = same_kind + 3 * BASIS[:, RANK]
    assert float((elsewhere @ s).norm(dim=1).mean() / R.norm()) > 0.9


def test_leakage_grows_with_the_ratio_past_the_true_null_space():
    """Harmful states that also differ inside the benign space tempt the gate to look there, once it is let."""
    benign, harmful = benign_rows(300), harmful_rows(400) + 3 * BASIS[:, 0]
    spaces = [null_space(benign.T @ benign, width(p, D)) for p in (RATIO, 0.8, 0.95, 1.0)]
    leaks = [float((benign @ ridge_gate(q, harmful, 10.0)).abs().max()) for q in spaces]
    assert leaks == sorted(leaks) and leaks[0] < 0.012 and leaks[-1] > 3 * leaks[0]


# --- the gate as a detector ------------------------------------------------------------------------------------


def test_the_gate_tells_the_classes_apart_and_measures_its_leakage():
    gate = NullSpaceGate(3, ratio=RATIO).fit(ACTS)
    assert (
        gate.required_activations == (RequiredActivation(Site(3), "last"),)
        and gate.site == Site(3)
        and gate.ratio_ == RATIO
    )
    assert float(gate.score(HARMFUL).mean()) > 0.95
    assert float(gate.score(BENIGN).abs().max()) == pytest.approx(gate.leakage_, rel=1e-4)
    assert gate.leakage_ < 0.05 and gate.held_out_leakage_ is None and gate.w_.dtype == torch.float32
    assert torch.equal(NullSpaceGate(3, ratio=RATIO).fit(shuffled(ACTS)).w_, gate.w_)
    calibrated = gate.calibrate(BENIGN, fpr=0.0)
    assert bool(calibrated.detect(HARMFUL).all()) and not bool(calibrated.detect(BENIGN).any())


def test_a_chosen_ratio_keeps_held_out_inputs_under_the_leakage_allowed():
    gate = NullSpaceGate(3).fit(world(300, 60))
    assert gate.ratio_ in GRID and gate.held_out_leakage_ <= 0.05
    new = benign_rows(1000, seed=50).float()
    assert float(gate.gate(new).abs().quantile(0.95)) < 0.05
    assert float(gate.gate(harmful_rows(1000, seed=51).float()).mean()) > 0.9


def cross_fitted(benign, harmful, ridge: float) -> dict[float, tuple[float, float]]:
    """Held-out leakage and harmful gate of every ratio, by the published form and plain loops."""
    found = {}
    for p in (x / 100 for x in range(5, 100, 5)):
        k, gates = int(np.floor(round(p * D, 6))), ([], [])
        for fold in range(5):
            kept = [np.asarray([row for i, row in enumerate(rows) if i % 5 != fold]) for rows in (benign, harmful)]
            if k == 0 or len(kept[0]) < D - k:
                break
            w = pinv_form(*kept, np.ones((len(kept[1]), 1)), k, ridge)[:, 0]
            for rows, seen in zip((benign, harmful), gates, strict=True):
                seen.extend(float(row @ w) for i, row in enumerate(np.asarray(rows)) if i % 5 == fold)
        else:
            found[p] = (float(np.quantile(np.abs(gates[0]), 0.95)), float(np.mean(gates[1])))
    return found


@pytest.mark.parametrize(("n", "m", "noise", "limit"), [(61, 12, 0.1, 0.4), (34, 8, 0.05, 0.2)])
def test_the_ratio_is_chosen_by_the_rule_that_is_stated(n, m, noise, limit):
    benign, harmful = benign_rows(n, noise, 5), harmful_rows(m, noise, 6)
    found = cross_fitted(benign, harmful, 10.0)
    allowed = {p: pair for p, pair in found.items() if pair[0] <= limit}
    best = max(gate for _, gate in allowed.values())
    chosen = min((p for p in allowed if allowed[p][1] >= 0.99 * best), key=lambda p: allowed[p][0])
    assert chosen not in (min(found, key=lambda p: found[p][0]), max(allowed))  # plainer rules would choose otherwise
    space = find_null_space(benign, harmful, ratio=None, ridge=10.0, leakage=limit, site=Site(3))
    assert space.ratio == chosen and space.held_out == pytest.approx(found[chosen][0], abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_ratio_leaks_less_than_the_largest_allowed_at_the_same_harmful_gate(seed):
    acts, limit = world(300, 60, noise=0.03, seed=10 * seed), 0.2
    chosen = NullSpaceGate(3, leakage=limit).fit(acts)
    largest = NullSpaceGate(3, ratio=GRID[-1], leakage=10.0).fit(acts)
    fresh, bad = benign_rows(2000, 0.03, 500 + seed).float(), harmful_rows(2000, 0.03, 600 + seed).float()
    one, other = (float(g.gate(fresh).abs().quantile(0.95)) for g in (chosen, largest))
    assert chosen.ratio_ < GRID[-1] and one <= other + 1e-6
    assert float(chosen.gate(bad).mean()) > float(largest.gate(bad).mean()) - 0.02


def test_where_every_ratio_leaks_the_best_is_taken_and_the_number_told():
    with pytest.warns(UserWarning, match=r"no null-space ratio at site 3 .*leakage=1e-05: the best, 0\.\d+, has 0\.0"):
        gate = NullSpaceGate(3, leakage=1e-5).fit(ACTS)
    assert gate.held_out_leakage_ > 1e-5 and gate.ratio_ in GRID


def test_only_ratios_that_the_benign_inputs_can_span_are_tried():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gate = NullSpaceGate(3).fit(world(30, 20))  # 24 of them in each fold
    assert D - width(gate.ratio_, D) <= 24
    with pytest.raises(DataError, match=r"3 benign inputs at site 3 are too few.*0\.95 keeps 4 directions out"):
        NullSpaceGate(3).fit(world(3, 20))


def test_a_given_ratio_that_leaks_is_told_of():
    with pytest.warns(UserWarning, match=r"ratio=1\.0 at site 3 leaks: .* steered at 0\.\d+ of full strength"):
        gate = NullSpaceGate(3, ratio=1.0, leakage=0.01).fit(world(noise=0.2))
    assert gate.leakage_ > 0.01


def test_too_few_benign_inputs_are_refused_and_the_ratio_that_would_do_is_named():
    with pytest.raises(DataError, match=r"20 benign inputs at site 3; ratio=0\.6 keeps 26 of 64 .*at least 0\.6875"):
        NullSpaceGate(3, ratio=RATIO).fit(world(20, 20))
    assert NullSpaceGate(3, ratio=0.6875).fit(world(20, 20)).leakage_ < 1e-4
    with pytest.raises(DataError, match="25 benign inputs"):
        NullSpaceGate(3, ratio=RATIO).fit(world(25, 20))
    assert NullSpaceGate(3, ratio=RATIO).fit(world(26, 20)).ratio_ == RATIO


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 0.0}, "ratio=0.0"), ({"ratio": 1.2}, "ratio=1.2"), ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": 0.01}, "less than one"), ({"ridge": -1.0}, "ridge=-1.0"), ({"ridge": float("nan")}, "ridge=nan"),
        ({"ridge": float("inf")}, "ridge=inf"), ({"leakage": 0.0}, "leakage=0.0"),
        ({"leakage": float("nan")}, "leakage=nan"),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(options, match):
    with pytest.raises(DataError, match=match):
        NullSpaceGate(3, **options).fit(ACTS)
    with pytest.raises(DataError, match=match):
        AlphaSteer(3, **options).fit(ACTS)


def test_classes_that_overlap_or_are_too_small_are_refused():
    with pytest.raises(DataError, match="60 inputs are both harmful and benign"):
        NullSpaceGate(3, harmful=["refuse"], benign=["answer", "refuse"]).fit(ACTS)
    double = ACTS.values.clone()
    rows = {
        b: int((ACTS.index["side"].eq("prompt") & ACTS.index["behavior"].eq(b)).argmax()) for b in ("answer", "refuse")
    }
    double[rows["refuse"]] = double[rows["answer"]]
    with pytest.raises(DataError, match="1 benign inputs have the same state as a harmful one"):
        AlphaSteer(3).fit(replace(ACTS, values=double))
    with pytest.raises(DataError, match="1 inputs have behavior in"):
        NullSpaceGate(3).fit(world(120, 1))
    with pytest.raises(DataError, match=r"0 inputs have behavior in \['nobody'\]"):
        NullSpaceGate(3, benign="nobody").fit(ACTS)


def test_the_gate_refuses_to_work_unfitted_and_on_states_of_another_width():
    with pytest.raises(ActivationError, match="not fitted"):
        NullSpaceGate(3).gate(torch.ones(1, D))
    with pytest.raises(MismatchError, match="width 8, the gate takes 64"):
        NullSpaceGate(3, ratio=RATIO).fit(ACTS).gate(torch.ones(1, 8))


# --- the steerer -----------------------------------------------------------------------------------------------


def test_what_is_added_is_the_gate_times_the_mean_contrast_of_harmful_inputs():
    alpha = AlphaSteer(3, **QUIET).fit(ACTS)
    torch.testing.assert_close(alpha.r_[0], MeanDifference(3).fit(ACTS).vector_)
    for context in (HARMFUL, BENIGN):
        h = context.get_states(RequiredActivation(Site(3)))
        expected = (h @ alpha.w_[0])[:, None] * alpha.r_[0]
        torch.testing.assert_close(alpha.vectors(context), expected)
        torch.testing.assert_close(alpha.gate(3, h), h @ alpha.w_[0])
    share = alpha.vectors(HARMFUL).norm(dim=1).mean() / alpha.r_[0].norm()
    assert share > 0.95 and float(torch.cosine_similarity(alpha.vectors(HARMFUL), alpha.r_[:1]).min()) > 1 - 1e-5


def test_contrasts_of_benign_inputs_do_not_enter_the_target():
    contrasted = world(bare=())
    alpha = AlphaSteer(3, **QUIET).fit(contrasted)
    torch.testing.assert_close(alpha.r_[0], MeanDifference(3, behaviors="refuse").fit(contrasted).vector_)


def test_every_site_has_its_own_gate_vector_and_ratio():
    alpha = AlphaSteer([5, 3], ratio=[0.5, RATIO]).fit(TWO)
    assert alpha.sites == (Site(5), Site(3)) == steering_sites(alpha) and not hasattr(alpha, "site")
    assert alpha.ratio_ == (0.5, RATIO) and all(x < 0.05 for x in alpha.leakage_)
    for i, (layer, ratio) in enumerate([(5, 0.5), (3, RATIO)]):
        alone = AlphaSteer(layer, ratio=ratio).fit(TWO)
        assert alone.site == Site(layer)
        assert torch.equal(alone.w_[0], alpha.w_[i]) and torch.equal(alone.r_[0], alpha.r_[i])
        assert torch.equal(alpha.w_[i], NullSpaceGate(layer, ratio=ratio).fit(TWO).w_)
    with pytest.raises(SteeringError, match="steers the sites 5, 3: ask for its shifts"):
        alpha.vectors(HARMFUL)


def test_ratios_are_chosen_site_by_site_when_none_is_given():
    alpha = AlphaSteer([3, 5]).fit(TWO)
    assert all(r in GRID for r in alpha.ratio_) and all(x <= 0.05 for x in alpha.held_out_leakage_)


def test_both_kinds_of_gate_answer_the_same_for_the_same_states():
    frozen = AlphaSteer([3, 5], gates="frozen", **QUIET).fit(TWO)
    met = AlphaSteer([3, 5], **QUIET).fit(TWO)
    context = Context.of(TWO)
    assert (
        frozen.required_activations == (RequiredActivation(Site(3)), RequiredActivation(Site(5)))
        and met.required_activations == ()
    )
    for one, other in zip(frozen.interventions(context), met.interventions(context), strict=True):
        assert one.site == other.site and one.vector_fn is None and other.vectors is None
        expected = other.vector_fn(context.get_states(RequiredActivation(one.site)))
        torch.testing.assert_close(one.gate[:, None] * one.vectors, expected)


def test_a_frozen_gate_survives_a_rescaling_of_its_vector():
    """scale="norm" makes vectors as long as the state; a benign input's must not come out at full length."""
    for target in ("mean", "each"):
        shift = AlphaSteer(3, gates="frozen", target=target, **QUIET).fit(ACTS).interventions(Context.of(ACTS))[0]
        assert float(shift.gate[:120].abs().max()) < 0.05 < 0.9 < float(shift.gate[120:].mean())


def test_own_contrasts_as_targets_give_the_published_matrix():
    alpha = AlphaSteer(3, target="each", **QUIET).fit(ACTS)
    ids, z = ACTS.contrast(3)
    assert ids == sorted(ids)
    expected = pinv_form(
        BENIGN.get_states(RequiredActivation(Site(3))), HARMFUL.get_states(RequiredActivation(Site(3))), z, 38, 10.0
    )
    np.testing.assert_allclose(alpha.matrix_[0].numpy(), expected, atol=1e-6)
    h = HARMFUL.get_states(RequiredActivation(Site(3)))
    torch.testing.assert_close(alpha.vectors(HARMFUL), h @ alpha.matrix_[0], atol=1e-4, rtol=1e-4)
    assert float(alpha.target_norm_[0]) == pytest.approx(float(z.norm(dim=1).mean()), rel=1e-5)
    assert alpha.leakage_[0] < 0.05
    for ask in (lambda: alpha.gate(3, h), lambda: alpha.detector(3)):
        with pytest.raises(SteeringError, match="no single gate"):
            ask()
    zero = AlphaSteer.from_gates(3, torch.zeros(1, D), torch.ones(1, D))
    assert not bool(zero.vectors(HARMFUL).any())


def test_own_contrasts_are_needed_of_every_harmful_input_and_the_mean_needs_one():
    some = world(bare=[f"s{i:04d}" for i in range(121)])
    with pytest.raises(DataError, match=r"1 harmful inputs have no contrast, first \['s0120'\]"):
        AlphaSteer(3, target="each", **QUIET).fit(some)
    assert AlphaSteer(3, **QUIET).fit(some).r_.shape == (1, D)
    none = world(bare=[f"s{i:04d}" for i in range(120, 180)])
    with pytest.raises(DataError, match=r"no contrast is of an input with behavior in \['refuse'\].*\['answer'\]"):
        AlphaSteer(3, **QUIET).fit(none)


def test_contrasts_that_are_all_zero_are_refused():
    flat = make_acts(
        torch.cat([benign_rows(60), harmful_rows(20)]).float(), torch.zeros(80, D),
        behaviors=["answer"] * 60 + ["refuse"] * 20,
    )  # fmt: skip
    for target in ("mean", "each"):
        with pytest.raises(DataError, match="same state in all 20 contrasts"):
            AlphaSteer(3, target=target, **QUIET).fit(flat)


def test_given_targets_are_taken_as_they_are_row_by_site():
    target = torch.stack([R, -2 * R]).float()
    alpha = AlphaSteer([3, 5], target=target, **QUIET).fit(TWO.select(side="prompt"))
    assert torch.equal(alpha.r_, target)
    assert torch.equal(alpha.w_, AlphaSteer([3, 5], **QUIET).fit(TWO).w_)
    only = alpha.with_layer(5)
    assert only.site == Site(5) and torch.equal(only.target, target[1:])


@pytest.mark.parametrize(
    ("target", "error", "match"),
    [
        (torch.ones(D), DataError, r"shape \(64,\), expected \(2, hidden\)"),
        (torch.ones(3, D), DataError, r"\(3, 64\)"),
        (torch.full((2, D), float("nan")), DataError, "NaN"),
        (torch.stack([torch.ones(D), torch.zeros(D)]), DataError, "all zero"),
        (torch.ones(2, 8), MismatchError, "width 8, the activations 64"),
        ("median", DataError, "'median'; expected 'mean', 'each'"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, error, match):
    with pytest.raises(error, match=match):
        AlphaSteer([3, 5], target=target, **QUIET).fit(TWO)


@pytest.mark.parametrize(
    ("layers", "options", "match"),
    [
        ([3, 3], {}, "each once"), ([], {}, "no site"), (3, {"gates": "open"}, "'cumulative' or 'frozen'"),
        (3, {"position": "last_user"}, "met at the last prompt token"), (3, {"dead_zone": -0.1}, "dead_zone=-0.1"),
        (3, {"dead_zone": float("nan")}, "dead_zone=nan"), ([3, 5], {"ratio": [0.5]}, "1 ratios for the sites 3, 5"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(layers, options, match):
    with pytest.raises(DataError, match=match):
        AlphaSteer(layers, **options).fit(TWO)


@pytest.mark.parametrize("target", ["mean", "each"])
def test_inputs_in_the_dead_zone_get_exactly_nothing_and_the_others_all(target):
    free, dead = (AlphaSteer(3, target=target, dead_zone=x, **QUIET).fit(ACTS) for x in (0.0, 0.2))
    assert bool(free.vectors(BENIGN).any()) and not bool(dead.vectors(BENIGN).any())
    assert torch.equal(dead.vectors(HARMFUL), free.vectors(HARMFUL))


@given(st.floats(0, 2), st.integers(0, 999))
def test_the_dead_zone_is_symmetric_and_its_edge_is_outside(zone, seed):
    w = torch.zeros(1, 4)
    w[0, 0] = 1
    alpha = AlphaSteer.from_gates(0, w, torch.ones(1, 4), dead_zone=zone)
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))
    h[0, 0], h[1, 0] = zone, -zone
    found, g = alpha.gate(0, h), h[:, 0]
    assert torch.equal(found, torch.where(g.abs() < zone, torch.zeros(20), g))


def test_the_detector_of_a_site_is_the_gate_that_steers_there():
    alpha = AlphaSteer([3, 5], ratio=[RATIO, 0.5]).fit(TWO)
    detector, context = alpha.detector(5), Context.of(TWO)
    assert detector.site == Site(5) and detector.ratio_ == 0.5 and detector.info_["model"] == "tiny"
    assert torch.equal(detector.score(context), alpha.gate(5, context.get_states(RequiredActivation(Site(5)))))
    with pytest.raises(SteeringError, match="steers the sites 3, 5, not 4"):
        alpha.detector(4)
    with pytest.raises(SteeringError, match="not 4"):
        alpha.gate(4, torch.ones(1, D))


def test_a_sweep_takes_the_settings_to_one_layer():
    alpha = AlphaSteer([3, 5], ratio=[0.5, RATIO], ridge=3.0, dead_zone=0.1, gates="frozen")
    at = alpha.with_layer(5)
    assert (at.site, at.ratio, at.ridge, at.dead_zone, at.gates) == (Site(5), RATIO, 3.0, 0.1, "frozen")
    with pytest.raises(SteeringError, match="not 4"):
        alpha.with_layer(4)
    assert AlphaSteer([3, 5], ratio=0.4).with_layer(Site(9, "block_in")).site == Site(9, "block_in")


def test_an_unfitted_steerer_says_so_and_is_not_saved(tmp_path):
    for ask in (
        lambda: AlphaSteer([3, 5]).interventions(HARMFUL), lambda: AlphaSteer(3).gate(3, torch.ones(1, D)),
        lambda: AlphaSteer(3, target="each").interventions(HARMFUL), lambda: AlphaSteer(3).detector(3),
        lambda: save(AlphaSteer([3, 5], target=torch.ones(2, D)), tmp_path / "a"),
    ):  # fmt: skip
        with pytest.raises(ActivationError, match="not fitted"):
            ask()


def test_handmade_gates_are_taken_and_checked():
    w, r = torch.randn(2, D), torch.randn(2, D)
    alpha = AlphaSteer.from_gates([3, 5], w, r)
    assert torch.equal(alpha.w_, w) and alpha.ratio_ == (None, None) and alpha.detector(3).ratio_ is None
    with pytest.raises(DataError, match=r"w has shape \(2, 64\).* site"):
        AlphaSteer.from_gates(3, w, r)
    with pytest.raises(DataError, match="r has shape"):
        AlphaSteer.from_gates([3, 5], w, r * float("nan"))
    with pytest.raises(MismatchError, match="width 8, this AlphaSteer takes 64"):
        alpha.gate(3, torch.ones(1, 8))


@pytest.mark.parametrize(
    "steerer",
    [
        AlphaSteer([3, 5]), AlphaSteer(Site(3), gates="frozen", dead_zone=0.02, **QUIET),
        AlphaSteer((3, Site(5)), ratio=[0.5, RATIO], target="each"),
        AlphaSteer([3, 5], target=torch.stack([R, -R]).float(), harmful=["refuse"], **QUIET),
    ],
    ids=["chosen", "frozen", "each", "given"],
)  # fmt: skip
def test_a_saved_steerer_comes_back_to_the_bit(steerer, tmp_path):
    context, expected = Context.of(TWO), steerer.fit(TWO)
    loaded = load_steerer(save(steerer, tmp_path / "run"))
    assert isinstance(loaded, AlphaSteer) and loaded.sites == expected.sites and loaded.info_ == expected.info_
    assert loaded.ratio_ == expected.ratio_ and loaded.leakage_ == expected.leakage_
    assert (
        loaded.held_out_leakage_ == expected.held_out_leakage_
        and loaded.required_activations == expected.required_activations
    )
    for one, other in zip(loaded.interventions(context), expected.interventions(context), strict=True):
        if other.vector_fn is None:
            assert torch.equal(one.vectors, other.vectors) and torch.equal(one.gate, other.gate)
        else:
            h = context.get_states(RequiredActivation(one.site))
            assert torch.equal(one.vector_fn(h), other.vector_fn(h))


def test_a_saved_gate_and_the_detector_of_a_steerer_come_back_with_their_threshold(tmp_path):
    for i, gate in enumerate([NullSpaceGate(3).fit(ACTS), AlphaSteer(3, **QUIET).fit(ACTS).detector(3)]):
        gate.calibrate(BENIGN, fpr=0.05)
        loaded = load_detector(save(gate, tmp_path / str(i)))
        assert torch.equal(loaded.score(HARMFUL), gate.score(HARMFUL)) and loaded.threshold_ == gate.threshold_
        assert (loaded.ratio_, loaded.held_out_leakage_) == (gate.ratio_, gate.held_out_leakage_)


def test_find_null_space_gives_the_directions_that_the_gate_lies_in():
    rows = benign_rows(100).float()
    space = find_null_space(rows, harmful_rows(40).float(), ratio=RATIO, ridge=1.0, leakage=0.05, site=Site(3))
    assert space.q.shape == (D, 38) and space.held_out is None
    gate = NullSpaceGate(3, ratio=RATIO).fit(ACTS)
    rows = BENIGN.get_states(RequiredActivation(Site(3))).double()
    q = null_space(rows.T @ rows, 38)
    torch.testing.assert_close(q @ (q.T @ gate.w_.double()), gate.w_.double(), atol=1e-7, rtol=0)


# --- the published directions ----------------------------------------------------------------------------------


@pytest.fixture
def directions(tmp_path):
    """A file laid out like the published one, of a tiny model."""
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(9)
    rows = {"rv.llama3.1": torch.randn(32, 8, generator=draw), "hd.llama31-8b-instruct": torch.ones(32, 8)}
    save_file({k: v.half() for k, v in rows.items()}, tmp_path / "rv.safetensors")
    return tmp_path / "rv.safetensors", rows["rv.llama3.1"].half().float()


def test_published_directions_are_turned_towards_refusal_and_harm_keeps_its_sign(directions):
    path, shipped = directions
    found = published_directions(path, "llama3.1", layers=[12, 8])
    assert torch.equal(found.vectors, -shipped[[12, 8]]) and found.layers == (12, 8) and found.key == "rv.llama3.1"
    assert torch.equal(published_directions(path, "hd.llama31-8b-instruct").vectors, torch.ones(32, 8))


def test_the_two_conventions_differ_by_exactly_one_block(directions):
    path, _ = directions
    released, aligned = (published_directions(path, "llama3.1", convention=c) for c in ("released", "aligned"))
    assert torch.equal(released.vectors, aligned.vectors)
    assert released.sites == tuple(Site(k, "block_in") for k in range(32))
    assert aligned.sites == tuple(Site(k) for k in range(32))  # the input of block k is the output of block k - 1


def test_a_published_setup_becomes_an_unfitted_steerer(directions):
    path, shipped = directions
    alpha = AlphaSteer.from_published(path, "llama3.1", gates="frozen")
    assert alpha.sites[:2] == (Site(8, "block_in"), Site(9, "block_in")) and len(alpha.sites) == 10
    assert alpha.ratio == tuple(PUBLISHED_RATIOS["llama3.1"].values()) and alpha.gates == "frozen"
    assert torch.equal(alpha.target, -shipped[list(PUBLISHED_RATIOS["llama3.1"])])
    assert AlphaSteer.from_published(path, "llama3.1", layers=[12], convention="aligned").sites == (Site(12),)
    assert AlphaSteer.from_published(path, "llama3.1", layers=[15], ratio=None).ratio is None
    with pytest.raises(DataError, match=r"no ratio was published for the layers \[15\]"):
        AlphaSteer.from_published(path, "llama3.1", layers=[8, 15])
    with pytest.raises(ActivationError, match="not fitted"):
        alpha.interventions(HARMFUL)


def test_published_directions_that_are_not_there_are_refused(directions, tmp_path):
    path, _ = directions
    with pytest.raises(LoadError, match="no file"):
        published_directions(tmp_path / "nothing", "llama3.1")
    with pytest.raises(MismatchError, match=r"no directions 'qwen2\.5'"):
        published_directions(path, "qwen2.5")
    with pytest.raises(DataError, match=r"layers 0 to 31, not \[32, -1\]"):
        published_directions(path, "llama3.1", layers=[3, 32, -1])
    with pytest.raises(DataError, match="'released', 'aligned'"):
        published_directions(path, "llama3.1", convention="fixed")
    with pytest.raises(DataError, match="no setup was published for 'phi'"):
        AlphaSteer.from_published(path, "phi")


def test_the_published_layers_and_ratios():
    assert {name: len(table) for name, table in PUBLISHED_RATIOS.items()} == {
        "llama3.1": 10,
        "qwen2.5": 14,
        "gemma2": 11,
    }
    assert 20 not in PUBLISHED_RATIOS["qwen2.5"]
    assert PUBLISHED_RATIOS["llama3.1"][12] == 0.4 and PUBLISHED_RATIOS["gemma2"][8] == 0.4


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("llama3.1", {8: 1.58, 12: 3.12, 16: 4.28, 19: 5.49, 30: 13.1, 31: 53.1}),
        ("qwen2.5", {8: 12.5, 14: 19.6}),
        ("gemma2", {10: 54.7, 16: 97.3}),
    ],
)
def test_the_published_directions_have_the_published_norms(name, norms, tensors):
    found = published_directions(tensors / "refusal_vectors_all_layers.safetensors", name, layers=list(norms))
    for vector, norm in zip(found.vectors, norms.values(), strict=True):
        assert float(vector.norm()) == pytest.approx(norm, rel=5e-3)
    alpha = AlphaSteer.from_published(tensors / "refusal_vectors_all_layers.safetensors", name)
    assert [site.layer for site in alpha.sites] == list(PUBLISHED_RATIOS[name])
