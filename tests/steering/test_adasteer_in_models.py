"""AdaSteer in tiny models, against two plain Hugging Face forwards per row."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import plain
import pytest
import torch
from fitted import HIDDEN, PROMPTS, make_lm
from torch import Tensor

from steerlab import (
    Contrast,
    Example,
    LayoutError,
    MeanDifference,
    MismatchError,
    capture,
    generate,
    score,
    steer,
    sweep,
)
from steerlab.capture.rows import as_examples
from steerlab.methods.adasteer.schedules import Ramp
from steerlab.methods.adasteer.steerer import AdaSteer
from steerlab.methods.base import Context
from steerlab.models.sites import Site
from steerlab.steering.interventions import Request, build_edits, resolve_interventions

pytestmark = pytest.mark.filterwarnings("ignore:AdaSteer")  # classes of a random model lie anyhow
STEPS, ALPHA = 6, 3.0
ANSWERS = ("the reeds", "no", "fish by night")
WORDS = {
    "complied": ("Sure, tell all", "How to do it?", "Write the thing", "And the steps"),
    "rejected": ("No way", "I will not!", "Never ask that", "Stop it now"),
    "answer": ("What is rain?", "Name a bird", "Is it late?", "Two and two"),
}
EXAMPLES = [Example(f"{kind}{i}", text, kind) for kind, texts in WORDS.items() for i, text in enumerate(texts)]
# steep enough for different coefficients of every prompt
SCHEDULES = dict(rejection=Ramp(-0.02, 1.0, -2.0, 3.0), compliance=Ramp(0.02, -1.0, -3.0, 2.0))
engines = pytest.mark.parametrize(
    ("family", "backend"), [("llama", "nnsight"), ("llama", "hooks"), ("gemma2", "nnsight")]
)


@cache
def make_ada(family: str, layers: tuple[int, ...], rejection_layer: int, harmfulness_layer: int) -> AdaSteer:
    acts = capture(make_lm(family, "hooks"), EXAMPLES, progress=False)
    made = AdaSteer(layers, rejection_layer=rejection_layer, harmfulness_layer=harmfulness_layer, **SCHEDULES)
    return made.fit(acts)


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


def two_passes(model, ada: AdaSteer, prompt: str) -> list:
    """Hooks that add, to the prompt alone, what a pass without any hook says."""
    ids, n = plain.chat_ids(model, prompt)
    states = plain.hidden(model, ids)
    at_r, at_h = (states[read.site.layer][n - 1] for read in ada.required_activations)
    return [
        plain.hooked(model, site.layer, plain.adding(by_hand(ada, at_r, at_h, site.layer), range(n)))
        for site in ada.sites
    ]


def one_pass(model, ada: AdaSteer, prompt: str) -> list:
    """Hooks that read and add in the very same forward."""
    n, seen = plain.chat_ids(model, prompt)[1], {}

    def reading(k: int):
        def look(h: Tensor) -> Tensor:
            seen[k] = h[0, n - 1].clone()
            return h

        return plain.hooked(model, k, look)

    def adding(k: int):
        return plain.hooked(
            model,
            k,
            lambda h: plain.adding(by_hand(ada, *(seen[r.site.layer] for r in ada.required_activations), k), range(n))(
                h
            ),
        )

    return [
        *(reading(k) for k in {read.site.layer for read in ada.required_activations}),
        *(adding(s.layer) for s in ada.sites),
    ]


def spoken(model, prompt: str, hooks: list, answer: str) -> tuple[tuple[int, ...], float]:
    """Greedy ids and an answer's log-probability under hooks, the whole row recomputed at every step."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        return plain.new_ids(model, prompt, STEPS), plain.answer_logprob(model, prompt, answer)


def check(model, ada: AdaSteer, hooks) -> None:
    options = dict(steer=ada, alpha=ALPHA, max_new_tokens=STEPS)
    said, again = generate(model, PROMPTS, **options), generate(model, PROMPTS, use_cache=False, **options)
    found = score(model, PROMPTS, ANSWERS, steer=ada, alpha=ALPHA)
    columns = sum(plain.chat_ids(model, prompt)[1] for prompt in PROMPTS)
    assert said.ids == again.ids and said.steered_tokens == again.steered_tokens == len(ada.sites) * columns
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, logprob = spoken(model, prompt, hooks(model, ada, prompt), answer)
        assert said.ids[i] == ids and found["logprob"][i] == pytest.approx(logprob, abs=1e-3)


@engines
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1,)], ids=["everywhere", "below the reading layers"])
def test_steering_equals_two_plain_passes_and_steers_the_prompt_only(family, backend, layers) -> None:
    check(make_lm(family, backend), make_ada(family, layers, 1, 2), two_passes)


@engines
def test_steering_above_the_reading_layers_equals_one_plain_pass(family, backend) -> None:
    check(make_lm(family, backend), make_ada(family, (2, 3), 0, 1), one_pass)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_coordinates_are_read_from_the_unsteered_prompt(backend: str) -> None:
    model, ada = make_lm("llama", backend), make_ada("llama", (2, 3), 0, 1)
    vector = 4 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(7))
    outer = MeanDifference.from_tensor(0, vector)
    with steer(model, outer, positions="prompt"), steer(model, ada, alpha=ALPHA) as run:
        found = run.score(PROMPTS, ANSWERS)["logprob"]
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        below = plain.adding(vector, range(plain.chat_ids(model, prompt)[1]))
        two = spoken(model, prompt, [*two_passes(model, ada, prompt), plain.hooked(model, 0, below)], answer)[1]
        one = spoken(model, prompt, [plain.hooked(model, 0, below), *one_pass(model, ada, prompt)], answer)[1]
        assert found[i] == pytest.approx(two, abs=1e-3) and abs(two - one) > 1e-2, "one pass reads what was steered"


def test_coefficients_of_a_prompt_are_independent_of_its_batch() -> None:
    model, ada = make_lm(), make_ada("llama", (0, 1, 2, 3), 1, 2)
    acts = capture(model, PROMPTS, layers=[1, 2], progress=False)
    alpha, beta = ada.coefficients(Context.of(acts))
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


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_beams_and_sequences_share_the_coefficients_of_their_row(backend: str) -> None:
    model, ada = make_lm("llama", backend), make_ada("llama", (0, 1, 2, 3), 1, 2)
    options = dict(steer=ada, alpha=ALPHA, max_new_tokens=STEPS, num_beams=3, num_return_sequences=2)
    together = generate(model, PROMPTS, **options)
    separate = [ids for prompt in PROMPTS for ids in generate(model, [prompt], **options).ids]
    assert list(together.ids) == separate
    greedy = generate(model, PROMPTS, steer=ada, alpha=ALPHA, max_new_tokens=STEPS)
    sampled = generate(
        model, PROMPTS, steer=ada, alpha=ALPHA, max_new_tokens=STEPS, do_sample=True, top_k=1, num_return_sequences=3
    )
    assert sampled.ids == tuple(ids for ids in greedy.ids for _ in range(3))


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_independent_of_the_padding_side(side: str) -> None:
    model, ada = make_lm("llama", "hooks"), make_ada("llama", (0, 2), 1, 2)
    acts = [capture(model, PROMPTS, layers=[1, 2], padding=s, progress=False) for s in (side, "right")]
    for one, other in zip(*(ada.coefficients(Context.of(a)) for a in acts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    prepared = resolve_interventions(model, [Request(ada, ALPHA)], as_examples(PROMPTS), 16)
    rows = [model.encode(p, answer=a, example_id=str(i)) for i, (p, a) in enumerate(zip(PROMPTS, ANSWERS, strict=True))]
    together = model.batch(rows, side)
    sites = [Site(k) for k in range(model.n_layers)]

    def states(batch, numbers) -> Tensor:
        plan = build_edits(model, prepared, batch, numbers)
        return model.engine.capture_states(model.inputs(batch), plan, sites, lambda h: h.clone())

    found = states(together, range(len(rows)))
    for i, row in enumerate(rows):
        here = found[i, :, together.offsets[i] :][:, : len(row)]
        torch.testing.assert_close(here, states(model.batch([row]), [i])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_zero_coefficients_change_nothing(backend: str) -> None:
    model, none = make_lm("llama", backend), Ramp(0.0, 0.0)
    ada = AdaSteer(range(4), rejection_layer=1, harmfulness_layer=2, rejection=none, compliance=none)
    ada.fit(capture(model, EXAMPLES, progress=False))
    before = score(model, PROMPTS, ANSWERS)["logprob"].tolist()
    assert score(model, PROMPTS, ANSWERS, steer=ada, alpha=ALPHA)["logprob"].tolist() == before
    assert (
        score(model, PROMPTS, ANSWERS, steer=make_ada("llama", (0, 1), 1, 2), alpha=0.0)["logprob"].tolist() == before
    )
    assert generate(model, PROMPTS, steer=ada, max_new_tokens=3).ids == generate(model, PROMPTS, max_new_tokens=3).ids


def test_sweep_over_layers_equals_score() -> None:
    model = make_lm("llama", "hooks")
    rows = [Example(f"q{i}", p, "b", Contrast("A", "B")) for i, p in enumerate(PROMPTS)]
    prototype = AdaSteer(range(4), rejection_layer=0, harmfulness_layer=1, **SCHEDULES)
    frame = sweep(
        model, prototype, rows, layers=[2, 3], alphas=[0.0, ALPHA], positions="prompt", train=EXAMPLES, progress=False
    )
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
