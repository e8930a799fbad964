"""States that predict words in answers, against plain Hugging Face on each row alone."""

import numpy as np
import pytest
import torch
from scenes.shapes import COLORS, KINDS
from scenes.world import World

from steerlab import Example, generate, load
from steerlab.analysis.logit_lens import end_logprobs
from steerlab.capturing import capture_words
from steerlab.errors import DataError, LayoutError
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.testing import FAMILIES, tiny_lm, tiny_vlm

PROMPTS = ["Tell me of a dog or a cat.", "Hi", "What does a heron eat, and where does it sleep at night?"]
ANSWERS = ["A dog and a cat. Dogs bark.", "hotdog stands", "The CAT, a dog"]


@pytest.mark.parametrize("family", FAMILIES)
def test_state_before_each_word_is_that_of_the_row_alone_in_every_family(family: str) -> None:
    model = tiny_lm(family, backend="hooks")
    acts = capture_words(model, PROMPTS, ANSWERS, {"dog": ["dogs", "dog"], "cat": ["cat"]}, progress=False)
    found = list(zip(acts.index["example_id"].str[0], acts.index["behavior"], strict=True))
    assert found == [("0", "dog"), ("0", "cat"), ("2", "dog"), ("2", "cat")], "hotdog is another word"
    assert acts.info["words"] == {"dog": 2, "cat": 2}
    for number, (place, word) in enumerate(found):
        row = model.encode(PROMPTS[int(place)], answer=ANSWERS[int(place)])
        column = int(acts.index["column"][number])
        rest = row.text[row.offsets[column + 1][0] :].lower().lstrip()
        assert rest.startswith(word) and row.n_prompt <= column + 1, "the next token begins the word, in the answer"
        answer = row.text[row.offsets[row.n_prompt][0] :].lower()
        assert answer.index(word) >= len(answer) - len(rest), "no earlier one"
        assert row.ids[column] == acts.index["token"][number]
        states = model.hf(torch.tensor([row.ids]), output_hidden_states=True, use_cache=False).hidden_states
        torch.testing.assert_close(acts.at(1)[number], states[2][0, column], rtol=1e-4, atol=1e-4)


def test_state_before_a_generated_word_predicts_its_token() -> None:
    """An off-by-one would read the state that predicts the token after, or the one before."""
    model, rng = load("scenes-vlm"), np.random.default_rng(0)
    rows = [Example("Describe the image.", images=(World().scene(rng).image(),)) for _ in range(6)]
    texts = generate(model, rows, max_new_tokens=30, progress=False)
    last = model.n_layers - 1
    acts = capture_words(model, rows, list(texts), [*COLORS, *KINDS], layers=[last], progress=False)
    best = end_logprobs(model, acts.at(last)).argmax(-1).tolist()
    said = [model.tokenizer.decode([i]).strip().lower() for i in best]
    assert len(said) > 20 and all(
        s and word.startswith(s) for s, word in zip(said, acts.index["behavior"], strict=True)
    )


def test_words_in_answers_about_images_are_found() -> None:
    from PIL import Image

    model = tiny_vlm("llava", backend="hooks")
    examples = [Example("What is it?", images=(Image.new("RGB", (32, 32), color),)) for color in ("red", "blue")]
    acts = capture_words(model, examples, ["a red box", "a blue box"], ["red", "blue"], progress=False)
    assert list(acts.index["behavior"]) == ["red", "blue"] and bool((acts.values[0] != acts.values[1]).any())
    with pytest.raises(LayoutError, match="no tokens"):
        capture_words(model, examples, ["a", "b"], ["red"], layers=[Site(0, part="vision")])


def test_answers_and_words_that_do_not_fit_are_refused() -> None:
    model = tiny_lm("llama", backend="hooks")
    for answers, words, said in (
        (ANSWERS[:1], ["dog"], "3 prompts, and 1 answers"), (ANSWERS, ["zebra"], "none of 3 answers"),
        (ANSWERS, [], "give a list of words"), (ANSWERS, "dog", "give a list of words"),
        (ANSWERS, {"dog": "dog"}, "give a list of words"), (ANSWERS, ["dog", " "], "none empty"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            capture_words(model, PROMPTS, answers, words, progress=False)
    plain = Model(model.hf, model.tokenizer, model.layout, id="plain", chat=False)
    with pytest.raises(DataError, match="begin it with a space"):
        capture_words(plain, ["I feel very"], ["happy dog"], ["dog", "happy"], progress=False)
    joined = capture_words(plain, ["I feel very"], [" happy dog"], ["dog", "happy"], progress=False)
    assert list(joined.index["behavior"]) == ["dog", "happy"]
    some = capture_words(model, PROMPTS, ["dog", "", " "], ["dog", "zebra"], layers=[0], progress=False)
    assert some.info["words"] == {"dog": 1, "zebra": 0}, "words that never occur are counted"
