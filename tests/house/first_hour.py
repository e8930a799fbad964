"""What people try in their first hour, each asserted by its effect: it works, or it says what would.

python -m pytest tests/house/first_hour.py
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import pipeline

import steerlab
from steerlab import Example, MeanDifference, SteeringVector
from steerlab.errors import SteerlabError
from steerlab.methods import GradientField, to_gguf
from steerlab.models.model import Model
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer

TEXTS = [("I love this, my friend.", "I hate this."), ("What a joy", "What a great pain it is")]
FRAME = pd.DataFrame({"question": ["Is it late?"], "pirate": ["Arr, late!"], "plain": ["Yes."]})
CHAT = [{"role": "user", "content": "Hello there"}]
FEW = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_lm("llama")


def says(call: Callable[[], object], *words: str) -> None:
    """The call is refused with a message that holds these words."""
    with pytest.raises(SteerlabError) as error:
        call()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{error.value} lacks {missing}"


def a_vector(model: Any, layer: int = 2) -> SteeringVector:
    draw = torch.Generator().manual_seed(layer)
    return SteeringVector({layer: 3 * torch.randn(model.hidden_size, generator=draw)})


# what is refused, by the call and words of the message that say what would do
V: Any = SteeringVector({2: torch.ones(32)})
REFUSED: dict[str, tuple[Any, ...]] = {
    "one string": (lambda m: steerlab.generate(m, "Hello there"), "one string", "[prompt] for one"),
    "a list": (lambda m: SteeringVector({2: [0.1, 0.2]}), "(list)", "a tensor"),
    "a number": (lambda m: steerlab.generate(m, ["Hi"], steer=3), "3 (int)", "{15: tensor}"),
    "a vector of another model": (
        lambda m: steerlab.generate(tiny_lm("qwen2"), ["Hi"], steer=MeanDifference(2).fit(m, steerlab.pairs(TEXTS))),
        "fitted on a model called", "any_model=True",
    ),
    "max_tokens": (lambda m: steerlab.generate(m, ["Hi"], max_tokens=3), "did you mean max_new_tokens?"),
    "multiplier": (lambda m: steerlab.generate(m, ["Hi"], steer=V, multiplier=3), "did you mean alpha?"),
    "multiplier of a block": (lambda m: steerlab.steer(m, V, multiplier=3), "did you mean alpha?"),
    "layer of capture": (lambda m: steerlab.capture(m, ["Hi"], layer=3), "did you mean layers?"),
    "layer of a method": (lambda m: MeanDifference(layer=3), "did you mean layers?"),
    "a pipeline": (
        lambda m: steerlab.load(pipeline("text-generation", m.hf, tokenizer=m.tokenizer)), "Pipeline", "(pipe.model",
    ),
    "the model of Hugging Face": (lambda m: steerlab.generate(m.hf, ["Hi"]), "steerlab.load"),
    "a field for two layers": (lambda m: GradientField([1, 2]), "layer=[1, 2]", "one layer; give a field for each"),
    # nnsight is imported with the engine, and gives every object a `save` of its own
    "save": (lambda m: (m.engine, MeanDifference(1).fit(m, steerlab.pairs(TEXTS)).save("x")), "save_pretrained("),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_what_would_do(model: Any, what: str) -> None:
    call, *words = REFUSED[what]
    says(lambda: call(model), *words)


def inputs(model: Any, prompt: str = "Hello there") -> Any:
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def test_generate_of_hugging_face_in_a_block(model: Any) -> None:
    vector, given = a_vector(model), inputs(model)
    with steerlab.steer(model, vector):
        ids = model.hf.generate(**given, do_sample=False, **FEW)
    new = tuple(ids[0, given["input_ids"].shape[1] :].tolist())
    assert new == steerlab.generate(model, ["Hello there"], steer=vector, **FEW).ids[0]
    assert new != steerlab.generate(model, ["Hello there"], **FEW).ids[0]


def test_forward_of_hugging_face_in_a_block(model: Any) -> None:
    given = inputs(model)
    with torch.no_grad():
        before = model.hf(**given).logits
        with steerlab.steer(model, a_vector(model)):
            assert not torch.equal(model.hf(**given).logits, before)
        assert torch.equal(model.hf(**given).logits, before)


def test_pipeline_in_a_block(model: Any) -> None:
    pipe = pipeline("text-generation", model.hf, tokenizer=model.tokenizer)
    plain = pipe("Hello there", do_sample=False, return_full_text=False, **FEW)
    with steerlab.steer(model, a_vector(model)):
        assert pipe("Hello there", do_sample=False, return_full_text=False, **FEW) != plain


def test_exception_in_a_block(model: Any) -> None:
    before = steerlab.generate(model, ["Hello there"], **FEW).ids
    with suppress(KeyError), steerlab.steer(model, a_vector(model)):
        raise KeyError("mine")
    assert steerlab.generate(model, ["Hello there"], **FEW).ids == before


def test_block_in_which_nothing_runs(model: Any) -> None:
    def empty() -> None:
        with steerlab.steer(model, a_vector(model)):
            pass

    says(empty, "nothing was run", "model.hf.generate")


def test_pairs_of_texts(model: Any) -> None:
    vector = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    assert steerlab.generate(model, ["Hi"], steer=vector, alpha=3.0, **FEW).steered_tokens > 0


def test_prompt_with_two_answers(model: Any) -> None:
    prompts = [f"Is it {hour} o'clock?" for hour in range(12)]
    pairs = steerlab.pairs([("Arr, late!", "Yes.")] * 12, prompts=prompts)
    l2s = steerlab.L2S(2, hidden_units=2, progress=False).fit(model, pairs)
    assert steerlab.generate(model, prompts[:2], steer=l2s, **FEW).steered_tokens > 0


def test_data_frame_with_the_names_of_its_columns(model: Any) -> None:
    rows = steerlab.examples(FRAME, prompt="question", positive="pirate", negative="plain")
    assert MeanDifference(2).fit(model, rows).norm > 0
    assert len(steerlab.generate(model, FRAME.rename(columns={"question": "prompt"})[["prompt"]], **FEW)) == 1


def test_data_set_of_hugging_face(model: Any) -> None:
    import datasets

    rows = steerlab.examples(datasets.Dataset.from_pandas(FRAME), positive="pirate", negative="plain")
    assert MeanDifference(2).fit(model, rows).norm > 0


def test_list_of_messages(model: Any) -> None:
    assert steerlab.generate(model, [CHAT], **FEW).ids == steerlab.generate(model, ["Hello there"], **FEW).ids


def test_example_of_a_text_alone(model: Any) -> None:
    one = Example("Hello there")
    assert one.prompt == "Hello there" and one.id and one.id != Example("Hello").id


def test_tensor_by_layer(model: Any) -> None:
    vector = a_vector(model)
    for own in ({2: vector.at(2)}, {2: vector.at(2).numpy()}):
        assert steerlab.generate(model, ["Hi"], steer=own, **FEW).ids == (
            steerlab.generate(model, ["Hi"], steer=vector, **FEW).ids
        )


def test_layers_as_floats_bools_and_texts(model: Any) -> None:
    for layer in (1.0, True, "2"):
        says(lambda layer=layer: SteeringVector({layer: torch.ones(32)}), "whole number")
        says(lambda layer=layer: MeanDifference(layer).fit(model, steerlab.pairs(TEXTS)), "layer")


def test_arithmetic_on_vectors(model: Any) -> None:
    one, two = a_vector(model), a_vector(model, 3)
    mix = 0.5 * one - two / 2 + np.float32(2) * -one
    torch.testing.assert_close(mix.at(2), -1.5 * one.at(2))
    assert abs(mix.unit().norm - 1).max() < 1e-6 and mix.part(3).cosine(two) < -0.99


def test_principal_components_at_all_layers_as_a_gguf_file(model: Any, tmp_path: Path) -> None:
    import gguf

    every = steerlab.PCA(range(1, model.n_layers)).fit(model, steerlab.pairs(TEXTS))
    path = to_gguf(model, every, tmp_path / "v.gguf")
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert names == [f"direction.{k}" for k in range(1, model.n_layers)]


def test_logistic_direction(model: Any) -> None:
    assert steerlab.LogisticDirection([1, 2]).fit(model, steerlab.pairs(TEXTS)).norm.min() > 0


def test_sweep_without_a_layer_of_the_method(model: Any) -> None:
    rows = steerlab.pairs([("Arr, late!", "Yes."), ("Aye, I am", "I am he")], prompts=["Is it late?", "Who are you?"])
    frame = steerlab.sweep(model, rows[:1], MeanDifference(), train=rows[1:], alphas=[0, 1], progress=False)
    assert set(frame["layer"]) == set(range(model.n_layers))


def test_saving_and_loading(model: Any, tmp_path: Path) -> None:
    vector = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    vector.save_pretrained(tmp_path)
    assert torch.equal(steerlab.load_steerer(tmp_path, model).at(2), vector.at(2))
    assert torch.equal(MeanDifference.from_pretrained(tmp_path, model).at(2), vector.at(2))
    assert "steerlab" in (tmp_path / "README.md").read_text()


def test_model_in_memory(model: Any) -> None:
    loaded = steerlab.load(tiny_hf("llama"), tokenizer=tiny_tokenizer())
    assert loaded.n_layers == model.n_layers and "/" not in loaded.id


def test_nnsight_on_the_same_weights(model: Any) -> None:
    with model.nnsight.trace("Hello there"):
        state = model.nnsight.model.layers[2].output.save()
    assert torch.as_tensor(state).shape[-1] == model.hidden_size


def test_look_in_a_notebook(model: Any) -> None:
    pairs = steerlab.pairs([("Arr, late!", "Yes.")], prompts=["<b>Is it late?</b>"])
    texts = steerlab.generate(model, pairs, **FEW)
    shown = [MeanDifference().fit(model, pairs), steerlab.capture(model, pairs, progress=False), texts]
    for one in (*shown, steerlab.sweep(model, pairs, a_vector(model), dry_run=True)):
        assert "\n" not in repr(one) and len(repr(one)) < 250 and "<" in one._repr_html_()
    assert "&lt;b&gt;" in texts._repr_html_()
    assert list(texts.compare(texts)) == ["example_id", "prompt", "before", "after"]


def test_import_and_version(model: Any) -> None:
    code = "import time; t = time.perf_counter(); import steerlab; print(time.perf_counter() - t)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 0.5, "of import alone; other processes may be at work"
    shown = subprocess.run([sys.executable, "-m", "steerlab.cli", "--version"], capture_output=True, text=True)
    assert steerlab.__version__ in shown.stdout
    names = set(dir(steerlab)) - {"analysis", "data", "errors", "live", "methods", "metrics", "plots"}
    assert 15 <= len(names) <= 20
