"""Single tokens of a prompt, counted from its end ("last-2") or from its beginning ("prompt[3]")."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerlab import Contrast, Example, MeanDifference, PositionError, capture, generate, score
from steerlab.models.encoded_prompt import EncodedPrompt
from steerlab.models.layout import blocks
from steerlab.models.positions import describe, includes_generated, resolve

LAYER = 1
PROMPTS = ("Do herons sleep in the reeds?", "Hi", "Is it cold by night?")
ANSWER = "Yes"


def row_of(n_prompt: int, n_answer: int) -> EncodedPrompt:
    n = n_prompt + n_answer
    return EncodedPrompt(tuple(range(n)), (), n_prompt, "x" * n, tuple((i, i + 1) for i in range(n)))


lengths = (st.integers(1, 30), st.integers(0, 10), st.integers(0, 45))


@given(*lengths)
def test_last_k_is_the_prompts_token_k_before_its_last_or_none(n_prompt: int, n_answer: int, k: int) -> None:
    found = resolve(f"last-{k}", row_of(n_prompt, n_answer))
    assert found == ([range(n_prompt)[-1 - k]] if k < n_prompt else [])


@given(*lengths)
def test_prompt_k_is_the_prompts_token_k_and_never_an_answers(n_prompt: int, n_answer: int, k: int) -> None:
    assert resolve(f"prompt[{k}]", row_of(n_prompt, n_answer)) == list(range(n_prompt))[k : k + 1]


@given(st.integers(1, 30), st.integers(0, 10), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_unions_are_the_sets_of_their_tokens_ascending(n_prompt: int, n_answer: int, ks: list[int]) -> None:
    row = row_of(n_prompt, n_answer)
    ends, starts = ("+".join(form.format(k) for k in ks) for form in ("last-{}", "prompt[{}]"))
    assert resolve(ends, row) == sorted({n_prompt - 1 - k for k in ks if k < n_prompt})
    assert resolve(starts, row) == sorted({k for k in ks if k < n_prompt})
    assert resolve(f"last+{ends}+{starts}", row) == sorted({n_prompt - 1, *resolve(ends, row), *resolve(starts, row)})


@pytest.mark.parametrize("name", ["last-2", "prompt[2]", "last-1+last", "prompt[0]+last"])
def test_they_mean_no_token_to_come_and_are_called_by_their_names(name: str) -> None:
    assert not includes_generated(name) and describe(name) == name
    assert includes_generated(f"{name}+generated")


@pytest.mark.parametrize("name", ["last-", "last--1", "last-x", "last-1.5", "prompt[]", "prompt[-1]", "prompt[1:3]"])
def test_other_forms_are_refused_and_the_right_ones_are_shown(name: str) -> None:
    with pytest.raises(PositionError, match=r"unknown position .*'last-2', 'prompt\[3\]'"):
        resolve(name, row_of(5, 0))


# --- in models ------------------------------------------------------------------------------------------------


def encoded(model, prompt: str, answer: str = "") -> tuple[list[int], int]:
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids, tail = (model.tokenizer(t, add_special_tokens=False).input_ids if t else [] for t in (text, answer))
    return ids + tail, len(ids)


@torch.no_grad()
def states(model, prompt: str) -> Tensor:
    ids, _ = encoded(model, prompt)
    return model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]


@torch.no_grad()
def logprob(model, prompt: str, delta: Tensor, columns: Sequence[int]) -> float:
    ids, n = encoded(model, prompt, ANSWER)

    def after(_, args, output):
        h = (output[0] if isinstance(output, tuple) else output).clone()
        h[:, list(columns)] += delta
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = blocks(model.hf, model.layout)[LAYER].register_forward_hook(after)
    try:
        found = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    finally:
        handle.remove()
    return float(sum(found[i - 1, ids[i]] for i in range(n, len(ids))))


PLACES = {
    "last-0": lambda n: [n - 1],
    "last-1": lambda n: [n - 2],
    "last-5": lambda n: [n - 6],
    "last-1+last": lambda n: [n - 2, n - 1],
    "prompt[0]": lambda n: [0],
    "prompt[4]": lambda n: [4],
    "prompt[2]+last-3": lambda n: [2, n - 4],
}


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_reading_gives_the_state_of_that_very_token(lm, backend: str, padding) -> None:
    model = lm("llama", backend)
    acts = capture(model, PROMPTS, layers=LAYER, positions=list(PLACES), padding=padding, progress=False)
    for number, prompt in enumerate(PROMPTS):
        whole, n = states(model, prompt), encoded(model, prompt)[1]
        for name, place in PLACES.items():
            row = acts.select(example_id=str(number), position=name)
            torch.testing.assert_close(row.at(LAYER)[0], whole[place(n)].mean(0), rtol=1e-5, atol=1e-5)
            assert row.index["column"][0] == (place(n)[0] if len(place(n)) == 1 else -1)


def test_both_sides_of_a_contrast_and_its_prompt_share_these_tokens(lm) -> None:
    pairs = [Example(str(i), p, contrast=Contrast("Yes", "No, never")) for i, p in enumerate(PROMPTS)]
    names = ["last-2", "prompt[3]"]
    acts = capture(lm(), pairs, layers=LAYER, positions=names, context=names, progress=False)
    for name in names:
        sides = [acts.select(side=side, position=name) for side in ("prompt", "positive", "negative")]
        assert len({tuple(side.index["column"]) for side in sides}) == 1
        torch.testing.assert_close(sides[0].values, sides[1].values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sides[0].values, sides[2].values, rtol=1e-5, atol=1e-5)


@settings(max_examples=12)
@given(st.sampled_from(list(PLACES)), st.sampled_from([1, 3]), st.integers(0, 99))
def test_writing_reaches_that_very_token_of_every_row(name: str, batch_size: int, seed: int) -> None:
    from steerlab.testing import tiny_lm

    model = tiny_lm("llama", backend="hooks")
    delta = 3 * torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(seed))
    options = {"steer": MeanDifference.from_tensor(LAYER, delta), "positions": name, "batch_size": batch_size}
    found = score(model, PROMPTS, [ANSWER] * 3, **options)
    for number, prompt in enumerate(PROMPTS):
        place = PLACES[name](encoded(model, prompt)[1])
        assert found["logprob"][number] == pytest.approx(logprob(model, prompt, delta, place), abs=1e-4)
    assert found.attrs["steered_tokens"] == sum(len(PLACES[name](99)) for _ in PROMPTS)
    assert generate(model, PROMPTS, max_new_tokens=3, **options).steered_tokens == found.attrs["steered_tokens"]


@pytest.mark.parametrize("form", ["last-{}", "prompt[{}]"])
def test_a_token_that_a_prompt_does_not_have_is_refused_with_the_prompts_name(lm, form: str) -> None:
    model, lengths = lm(), [encoded(lm(), p)[1] for p in PROMPTS]
    beyond = form.format(min(lengths))  # the shortest has tokens 0 to min - 1
    told = rf"position {beyond.replace('[', '.').replace(']', '.')} matches no token of the row \('1'\)"
    with pytest.raises(PositionError, match=told):
        capture(model, PROMPTS, layers=LAYER, positions=beyond, progress=False)
    with pytest.raises(PositionError, match=told):
        score(model, PROMPTS, [ANSWER] * 3, steer=MeanDifference.from_tensor(LAYER, torch.ones(32)), positions=beyond)
    assert len(capture(model, PROMPTS[:1], layers=LAYER, positions=beyond, progress=False)) == 1
