"""Pairs of whole texts and of instructions, read at the last token; and messages in the place of a prompt."""

import pytest
import torch

import steerlab
from steerlab import Contrast, Example, MeanDifference, Site
from steerlab.data import data_hash
from steerlab.errors import DataError
from steerlab.methods import Context
from steerlab.methods.base import RequiredActivation
from steerlab.testing import FAMILIES, tiny_lm

TEXTS = [("I love this, my friend.", "I hate this."), ("What a joy", "What a great pain it is")]
CHAT = [
    {"role": "user", "content": "Is it late?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Who are you?"},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_texts_are_read_at_their_last_token_as_hugging_face_has_it(family: str) -> None:
    model = tiny_lm(family)
    acts = steerlab.capture(model, steerlab.pairs(TEXTS), layers="all", progress=False)
    assert set(acts.index["side"]) == {"positive", "negative"}, "a pair of whole texts has no plain prompt"
    for side, texts in zip(("positive", "negative"), zip(*TEXTS, strict=True), strict=True):
        for row, text in zip(acts.select(side=side).values, texts, strict=True):
            ids = model.tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                states = model.hf(**{k: ids[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
            for layer in range(model.n_layers - 1):  # the last one is followed by the norm in `hidden_states`
                torch.testing.assert_close(row[layer], states.hidden_states[layer + 1][0, -1], rtol=1e-4, atol=1e-4)


def test_the_mean_of_whole_texts_is_that_of_their_differences() -> None:
    model = tiny_lm("llama")
    fitted = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    _, differences = steerlab.capture(model, steerlab.pairs(TEXTS), layers=[2], progress=False).contrast(2)
    assert torch.equal(fitted.vector_, differences.double().mean(0).float())


def test_a_method_that_reads_prompts_refuses_whole_texts() -> None:
    with pytest.raises(DataError, match=r"l2s reads the prompt of each input.*prompts="):
        steerlab.L2S(2).fit(tiny_lm("llama"), steerlab.pairs(TEXTS))


INSTRUCTIONS = [
    Example("My tooth hurts.", Contrast("Tell me to see a dentist.", "", instructions=True), id="a", behavior="x"),
    Example("Who owns it?", Contrast("Say: ask a lawyer.", "Say: ask a friend.", instructions=True), id="b"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_instructions_are_read_before_the_answer_as_hugging_face_has_it(family: str) -> None:
    model = tiny_lm(family)
    acts = steerlab.capture(model, INSTRUCTIONS, layers="all", context="last", progress=False)
    for example in INSTRUCTIONS:
        assert example.contrast is not None
        texts = {"positive": example.contrast.positive, "negative": example.contrast.negative, "prompt": ""}
        for side, added in texts.items():
            (row,) = acts.select(side=side, example_id=example.id).values
            ids = torch.tensor([model.encode(f"{example.prompt} {added}".strip()).ids])
            with torch.no_grad():
                states = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
            for layer in range(model.n_layers - 1):
                torch.testing.assert_close(row[layer], states[layer + 1][0, -1], rtol=1e-4, atol=1e-4)


def test_a_method_is_fitted_to_instructions_and_steers_the_plain_prompt() -> None:
    model = tiny_lm("llama")
    fitted = steerlab.methods.P2S(2).fit(model, INSTRUCTIONS)
    acts = steerlab.capture(model, INSTRUCTIONS, layers=[2], context="last", progress=False)
    ids, differences = acts.contrast(2)
    assert list(fitted.ids_) == ids and torch.equal(fitted.table_, differences) and differences.norm(dim=1).min() > 0.01
    context = Context(("b", "a"), acts)
    assert steerlab.L2S(2, net="linear").fit(model, INSTRUCTIONS).vectors(context).shape == (2, model.hidden_size)
    assert torch.equal(context.get_states(RequiredActivation(Site(2), "last"))[1], acts.select(side="prompt").at(2)[0])


def test_a_sweep_refuses_instructions_since_they_have_no_answers() -> None:
    model = tiny_lm("llama")
    with pytest.raises(DataError, match="no answers to the plain prompt"):
        steerlab.sweep(model, INSTRUCTIONS, MeanDifference(2).fit(model, INSTRUCTIONS), [2], [1.0], progress=False)


def test_contrasts_without_instructions_keep_their_fingerprint() -> None:
    assert data_hash([Example("a", Contrast("b", "c"), id="d")]) == "a8476911e0361f82"


def test_messages_are_read_generated_from_and_contrasted_as_a_prompt() -> None:
    model = tiny_lm("llama")
    (row,) = steerlab.capture(model, [CHAT], layers=[2], positions="user", progress=False).at(2)
    encoded = model.encode(CHAT)
    (again,) = steerlab.capture(model, [Example(CHAT)], layers=[2], positions="user", progress=False).at(2)
    assert torch.equal(row, again) and encoded.kind("history")
    text = steerlab.generate(model, [CHAT], max_new_tokens=3)
    assert text.ids == steerlab.generate(model, [Example(CHAT, id="x")], max_new_tokens=3).ids
    assert MeanDifference(2).fit(model, steerlab.pairs([("Arr me", "It is I")], prompts=[CHAT])).vector_.any()
    assert steerlab.methods.Prompt("Be kind.").transform_prompt(CHAT)[-1]["content"] == "Who are you? Be kind."  # type: ignore[index]
