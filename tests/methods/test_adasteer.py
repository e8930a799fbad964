"""AdaSteer: coordinates, vectors, schedules, rows, errors, and the released numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic_acts import activations, check_saved, normal, shuffled
from torch import Tensor

from steerlab import Activations, Site
from steerlab.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.methods import PUBLISHED_ADASTEER, AdaSteer, Context, Logistic, Ramp
from steerlab.methods.adasteer.fit import Coordinate

pytestmark = pytest.mark.filterwarnings("ignore:AdaSteer")  # random classes may be placed badly; two tests check that
D, LAYERS = 12, 4
LABELS = ("complied", "rejected", "answer")
READS = dict(rejection_layer=1, harmfulness_layer=2)
ALL = AdaSteer(range(LAYERS), **READS)


def acts_of(states: dict[str, Tensor], **columns) -> Activations:
    """`(row, layer, hidden)` states of each class as prompt rows read at their last token."""
    ids, behaviors = zip(*((f"{name}{i:03d}", name) for name in states for i in range(len(states[name]))), strict=True)
    values = torch.cat(list(states.values()))
    return activations(values, range(values.shape[1]), {"model": "tiny"}, example_id=ids, behavior=behaviors, **columns)


def three(seed: int = 0, n: int = 20, c: float = 0.5, noise: float = 0.3, drift: float = 3.0) -> dict[str, Tensor]:
    """Three classes whose harmfulness is `c` times rejection plus `drift` times an orthogonal direction."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(LAYERS, D, generator=draw) * 5
    pair = torch.linalg.qr(torch.randn(LAYERS, D, 2, generator=draw)).Q
    rejection, other = 4 * pair[..., 0], pair[..., 1]
    means = {"complied": start, "rejected": start + rejection, "answer": start + c * rejection + drift * other}
    return {k: m + noise * torch.randn(n, LAYERS, D, generator=draw) for k, m in means.items()}


STATES = three()
ACTS = acts_of(STATES)
FITTED = AdaSteer(range(LAYERS), **READS).fit(ACTS)
MEANS = {name: values.double().mean(0) for name, values in STATES.items()}
EVERYTHING = Context.of(ACTS)


def at(*rows: Tensor) -> Context:
    """A context of `(layer, hidden)` states."""
    return Context.of(acts_of({"x": torch.stack(rows)}))


def vectors_of(ada: AdaSteer, context: Context) -> Tensor:
    """What is added at all layers, `(row, layer, hidden)`."""
    return torch.stack([one.gate[:, None] * one.vectors for one in ada.interventions(context)], 1)


@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.01, 2))
def test_coordinates_of_class_means_are_0_and_100(seed, n, noise):
    states = three(seed, n, noise=noise)
    fitted = AdaSteer(3, **READS).fit(acts_of(states))
    p_r, p_h = (p.reshape(3, n).mean(1).tolist() for p in fitted.coordinates(Context.of(acts_of(states))))
    assert (p_r[:2], p_h[::2]) == (pytest.approx([0, 100], abs=1e-4), pytest.approx([0, 100], abs=1e-4))
    assert fitted.benign_coordinate_ == pytest.approx(p_r[2], abs=1e-3)


@given(st.integers(0, 10_000), st.floats(-1e2, 1e2))
def test_coordinate_ignores_components_orthogonal_to_the_direction(seed, size):
    start, way, extra, *states = torch.randn(8, D, generator=torch.Generator().manual_seed(seed)).double()
    states, p = torch.stack(states), Coordinate(start, way)
    orthogonal = extra - (extra @ way) / (way @ way) * way
    torch.testing.assert_close(p(states + size * orthogonal), p(states), rtol=1e-4, atol=1e-2)
    expected = 100 * (states - start) @ way / way.square().sum()
    torch.testing.assert_close(p(states), expected.float(), rtol=1e-5, atol=1e-4)


def test_directions_are_differences_of_class_means():
    rejection, harmfulness = MEANS["rejected"] - MEANS["complied"], MEANS["answer"] - MEANS["complied"]
    torch.testing.assert_close(FITTED.rejection_, rejection.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(FITTED.harmfulness_, harmfulness.float(), rtol=1e-5, atol=1e-5)
    c = (rejection * harmfulness).sum(-1) / rejection.square().sum(-1)
    torch.testing.assert_close(FITTED.c_, c.float(), rtol=1e-5, atol=1e-5)
    negated = AdaSteer.from_directions(
        -rejection, -harmfulness, MEANS["complied"], range(LAYERS), **READS, rejection=Ramp(0.0, 1.0)
    )
    torch.testing.assert_close(negated.c_, FITTED.c_)


def check_projection(ada: AdaSteer) -> None:
    """Restoring vectors are along rejection, and what they leave of harmfulness is orthogonal to it."""
    unit, restoring = torch.nn.functional.normalize(ada.rejection_.double(), dim=-1), ada.restoring_vectors.double()
    beside = restoring - (restoring * unit).sum(-1, keepdim=True) * unit
    assert float((beside.norm(dim=-1) / restoring.norm(dim=-1)).max()) < 1e-6
    left = ((ada.harmfulness_.double() - restoring) * unit).sum(-1)
    assert float((left / ada.harmfulness_.norm(dim=-1)).abs().max()) < 1e-6


@given(st.integers(0, 10_000), st.floats(0.1, 2))
def test_restoring_vectors_are_the_projection_of_harmfulness_on_rejection(seed, c):
    check_projection(AdaSteer(range(LAYERS), **READS).fit(acts_of(three(seed, c=c))))


def test_interventions_are_alpha_rejection_plus_beta_restoring():
    alpha, beta = FITTED.coefficients(EVERYTHING)
    found = FITTED.interventions(EVERYTHING)
    assert [one.site for one in found] == list(FITTED.sites) == [Site(k) for k in range(LAYERS)]
    for k, one in enumerate(found):
        expected = (alpha + beta * FITTED.c_[k])[:, None] * FITTED.rejection_[k]
        # the coefficients are gates: a vector scaled to the state's norm keeps them
        torch.testing.assert_close(one.gate[:, None] * one.vectors, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(one.vectors, FITTED.rejection_[k].expand_as(one.vectors))
        assert one.vectors.dtype == torch.float32 and one.positions is None
    assert AdaSteer.default_positions == "prompt"


def test_default_schedules_move_complied_by_one_rejection_and_benign_by_none():
    for layer in range(LAYERS):
        fitted = AdaSteer(layer, **READS).fit(ACTS)
        moved = fitted.vectors(at(*(MEANS[name] for name in LABELS))) @ fitted.rejection_[0]
        complied, rejected, benign = (moved / fitted.rejection_[0].square().sum()).tolist()
        assert 0.85 < complied < 1 and abs(benign) < 0.1 and abs(rejected) < 0.3


@given(st.integers(0, 10_000), st.floats(0.2, 1.2), st.floats(0.3, 2))
def test_restore_cancels_the_rejection_of_the_mean_benign_prompt_at_one_layer(seed, c, strong):
    fitted = AdaSteer(3, **READS, strength=(0.0, strong)).fit(acts_of(three(seed, c=c)))
    push = float(fitted.rejection_schedule(torch.tensor([fitted.benign_coordinate_])))
    schedule = fitted.compliance_schedule
    assert schedule.high == 0 and push + schedule.low * float(fitted.c_[0]) == pytest.approx(0, abs=1e-5)


def from_directions(c: Tensor, other: Tensor, push: float) -> AdaSteer:
    """A steerer of every layer with given c, whose rejection is constant, calibrated for compliance."""
    rejection, options = torch.eye(LAYERS, D), dict(**READS, rejection=Ramp(0.0, push))
    to_benign = c[:, None] * rejection + other
    made = AdaSteer.from_directions(rejection, to_benign, torch.zeros(LAYERS, D), range(LAYERS), **options)
    return made.calibrate(at(*normal(4, LAYERS, D)), compliance={f"x00{i}": i < 2 for i in range(4)})


def test_restore_over_several_layers_is_the_least_squares_solution():
    made = from_directions(torch.tensor([0.2, 0.5, 0.6, 0.9]), torch.ones(D), 0.7)
    left = [float((0.7 + beta * made.c_).square().sum()) for beta in torch.linspace(-2, 1, 3001)]
    assert made.compliance_schedule.low == pytest.approx(-2 + 0.001 * min(range(3001), key=left.__getitem__), abs=1e-3)


def test_restore_is_refused_if_harmfulness_is_orthogonal_to_rejection_everywhere():
    made = from_directions(torch.zeros(LAYERS), torch.eye(LAYERS, D).roll(5, -1), 1.0)
    with pytest.raises(DataError, match="orthogonal to rejection at every steered layer"):
        made.interventions(at(torch.zeros(LAYERS, D)))


@given(st.integers(0, 10_000), st.floats(-1, 1), st.floats(0, 2), st.floats(-2, 2))
def test_fitted_schedules_are_monotone_and_bounded(seed, weak, more, restore):
    fitted = AdaSteer(3, **READS, strength=(weak, weak + more), restore=restore).fit(acts_of(three(seed)))
    p = torch.linspace(-300, 300, 601)
    alpha, beta = fitted.rejection_schedule(p), fitted.compliance_schedule(p)
    assert bool((alpha.diff() <= 1e-6).all()), "alpha falls with p_R"
    assert weak - 1e-6 <= float(alpha.min()) and float(alpha.max()) <= weak + more + 1e-6
    assert bool((beta.diff() * restore >= -1e-6).all()), "beta goes to restore with p_H"
    assert min(0, restore) - 1e-6 <= float(beta.min()) and float(beta.max()) <= max(0, restore) + 1e-6


def test_given_schedules_are_used_unchanged():
    given_ = dict(rejection=Ramp(-0.01, 1.0, 0.0, 1.0), compliance=Logistic(0.1, -5.0, -2.0, 0.0))
    fitted = AdaSteer((0, 3), **READS, **given_).fit(ACTS)
    p_r, p_h = fitted.coordinates(EVERYTHING)
    alpha, beta = fitted.coefficients(EVERYTHING)
    assert torch.equal(alpha, given_["rejection"](p_r)) and torch.equal(beta, given_["compliance"](p_h))
    assert not hasattr(fitted, "needs_rejection_") and not hasattr(fitted, "needs_compliance_")
    with pytest.raises(DataError, match="constructed with a rejection schedule"):
        fitted.calibrate(ACTS, rejection={"complied000": True})


def test_calibrate_joins_labels_by_id_and_updates_restore():
    fitted = AdaSteer(3, **READS).fit(ACTS)
    before = fitted.compliance_schedule
    p_r, _ = fitted.coordinates(EVERYTHING)
    needs = {example_id: bool(p < 90) for example_id, p in zip(EVERYTHING.example_ids, p_r.tolist(), strict=True)}
    first = fitted.calibrate(ACTS, rejection=needs).needs_rejection_
    assert 70 < -first.intercept / first.slope < 100
    assert fitted.compliance_schedule.low < before.low, "benign prompts get more rejection, so more is canceled"
    again = AdaSteer(3, **READS).fit(ACTS).calibrate(shuffled(ACTS), rejection=dict(reversed(needs.items())))
    assert again.needs_rejection_.slope == pytest.approx(first.slope, rel=1e-4)


def test_calibrate_without_labels_or_with_unknown_inputs_is_refused():
    fitted = AdaSteer(3, **READS).fit(ACTS)
    with pytest.raises(DataError, match="calibrate needs labels"):
        fitted.calibrate(ACTS)
    with pytest.raises(ActivationError, match="nobody"):
        fitted.calibrate(ACTS, rejection={"nobody": True})
    for bad in (math.nan, 0.3):
        with pytest.raises(DataError, match="say True or False for each input"):
            fitted.calibrate(ACTS, rejection={"answer000": bad, "answer001": True})
    with pytest.raises(DataError, match="0 do not"):
        fitted.calibrate(ACTS, compliance={"answer000": True, "answer001": True})
    fitted.info_ = {"model": "n", "weights": "v"}
    with pytest.raises(MismatchError, match="adasteer was fitted on"):
        fitted.calibrate(
            Activations(ACTS.values, ACTS.index, ACTS.sites, {"model": "m", "weights": "w"}),
            rejection={"answer000": True},
        )


def test_fit_warns_of_layers_where_beta_restores_nothing():
    states = three()
    states["answer"][:, 2] = STATES["complied"][:, 2] - 0.5 * (MEANS["rejected"] - MEANS["complied"])[2].float()
    layers = dict(rejection_layer=1, harmfulness_layer=1)
    with pytest.warns(UserWarning, match=r"AdaSteer at 2: .*or an opposite one.*Nothing was changed"):
        fitted = AdaSteer(range(LAYERS), **layers).fit(acts_of(states))
    assert fitted.ineffective_sites == (Site(2),) and float(fitted.c_[2]) == pytest.approx(-0.5, abs=1e-4)
    assert FITTED.ineffective_sites == ()


def test_fit_warns_if_the_compliance_of_rejected_prompts_is_restored():
    with pytest.warns(UserWarning, match=r"rejected harmful prompts are at p_H = 4\d\d .*calibrate"):
        AdaSteer(3, **READS).fit(acts_of(three(c=0.2, drift=0.2, noise=0.1)))
    AdaSteer(3, **READS, restore=0.0).fit(acts_of(three(c=0.2, drift=0.2)))


def test_rows_are_independent_of_batch_and_order():
    together, ids = vectors_of(FITTED, EVERYTHING), EVERYTHING.example_ids
    for i in (0, 25, 59):
        torch.testing.assert_close(vectors_of(FITTED, Context((ids[i],), ACTS))[0], together[i], rtol=1e-6, atol=1e-6)
    reversed_ = vectors_of(FITTED, Context(ids[::-1], shuffled(ACTS)))
    torch.testing.assert_close(reversed_.flip(0), together, rtol=1e-6, atol=1e-6)
    again = AdaSteer(range(LAYERS), **READS).fit(shuffled(ACTS))
    assert torch.equal(again.rejection_, FITTED.rejection_) and torch.equal(again.c_, FITTED.c_)
    assert again.rejection_schedule == FITTED.rejection_schedule
    assert again.compliance_schedule == FITTED.compliance_schedule


@pytest.mark.parametrize(
    "options",
    [
        dict(layers=range(LAYERS)),
        dict(layers=3, strength=(0.1, 1.5), restore=-2.0, benign="answer"),
        dict(layers=[Site(0), 3], rejection=Ramp(-0.01, 1.0, 0.0), compliance=Logistic(0.1, -5.0, -2.0, 0.0)),
    ],
    ids=["all", "one", "schedules"],
)
def test_saved_steerer_is_restored_exactly(options, tmp_path):
    check_saved(AdaSteer(**options, **READS).fit(ACTS), tmp_path / "ada", EVERYTHING)


def test_with_layer_keeps_settings_and_reading_layers():
    options = dict(**READS, strength=(0.0, 2.0), restore=-1.0)
    one = AdaSteer(range(LAYERS), **options).with_layer(3)
    assert one.sites == (Site(3),) and one.site == Site(3)
    assert one.required_activations == ALL.required_activations and (one.strength, one.restore) == ((0.0, 2.0), -1.0)
    every = AdaSteer(range(LAYERS), **options).fit(ACTS).interventions(EVERYTHING)
    assert torch.equal(one.fit(ACTS).vectors(EVERYTHING), every[3].gate[:, None] * every[3].vectors)
    assert not hasattr(ALL, "site") and ALL.sites == tuple(map(Site, range(LAYERS)))
    with pytest.raises(SteeringError, match=r"steers the sites 0, 1, 2, 3: call interventions"):
        FITTED.vectors(EVERYTHING)


def test_classes_can_be_labeled_in_any_column():
    acts = acts_of(STATES, kind=["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    fitted = AdaSteer(range(LAYERS), **READS, label="kind", complied="a", rejected=("b",), benign=("c",)).fit(acts)
    assert torch.equal(fitted.rejection_, FITTED.rejection_)


DOUBLED = STATES | {"answer": torch.cat([STATES["answer"], STATES["complied"][:3]])}


def with_equal_means(layers: Sequence[int]) -> Activations:
    """The three classes, with complied and rejected prompts of the same mean at some layers."""
    states = three()
    states["complied"][:, layers] = states["complied"][:, layers].round()  # so that sums are exact
    states["rejected"][:, layers] = states["complied"][:, layers] + torch.tensor([1.0, -1.0] * 10)[:, None, None]
    return acts_of(states)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda one=one: acts_of(STATES | {one: STATES[one][:1]}), rf"1 inputs .* \['{one}'\]") for one in LABELS),
        (lambda: acts_of(DOUBLED), "3 benign inputs have the same state as a complied one"),
        (lambda: with_equal_means(range(LAYERS)), "two class means are equal"),
        (lambda: with_equal_means([3]), r"same mean at \['3'\]"),
    ],
)
def test_fit_refuses_classes_that_cannot_be_compared(make, message):
    with pytest.raises(DataError, match=message):
        AdaSteer(range(LAYERS), **READS).fit(make())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(layers=[]), DataError, "at least one layer"),
        (dict(layers=[1, 1]), DataError, "each once"),
        (dict(complied="rejected"), DataError, "20 inputs are both complied and rejected"),
        (dict(label="sort"), ActivationError, "no label 'sort'"),
        (dict(layers=9), ActivationError, "site 9 was not captured"),
        (dict(rejection_layer=9), ActivationError, "site 9 was not captured"),
        (dict(position="last-1"), ActivationError, "last-1"),
    ],
)
def test_invalid_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        AdaSteer(**(dict(layers=3, **READS) | options)).fit(ACTS)


def test_unfitted_steerer_and_states_of_another_width_are_refused():
    with pytest.raises(ActivationError, match="not fitted"):
        ALL.interventions(EVERYTHING)
    with pytest.raises(MismatchError, match=r"width 7.*12"):
        FITTED.interventions(at(torch.randn(LAYERS, 7)))
    with pytest.raises(ActivationError, match="nothing was captured"):
        FITTED.interventions(Context(("a",)))


def test_from_directions_needs_a_row_per_layer_and_schedules():
    r, h, start = torch.randn(3, LAYERS, D)
    made = AdaSteer.from_directions(r, h, start, 3, **READS)
    with pytest.raises(ActivationError, match=r"no rejection schedule: fit or calibrate it, or .*rejection=Ramp"):
        made.interventions(at(start))
    with pytest.raises(MismatchError, match=r"none for \['4'\]"):
        AdaSteer.from_directions(r, h, start, [3, 4], **READS)
    with pytest.raises(MismatchError, match=r"shapes \[\(4, 12\), \(4, 12\), \(3, 12\)\]"):
        AdaSteer.from_directions(r, h, start[:3], 3, **READS)


RELEASED = {
    "llama-3.1-8b-instruct": (
        lambda p: (0.02 * (p + 60)).clamp(-0.22, -0.08),
        lambda p: (-0.05 * (p + 5) - 0.5).clamp(min=-0.75),
    ),
    "qwen2.5-7b-instruct": (lambda p: (0.1 * (p - 140)).clamp(-0.2, 0), lambda p: (-0.06 * (p - 50)).clamp(-0.6, 0.4)),
    "gemma-2-9b-it": (lambda p: (0.004 * (p - 35)).clamp(-0.02, 0.06), lambda p: (0.01 * (p - 50)).clamp(-0.06, 0.02)),
}


def released_delta(name, rd, hd, complied, states):
    """What the release adds to each row at every layer: its own signs, float64, position by position."""
    alpha, beta = RELEASED[name]
    published = PUBLISHED_ADASTEER[name]
    rd, hd, complied, states = rd.double(), hd.double(), complied.double(), states.double()

    def position(layer: int, to: Tensor) -> Tensor:
        return 100 * (states[:, layer] - complied[layer]) @ to[layer] / to[layer].square().sum()

    p_r, p_h = position(published.rejection_layer, -rd), position(published.harmfulness_layer, -hd)
    second = (hd * rd).sum(-1, keepdim=True) / rd.square().sum(-1, keepdim=True) * rd
    return alpha(p_r)[:, None, None] * rd + beta(p_h)[:, None, None] * second


@pytest.mark.parametrize("name", RELEASED)
def test_published_schedules_add_the_same_as_the_release(name):
    published = PUBLISHED_ADASTEER[name]
    rd, hd, complied = normal(3, published.n_layers, D, seed=3)
    hd = hd + 0.4 * rd
    ways = torch.linspace(-1.5, 2.5, 41)[:, None, None]
    states = complied - ways * rd - ways.flip(0) * hd
    ada = AdaSteer.from_published(replace(published, hidden_size=D), rd, hd, complied)
    expected = released_delta(name, rd, hd, complied, states)
    torch.testing.assert_close(vectors_of(ada, at(*states)).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(ada.sites) == published.n_layers and ada.default_positions == "prompt"


@pytest.mark.parametrize("name", RELEASED)
def test_published_schedules_equal_the_table(name):
    p = torch.linspace(-150, 250, 4001)
    published = PUBLISHED_ADASTEER[name]
    for found, negated, expected in zip(
        (published.alpha, published.beta), (published.rejection, published.compliance), RELEASED[name], strict=True
    ):
        torch.testing.assert_close(found(p), expected(p), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(negated(p), -expected(p), atol=1e-5, rtol=1e-5)


def test_from_published_refuses_other_arrays_and_unknown_models():
    arrays = torch.randn(3, 28, D)
    with pytest.raises(MismatchError, match=r"rd has shape \(28, 12\), .* with \(28, 3584\)"):
        AdaSteer.from_published("qwen2.5-7b-instruct", *arrays)
    with pytest.raises(DataError, match="unknown model 'qwen'"):
        AdaSteer.from_published("qwen", *arrays)


@pytest.fixture(scope="module")
def directions(tensors):
    return {k: v.float() for k, v in load_file(tensors / "refusal_vectors_all_layers.safetensors").items()}


@pytest.mark.data
def test_published_states_give_the_published_direction(qwen, directions):
    rows = {"complied": qwen["class_a"].transpose(0, 1), "rejected": qwen["class_b"].transpose(0, 1)}
    rows["answer"] = rows["complied"] - directions["hd.qwen25-7b-instruct"] + normal(*rows["complied"].shape)
    fitted = AdaSteer(range(28), rejection_layer=5, harmfulness_layer=13).fit(acts_of(rows))
    assert float((fitted.rejection_ + qwen["mean_diff"]).abs().max()) < 0.081, "half precision, at norms of 1e2"
    p_r, _ = fitted.coordinates(at(rows["complied"].double().mean(0), rows["rejected"].double().mean(0)))
    assert p_r.tolist() == pytest.approx([0, 100], abs=1e-4)
    p_r, _ = fitted.coordinates(Context.of(acts_of(rows)))
    assert float(p_r[14:28].min()) > 45 and float(p_r[:14].median()) < 0


PROJECTIONS = {
    "qwen2.5-7b-instruct": ("rv.qwen2.5", "hd.qwen25-7b-instruct", {0: 0.24, 1: 0.34, 10: 0.585, 23: 0.09, 27: 0.50}),
    "gemma-2-9b-it": ("rv.gemma2", "hd.gemma2-9b-it", {5: 1.0, 40: 0.2, 8: 0.53}),
    "llama-3.1-8b-instruct": ("rv.llama3.1", "hd.llama31-8b-instruct", {6: 0.59, 14: 0.08, 15: -0.02, 26: -0.175}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", PROJECTIONS)
def test_published_directions_have_the_measured_projections(directions, name):
    rejection, harmfulness, expected = PROJECTIONS[name]
    rd, hd = directions[rejection], directions[harmfulness]
    ada = AdaSteer.from_published(name, rd, hd, torch.zeros_like(rd))
    assert {k: float(ada.c_[k]) for k in expected} == pytest.approx(expected, abs=0.02)
    assert int(ada.c_.argmax()) == max(expected, key=expected.__getitem__)
    assert bool(ada.ineffective_sites) == (name == "llama-3.1-8b-instruct")
    check_projection(ada)


@pytest.mark.data
def test_published_states_are_steered_as_in_the_release(qwen, directions):
    name = "qwen2.5-7b-instruct"
    rd, hd, complied = qwen["mean_diff"], directions["hd.qwen25-7b-instruct"], qwen["class_a"].mean(1)
    states = torch.cat([qwen["class_a"], qwen["class_b"]], 1).transpose(0, 1)
    ada = AdaSteer.from_published(name, rd, hd, complied)
    found, expected = vectors_of(ada, at(*states)).double(), released_delta(name, rd, hd, complied, states)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
