"""What people try in their first hour, each asserted by its effect: it works, or it says what would.

python tests/house/first_hour.py
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
TRIED: dict[str, Callable[[Model], None]] = {}


def tried(what: str) -> Callable[[Any], Any]:
    """Register what somebody tries, by its name."""

    def keep(function: Any) -> Any:
        TRIED[what] = function
        return function

    return keep


def says(call: Callable[[], object], *words: str) -> None:
    """The call is refused with a message that holds these words."""
    try:
        call()
    except SteerlabError as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{error} lacks {missing}"
    else:
        raise AssertionError("it was not refused")


def a_vector(model: Any, layer: int = 2) -> SteeringVector:
    draw = torch.Generator().manual_seed(layer)
    return SteeringVector({layer: 3 * torch.randn(model.hidden_size, generator=draw)})


def inputs(model: Any, prompt: str = "Hello there") -> Any:
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


@tried("with steer(...): model.hf.generate(...)")
def _(model: Any) -> None:
    vector, given = a_vector(model), inputs(model)
    with steerlab.steer(model, vector):
        ids = model.hf.generate(**given, do_sample=False, **FEW)
    new = tuple(ids[0, given["input_ids"].shape[1] :].tolist())
    assert new == steerlab.generate(model, ["Hello there"], steer=vector, **FEW).ids[0]
    assert new != steerlab.generate(model, ["Hello there"], **FEW).ids[0]


@tried("with steer(...): model.hf(...)")
def _(model: Any) -> None:
    given = inputs(model)
    with torch.no_grad():
        before = model.hf(**given).logits
        with steerlab.steer(model, a_vector(model)):
            assert not torch.equal(model.hf(**given).logits, before)
        assert torch.equal(model.hf(**given).logits, before)


@tried("a pipeline inside the block")
def _(model: Any) -> None:
    pipe = pipeline("text-generation", model.hf, tokenizer=model.tokenizer)
    plain = pipe("Hello there", do_sample=False, return_full_text=False, **FEW)
    with steerlab.steer(model, a_vector(model)):
        assert pipe("Hello there", do_sample=False, return_full_text=False, **FEW) != plain


@tried("an exception inside the block")
def _(model: Any) -> None:
    before = steerlab.generate(model, ["Hello there"], **FEW).ids
    with suppress(KeyError), steerlab.steer(model, a_vector(model)):
        raise KeyError("mine")
    assert steerlab.generate(model, ["Hello there"], **FEW).ids == before


@tried("a block in which nothing runs")
def _(model: Any) -> None:
    def empty() -> None:
        with steerlab.steer(model, a_vector(model)):
            pass

    says(empty, "nothing was run", "model.hf.generate")


@tried("pairs of texts")
def _(model: Any) -> None:
    vector = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    assert steerlab.generate(model, ["Hi"], steer=vector, alpha=3.0, **FEW).steered_tokens > 0


@tried("a prompt with two answers")
def _(model: Any) -> None:
    prompts = [f"Is it {hour} o'clock?" for hour in range(12)]
    pairs = steerlab.pairs([("Arr, late!", "Yes.")] * 12, prompts=prompts)
    l2s = steerlab.L2S(2, hidden_units=2, progress=False).fit(model, pairs)
    assert steerlab.generate(model, prompts[:2], steer=l2s, **FEW).steered_tokens > 0


@tried("a data frame with the names of its columns")
def _(model: Any) -> None:
    rows = steerlab.examples(FRAME, prompt="question", positive="pirate", negative="plain")
    assert MeanDifference(2).fit(model, rows).norm > 0
    assert len(steerlab.generate(model, FRAME.rename(columns={"question": "prompt"})[["prompt"]], **FEW)) == 1


@tried("a data frame without them")
def _(model: Any) -> None:
    says(lambda: steerlab.generate(model, FRAME), "columns ['question', 'pirate', 'plain']", "prompt=...")


@tried("a data set of Hugging Face")
def _(model: Any) -> None:
    import datasets

    rows = steerlab.examples(datasets.Dataset.from_pandas(FRAME), positive="pirate", negative="plain")
    assert MeanDifference(2).fit(model, rows).norm > 0


@tried("a dict for the data")
def _(model: Any) -> None:
    says(lambda: steerlab.capture(model, {"prompt": "Hi"}), "(dict)", "a list of prompts")
    says(lambda: steerlab.pairs({"good": "bad"}), "(dict)", "[('wanted text', 'unwanted text'), ...]")


@tried("triples for the pairs")
def _(model: Any) -> None:
    says(lambda: steerlab.pairs([("Is it late?", "Arr!", "Yes.")]), "prompts=[prompt, ...]")


@tried("one string for the data")
def _(model: Any) -> None:
    says(lambda: steerlab.generate(model, "Hello there"), "one string", "[prompt] for one")


@tried("a list of messages")
def _(model: Any) -> None:
    assert steerlab.generate(model, [CHAT], **FEW).ids == steerlab.generate(model, ["Hello there"], **FEW).ids
    says(lambda: steerlab.generate(model, CHAT), "[[{'role'")


@tried("Example('text')")
def _(model: Any) -> None:
    one = Example("Hello there")
    assert one.prompt == "Hello there" and one.id and one.id != Example("Hello").id


@tried("a tensor by layer")
def _(model: Any) -> None:
    vector = a_vector(model)
    for own in ({2: vector.at(2)}, {2: vector.at(2).numpy()}):
        assert steerlab.generate(model, ["Hi"], steer=own, **FEW).ids == (
            steerlab.generate(model, ["Hi"], steer=vector, **FEW).ids
        )


@tried("a tensor without its layer, lists and numbers")
def _(model: Any) -> None:
    says(lambda: steerlab.generate(model, ["Hi"], steer=torch.ones(32)), "does not say its layer", "{layer: vector}")
    says(lambda: SteeringVector({2: [0.1, 0.2]}), "(list)", "a tensor")
    says(lambda: steerlab.generate(model, ["Hi"], steer=3), "3 (int)", "{15: tensor}")


@tried("layers as floats, bools and texts")
def _(model: Any) -> None:
    for layer in (1.0, True, "2"):
        says(lambda layer=layer: SteeringVector({layer: torch.ones(32)}), "whole number")
        says(lambda layer=layer: MeanDifference(layer).fit(model, steerlab.pairs(TEXTS)), "layer")


@tried("arithmetic on vectors")
def _(model: Any) -> None:
    one, two = a_vector(model), a_vector(model, 3)
    mix = 0.5 * one - two / 2 + np.float32(2) * -one
    torch.testing.assert_close(mix.at(2), -1.5 * one.at(2))
    assert abs(mix.unit().norm - 1).max() < 1e-6 and mix.part(3).cosine(two) < -0.99


@tried("principal components at all layers, as a GGUF file")
def _(model: Any) -> None:
    import gguf

    every = steerlab.PCA(range(1, model.n_layers)).fit(model, steerlab.pairs(TEXTS))
    with tempfile.TemporaryDirectory() as folder:
        path = to_gguf(model, every, Path(folder) / "v.gguf")
        names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert names == [f"direction.{k}" for k in range(1, model.n_layers)]


@tried("a logistic direction")
def _(model: Any) -> None:
    assert steerlab.LogisticDirection([1, 2]).fit(model, steerlab.pairs(TEXTS)).norm.min() > 0


@tried("a sweep without a dummy layer")
def _(model: Any) -> None:
    rows = steerlab.pairs([("Arr, late!", "Yes."), ("Aye, I am", "I am he")], prompts=["Is it late?", "Who are you?"])
    frame = steerlab.sweep(model, rows[:1], MeanDifference(), train=rows[1:], alphas=[0, 1], progress=False)
    assert set(frame["layer"]) == set(range(model.n_layers))


@tried("saving and loading")
def _(model: Any) -> None:
    vector = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    with tempfile.TemporaryDirectory() as folder:
        vector.save_pretrained(f"{folder}/v")
        assert torch.equal(steerlab.load_steerer(f"{folder}/v", model).at(2), vector.at(2))
        assert torch.equal(MeanDifference.from_pretrained(f"{folder}/v", model).at(2), vector.at(2))
        assert "steerlab" in Path(f"{folder}/v/README.md").read_text()


@tried("vector.save('x')")
def _(model: Any) -> None:
    _ = model.engine  # nnsight is imported by now, and gives every object a `save` of its own
    says(lambda: MeanDifference(2).fit(model, steerlab.pairs(TEXTS)).save("x"), "save_pretrained(folder)")


@tried("a vector of another model")
def _(model: Any) -> None:
    vector = MeanDifference(2).fit(model, steerlab.pairs(TEXTS))
    says(
        lambda: steerlab.generate(tiny_lm("qwen2"), ["Hi"], steer=vector), "fitted on a model called", "any_model=True"
    )


@tried("other tools' names of options")
def _(model: Any) -> None:
    vector = a_vector(model)
    says(lambda: steerlab.generate(model, ["Hi"], max_tokens=3), "did you mean max_new_tokens?")
    says(lambda: steerlab.generate(model, ["Hi"], steer=vector, multiplier=3), "did you mean alpha?")
    says(lambda: steerlab.steer(model, vector, multiplier=3), "did you mean alpha?")
    says(lambda: steerlab.capture(model, ["Hi"], layer=3), "did you mean layers?")
    says(lambda: MeanDifference(layer=3), "did you mean layers?")


@tried("a model in memory")
def _(model: Any) -> None:
    loaded = steerlab.load(tiny_hf("llama"), tokenizer=tiny_tokenizer())
    assert loaded.n_layers == model.n_layers and "/" not in loaded.id


@tried("pipelines and modules for a model")
def _(model: Any) -> None:
    pipe = pipeline("text-generation", model.hf, tokenizer=model.tokenizer)
    says(lambda: steerlab.load(pipe), "TextGenerationPipeline", "load(pipe.model, tokenizer=pipe.tokenizer)")
    says(lambda: steerlab.load(torch.nn.Linear(2, 2)), "a Linear has no config")
    says(lambda: steerlab.generate(model.hf, ["Hi"]), "steerlab.load")


@tried("nnsight on the same weights")
def _(model: Any) -> None:
    with model.nnsight.trace("Hello there"):
        state = model.nnsight.model.layers[2].output.save()
    assert torch.as_tensor(state).shape[-1] == model.hidden_size


@tried("a look in a notebook")
def _(model: Any) -> None:
    pairs = steerlab.pairs([("Arr, late!", "Yes.")], prompts=["<b>Is it late?</b>"])
    texts = steerlab.generate(model, pairs, **FEW)
    shown = [MeanDifference().fit(model, pairs), steerlab.capture(model, pairs, progress=False), texts]
    for one in (*shown, steerlab.sweep(model, pairs, a_vector(model), dry_run=True)):
        assert "\n" not in repr(one) and len(repr(one)) < 250 and "<" in one._repr_html_()
    assert "&lt;b&gt;" in texts._repr_html_()
    assert list(texts.compare(texts)) == ["example_id", "prompt", "before", "after"]


@tried("one gradient field for two layers")
def _(model: Any) -> None:
    layers: Any = [1, 2]
    says(lambda: GradientField(layers), "layer=[1, 2]", "a scorer reads one layer; give a field for each")


@tried("import, --help, --version")
def _(model: Any) -> None:
    code = "import time; t = time.perf_counter(); import steerlab; print(time.perf_counter() - t)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 0.5, "of import alone; other processes may be at work"
    shown = subprocess.run([sys.executable, "-m", "steerlab.cli", "--version"], capture_output=True, text=True)
    assert steerlab.__version__ in shown.stdout
    names = set(dir(steerlab)) - {"analysis", "data", "errors", "live", "methods", "metrics", "plots"}
    assert 15 <= len(names) <= 20


def main() -> None:
    """Try everything, and print the seconds that each took."""
    model, seconds = tiny_lm("llama"), {}
    for what, function in TRIED.items():
        start = time.perf_counter()
        try:
            function(model)
        except BaseException:
            print(f"failed: {what}", file=sys.stderr)
            raise
        seconds[what] = round(time.perf_counter() - start, 2)
    print(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    main()
