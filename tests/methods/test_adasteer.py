"""AdaSteer against its definitions: coordinates, laws, the line both vectors lie on, and the released numbers."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic_acts import shuffled

from steerlab._support.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods.adasteer.fit import Coordinate
from steerlab.methods.adasteer.published import PUBLISHED_ADASTEER, PublishedAdaSteer, adasteer_from_published
from steerlab.methods.adasteer.schedules import Logistic, Ramp
from steerlab.methods.adasteer.steerer import AdaSteer
from steerlab.methods.base import Context
from steerlab.methods.serialization import load_steerer, save
from steerlab.models.sites import Site

pytestmark = pytest.mark.filterwarnings("ignore:AdaSteer")  # drawn classes may lie badly; two tests ask for that
D, LAYERS = 12, 4
LABELS = ("complied", "rejected", "answer")
READS = dict(rejection_layer=1, harmfulness_layer=2)
ALL = AdaSteer(range(LAYERS), **READS)


def acts_of(states: dict[str, torch.Tensor], **columns) -> Activations:
    """`(row, layer, hidden)` states of each class as prompt rows read at their last token."""
    rows = [(f"{name}{i:03d}", name) for name, values in states.items() for i in range(len(values))]
    index = pd.DataFrame(rows, columns=["example_id", "behavior"]).assign(
        side="prompt", position="last", split="", column=-1, token=-1, n_tokens=1, **columns
    )
    values = torch.cat(list(states.values()))
    return Activations(values, index, tuple(map(Site, range(values.shape[1]))), {"model": "tiny"})


def three(
    seed: int = 0, n: int = 20, c: float = 0.5, noise: float = 0.3, drift: float = 3.0
) -> dict[str, torch.Tensor]:
    """Three classes; harmfulness holds a share `c` of rejection, and `drift` of a direction orthogonal to it."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(LAYERS, D, generator=draw) * 5
    pair = torch.linalg.qr(torch.randn(LAYERS, D, 2, generator=draw)).Q
    rejection, other = 4 * pair[..., 0], pair[..., 1]
    means = {"complied": start, "rejected": start + rejection, "answer": start + c * rejection + drift * other}
    return {k: m + noise * torch.randn(n, LAYERS, D, generator=draw) for k, m in means.items()}


STATES = three()
ACTS = acts_of(STATES)
FITTED = AdaSteer(range(LAYERS), **READS).fit(ACTS)


def at(*rows: torch.Tensor) -> Context:
    """A context of `(layer, hidden)` states."""
    return Context.of(acts_of({"x": torch.stack(rows)}))


MEANS = {name: values.double().mean(0) for name, values in STATES.items()}


# --- coordinates -----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.01, 2))
def test_class_means_lie_at_0_and_100(seed, n, noise):
    states = three(seed, n, noise=noise)
    fitted = AdaSteer(3, **READS).fit(acts_of(states))
    p_r, p_h = fitted.coordinates(at(*(values.double().mean(0) for values in states.values())))
    assert p_r.tolist()[:2] == pytest.approx([0, 100], abs=1e-4)
    assert p_h.tolist()[0::2] == pytest.approx([0, 100], abs=1e-4)
    p_r, p_h = fitted.coordinates(Context.of(acts_of(states)))
    assert float(p_r[:n].mean()) == pytest.approx(0, abs=1e-4) and float(p_h[:n].mean()) == pytest.approx(0, abs=1e-4)
    assert float(p_r[n : 2 * n].mean()) == pytest.approx(100, abs=1e-4)
    assert float(p_h[2 * n :].mean()) == pytest.approx(100, abs=1e-4)
    assert fitted.benign_coordinate_ == pytest.approx(float(p_r[2 * n :].mean()), abs=1e-3)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-1e2, 1e2))
def test_a_coordinate_sees_neither_the_length_of_the_direction_nor_what_is_orthogonal_to_it(seed, scale, far):
    start, end, extra, *states = torch.randn(8, D, generator=torch.Generator().manual_seed(seed)).double()
    states, way = torch.stack(states), end - start
    p = Coordinate.between(start, end)(states)
    for factor in (scale, -scale):
        torch.testing.assert_close(Coordinate.between(start, end, factor * way)(states), p, rtol=1e-4, atol=1e-2)
    orthogonal = extra - (extra @ way) / (way @ way) * way
    torch.testing.assert_close(Coordinate.between(start, end)(states + far * orthogonal), p, rtol=1e-4, atol=1e-2)
    by_hand = 100 * (states - start) @ way / way.square().sum()
    torch.testing.assert_close(p, by_hand.float(), rtol=1e-5, atol=1e-4)


def test_a_direction_that_does_not_lead_from_one_mean_to_the_other_is_refused():
    start, end = torch.zeros(3), torch.tensor([1.0, 0, 0])
    for wrong in (dict(end=start), dict(end=end, direction=torch.tensor([0.0, 1, 0])), dict(end=end, direction=start)):
        with pytest.raises(DataError, match="same place along this direction"):
            Coordinate.between(start, **wrong)


# --- vectors ---------------------------------------------------------------------------------------------------


def test_directions_are_differences_of_class_means_and_positive_is_towards_refusal():
    rejection, harmfulness = MEANS["rejected"] - MEANS["complied"], MEANS["answer"] - MEANS["complied"]
    torch.testing.assert_close(FITTED.rejection_, rejection.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(FITTED.harmfulness_, harmfulness.float(), rtol=1e-5, atol=1e-5)
    c = (rejection * harmfulness).sum(-1) / rejection.square().sum(-1)
    torch.testing.assert_close(FITTED.c_, c.float(), rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.1, 2))
def test_both_vectors_lie_on_the_line_of_rejection_and_the_rest_is_orthogonal_to_it(seed, c):
    fitted = AdaSteer(range(LAYERS), **READS).fit(acts_of(three(seed, c=c)))
    r, second = fitted.rejection_.double(), fitted.second.double()
    unit = r / r.norm(dim=-1, keepdim=True)
    away = second - (second * unit).sum(-1, keepdim=True) * unit
    assert float((away.norm(dim=-1) / second.norm(dim=-1)).max()) < 1e-6
    rest = fitted.harmfulness_.double() - second
    assert float(((rest * unit).sum(-1) / fitted.harmfulness_.norm(dim=-1)).abs().max()) < 1e-6
    other = AdaSteer(range(LAYERS), **READS, geometry="orthogonalized").fit(acts_of(three(seed, c=c)))
    torch.testing.assert_close(other.second.double(), rest, rtol=1e-5, atol=1e-5)


def test_the_sign_of_the_directions_does_not_change_c():
    r, h = FITTED.rejection_, FITTED.harmfulness_
    laws = dict(rejection=Ramp(0.0, 1.0), compliance=Ramp(0.0, 1.0))
    turned = AdaSteer.from_directions(-r, -h, MEANS["complied"].float(), range(LAYERS), **READS, **laws)
    torch.testing.assert_close(turned.c_, FITTED.c_)


def test_a_shift_is_alpha_times_rejection_plus_beta_times_the_second_vector():
    context = Context.of(ACTS)
    alpha, beta = FITTED.coefficients(context)
    interventions = FITTED.interventions(context)
    assert [shift.site for shift in interventions] == list(FITTED.sites) == [Site(k) for k in range(LAYERS)]
    for k, shift in enumerate(interventions):
        line = (alpha + beta * FITTED.c_[k])[:, None] * FITTED.rejection_[k]
        torch.testing.assert_close(shift.vectors, line, rtol=1e-5, atol=1e-5)
        assert shift.vectors.dtype == torch.float32 and shift.positions is None
    assert AdaSteer.default_positions == "prompt"


# --- laws ------------------------------------------------------------------------------------------------------


def test_by_default_complied_harmful_prompts_are_pushed_by_about_one_and_benign_ones_by_about_nothing():
    for layer in range(LAYERS):
        fitted = AdaSteer(layer, **READS).fit(ACTS)
        pushed = fitted.vectors(at(*(MEANS[name] for name in LABELS))) @ fitted.rejection_[0]
        complied, rejected, benign = (pushed / fitted.rejection_[0].square().sum()).tolist()
        assert 0.85 < complied < 1 and abs(benign) < 0.1 and abs(rejected) < 0.3


@given(st.integers(0, 10_000), st.floats(0.2, 1.2), st.floats(0.3, 2))
def test_what_is_restored_takes_back_the_push_on_the_mean_benign_prompt_exactly_at_one_layer(seed, c, strong):
    fitted = AdaSteer(3, **READS, strength=(0.0, strong)).fit(acts_of(three(seed, c=c)))
    push = float(fitted.rejection_schedule(torch.tensor([fitted.benign_coordinate_])))
    law = fitted.compliance_schedule
    assert law.high == 0 and push + law.low * float(fitted.c_[0]) == pytest.approx(0, abs=1e-5)


def test_over_several_layers_what_is_restored_leaves_the_least_push_there_can_be():
    rejection, start = torch.eye(LAYERS, D), torch.zeros(LAYERS, D)
    c = torch.tensor([0.2, 0.5, 0.6, 0.9])
    made = AdaSteer.from_directions(
        rejection, c[:, None] * rejection + torch.ones(D), start, range(LAYERS), **READS, rejection=Ramp(0.0, 0.7)
    )
    labels = {"x000": True, "x001": True, "x002": False, "x003": False}
    made.calibrate(at(*torch.randn(4, LAYERS, D)).activations, compliance=labels)
    left = [float((0.7 + beta * made.c_).square().sum()) for beta in torch.linspace(-2, 1, 3001)]
    assert made.compliance_schedule.low == pytest.approx(-2 + 0.001 * min(range(3001), key=left.__getitem__), abs=1e-3)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(-1, 1), st.floats(0, 2), st.floats(-2, 2))
def test_fitted_laws_are_monotone_and_keep_to_their_limits(seed, weak, more, restore):
    fitted = AdaSteer(3, **READS, strength=(weak, weak + more), restore=restore).fit(acts_of(three(seed)))
    p = torch.linspace(-300, 300, 601)
    alpha, beta = fitted.rejection_schedule(p), fitted.compliance_schedule(p)
    assert bool((alpha.diff() <= 1e-6).all()), "the further against rejection, the stronger (R-law)"
    assert weak - 1e-6 <= float(alpha.min()) and float(alpha.max()) <= weak + more + 1e-6
    assert bool((beta.diff() * restore >= -1e-6).all()), "the more benign, the more is given back (H-law)"
    assert min(0, restore) - 1e-6 <= float(beta.min()) and float(beta.max()) <= max(0, restore) + 1e-6


def test_given_laws_are_used_as_they_are_and_nothing_is_fitted_for_them():
    laws = dict(rejection=Ramp(-0.01, 1.0, 0.0, 1.0), compliance=Logistic(0.1, -5.0, -2.0, 0.0))
    fitted = AdaSteer((0, 3), **READS, **laws).fit(ACTS)
    p_r, p_h = fitted.coordinates(Context.of(ACTS))
    alpha, beta = fitted.coefficients(Context.of(ACTS))
    assert torch.equal(alpha, laws["rejection"](p_r)) and torch.equal(beta, laws["compliance"](p_h))
    assert not hasattr(fitted, "needs_rejection_") and not hasattr(fitted, "needs_compliance_")
    with pytest.raises(DataError, match="given its law of rejection"):
        fitted.calibrate(ACTS, rejection={"complied000": True})


def test_calibration_joins_labels_by_id_and_changes_what_is_restored_with_the_strength():
    fitted = AdaSteer(3, **READS).fit(ACTS)
    before = fitted.compliance_schedule
    p_r, _ = fitted.coordinates(Context.of(ACTS))
    needs = {example_id: bool(p < 90) for example_id, p in zip(ACTS.index["example_id"], p_r.tolist(), strict=True)}
    fitted.calibrate(ACTS, rejection=needs)
    first = fitted.needs_rejection_
    assert 70 < -first.intercept / first.slope < 100
    assert fitted.compliance_schedule.low < before.low, "benign prompts are pushed more now, so more is taken back"
    again = (
        AdaSteer(3, **READS).fit(ACTS).calibrate(shuffled(ACTS), rejection={k: needs[k] for k in reversed(list(needs))})
    )
    assert again.needs_rejection_.slope == pytest.approx(first.slope, rel=1e-4)


def test_a_calibration_without_labels_or_with_unknown_inputs_is_refused():
    fitted = AdaSteer(3, **READS).fit(ACTS)
    with pytest.raises(DataError, match="calibrate needs labels"):
        fitted.calibrate(ACTS)
    with pytest.raises(ActivationError, match="nobody"):
        fitted.calibrate(ACTS, rejection={"nobody": True})
    with pytest.raises(DataError, match="0 do not"):
        fitted.calibrate(ACTS, compliance={"answer000": True, "answer001": True})


def test_layers_at_which_nothing_can_be_given_back_are_named_and_left_as_they_are():
    states = three()
    states["answer"][:, 2] = STATES["complied"][:, 2] - 0.5 * (MEANS["rejected"] - MEANS["complied"])[2].float()
    with pytest.warns(UserWarning, match=r"AdaSteer at 2: .*points against it.*Nothing was changed"):
        fitted = AdaSteer(range(LAYERS), rejection_layer=1, harmfulness_layer=1).fit(acts_of(states))
    assert fitted.ineffective_sites == (Site(2),) and float(fitted.c_[2]) == pytest.approx(-0.5, abs=1e-4)
    assert FITTED.ineffective_sites == ()
    AdaSteer(range(LAYERS), rejection_layer=1, harmfulness_layer=1, geometry="orthogonalized").fit(acts_of(states))


def test_it_is_told_if_rejected_prompts_would_be_made_to_comply_since_they_lie_where_benign_ones_do():
    with pytest.warns(UserWarning, match=r"rejected harmful prompts lie at p_H = 4\d\d .*calibrate"):
        AdaSteer(3, **READS).fit(acts_of(three(c=0.2, drift=0.2, noise=0.1)))
    AdaSteer(3, **READS, restore=0.0).fit(acts_of(three(c=0.2, drift=0.2)))


def test_orthogonalised_moves_benign_prompts_by_one_length_of_what_is_orthogonal():
    fitted = AdaSteer(3, **READS, geometry="orthogonalized").fit(ACTS)
    assert (fitted.compliance_schedule.low, fitted.compliance_schedule.high) == (0, 1)
    _, beta = fitted.coefficients(at(*(MEANS[name] for name in LABELS)))
    assert float(beta[0]) < 0.15 and float(beta[2]) > 0.85


# --- rows ------------------------------------------------------------------------------------------------------


def test_every_row_has_its_own_coefficients_whatever_the_batch():
    whole = FITTED.interventions(Context.of(ACTS))
    for i in (0, 25, 59):
        alone = FITTED.interventions(Context((ACTS.index["example_id"][i],), ACTS))
        for one, many in zip(alone, whole, strict=True):
            torch.testing.assert_close(one.vectors[0], many.vectors[i], rtol=1e-6, atol=1e-6)
    ids = tuple(ACTS.index["example_id"])
    turned = FITTED.interventions(Context(ids[::-1], shuffled(ACTS)))
    torch.testing.assert_close(turned[0].vectors.flip(0), whole[0].vectors, rtol=1e-6, atol=1e-6)


def test_the_fit_does_not_depend_on_the_order_of_rows():
    again = AdaSteer(range(LAYERS), **READS).fit(shuffled(ACTS))
    assert torch.equal(again.rejection_, FITTED.rejection_) and torch.equal(again.c_, FITTED.c_)
    assert (
        again.rejection_schedule == FITTED.rejection_schedule
        and again.compliance_schedule == FITTED.compliance_schedule
    )


def test_asking_twice_and_for_others_in_between_changes_nothing():
    first = FITTED.coefficients(Context.of(ACTS))
    FITTED.coefficients(at(torch.randn(LAYERS, D)))
    assert all(map(torch.equal, FITTED.coefficients(Context.of(ACTS)), first))


# --- storage, layers, bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        dict(layers=range(LAYERS)),
        dict(layers=3, strength=(0.1, 1.5), restore=-2.0, benign="answer"),
        dict(layers=[Site(0), 3], rejection=Ramp(-0.01, 1.0, 0.0), compliance=Logistic(0.1, -5.0, -2.0, 0.0)),
        dict(layers=[1, 2], geometry="orthogonalized"),
    ],
    ids=["all", "one", "laws", "orthogonalized"],
)
def test_what_is_saved_answers_bit_for_bit_the_same(options, tmp_path):
    fitted = AdaSteer(**options, **READS).fit(ACTS)
    loaded = load_steerer(save(fitted, tmp_path / "ada"))
    assert (
        loaded.sites == fitted.sites
        and loaded.required_activations == fitted.required_activations
        and loaded.info_ == fitted.info_
    )
    for one, other in zip(loaded.interventions(Context.of(ACTS)), fitted.interventions(Context.of(ACTS)), strict=True):
        assert one.site == other.site and torch.equal(one.vectors, other.vectors)
    assert (
        loaded.rejection_schedule == fitted.rejection_schedule
        and loaded.compliance_schedule == fitted.compliance_schedule
    )


def test_another_layer_has_the_same_settings_and_reads_where_it_read():
    one = AdaSteer(range(LAYERS), **READS, strength=(0.0, 2.0), restore=-1.0).with_layer(3)
    assert one.sites == (Site(3),) and one.site == Site(3)
    assert one.required_activations == ALL.required_activations and (one.strength, one.restore) == ((0.0, 2.0), -1.0)
    one.fit(ACTS)
    twice = AdaSteer(range(LAYERS), **READS, strength=(0.0, 2.0), restore=-1.0).fit(ACTS)
    assert torch.equal(one.vectors(Context.of(ACTS)), twice.interventions(Context.of(ACTS))[3].vectors)


def test_one_vector_can_not_be_had_of_several_layers():
    assert not hasattr(ALL, "site") and ALL.sites == tuple(map(Site, range(LAYERS)))
    with pytest.raises(SteeringError, match=r"steers 4 layers: ask for shifts"):
        FITTED.vectors(Context.of(ACTS))


def test_classes_can_be_labeled_in_a_column_of_your_own():
    acts = acts_of(STATES, kind=["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    fitted = AdaSteer(range(LAYERS), **READS, label="kind", complied="a", rejected=("b",), benign=("c",)).fit(acts)
    assert torch.equal(fitted.rejection_, FITTED.rejection_)
    with pytest.raises(ActivationError, match="no label 'sort'"):
        AdaSteer(3, **READS, label="sort").fit(ACTS)


@pytest.mark.parametrize("name", LABELS)
def test_a_class_of_one_input_is_refused(name):
    with pytest.raises(DataError, match=rf"1 inputs have behavior in \['{name}'\], at least 2"):
        AdaSteer(3, **READS).fit(acts_of(STATES | {name: STATES[name][:1]}))


def test_classes_that_overlap_are_refused():
    with pytest.raises(DataError, match="20 inputs are both complied and rejected"):
        AdaSteer(3, **READS, complied="rejected").fit(ACTS)
    doubled = STATES | {"answer": torch.cat([STATES["answer"], STATES["complied"][:3]])}
    with pytest.raises(DataError, match=r"3 benign inputs have the same state as a complied one"):
        AdaSteer(3, **READS).fit(acts_of(doubled))


def test_a_layer_or_token_that_was_not_captured_is_refused():
    for wrong in (dict(layers=9, **READS), dict(layers=3, rejection_layer=9, harmfulness_layer=2)):
        with pytest.raises(ActivationError, match="site 9 was not captured"):
            AdaSteer(**wrong).fit(ACTS)
    with pytest.raises(ActivationError, match="last-1"):
        AdaSteer(3, **READS, position="last-1").fit(ACTS)


def test_classes_with_the_same_mean_are_refused():
    same = three()
    same["complied"] = same["complied"].round()  # so that sums are exact
    same["rejected"] = same["complied"] + torch.tensor([1.0, -1.0] * 10)[:, None, None]
    with pytest.raises(DataError, match="same place along this direction"):
        AdaSteer(3, **READS).fit(acts_of(same))
    only_here = three()
    only_here["complied"], only_here["rejected"] = STATES["complied"].clone(), STATES["rejected"].clone()
    only_here["complied"][:, 3], only_here["rejected"][:, 3] = same["complied"][:, 3], same["rejected"][:, 3]
    with pytest.raises(DataError, match=r"same mean at \['3'\]"):
        AdaSteer(range(LAYERS), **READS).fit(acts_of(only_here))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(dict(layers=[]), "at least one layer"), (dict(layers=[1, 1]), "each once"),
     (dict(layers=1, geometry="skew"), "geometry='skew'; expected 'collinear'")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong, told):
    with pytest.raises(SteeringError, match=told):
        AdaSteer(**wrong, **READS)


def test_an_unfitted_one_and_states_of_another_width_are_refused():
    with pytest.raises(ActivationError, match="not fitted"):
        ALL.interventions(Context.of(ACTS))
    with pytest.raises(MismatchError, match=r"width 7.*12"):
        FITTED.interventions(at(torch.randn(LAYERS, 7)))
    with pytest.raises(ActivationError, match="nothing was captured"):
        FITTED.interventions(Context(("a",)))


def test_directions_from_elsewhere_need_a_row_for_every_layer_and_laws():
    r, h, start = torch.randn(3, LAYERS, D)
    made = AdaSteer.from_directions(r, h, start, 3, **READS)
    with pytest.raises(ActivationError, match=r"no law of rejection yet: fit or calibrate it, or give rejection=Ramp"):
        made.interventions(at(start))
    with pytest.raises(MismatchError, match=r"none is of \['4'\]"):
        AdaSteer.from_directions(r, h, start, [3, 4], **READS)
    with pytest.raises(MismatchError, match=r"shapes \[\(4, 12\), \(4, 12\), \(3, 12\)\]"):
        AdaSteer.from_directions(r, h, start[:3], 3, **READS)


def test_if_harmfulness_is_orthogonal_everywhere_nothing_can_be_given_back():
    r, start = torch.eye(LAYERS, D), torch.zeros(LAYERS, D)
    made = AdaSteer.from_directions(r, r.roll(5, -1), start, 3, **READS, rejection=Ramp(0.0, 1.0))
    labels = {"x000": True, "x001": True, "x002": False, "x003": False}
    made.calibrate(at(*torch.randn(4, LAYERS, D)).activations, compliance=labels)
    with pytest.raises(DataError, match="orthogonal to rejection at every steered layer"):
        made.interventions(at(start))


# --- as released -----------------------------------------------------------------------------------------------

RELEASED = {
    "llama-3.1-8b-instruct": (
        lambda p: (0.02 * (p + 60)).clamp(-0.22, -0.08),
        lambda p: (-0.05 * (p + 5) - 0.5).clamp(min=-0.75),
    ),
    "qwen2.5-7b-instruct": (
        lambda p: (0.1 * (p - 140)).clamp(-0.2, 0),
        lambda p: (-0.06 * (p - 50)).clamp(-0.6, 0.4),
    ),
    "gemma-2-9b-it": (
        lambda p: (0.004 * (p - 35)).clamp(-0.02, 0.06),
        lambda p: (0.01 * (p - 50)).clamp(-0.06, 0.02),
    ),
}


def released_delta(name, rd, hd, complied, states):
    """What the release adds to each row at every layer: its own signs, float64, position by position."""
    alpha, beta = RELEASED[name]
    law = PUBLISHED_ADASTEER[name]
    rd, hd, complied, states = rd.double(), hd.double(), complied.double(), states.double()

    def position(layer: int, to: torch.Tensor) -> torch.Tensor:
        return 100 * (states[:, layer] - complied[layer]) @ to[layer] / to[layer].square().sum()

    p_r, p_h = position(law.rejection_layer, -rd), position(law.harmfulness_layer, -hd)
    second = (hd * rd).sum(-1, keepdim=True) / rd.square().sum(-1, keepdim=True) * rd
    return alpha(p_r)[:, None, None] * rd + beta(p_h)[:, None, None] * second


def as_steered(ada: AdaSteer, states: torch.Tensor) -> torch.Tensor:
    return torch.stack([shift.vectors for shift in ada.interventions(Context.of(acts_of({"x": states})))], 1)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_laws_with_signs_turned_add_what_the_release_adds(name):
    law = PUBLISHED_ADASTEER[name]
    small = PublishedAdaSteer(law.n_layers, D, law.rejection_layer, law.harmfulness_layer, law.alpha, law.beta)
    draw = torch.Generator().manual_seed(3)
    rd, hd, complied = torch.randn(3, law.n_layers, D, generator=draw)
    hd = hd + 0.4 * rd
    ways = torch.linspace(-1.5, 2.5, 41)[:, None, None]
    states = complied - ways * rd - ways.flip(0) * hd
    ada = adasteer_from_published(small, rd, hd, complied)
    expected = released_delta(name, rd, hd, complied, states)
    torch.testing.assert_close(as_steered(ada, states).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(ada.sites) == law.n_layers and ada.default_positions == "prompt"


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_laws_are_those_of_the_table(name):
    p = torch.linspace(-150, 250, 4001)
    law = PUBLISHED_ADASTEER[name]
    for ours, turned, theirs in zip(
        (law.alpha, law.beta), (law.rejection, law.compliance), RELEASED[name], strict=True
    ):
        torch.testing.assert_close(ours(p), theirs(p), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned(p), -theirs(p), atol=1e-5, rtol=1e-5)


def test_qwens_released_beta_pushes_benign_prompts_to_refusal_and_gemmas_does_not():
    benign = torch.tensor([100.0])
    assert float(PUBLISHED_ADASTEER["qwen2.5-7b-instruct"].compliance(benign)) == pytest.approx(0.6)
    assert float(PUBLISHED_ADASTEER["gemma-2-9b-it"].compliance(benign)) == pytest.approx(-0.02)


def test_arrays_of_another_model_and_unknown_models_are_refused():
    arrays = torch.randn(3, 28, D)
    with pytest.raises(MismatchError, match=r"rd has shape \(28, 12\), .* with \(28, 3584\)"):
        adasteer_from_published("qwen2.5-7b-instruct", *arrays)
    with pytest.raises(DataError, match="unknown model 'qwen'"):
        adasteer_from_published("qwen", *arrays)


# --- published arrays ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directions(tensors):
    return {k: v.float() for k, v in load_file(tensors / "refusal_vectors_all_layers.safetensors").items()}


@pytest.fixture(scope="module")
def qwen(tensors):
    return {k: v.float() for k, v in load_file(tensors / "adasteer_qwen25_7b_RD_activations.safetensors").items()}


@pytest.mark.data
def test_published_states_give_the_published_direction_and_class_means_at_0_and_100(qwen, directions):
    classes = {"complied": qwen["class_a"], "rejected": qwen["class_b"]}
    rows = {name: values.transpose(0, 1) for name, values in classes.items()}
    hd = directions["hd.qwen25-7b-instruct"]
    rows["answer"] = (
        rows["complied"] - hd + torch.randn(rows["complied"].shape, generator=torch.Generator().manual_seed(0))
    )
    fitted = AdaSteer(range(28), rejection_layer=5, harmfulness_layer=13).fit(acts_of(rows))
    assert float((fitted.rejection_ + qwen["mean_diff"]).abs().max()) < 0.081, "half precision, at norms of 1e2"
    p_r, _ = fitted.coordinates(at(rows["complied"].double().mean(0), rows["rejected"].double().mean(0)))
    assert p_r.tolist() == pytest.approx([0, 100], abs=1e-4)
    p_r, _ = fitted.coordinates(Context.of(acts_of(rows)))
    assert float(p_r[14:28].min()) > 45 and float(p_r[:14].median()) < 0


SHARES = {
    "qwen2.5-7b-instruct": ("rv.qwen2.5", "hd.qwen25-7b-instruct", {0: 0.24, 1: 0.34, 10: 0.585, 23: 0.09, 27: 0.50}),
    "gemma-2-9b-it": ("rv.gemma2", "hd.gemma2-9b-it", {5: 1.0, 40: 0.2, 8: 0.53}),
    "llama-3.1-8b-instruct": ("rv.llama3.1", "hd.llama31-8b-instruct", {6: 0.59, 14: 0.08, 15: -0.02, 26: -0.175}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", SHARES)
def test_the_published_directions_have_the_shares_that_were_measured(directions, name):
    rejection, harmfulness, expected = SHARES[name]
    rd, hd = directions[rejection], directions[harmfulness]
    ada = adasteer_from_published(name, rd, hd, torch.zeros_like(rd))
    assert {k: float(ada.c_[k]) for k in expected} == pytest.approx(expected, abs=0.02)
    peak = {"qwen2.5-7b-instruct": 10, "gemma-2-9b-it": 5, "llama-3.1-8b-instruct": 6}
    assert int(ada.c_.argmax()) == peak[name]
    assert bool(ada.ineffective_sites) == (name == "llama-3.1-8b-instruct")
    r, second = ada.rejection_.double(), ada.second.double()
    cosine = (r * second).sum(-1).abs() / (r.norm(dim=-1) * second.norm(dim=-1))
    assert float((1 - cosine.square()).clamp(min=0).sqrt().max()) < 1e-6
    rest = ((ada.harmfulness_.double() - second) * r).sum(-1) / (r.norm(dim=-1) * ada.harmfulness_.norm(dim=-1))
    assert float(rest.abs().max()) < 1e-6


@pytest.mark.data
def test_on_published_states_the_steerer_adds_what_the_release_adds(qwen, directions):
    name = "qwen2.5-7b-instruct"
    rd, hd, complied = qwen["mean_diff"], directions["hd.qwen25-7b-instruct"], qwen["class_a"].mean(1)
    states = torch.cat([qwen["class_a"], qwen["class_b"]], 1).transpose(0, 1)
    ada = adasteer_from_published(name, rd, hd, complied)
    found, expected = as_steered(ada, states).double(), released_delta(name, rd, hd, complied, states)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
