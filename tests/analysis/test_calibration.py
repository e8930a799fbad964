"""The strength at a given distance from the unsteered model."""

import plain
import pytest
import torch

from steerlab import L2S, Contrast, Example, Request, SteeringVector, capture, generate
from steerlab.analysis import _dose
from steerlab.analysis.calibration import calibrate_strength, find_breaking_norm_ratio, measure_dose
from steerlab.errors import DataError, SteeringError
from steerlab.methods import Gated, LinearProbe, Operation, Prompt
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.metrics import is_fluent
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
V = torch.randn(32, generator=torch.Generator().manual_seed(3))
NEW = 6


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_lm("llama")


@torch.no_grad()
def by_hand(model: Model, alpha: float, quantile: float) -> float:
    """The quantile over all tokens, from plain forwards of one row at a time with a plain hook."""
    answers, found = generate(model, PROMPTS, max_new_tokens=NEW, progress=False), []
    for prompt, new in zip(PROMPTS, answers.ids, strict=True):
        (ids, n), logprobs = plain.chat_ids(model, prompt), []
        for strength in (alpha, 0.0):
            with plain.hooked(model, 1, lambda h, strength=strength: h + strength * V):
                logprobs.append(plain.logits(model, [*ids, *new])[n - 1 : -1].double().log_softmax(-1))
        found.append((logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1))
    return float(torch.cat(found).quantile(quantile))


@pytest.mark.parametrize(("kl", "quantile"), [(0.01, 0.95), (0.05, 0.5)])
def test_calibrated_strength_has_the_distance_by_hand(model: Model, kl: float, quantile: float) -> None:
    options = {"kl": kl, "quantile": quantile, "max_new_tokens": NEW, "batch_size": 2}
    found = calibrate_strength(model, PROMPTS, SteeringVector({1: V}), **options)
    assert found.kl == pytest.approx(by_hand(model, found.alpha, quantile), rel=1e-3)
    assert found.kl <= kl < by_hand(model, 1.03 * found.alpha, quantile)
    del options["kl"]
    dose = measure_dose(model, PROMPTS, Request(SteeringVector({1: V}), found.alpha), **options)
    assert dose.kl == pytest.approx(found.kl, rel=1e-6)
    curve = found.curve.set_index("alpha")
    assert dose.norm_ratio == pytest.approx(curve.loc[found.alpha, "norm_ratio"], rel=1e-6)
    assert curve.loc[found.alpha, "kl"] == found.kl and len(curve) > 5
    ratios = curve["norm_ratio"] / curve.index
    assert ratios.max() == pytest.approx(ratios.min(), rel=1e-4), "the ratio grows with alpha"


def test_vectors_of_each_input_and_operators_are_calibrated(model: Model) -> None:
    pairs = [Example(p, Contrast("No, never.", "Yes, sure"), behavior="b") for p in PROMPTS]
    acts = capture(model, pairs, layers=[1], progress=False)
    config = TrainingConfig(epochs=4, learning_rate=1e-2, loss="mse")
    for steerer in (
        L2S(1, hidden_units=3, config=config, progress=False).fit(acts), Operation({1: V}, "replace", first=2),
    ):  # fmt: skip
        assert 0.0028 < calibrate_strength(model, pairs, steerer, kl=0.003, max_new_tokens=NEW).kl <= 0.003


def test_unsteered_model_is_run_once_for_all_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, edited = tiny_lm("llama"), []
    assert model.supports_prefix_cache, "the trial of shortcuts, which runs the unsteered model as well, is made first"
    logits = model.engine.logits
    monkeypatch.setattr(
        model.engine, "logits", lambda inputs, edits, *a: edited.append(bool(edits)) or logits(inputs, edits, *a)
    )
    options = {"kl": 0.01, "max_new_tokens": NEW, "batch_size": 2}
    found = calibrate_strength(model, PROMPTS, SteeringVector({1: V}), **options)
    assert edited.count(False) == 2 and edited.count(True) == 2 * len(found.curve)
    monkeypatch.setattr(_dose, "KEPT", 0)
    again = calibrate_strength(model, PROMPTS, SteeringVector({1: V}), **options)
    assert again.curve.equals(found.curve) and edited.count(False) == 2 + 2 * len(found.curve)


def test_budget_that_no_strength_reaches_is_refused(model: Model) -> None:
    with pytest.raises(SteeringError, match=r"reaches a distance of 50 nats: at alpha 1, the strongest that its oper"):
        calibrate_strength(model, PROMPTS, Operation({1: V}, "rotate"), kl=50.0, max_new_tokens=NEW)
    with pytest.raises(SteeringError, match=r"reaches a distance of 50 nats: at alpha 65536, the strongest that was"):
        calibrate_strength(model, PROMPTS, SteeringVector({1: V}), kl=50.0, max_new_tokens=NEW)
    with pytest.raises(SteeringError, match=r"even at alpha 1.52588e-05 the distance is"):
        calibrate_strength(model, PROMPTS, SteeringVector({1: 1e6 * V}), kl=1e-3, max_new_tokens=NEW)
    probe = LinearProbe(1)
    probe.w_, probe.b_, probe.threshold_ = torch.zeros(32), 0.0, 0.9
    with pytest.raises(SteeringError, match="gated steeringvector changes none of these inputs"):
        calibrate_strength(model, PROMPTS, Gated({1: V}, probe), max_new_tokens=NEW)
    with pytest.raises(DataError, match=r"quantile=2\.0"):
        calibrate_strength(model, PROMPTS, SteeringVector({1: V}), quantile=2.0)


def test_changed_prompts_have_no_dose(model: Model) -> None:
    with pytest.raises(SteeringError, match="a steerer that changes the prompt has no dose"):
        measure_dose(model, PROMPTS, [Prompt("Be brief."), SteeringVector({1: V})])
    assert measure_dose(model, PROMPTS, SteeringVector({1: V}), positions=slice(0, 1), max_new_tokens=3).kl > 0


def test_texts_past_the_dose_that_broke_them_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    model, vector = tiny_lm("llama"), SteeringVector({1: V})
    options = {"max_new_tokens": 24, "positions": "last+generated"}
    tried = find_breaking_norm_ratio(model, PROMPTS, vector, max_perplexity=1e9, **options).set_index("alpha")
    broken = tried[tried["fluent"] < 0.5]
    assert model.breaking_norm_ratio == broken["norm_ratio"].min() and len(broken) >= 1
    for alpha, row in tried.iterrows():
        model.breaking_norm_ratio, known = None, model.breaking_norm_ratio
        texts = generate(model, PROMPTS, steer=vector, alpha=alpha, **options)
        assert sum(map(is_fluent, texts)) / 3 == row["fluent"] and texts.norm_ratio == row["norm_ratio"]
        model.breaking_norm_ratio = known
    gentle, strong = tried[tried["fluent"] >= 0.5].index.max(), broken.index.min()
    assert strong / gentle <= 1.1 * 1.01
    generate(model, PROMPTS, steer=vector, alpha=gentle / 2, **options)
    assert not [w for w in recwarn if "broke" in str(w.message)], "neither while it is measured nor below it"
    with pytest.warns(UserWarning, match=r"the norm ratio is \d.\d\d, and from \d.\d\d on texts of tiny-llama broke"):
        generate(model, PROMPTS, steer=vector, alpha=strong, **options)


def test_two_steerers_at_one_state_are_one_dose() -> None:
    model, options = tiny_lm("llama"), {"max_new_tokens": 4, "positions": "last+generated"}
    once = generate(model, PROMPTS, steer=SteeringVector({1: V}), **options)
    model.breaking_norm_ratio = 1.5 * once.norm_ratio
    for twice in (SteeringVector({1: 2 * V}), [SteeringVector({1: V}), SteeringVector({1: V})]):
        with pytest.warns(UserWarning, match="broke"):
            generate(model, PROMPTS, steer=twice, **options)


def test_a_dose_that_breaks_no_text_is_refused(model: Model) -> None:
    with pytest.raises(SteeringError, match=r"at alpha 1 the share of fluent texts is 100%.*no strength between"):
        gentle = Operation(SteeringVector({1: V}), "rotate", first=1)
        find_breaking_norm_ratio(model, PROMPTS, gentle, max_new_tokens=24, max_perplexity=1e9)
    assert model.breaking_norm_ratio is None
    with pytest.raises(SteeringError, match=r"without steering 0% of these texts are fluent.*a larger max_perplexity"):
        find_breaking_norm_ratio(
            model, PROMPTS, SteeringVector({1: V}), max_new_tokens=24
        )  # a random model is never likely
    with pytest.raises(DataError, match="fluent"):
        find_breaking_norm_ratio(model, PROMPTS, SteeringVector({1: V}), fluent=2.0)
