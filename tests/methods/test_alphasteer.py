"""AlphaSteer: its algebra against the published closed form, its gate as a detector, storage, errors and import."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from synthetic_acts import check_saved, make_acts, normal, shuffled

from steerlab import Activations, Site
from steerlab.errors import ActivationError, DataError, LoadError, MismatchError, SteeringError
from steerlab.methods import PUBLISHED_RATIOS, AlphaSteer, Context, MeanDifference, NullSpaceGate, published_directions
from steerlab.methods.alphasteer.null_space import RATIOS, fit_map, null_space, null_space_size, ridge_gate, ridge_map
from steerlab.methods.base import RequiredActivation, steering_sites
from steerlab.methods.serialization import save

D, RANK, RATIO = 64, 20, 0.6
FIXED = torch.Generator().manual_seed(11)
BASIS = torch.linalg.qr(torch.randn(D, D, generator=FIXED, dtype=torch.float64)).Q
R = torch.randn(D, generator=FIXED, dtype=torch.float64)
NAN = float("nan")


def benign_rows(n: int, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    """States of unit variance in 20 of 64 directions, plus noise in all."""
    draw = torch.Generator().manual_seed(seed)
    inside = torch.randn(n, RANK, generator=draw, dtype=torch.float64) @ BASIS[:, :RANK].T
    return inside + noise * torch.randn(n, D, generator=draw, dtype=torch.float64)


def harmful_rows(n: int, noise: float = 0.01, seed: int = 1) -> torch.Tensor:
    """The same, three standard deviations away in another direction."""
    return benign_rows(n, noise, seed) + 3 * BASIS[:, RANK]


def fitted_gate(ratio=RATIO, ridge=10.0, noise=0.01, harmful=None):
    """The gate w of our algebra, float64."""
    benign = benign_rows(300, noise)
    rows = harmful_rows(400, noise) if harmful is None else harmful
    return ridge_gate(null_space(benign.T @ benign, null_space_size(ratio, D)), rows, ridge)


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


ACTS, AT_5 = world(), world(layer=5, seed=40)
TWO = replace(ACTS, values=torch.cat([ACTS.values, AT_5.values], 1), sites=ACTS.sites + AT_5.sites)
HARMFUL, BENIGN = (Context.of(ACTS.select(side="prompt", behavior=b)) for b in ("refuse", "answer"))
AT_3 = RequiredActivation(Site(3))
QUIET = {"ratio": RATIO}


@pytest.mark.parametrize("ratio", [0.05, 0.3, RATIO, 0.95, 1.0])
def test_null_space_projector_is_symmetric_idempotent_and_of_rank_k(ratio):
    benign = benign_rows(300)
    q = null_space(benign.T @ benign, null_space_size(ratio, D))
    p = q @ q.T
    assert float((p - p.T).abs().max()) < 1e-14
    assert float((p @ p - p).abs().max()) < 1e-10
    assert int(torch.linalg.matrix_rank(p)) == int(ratio * D)


def test_null_space_size_is_rounded_down_except_for_rounding_errors():
    assert [null_space_size(*pair) for pair in ((0.29, 100), (0.6, 64), (1.0, 7), (0.01, 64))] == [29, 38, 7, 0]


def test_gate_is_0_on_benign_and_1_on_harmful_rows_with_the_targets_direction():
    w = fitted_gate()
    benign, harmful = benign_rows(300) @ w, harmful_rows(400) @ w
    assert float(benign.abs().max()) <= 0.05 and float(harmful.mean()) >= 0.95
    assert float((benign_rows(300, 0.0) @ fitted_gate(noise=0.0)).abs().max()) < 1e-12
    fresh = benign_rows(500, seed=77)  # the guarantee covers new inputs in the benign space, and nothing else
    assert float((fresh @ w).abs().max()) < 0.05 and float(((fresh + 3 * BASIS[:, RANK]) @ w).mean()) > 0.9


def test_gate_shrinks_with_the_ridge():
    gates = [float((harmful_rows(400) @ fitted_gate(ridge=x)).mean()) for x in (0.0, 10.0, 1e3, 1e4)]
    assert gates == sorted(set(gates), reverse=True)
    assert 0.2 < gates[-1] < 0.3 < 0.95 < gates[1]


def test_leakage_grows_with_the_ratio_past_the_true_null_space():
    """The harmful states also differ inside the benign space, which the gate uses once the ratio allows it."""
    harmful = harmful_rows(400) + 3 * BASIS[:, 0]
    leaks = [float((benign_rows(300) @ fitted_gate(p, harmful=harmful)).abs().max()) for p in (RATIO, 0.8, 0.95, 1.0)]
    assert leaks == sorted(leaks) and leaks[0] < 0.012 and leaks[-1] > 3 * leaks[0]


@given(
    hidden=st.integers(2, 24), n=st.integers(1, 40), m=st.integers(1, 40), share=st.floats(0.05, 1),
    ridge=st.floats(1e-3, 1e4), seed=st.integers(0, 9999),
)  # fmt: skip
def test_gate_and_map_equal_the_published_closed_form(hidden, n, m, share, ridge, seed):
    draw = torch.Generator().manual_seed(seed)
    benign, harmful, targets = (
        torch.randn(rows, hidden, generator=draw, dtype=torch.float64) for rows in (max(n, hidden), m, m)
    )
    k = max(1, null_space_size(share, hidden))
    q, same = null_space(benign.T @ benign, k), targets[:1].expand(m, hidden)
    rank_one = torch.outer(ridge_gate(q, harmful, ridge), targets[0])
    for found, wanted in (
        (rank_one, same), (ridge_map(q, harmful, same, ridge), same), (ridge_map(q, harmful, targets, ridge), targets),
    ):  # fmt: skip
        expected = pinv_form(benign, harmful, wanted, k, ridge)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10 * max(1.0, np.abs(expected).max()))


def test_gate_without_ridge_equals_the_published_closed_form():
    expected = pinv_form(benign_rows(300), harmful_rows(400), R.expand(400, D), 38, 0.0)
    np.testing.assert_allclose(torch.outer(fitted_gate(ridge=0.0), R).numpy(), expected, atol=1e-10)


def test_map_of_individual_targets_is_better_than_any_map_of_rank_one():
    benign, harmful = benign_rows(300), harmful_rows(400)
    harmful += 2 * normal(400, 1, seed=3).double() * BASIS[:, RANK + 1]
    targets = torch.stack([R, R.flip(0)])[(harmful @ BASIS[:, RANK + 1] > 0).long()]
    s = ridge_map(null_space(benign.T @ benign, 38), harmful, targets, 10.0)
    values = torch.linalg.svdvals(s)
    assert float(values[1] / values[0]) > 0.1
    means = torch.stack([targets.mean(0).expand_as(targets), harmful @ s])
    errors = (means - targets).norm(dim=-1).mean(-1)
    assert errors[1] < 0.8 * errors[0]
    assert float((benign @ s).norm(dim=1).max() / R.norm()) < 0.05


@pytest.mark.parametrize("ridge", [0.0, 10.0])
def test_gate_of_few_or_equal_harmful_rows_is_finite(ridge):
    for rows in (harmful_rows(1), harmful_rows(1).repeat(50, 1), torch.cat([harmful_rows(3)] * 40)):
        w = fitted_gate(ridge=ridge, harmful=rows)
        assert bool(torch.isfinite(w).all())
        assert float((rows @ w).min()) > 0.4
    assert not bool(fitted_gate(ridge=ridge, harmful=torch.zeros(4, D)).any())


def test_gate_separates_the_classes_and_reports_its_leakage():
    gate = NullSpaceGate(3, ratio=RATIO).fit(ACTS)
    assert gate.required_activations == (RequiredActivation(Site(3), "last"),) and gate.ratio_ == RATIO
    assert float(gate.score(HARMFUL).mean()) > 0.95
    assert float(gate.score(BENIGN).abs().max()) == pytest.approx(gate.leakage_, rel=1e-4)
    assert gate.leakage_ < 0.05 and gate.held_out_leakage_ is None and gate.w_.dtype == torch.float32
    assert torch.equal(NullSpaceGate(3, ratio=RATIO).fit(shuffled(ACTS)).w_, gate.w_)
    rows = BENIGN.get_states(AT_3).double()
    q = null_space(rows.T @ rows, 38)
    torch.testing.assert_close(q @ (q.T @ gate.w_.double()), gate.w_.double(), atol=1e-7, rtol=0)
    calibrated = gate.calibrate(BENIGN, fpr=0.0)
    assert bool(calibrated.detect(HARMFUL).all()) and not bool(calibrated.detect(BENIGN).any())


def test_chosen_ratio_keeps_new_benign_inputs_under_the_allowed_leakage():
    gate = NullSpaceGate(3).fit(world(300, 60))
    assert gate.ratio_ in RATIOS and gate.held_out_leakage_ <= 0.05
    assert float(gate.gate(benign_rows(1000, seed=50).float()).abs().quantile(0.95)) < 0.05
    assert float(gate.gate(harmful_rows(1000, seed=51).float()).mean()) > 0.9


def cross_validated(benign, harmful, ridge: float) -> dict[float, tuple[float, float]]:
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
def test_ratio_is_chosen_by_the_documented_rule(n, m, noise, limit):
    benign, harmful = benign_rows(n, noise, 5), harmful_rows(m, noise, 6)
    found = cross_validated(benign, harmful, 10.0)
    allowed = {p: pair for p, pair in found.items() if pair[0] <= limit}
    best = max(gate for _, gate in allowed.values())
    chosen = min((p for p in allowed if allowed[p][1] >= 0.99 * best), key=lambda p: allowed[p][0])
    assert chosen not in (min(found, key=lambda p: found[p][0]), max(allowed))  # simpler rules would differ
    ones, options = torch.ones(m, 1), dict(ridge=10.0, leakage=limit, site=Site(3))
    _, _, measured = fit_map(benign, harmful, ones, ratio=None, **options)
    assert measured["ratio_"] == chosen
    assert measured["held_out_leakage_"] == pytest.approx(found[chosen][0], abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_chosen_ratio_leaks_less_than_the_largest_at_the_same_harmful_gate(seed):
    acts, limit = world(300, 60, noise=0.03, seed=10 * seed), 0.2
    chosen = NullSpaceGate(3, leakage=limit).fit(acts)
    largest = NullSpaceGate(3, ratio=RATIOS[-1], leakage=10.0).fit(acts)
    fresh, bad = benign_rows(2000, 0.03, 500 + seed).float(), harmful_rows(2000, 0.03, 600 + seed).float()
    one, other = (float(g.gate(fresh).abs().quantile(0.95)) for g in (chosen, largest))
    assert chosen.ratio_ < RATIOS[-1] and one <= other + 1e-6
    assert float(chosen.gate(bad).mean()) > float(largest.gate(bad).mean()) - 0.02


def test_leaking_ratios_are_warned_about():
    with pytest.warns(UserWarning, match=r"no null-space ratio at site 3 .*leakage=1e-05: the best, 0\.\d+, has 0\.0"):
        gate = NullSpaceGate(3, leakage=1e-5).fit(ACTS)
    assert gate.held_out_leakage_ > 1e-5 and gate.ratio_ in RATIOS
    with pytest.warns(UserWarning, match=r"ratio=1\.0 at site 3 leaks: .* steered at 0\.\d+ of full strength"):
        gate = NullSpaceGate(3, ratio=1.0, leakage=0.01).fit(world(noise=0.2))
    assert gate.leakage_ > 0.01


@pytest.mark.filterwarnings("ignore:no null-space ratio at site 3")
def test_number_of_benign_inputs_limits_the_ratio():
    assert D - null_space_size(NullSpaceGate(3).fit(world(30, 20)).ratio_, D) <= 24  # of 30, in each fold
    with pytest.raises(DataError, match=r"3 benign inputs at site 3 are too few.*0\.95 excludes 4 directions"):
        NullSpaceGate(3).fit(world(3, 20))
    with pytest.raises(DataError, match=r"20 benign inputs at site 3; ratio=0\.6 excludes 26 of 64 .*at least 0\.6875"):
        NullSpaceGate(3, ratio=RATIO).fit(world(20, 20))
    assert NullSpaceGate(3, ratio=0.6875).fit(world(20, 20)).leakage_ < 1e-4
    with pytest.raises(DataError, match="25 benign inputs"):
        NullSpaceGate(3, ratio=RATIO).fit(world(25, 20))
    assert NullSpaceGate(3, ratio=RATIO).fit(world(26, 20)).ratio_ == RATIO


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 0.0}, "ratio=0.0"), ({"ratio": 1.2}, "ratio=1.2"), ({"ratio": NAN}, "ratio=nan"),
        ({"ratio": 0.01}, "less than one"), ({"ridge": -1.0}, "ridge=-1.0"), ({"ridge": NAN}, "ridge=nan"),
        ({"ridge": float("inf")}, "ridge=inf"), ({"leakage": 0.0}, "leakage=0.0"), ({"leakage": NAN}, "leakage=nan"),
        ({"benign": ["answer", "refuse"]}, "60 inputs are both harmful and benign"),
        ({"benign": "nobody"}, "no input has behavior 'nobody'"),
    ],
)  # fmt: skip
def test_gate_and_steerer_refuse_invalid_settings(options, match):
    for method in (NullSpaceGate, AlphaSteer):
        with pytest.raises(DataError, match=match):
            method(3, **options).fit(ACTS)


def test_classes_that_overlap_or_are_too_small_are_refused():
    double, prompts = ACTS.values.clone(), ACTS.index["side"].eq("prompt")
    rows = {b: int((prompts & ACTS.index["behavior"].eq(b)).argmax()) for b in ("answer", "refuse")}
    double[rows["refuse"]] = double[rows["answer"]]
    with pytest.raises(DataError, match="1 benign inputs have the same state as a harmful one"):
        AlphaSteer(3).fit(replace(ACTS, values=double))
    with pytest.raises(DataError, match="1 inputs have behavior in"):
        NullSpaceGate(3).fit(world(120, 1))


def test_vectors_are_the_gate_times_the_mean_contrast_of_harmful_inputs():
    alpha = AlphaSteer(3, **QUIET).fit(ACTS)
    torch.testing.assert_close(alpha.r_[0], MeanDifference(3).fit(ACTS).vector_)
    for context in (HARMFUL, BENIGN):
        expected = (context.get_states(AT_3) @ alpha.w_[0])[:, None] * alpha.r_[0]
        torch.testing.assert_close(alpha.vectors(context), expected)


def test_every_site_has_separate_gate_vector_and_ratio():
    alpha = AlphaSteer([5, 3], ratio=[0.5, RATIO]).fit(TWO)
    assert alpha.sites == (Site(5), Site(3)) == steering_sites(alpha) and not hasattr(alpha, "site")
    assert alpha.ratio_ == (0.5, RATIO) and all(x < 0.05 for x in alpha.leakage_)
    for i, (layer, ratio) in enumerate([(5, 0.5), (3, RATIO)]):
        alone = AlphaSteer(layer, ratio=ratio).fit(TWO)
        assert alone.site == Site(layer)
        assert torch.equal(alone.w_[0], alpha.w_[i]) and torch.equal(alone.r_[0], alpha.r_[i])
        assert torch.equal(alpha.w_[i], NullSpaceGate(layer, ratio=ratio).fit(TWO).w_)
    with pytest.raises(SteeringError, match="steers the sites 5, 3: call interventions"):
        alpha.vectors(HARMFUL)
    chosen = AlphaSteer([3, 5]).fit(TWO)
    assert all(r in RATIOS for r in chosen.ratio_) and all(x <= 0.05 for x in chosen.held_out_leakage_)


def test_frozen_and_cumulative_gates_agree_on_the_same_states():
    frozen, cumulative = (AlphaSteer([3, 5], gates=g, **QUIET).fit(TWO) for g in ("frozen", "cumulative"))
    context = Context.of(TWO)
    assert frozen.required_activations == (AT_3, RequiredActivation(Site(5))) and cumulative.required_activations == ()
    for one, other in zip(frozen.interventions(context), cumulative.interventions(context), strict=True):
        assert one.site == other.site and one.vector_fn is None and other.vectors is None
        expected = other.vector_fn(context.get_states(RequiredActivation(one.site)))
        torch.testing.assert_close(one.gate[:, None] * one.vectors, expected)


@pytest.mark.parametrize("target", ["mean", "each"])
def test_frozen_gate_is_separate_from_its_vector(target):
    """scale="norm" rescales vectors to the state's norm, which must not open the gate of a benign input."""
    (one,) = AlphaSteer(3, gates="frozen", target=target, **QUIET).fit(ACTS).interventions(Context.of(ACTS))
    assert float(one.gate[:120].abs().max()) < 0.05 < 0.9 < float(one.gate[120:].mean())


def test_target_each_learns_the_published_matrix():
    alpha = AlphaSteer(3, target="each", **QUIET).fit(ACTS)
    ids, z = ACTS.contrast(3)
    assert ids == sorted(ids)
    h = HARMFUL.get_states(AT_3)
    expected = pinv_form(BENIGN.get_states(AT_3), h, z, 38, 10.0)
    np.testing.assert_allclose(alpha.matrix_[0].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(alpha.vectors(HARMFUL), h @ alpha.matrix_[0], atol=1e-4, rtol=1e-4)
    assert float(alpha.target_norm_[0]) == pytest.approx(float(z.norm(dim=1).mean()), rel=1e-5)
    assert alpha.leakage_[0] < 0.05
    for call in (lambda: alpha.gate(3, h), lambda: alpha.detector(3)):
        with pytest.raises(SteeringError, match="no single gate"):
            call()


def test_missing_or_zero_contrasts_are_refused():
    some = world(bare=[f"s{i:04d}" for i in range(121)])
    with pytest.raises(DataError, match=r"1 harmful inputs have no contrast, first \['s0120'\]"):
        AlphaSteer(3, target="each", **QUIET).fit(some)
    assert AlphaSteer(3, **QUIET).fit(some).r_.shape == (1, D)
    none = world(bare=[f"s{i:04d}" for i in range(120, 180)])
    with pytest.raises(DataError, match=r"no contrast is of an input with behavior in \['refuse'\].*\['answer'\]"):
        AlphaSteer(3, **QUIET).fit(none)
    states = torch.cat([benign_rows(60), harmful_rows(20)]).float()
    flat = make_acts(states, torch.zeros(80, D), behaviors=["answer"] * 60 + ["refuse"] * 20)
    for target in ("mean", "each"):
        with pytest.raises(DataError, match="same state in all 20 contrasts"):
            AlphaSteer(3, target=target, **QUIET).fit(flat)


def test_given_targets_are_used_unchanged():
    target = torch.stack([R, -2 * R]).float()
    alpha = AlphaSteer([3, 5], target=target, **QUIET).fit(TWO.select(side="prompt"))
    assert torch.equal(alpha.r_, target)
    assert torch.equal(alpha.w_, AlphaSteer([3, 5], **QUIET).fit(TWO).w_)
    only = alpha.with_layer(5)
    assert only.site == Site(5) and torch.equal(only.target, target[1:])


@pytest.mark.parametrize(
    ("layers", "options", "error", "match"),
    [
        ([3, 5], {"target": torch.ones(D)}, DataError, r"shape \(64,\), expected \(2, hidden\)"),
        ([3, 5], {"target": torch.ones(3, D)}, DataError, r"\(3, 64\)"),
        ([3, 5], {"target": torch.full((2, D), NAN)}, DataError, "NaN"),
        ([3, 5], {"target": torch.stack([torch.ones(D), torch.zeros(D)])}, DataError, "all zero"),
        ([3, 5], {"target": torch.ones(2, 8)}, MismatchError, "width 8, the activations 64"),
        ([3, 5], {"target": "median"}, DataError, "'median'; expected 'mean', 'each'"),
        ([3, 3], {}, DataError, "each once"), ([], {}, DataError, "at least one layer"),
        (3, {"gates": "open"}, DataError, "'cumulative' or 'frozen'"),
        (3, {"position": "last_user"}, DataError, "cumulative gates read the last prompt token"),
        (3, {"dead_zone": -0.1}, DataError, "dead_zone=-0.1"), (3, {"dead_zone": NAN}, DataError, "dead_zone=nan"),
        ([3, 5], {"ratio": [0.5]}, DataError, "1 ratios for 2 sites"),
    ],
)  # fmt: skip
def test_invalid_targets_and_settings_are_refused(layers, options, error, match):
    with pytest.raises(error, match=match):
        AlphaSteer(layers, **(QUIET | options)).fit(TWO)


@pytest.mark.parametrize("target", ["mean", "each"])
def test_inputs_in_the_dead_zone_get_no_vector(target):
    free, dead = (AlphaSteer(3, target=target, dead_zone=x, **QUIET).fit(ACTS) for x in (0.0, 0.2))
    assert bool(free.vectors(BENIGN).any()) and not bool(dead.vectors(BENIGN).any())
    assert torch.equal(dead.vectors(HARMFUL), free.vectors(HARMFUL))


@given(st.floats(0, 2), st.integers(0, 999))
def test_dead_zone_is_symmetric_and_excludes_its_edge(zone, seed):
    w = torch.zeros(1, 4)
    w[0, 0] = 1
    alpha = AlphaSteer.from_gates(0, w, torch.ones(1, 4), dead_zone=zone)
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))
    h[0, 0], h[1, 0] = zone, -zone
    found, g = alpha.gate(0, h), h[:, 0]
    assert torch.equal(found, torch.where(g.abs() < zone, torch.zeros(20), g))


def test_detector_of_a_site_is_its_gate():
    alpha = AlphaSteer([3, 5], ratio=[RATIO, 0.5]).fit(TWO)
    detector, context = alpha.detector(5), Context.of(TWO)
    assert detector.site == Site(5) and detector.ratio_ == 0.5 and detector.info_["model"] == "tiny"
    assert torch.equal(detector.score(context), alpha.gate(5, context.get_states(RequiredActivation(Site(5)))))
    for call in (lambda: alpha.detector(4), lambda: alpha.gate(4, torch.ones(1, D))):
        with pytest.raises(SteeringError, match="steers the sites 3, 5, not 4"):
            call()


def test_with_layer_keeps_the_settings_of_that_layer():
    alpha = AlphaSteer([3, 5], ratio=[0.5, RATIO], ridge=3.0, dead_zone=0.1, gates="frozen")
    at = alpha.with_layer(5)
    assert (at.site, at.ratio, at.ridge, at.dead_zone, at.gates) == (Site(5), RATIO, 3.0, 0.1, "frozen")
    with pytest.raises(SteeringError, match="not 4"):
        alpha.with_layer(4)
    assert AlphaSteer([3, 5], ratio=0.4).with_layer(Site(9, "block_in")).site == Site(9, "block_in")


@pytest.mark.parametrize(
    "call",
    [
        lambda _: AlphaSteer([3, 5]).interventions(HARMFUL), lambda _: AlphaSteer(3).gate(3, torch.ones(1, D)),
        lambda _: AlphaSteer(3, target="each").interventions(HARMFUL), lambda _: AlphaSteer(3).detector(3),
        lambda _: NullSpaceGate(3).gate(torch.ones(1, D)),
        lambda folder: save(AlphaSteer([3, 5], target=torch.ones(2, D)), folder / "a"),
    ],
)  # fmt: skip
def test_unfitted_methods_are_refused(call, tmp_path):
    with pytest.raises(ActivationError, match="not fitted"):
        call(tmp_path)


def test_from_gates_checks_its_arrays():
    w, r = torch.randn(2, D), torch.randn(2, D)
    alpha = AlphaSteer.from_gates([3, 5], w, r)
    assert torch.equal(alpha.w_, w) and alpha.ratio_ == (None, None) and alpha.detector(3).ratio_ is None
    with pytest.raises(DataError, match=r"w has shape \(2, 64\).* site"):
        AlphaSteer.from_gates(3, w, r)
    with pytest.raises(DataError, match="r has shape"):
        AlphaSteer.from_gates([3, 5], w, torch.where(r == r.max(), NAN, r))
    with pytest.raises(MismatchError, match="width 8, this AlphaSteer takes 64"):
        alpha.gate(3, torch.ones(1, 8))
    with pytest.raises(MismatchError, match="width 8, the gate takes 64"):
        alpha.detector(3).gate(torch.ones(1, 8))
    assert not bool(AlphaSteer.from_gates(3, torch.zeros(1, D), torch.ones(1, D)).vectors(HARMFUL).any())


@pytest.mark.parametrize(
    "steerer",
    [
        AlphaSteer([3, 5]), AlphaSteer(Site(3), gates="frozen", dead_zone=0.02, **QUIET),
        AlphaSteer((3, Site(5)), ratio=[0.5, RATIO], target="each"),
        AlphaSteer([3, 5], target=torch.stack([R, -R]).float(), harmful=["refuse"], **QUIET),
    ],
    ids=["chosen", "frozen", "each", "given"],
)  # fmt: skip
def test_saved_steerer_is_restored_exactly(steerer, tmp_path):
    check_saved(steerer.fit(TWO), tmp_path / "run", Context.of(TWO))


def test_saved_gate_is_restored_with_its_threshold(tmp_path):
    for i, gate in enumerate([NullSpaceGate(3).fit(ACTS), AlphaSteer(3, **QUIET).fit(ACTS).detector(3)]):
        check_saved(gate.calibrate(BENIGN, fpr=0.05), tmp_path / str(i), HARMFUL)


@pytest.fixture
def directions(tmp_path):
    """A file like the published one, of a tiny model."""
    draw = torch.Generator().manual_seed(9)
    rows = {"rv.llama3.1": torch.randn(32, 8, generator=draw), "hd.llama31-8b-instruct": torch.ones(32, 8)}
    save_file({k: v.half() for k, v in rows.items()}, tmp_path / "rv.safetensors")
    return tmp_path / "rv.safetensors", rows["rv.llama3.1"].half().float()


def test_published_directions_have_the_sign_and_site_of_their_convention(directions):
    path, shipped = directions
    found = published_directions(path, "llama3.1", layers=[12, 8])
    assert torch.equal(found.vectors, -shipped[[12, 8]]) and found.layers == (12, 8) and found.key == "rv.llama3.1"
    assert torch.equal(published_directions(path, "hd.llama31-8b-instruct").vectors, torch.ones(32, 8))
    released, aligned = (published_directions(path, "llama3.1", convention=c) for c in ("released", "aligned"))
    assert torch.equal(released.vectors, aligned.vectors)
    assert released.sites == tuple(Site(k, "block_in") for k in range(32))
    assert aligned.sites == tuple(Site(k) for k in range(32))  # the input of block k is the output of block k - 1


def test_from_published_is_an_unfitted_steerer_with_published_layers_and_ratios(directions):
    path, shipped = directions
    assert [len(PUBLISHED_RATIOS[name]) for name in ("llama3.1", "qwen2.5", "gemma2")] == [10, 14, 11]
    assert PUBLISHED_RATIOS["llama3.1"][12] == 0.4 and 20 not in PUBLISHED_RATIOS["qwen2.5"]
    alpha = AlphaSteer.from_published(path, "llama3.1", gates="frozen")
    assert alpha.sites[:2] == (Site(8, "block_in"), Site(9, "block_in")) and len(alpha.sites) == 10
    assert alpha.ratio == tuple(PUBLISHED_RATIOS["llama3.1"].values()) and alpha.gates == "frozen"
    assert torch.equal(alpha.target, -shipped[list(PUBLISHED_RATIOS["llama3.1"])])
    assert AlphaSteer.from_published(path, "llama3.1", layers=[12], convention="aligned").sites == (Site(12),)
    assert AlphaSteer.from_published(path, "llama3.1", layers=[15], ratio=None).ratio is None
    with pytest.raises(ActivationError, match="not fitted"):
        alpha.interventions(HARMFUL)


def test_import_of_unknown_directions_is_refused(directions, tmp_path):
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
    with pytest.raises(DataError, match=r"no ratio was published for the layers \[15\]"):
        AlphaSteer.from_published(path, "llama3.1", layers=[8, 15])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("llama3.1", {8: 1.58, 12: 3.12, 16: 4.28, 19: 5.49, 30: 13.1, 31: 53.1}),
        ("qwen2.5", {8: 12.5, 14: 19.6}),
        ("gemma2", {10: 54.7, 16: 97.3}),
    ],
)
def test_published_directions_have_the_published_norms(name, norms, tensors):
    found = published_directions(tensors / "refusal_vectors_all_layers.safetensors", name, layers=list(norms))
    assert found.vectors.norm(dim=1).tolist() == pytest.approx(list(norms.values()), rel=5e-3)
    alpha = AlphaSteer.from_published(tensors / "refusal_vectors_all_layers.safetensors", name)
    assert [site.layer for site in alpha.sites] == list(PUBLISHED_RATIOS[name])
