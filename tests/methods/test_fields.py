"""Vectors that depend on each token's own state: gradient fields and spherical steering."""

import plain
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import activations, check_saved, make_acts, normal, shuffled
from torch import Tensor, nn

from steerlab import Site, generate
from steerlab.errors import ActivationError, DataError, SteeringError
from steerlab.methods import PUBLISHED_FIELDS, PUBLISHED_SPHERICAL, Context, GradientField, Spherical
from steerlab.methods.gradient import scorer_gradient, scorer_logits
from steerlab.testing import tiny_lm

SITE = Site(3)
PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")


def two_sided(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unwanted answers lie between the wanted ones, which lie on both sides: no single vector leads there."""
    side = torch.where(torch.arange(n) % 2 == 0, 4.0, -4.0)[:, None] * torch.eye(8)[0]
    return side + 0.3 * normal(n, 8, seed=seed), 0.3 * normal(n, 8, seed=seed + 1) + side / 8


def answers(wanted: Tensor, unwanted: Tensor) -> object:
    """Both answers of contrasts as activations."""
    n = len(wanted)
    return activations(
        torch.cat([wanted, unwanted])[:, None], [3], {}, example_id=[f"s{i}" for i in range(n)] * 2,
        side=["positive"] * n + ["negative"] * n, position="answer", behavior="b",
    )  # fmt: skip


def loss(field: GradientField, h: Tensor) -> Tensor:
    """Mean logit of the avoided classes minus that of the wanted ones, by a net of torch's own modules."""
    layers: list[nn.Module] = []
    for w, b in field.weights_:
        linear = nn.Linear(w.shape[1], w.shape[0])
        linear.load_state_dict({"weight": w, "bias": b})
        layers += [linear, nn.ReLU()]
    logits = nn.Sequential(*layers[:-1])(h)
    wanted = torch.tensor([not name.startswith("not ") for name in field.classes_])
    return logits[..., ~wanted].mean(-1) - logits[..., wanted].mean(-1)


def test_field_is_independent_of_the_order_of_rows_and_needs_both_answers() -> None:
    acts = make_acts(None, normal(60, 8), behaviors=["refuse", "defer"] * 30)
    field, other = (GradientField(SITE, epochs=3).fit(one) for one in (acts, shuffled(acts, 1)))
    assert torch.equal(field.logits(normal(5, 8)), other.logits(normal(5, 8)))
    with pytest.raises(DataError, match="both answers of contrasts"):
        GradientField(SITE).fit(acts.select(side="positive"))
    with pytest.raises(DataError, match="before the two answers differ"):
        GradientField(SITE).fit(make_acts(None, torch.zeros(60, 8), behaviors=["refuse", "defer"] * 30))


def test_gradient_is_that_of_autograd() -> None:
    field = GradientField(SITE, epochs=3).fit(make_acts(None, normal(60, 8), behaviors=["refuse", "defer"] * 30))
    assert field.classes_ == ("defer", "not defer", "not refuse", "refuse")
    h = normal(5, 7, 8, seed=3).requires_grad_()
    (expected,) = torch.autograd.grad(loss(field, h).sum(), h)
    torch.testing.assert_close(scorer_gradient(field.weights_, field._signs(), h.detach()), expected)
    torch.testing.assert_close(
        (scorer_logits(field.weights_, h.detach()) @ field._signs()), loss(field, h).detach(), rtol=1e-4, atol=1e-4
    )


def test_field_leads_both_ways_where_no_vector_can() -> None:
    field = GradientField(SITE, normalize=True, steps=40).fit(answers(*two_sided()))
    wanted, unwanted = two_sided(200, seed=9)
    (moved,) = (
        one.rule.operator(unwanted[:, None], torch.zeros(200, 1, 8), torch.full((200, 1, 1), 0.1))[:, 0]
        for one in field.interventions(Context(()))
    )
    reached = torch.sign(moved[:, 0]) * (moved[:, 0].abs() > 2.5)
    assert (reached == torch.sign(wanted[:, 0])).float().mean() > 0.9, "each goes to the side that it is nearer to"
    assert (two_sided()[0] - two_sided()[1]).mean(0).norm() < 0.2, "the premise: the mean contrast is nothing"
    logits = field.logits(wanted)[:, field.classes_.index("b")]
    assert (logits > 0).float().mean() > 0.95 and (field.logits(unwanted)[:, 0] < 0).float().mean() > 0.95


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_steps_equal_plain_hooks_with_autograd(normalize: bool) -> None:
    model, alpha = tiny_lm("llama"), 0.7
    acts = make_acts(None, normal(40, 32), layer=1, seed=2)
    field = GradientField(1, steps=3, decay=0.5, normalize=normalize, epochs=5).fit(acts)
    field.info_ = {}
    found = generate(model, PROMPTS, steer=field, alpha=alpha, max_new_tokens=5)

    def step(h):
        h = h.detach()
        for k in range(3):
            with torch.enable_grad():
                x = h.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(field, x).sum(), x)
            h = h - alpha * 0.5**k * (gradient / gradient.norm(dim=-1, keepdim=True) if normalize else gradient)
        return h

    assert found.ids != generate(model, PROMPTS, max_new_tokens=5).ids
    with plain.hooked(model, 1, step):
        assert found.ids == tuple(plain.new_ids(model, prompt, 5) for prompt in PROMPTS)


def test_gradient_fields_are_saved_and_refuse_bad_settings(tmp_path) -> None:
    acts = make_acts(normal(20, 8, seed=5), normal(20, 8), behaviors=["refuse", "defer"] * 10)
    field = GradientField(SITE, wanted=["refuse"], avoided=["defer"], epochs=2).fit(acts)
    assert field._signs().tolist() == [1.0, 0.0, 0.0, -1.0]
    loaded = check_saved(field, tmp_path, Context.of(acts))
    step, again = (one.interventions(Context(()))[0].rule.operator for one in (field, loaded))
    assert repr(step) == repr(again) and repr(step) != repr(
        GradientField(SITE, epochs=2, seed=1).fit(acts).interventions(Context(()))[0].rule.operator
    )
    for bad in ({"wanted": ["love"]}, {"wanted": [], "avoided": []}, {"wanted": ["refuse"], "avoided": ["refuse"]}):
        with pytest.raises(DataError, match=r"name at least one class, none twice; the classes are \['defer'"):
            GradientField(SITE, **bad).fit(acts)
    for settings in PUBLISHED_FIELDS.values():
        GradientField(SITE, **settings).fit(acts)
    with pytest.raises(DataError, match=r"\['not b'\] names a behavior and the lack of another"):
        GradientField(SITE).fit(make_acts(None, normal(4, 8), behaviors=["b", "not b"] * 2))
    odd = GradientField(SITE, epochs=1).fit(make_acts(None, normal(4, 8), behaviors=["not refuse"] * 4))
    assert odd.classes_ == ("not not refuse", "not refuse") and odd._signs().tolist() == [1.0, -1.0]
    with pytest.raises(DataError, match="both answers of contrasts, which"):
        GradientField(SITE).fit(make_acts(normal(4, 8), None))
    with pytest.raises(ActivationError, match="not fitted"):
        GradientField(SITE).interventions(Context(()))
    with pytest.raises(SteeringError, match="a vector for each token's state"):
        field.vectors(Context(()))


@given(st.integers(0, 2**16), st.floats(0, 3), st.floats(-0.9, 0.9), st.floats(1, 40), st.integers(2, 6))
def test_states_that_point_away_are_turned_and_keep_their_norm(
    seed: int, alpha: float, threshold: float, concentration: float, width: int
) -> None:
    spherical = Spherical(SITE, concentration=concentration, threshold=threshold)
    spherical.fit(make_acts(None, normal(9, width, seed=seed)))
    (one,), u = spherical.interventions(Context(("a",))), spherical.vector_
    h = 3 * normal(1, 12, width, seed=seed + 1)
    after = one.rule.operator(h, u[None, None], torch.full((1, 1, 1), alpha))
    torch.testing.assert_close(after.norm(dim=-1), h.norm(dim=-1), rtol=1e-5, atol=1e-5)
    for before, now in zip(h[0].double(), after[0].double(), strict=True):
        cosine = float(before @ u.double() / before.norm())
        towards, away = torch.tensor([concentration * cosine, -concentration * cosine]).double().softmax(0)
        share = min(max(alpha * (float(away - towards) - threshold) / (1 - threshold), 0.0), 1.0)
        if share == 0:
            assert torch.equal(before, now)
            continue
        angles = [torch.arccos((x @ u.double() / x.norm()).clamp(-1, 1)) for x in (before, now)]
        assert float(angles[1]) == pytest.approx((1 - share) * float(angles[0]), abs=2e-3)


def test_spherical_steering_is_saved_has_a_unit_direction_and_the_published_settings(tmp_path) -> None:
    acts = make_acts(normal(6, 8, seed=5), 3 * normal(6, 8))
    spherical = Spherical(SITE, concentration=5.0, threshold=0.2).fit(acts)
    assert float(spherical.vector_.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(
        spherical.vector_, torch.nn.functional.normalize(acts.contrast(3)[1].mean(0), dim=0), rtol=1e-5, atol=1e-6
    )
    loaded = check_saved(spherical, tmp_path, Context.of(acts))
    assert loaded.interventions(Context(()))[0].rule == spherical.interventions(Context(()))[0].rule
    for settings in PUBLISHED_SPHERICAL.values():
        Spherical(**{name: value for name, value in settings.items() if name != "alpha"})
    model, at = tiny_lm("llama"), Spherical(1, threshold=0.99).fit(make_acts(None, normal(6, 32), layer=1))
    at.info_ = {}
    with pytest.raises(SteeringError, match="strength -1 by RotateWhereAway, which takes 0 to inf"):
        generate(model, PROMPTS, steer=at, alpha=-1.0)
    with pytest.raises(DataError, match="no common direction"):
        Spherical(SITE).fit(make_acts(None, torch.stack([torch.ones(8), -torch.ones(8)])))
    for other in (-spherical, spherical.part(3)):
        assert other.interventions(Context(("a",)))[0].rule == spherical.interventions(Context(("a",)))[0].rule
    assert torch.equal((-spherical).vector_, -spherical.vector_)
    with pytest.raises(SteeringError, match="directions of a Spherical are not added"):
        spherical + spherical
    with pytest.raises(DataError, match="threshold=1"):
        Spherical(SITE, threshold=1.0)
