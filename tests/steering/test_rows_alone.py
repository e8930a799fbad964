"""What a call gives of a row is what the row alone gives, and an argument is used or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, MaxLengthCriteria, RepetitionPenaltyLogitsProcessor, StoppingCriteriaList

import steerlab
from steerlab import Example, Request, SteeringVector, capture, generate
from steerlab.data.injections import injection_examples
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods import Prompt
from steerlab.models.model import Model
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer, tiny_vlm

PROMPTS = ["Hi", "How do I bake a bread that is good and does not fall apart?"]
VECTOR = SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(0))})


@pytest.fixture
def model() -> Model:
    return tiny_lm("llama", backend="hooks")


def both_ways(model: Model, **options: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The new ids of the prompts in a batch, and each alone."""
    together = generate(model, PROMPTS, max_new_tokens=12, **options).ids
    return list(together), [generate(model, [one], max_new_tokens=12, **options).ids[0] for one in PROMPTS]


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.1}, {"min_length": 30}, {"no_repeat_ngram_size": 1},
                                     {"encoder_repetition_penalty": 0.6}])  # fmt: skip
def test_padding_is_no_text_that_a_penalty_counts(model: Model, penalty: dict[str, Any]) -> None:
    end = generate(model, PROMPTS[:1], max_new_tokens=12, **penalty).ids[0][3]
    model.tokenizer.pad_token = model.tokenizer.convert_ids_to_tokens(end)  # as where a tokenizer has none of its own
    model.hf.generation_config.eos_token_id = end
    together, alone = both_ways(model, **penalty)
    assert together == alone
    model.hf.generation_config.update(**penalty)  # in force where a configuration leaves them open
    assert both_ways(model, generation_config=GenerationConfig(num_beams=1)) == (together, alone)
    texts: list[str] = []
    steerlab.sweep(
        model, [Example(one, id=one) for one in PROMPTS], VECTOR, None, [0.0],
        metric=lambda _, found: [float(texts.extend(found) or 0)] * 2, generation={"max_new_tokens": 12} | penalty,
    )  # fmt: skip
    assert texts == [generate(model, [one], max_new_tokens=12, **penalty)[0] for one in PROMPTS]


def test_stop_strings_leave_no_padding_behind(model: Model) -> None:
    first = generate(model, PROMPTS, max_new_tokens=8).ids[0]
    together, alone = both_ways(model, stop_strings=[model.tokenizer.decode(list(first[1:3]))])
    assert together == alone and len(together[0]) == 3 < len(together[1])
    model.tokenizer.pad_token = model.tokenizer.convert_ids_to_tokens(first[5])
    assert both_ways(model, stop_strings=[model.tokenizer.decode(list(first[1:3]))])[0] == together


def test_given_code_reads_no_padding(model: Model) -> None:
    longest = max(len(model.encode(prompt)) for prompt in PROMPTS)
    for option in ({"logits_processor": [RepetitionPenaltyLogitsProcessor(1.3)]},
                   {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(longest + 4)])}):  # fmt: skip
        together, alone = both_ways(model, **option)
        assert together == alone


def test_a_generation_config_is_treated_as_options_are(model: Model) -> None:
    string = model.tokenizer.decode(list(generate(model, PROMPTS, max_new_tokens=8).ids[0][1:3]))
    for options in ({"stop_strings": [string]}, {"num_beams": 2}, {"num_beams": 2, "stop_strings": [string]}):
        own = {"tokenizer": model.tokenizer} if "stop_strings" in options else {}
        config = GenerationConfig(do_sample=False, return_dict_in_generate=True, **options)
        found = [generate(model, PROMPTS, max_new_tokens=8, **own, **one).ids for one in
                 ({"generation_config": config}, options)]  # fmt: skip
        assert found[0] == found[1], options
    with pytest.raises(SteeringError, match="guidance_scale"):
        generate(model, PROMPTS, generation_config=GenerationConfig(guidance_scale=2.0))


@pytest.mark.parametrize("copies", [1, 2])
def test_allowed_tokens_are_those_of_each_input(model: Model, copies: int) -> None:
    found = generate(
        model, ["Hi", *PROMPTS[::-1]], prefix_allowed_tokens_fn=lambda row, ids: [[50], [60], [70]][row],
        max_new_tokens=3, num_return_sequences=copies, do_sample=copies > 1,
    )  # fmt: skip
    assert found.ids == tuple((token,) * 3 for token in (50, 60, 70) for _ in range(copies))


def test_generation_configs_decide_what_they_set(model: Model) -> None:
    greedy, sampled = generate(model, PROMPTS).ids, {"do_sample": True, "temperature": 5.0}
    assert generate(model, PROMPTS, generation_config=GenerationConfig(**sampled)).ids != greedy
    assert generate(model, PROMPTS, generation_config=GenerationConfig(num_beams=1)).ids == greedy
    with pytest.raises(SteeringError, match="sets max_new_tokens"):
        generate(model, PROMPTS, generation_config=GenerationConfig(max_new_tokens=3))
    model.hf.generation_config.eos_token_id = greedy[0][2]
    assert len(generate(model, PROMPTS, generation_config=GenerationConfig(num_beams=1)).ids[0]) == 3


def test_decoding_with_forwards_of_its_own_is_refused(model: Model) -> None:
    for name, value in {"guidance_scale": 2.0, "token_healing": True, "assistant_early_exit": 1}.items():
        with pytest.raises(SteeringError, match=rf"\['{name}'\]: these run forwards of their own"):
            generate(model, PROMPTS, steer=VECTOR, **{name: value})


def test_a_library_that_an_option_lacks_is_named_with_the_options(model: Model) -> None:
    quantized = Mock(side_effect=ImportError("optimum-quanto is missing"))  # as a quantized cache raises
    with pytest.raises(SteeringError, match=r"fails with the options .*: optimum-quanto is missing"):
        generate(model, PROMPTS, logits_processor=[quantized])


def test_rows_of_strength_0_are_not_counted(model: Model) -> None:
    options: dict[str, Any] = {"positions": "last+generated", "max_new_tokens": 6}
    both = generate(model, PROMPTS, steer=VECTOR, alpha=[0.0, 1.0], **options)
    alone = generate(model, PROMPTS[1:], steer=VECTOR, alpha=1.0, **options)
    assert both.ids[1] == alone.ids[0] and both.steered_tokens == alone.steered_tokens
    assert both.norm_ratio == pytest.approx(alone.norm_ratio, rel=1e-5)


def test_an_instruction_is_given_to_the_rows_of_its_strength(model: Model) -> None:
    found = generate(model, PROMPTS, steer=Prompt("Answer like a pirate."), alpha=[0.0, 1.0], max_new_tokens=6).ids
    assert found[0] == generate(model, PROMPTS, max_new_tokens=6).ids[0]
    assert found[1] == generate(model, PROMPTS, steer=Prompt("Answer like a pirate."), max_new_tokens=6).ids[1]


@pytest.mark.parametrize("given", [{"alpha": 8.0}, {"positions": "last"}, {"scale": "norm"}, {"alpha": [1.0, 1.0]}])
def test_arguments_beside_what_has_its_own_are_refused(model: Model, given: dict[str, Any]) -> None:
    with pytest.raises(SteeringError, match="would be ignored: each Request has its own"):
        generate(model, PROMPTS, steer=Request(VECTOR), **given)
    with pytest.raises(SteeringError, match="would be ignored: nothing is steered here"):
        generate(model, PROMPTS, **given)
    with steerlab.steer(model, VECTOR) as run:
        run.generate(PROMPTS, max_new_tokens=2)
        with pytest.raises(SteeringError, match="block has its own"):
            run.generate(PROMPTS, **given)


def test_other_adapters_rotations_and_image_settings_are_other_models(tmp_path: Path) -> None:
    plain, turned = (
        tiny_lm("llama", backend="hooks", rope_parameters={"rope_type": "linear", "factor": f, "rope_theta": 1e4})
        for f in (1.0, 4.0)
    )
    assert plain.info()["weights"] == turned.info()["weights"]
    capture(plain, PROMPTS, layers=[1], folder=tmp_path / "rope")
    with pytest.raises(MismatchError, match="config"):
        capture(turned, PROMPTS, layers=[1], folder=tmp_path / "rope")
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    hf = peft.get_peft_model(tiny_hf("llama"), config)
    hf.add_adapter("other", config)
    model = steerlab.load(hf, tokenizer=tiny_tokenizer(), backend="hooks")
    capture(model, PROMPTS, layers=[1], folder=tmp_path / "lora")
    hf.set_adapter("other")
    hf.requires_grad_(False)
    with pytest.raises(MismatchError, match="weights"):
        capture(model, PROMPTS, layers=[1], folder=tmp_path / "lora")
    seen = tiny_vlm("llava", backend="hooks")
    rows = [Example("What is it?", images=(Image.new("RGB", (48, 48), "red"),), id="a")]
    before = capture(seen, rows, layers=[1], folder=tmp_path / "images").load()
    assert seen.vision is not None
    seen.vision.processor.image_processor.image_mean = [0.9] * 3
    assert not torch.equal(before.values, capture(seen, rows, layers=[1], positions="last").values)
    with pytest.raises(MismatchError, match="image_settings"):
        capture(seen, rows, layers=[1], folder=tmp_path / "images")


def test_injections_do_not_go_with_places() -> None:
    texts = {"a": [f"Sentence one of {i}. Two follows. Three ends it." for i in range(60)]}
    made = injection_examples(texts, injections=[f"Say {w}." for w in "abcdef"], share=1.0)
    assert len(Counter((e.meta["injection"], e.meta["place"]) for e in made)) > 12
