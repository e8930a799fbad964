"""AdaSteer in tiny models, against two plain Hugging Face forwards per row."""

from functools import cache

import plain
import pytest
import torch
from comparisons import check_copies, check_hooks, check_padding
from fitted import ANSWERS, HIDDEN, PROMPTS, STEPS, backends, make_lm, sides
from torch import Tensor

from steerlab import Contrast, Example, Request, SteeringVector, capture, generate, score, steer, sweep
from steerlab.errors import LayoutError, MismatchError
from steerlab.methods.adasteer.schedules import Ramp
from steerlab.methods.adasteer.steerer import AdaSteer
from steerlab.methods.base import Context

pytestmark = pytest.mark.filterwarnings("ignore:AdaSteer")  # classes of a random model lie anyhow
ALPHA = 3.0
WORDS = {
    "complied": ("Sure, tell all", "How to do it?", "Write the thing", "And the steps"),
    "rejected": ("No way", "I will not!", "Never ask that", "Stop it now"),
    "answer": ("What is rain?", "Name a bird", "Is it late?", "Two and two"),
}
EXAMPLES = [Example(p, id=f"{kind}{i}", behavior=kind) for kind, texts in WORDS.items() for i, p in enumerate(texts)]
# steep enough for different coefficients of every prompt
SCHEDULES = dict(rejection=Ramp(-0.02, 1.0, -2.0, 3.0), compliance=Ramp(0.02, -1.0, -3.0, 2.0))
engines = pytest.mark.parametrize(
    ("family", "backend"), [("llama", "nnsight"), ("llama", "hooks"), ("gemma2", "nnsight")]
)


@cache
def make_ada(family: str, layers: tuple[int, ...], rejection_layer: int, harmfulness_layer: int) -> AdaSteer:
    acts = capture(make_lm(family, "hooks"), EXAMPLES, progress=False)
    return AdaSteer(layers, rejection_layer=rejection_layer, harmfulness_layer=harmfulness_layer, **SCHEDULES).fit(acts)


def by_hand(ada: AdaSteer, at_r: Tensor, at_h: Tensor, layer: int) -> Tensor:
    """What one row gets at a layer, from its two states, with nothing but products."""
    sites = [site.layer for site in ada.sites]
    first, second = ada.rejection_[sites.index(layer)], ada.restoring_vectors[sites.index(layer)]
    p_r, p_h = (
        100 * float((h.double() - axis.start) @ axis.direction / axis.direction.square().sum())
        for h, axis in ((at_r, ada.rejection_axis_), (at_h, ada.harmfulness_axis_))
    )
    alpha, beta = min(max(1 - 0.02 * p_r, -2), 3), min(max(0.02 * p_h - 1, -3), 2)
    return ALPHA * (alpha * first + beta * second)


def hooks_of(model, ada: AdaSteer, prompt: str, two_passes: bool) -> list:
    """Hooks that add to the prompt alone what its states say: those of a pass without hooks, or of the same forward."""
    ids, n = plain.chat_ids(model, prompt)
    reading = [read.site.layer for read in ada.required_activations]
    last = {k: h[n - 1] for k, h in enumerate(plain.hidden(model, ids))} if two_passes else {}

    def hook(layer: int):
        def change(h: Tensor) -> Tensor:
            if not two_passes and layer in reading:
                last[layer] = h[0, n - 1].clone()
            if layer not in [site.layer for site in ada.sites]:
                return h
            return plain.adding(by_hand(ada, *(last[k] for k in reading), layer), range(n))(h)

        return plain.hooked(model, layer, change)

    return [hook(layer) for layer in range(model.n_layers)]


@engines
@pytest.mark.parametrize(
    ("layers", "reading", "two_passes"),
    [((0, 1, 2, 3), (1, 2), True), ((1,), (1, 2), True), ((2, 3), (0, 1), False)],
    ids=["everywhere", "below the reading layers", "above the reading layers"],
)
def test_steering_equals_plain_passes_and_steers_the_prompt_only(family, backend, layers, reading, two_passes) -> None:
    model, ada = make_lm(family, backend), make_ada(family, layers, *reading)
    _, found, _ = check_hooks(model, Request(ada, ALPHA), lambda _, prompt: hooks_of(model, ada, prompt, two_passes))
    assert found.steered_tokens == len(layers) * sum(plain.chat_ids(model, prompt)[1] for prompt in PROMPTS)


@backends
def test_coordinates_are_read_from_the_unsteered_prompt(backend: str) -> None:
    model, ada = make_lm("llama", backend), make_ada("llama", (2, 3), 0, 1)
    vector = 4 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(7))
    with steer(model, SteeringVector({0: vector}), positions="prompt"), steer(model, ada, alpha=ALPHA) as run:
        found = run.score(PROMPTS, ANSWERS)["logprob"]
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        below = plain.adding(vector, range(plain.chat_ids(model, prompt)[1]))
        with plain.under([*hooks_of(model, ada, prompt, two_passes=True), plain.hooked(model, 0, below)]):
            two = plain.answer_logprob(model, prompt, answer)
        with plain.under([plain.hooked(model, 0, below), *hooks_of(model, ada, prompt, two_passes=False)]):
            one = plain.answer_logprob(model, prompt, answer)
        assert found[i] == pytest.approx(two, abs=1e-3) and abs(two - one) > 1e-2, "one pass reads what was steered"


def test_coefficients_of_a_prompt_are_independent_of_its_batch() -> None:
    model, ada = make_lm(), make_ada("llama", (0, 1, 2, 3), 1, 2)
    alpha, beta = ada.coefficients(Context.of(capture(model, PROMPTS, layers=[1, 2], progress=False)))
    assert len({round(a, 3) for a in alpha.tolist()}) == len({round(b, 3) for b in beta.tolist()}) == len(PROMPTS)
    options = dict(steer=ada, alpha=ALPHA, max_new_tokens=STEPS)
    whole = generate(model, PROMPTS, **options)
    assert whole.ids != generate(model, PROMPTS, max_new_tokens=STEPS).ids
    for size in (1, 2):
        assert generate(model, PROMPTS, batch_size=size, **options).ids == whole.ids
    with steer(model, ada, alpha=ALPHA) as run:  # nothing of one batch is left for the next
        for prompts in (PROMPTS[::-1], PROMPTS[1:], PROMPTS):
            expected = [whole.ids[PROMPTS.index(prompt)] for prompt in prompts]
            assert list(run.generate(prompts, max_new_tokens=STEPS).ids) == expected
    assert generate(model, PROMPTS, **options).ids == whole.ids


@backends
def test_beams_and_sequences_share_the_coefficients_of_their_row(backend: str) -> None:
    model, ada = make_lm("llama", backend), make_ada("llama", (0, 1, 2, 3), 1, 2)
    check_copies(model, Request(ada, ALPHA))


@sides
def test_states_are_independent_of_the_padding_side(side: str) -> None:
    model, ada = make_lm("llama", "hooks"), make_ada("llama", (0, 2), 1, 2)
    acts = [capture(model, PROMPTS, layers=[1, 2], padding=s, progress=False) for s in ("left", "right")]
    for one, other in zip(*(ada.coefficients(Context.of(a)) for a in acts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    check_padding(model, Request(ada, ALPHA), side)


@backends
def test_zero_coefficients_change_nothing(backend: str) -> None:
    model, none = make_lm("llama", backend), Ramp(0.0, 0.0)
    ada = AdaSteer(range(4), rejection_layer=1, harmfulness_layer=2, rejection=none, compliance=none)
    ada.fit(capture(model, EXAMPLES, progress=False))
    before = score(model, PROMPTS, ANSWERS)
    assert score(model, PROMPTS, ANSWERS, steer=ada, alpha=ALPHA)["logprob"].equals(before["logprob"])
    assert generate(model, PROMPTS, steer=ada, max_new_tokens=3).ids == generate(model, PROMPTS, max_new_tokens=3).ids


def test_sweep_over_layers_equals_score() -> None:
    model = make_lm("llama", "hooks")
    rows = [Example(p, id=f"q{i}", behavior="b", contrast=Contrast("A", "B")) for i, p in enumerate(PROMPTS)]
    prototype = AdaSteer(range(4), rejection_layer=0, harmfulness_layer=1, **SCHEDULES)
    options = dict(layers=[2, 3], alphas=[0.0, ALPHA], positions="prompt", train=EXAMPLES, progress=False)
    frame = sweep(model, rows, prototype, **options)
    wide = frame.pivot_table(index="example_id", columns=["layer", "alpha"], values="value")
    for layer in (2, 3):
        one = make_ada("llama", (layer,), 0, 1)
        scores = [score(model, rows, [a] * 3, steer=one, alpha=ALPHA)["logprob"] for a in ("A", "B")]
        assert wide[layer, ALPHA].tolist() == pytest.approx((scores[0] - scores[1]).tolist(), abs=1e-3)


def test_missing_reading_layer_and_other_model_are_refused() -> None:
    model, ada = make_lm("llama", "hooks"), make_ada("llama", (2,), 0, 1)
    r, h, start = torch.randn(3, 9, HIDDEN)
    beyond = AdaSteer.from_directions(r, h, start, 2, rejection_layer=1, harmfulness_layer=4, **SCHEDULES)
    with pytest.raises(LayoutError, match="layer 4 does not exist: the model has 4"):
        generate(model, PROMPTS, steer=beyond)
    with pytest.raises(MismatchError, match="fitted on a model"):
        generate(make_lm("qwen2", "hooks"), PROMPTS, steer=ada)
