"""Weights tell models apart, whatever these are called; names decide where the weights are not known."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from torch import nn

from steerlab import (
    Example,
    MeanDifference,
    Request,
    Site,
    SteeringVector,
    capture,
    generate,
    load,
    load_steerer,
    sweep,
)
from steerlab.data import demo_set
from steerlab.errors import LayoutError, LoadError, MismatchError, SteerlabError
from steerlab.methods import Gated, LinearProbe
from steerlab.methods.serialization import save
from steerlab.models.fingerprint import check_same_model, weights_fingerprint
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer

PAIRS = demo_set()[:6]
OPTIONS = {"max_new_tokens": 2, "progress": False}


def model_of(hf: nn.Module, name: str) -> Model:
    return Model(hf, tiny_tokenizer(), find_layout(hf), id=name, backend="hooks")


@pytest.fixture(scope="module")
def three() -> dict[str, Model]:
    """A model, another one of the same name, and the first one under another name."""
    return {
        "here": tiny_lm(backend="hooks"),
        "namesake": tiny_lm(backend="hooks", seed=1),
        "renamed": model_of(tiny_hf("llama"), "my-llama"),
    }


def fitted(model: Model) -> MeanDifference:
    return MeanDifference(1).fit(capture(model, PAIRS, layers=[1], progress=False))


def compiled(hf: nn.Module) -> nn.Module:
    return torch.compile(hf)


def untied(hf: nn.Module) -> nn.Module:
    hf.lm_head.weight = nn.Parameter(hf.lm_head.weight.clone(), requires_grad=False)
    return hf


@pytest.mark.parametrize("change", [nn.Module.bfloat16, compiled, untied, lambda hf: hf.to("cpu"), nn.Module.double])
def test_same_weights_have_the_same_fingerprint(change: Callable[[nn.Module], nn.Module]) -> None:
    before = weights_fingerprint(tiny_hf("llama", tie_word_embeddings=True))
    assert weights_fingerprint(change(tiny_hf("llama", tie_word_embeddings=True))) == before


def test_weights_from_a_folder_have_the_fingerprint_of_the_object(tmp_path: Path) -> None:
    hf = tiny_hf("llama")
    hf.save_pretrained(tmp_path)
    assert weights_fingerprint(type(hf).from_pretrained(tmp_path)) == weights_fingerprint(hf)


def trained(hf: nn.Module) -> nn.Module:
    hf.requires_grad_(True)
    hf(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    torch.optim.AdamW(hf.parameters(), lr=1e-3).step()
    return hf


def with_adapter(hf: nn.Module) -> nn.Module:
    return get_peft_model(hf, LoraConfig(target_modules=["q_proj"], r=2))


def quantized(hf: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(hf, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own quantization is deprecated; others pack weights likewise
def test_other_weights_have_other_fingerprints() -> None:
    found = [weights_fingerprint(tiny_hf("llama", seed=seed)) for seed in range(3)]
    found += [weights_fingerprint(change(tiny_hf("llama"))) for change in (trained, with_adapter, quantized)]
    other = tiny_hf("llama", seed=0)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight *= 1.01
    found += [weights_fingerprint(other), weights_fingerprint(quantized(other)), weights_fingerprint(tiny_hf("qwen2"))]
    assert len(set(found)) == len(found) and None not in found


def test_skeleton_without_weights_has_no_fingerprint() -> None:
    with torch.device("meta"):
        hf = nn.Linear(2, 2)
    assert weights_fingerprint(hf) is None


def test_adapter_of_the_same_model_changes_its_info(three) -> None:
    model = tiny_lm(backend="hooks")
    assert model.info()["weights"] == three["here"].info()["weights"]
    with_adapter(model.hf)  # replaces modules in place
    assert model.info()["weights"] != three["here"].info()["weights"]


def test_adapters_that_are_weighed_by_the_input_and_compiled_forwards_are_refused(three) -> None:
    model = tiny_lm("opt")
    one = get_peft_model(tiny_hf("opt"), LoraConfig(target_modules=["fc2"], r=2))
    one.peft_config["default"].peft_type = PeftType.XLORA
    with pytest.raises(LoadError, match="weighs its adapters anew for each input"):
        load(one, tokenizer=model.tokenizer)
    block = model.hf.model.decoder.layers[1]
    block.forward = torch.compiler.disable(block.forward)
    generate(model, ["Hi"], max_new_tokens=1)
    block.forward = torch.compile(type(block).forward.__get__(block), backend="eager")
    with pytest.raises(SteerlabError, match="was compiled"):
        generate(model, ["Hi"], max_new_tokens=1)


def test_a_module_that_an_adapter_replaced_after_loading_is_refused_by_nnsight() -> None:
    model = tiny_lm("opt", backend="nnsight")
    inputs = model.inputs(model.batch([model.encode("hello")]))
    model.engine.capture_states(inputs, {}, [Site(1, "mlp_out")], lambda h: h)
    get_peft_model(model.hf, LoraConfig(target_modules=["fc2"], r=2, init_lora_weights=False))
    with pytest.raises(LayoutError, match=r"fc2 was replaced since the model was loaded"):
        model.engine.capture_states(inputs, {}, [Site(1, "mlp_out")], lambda h: h)
    assert model.engine.capture_states(inputs, {}, [Site(1)], lambda h: h).isfinite().all()


def test_steerer_of_a_namesake_is_refused_and_of_the_same_weights_accepted(three) -> None:
    steerer = fitted(three["here"])
    texts = generate(three["here"], ["hello"], steer=steerer, **OPTIONS).texts
    assert generate(three["renamed"], ["hello"], steer=steerer, **OPTIONS).texts == texts
    both = r"called 'tiny-llama' \(weights \w{16}\); this model is 'tiny-llama' \(weights \w{16}\).*any_model=True"
    with pytest.raises(MismatchError, match=both):
        generate(three["namesake"], ["hello"], steer=steerer, **OPTIONS)
    with pytest.raises(MismatchError, match="weights"):
        sweep(three["namesake"], PAIRS, {"v": {1: steerer}}, [1], (1.0,), progress=False)


def test_steerer_of_another_chat_template_is_refused_until_it_is_accepted(three) -> None:
    steerer, model = fitted(three["here"]), copy.copy(three["here"])
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = "{# another #}" + model.tokenizer.chat_template
    with pytest.raises(MismatchError, match=r"this model has another chat template now.*any_model=True"):
        generate(model, ["hello"], steer=steerer, **OPTIONS)
    generate(model, ["hello"], steer=Request(steerer, any_model=True), **OPTIONS)
    generate(model, ["hello"], steer=steerer, **OPTIONS)
    model.tokenizer.chat_template += "{# a third #}"
    with pytest.raises(MismatchError, match="another chat template now"):
        generate(model, ["hello"], steer=steerer, **OPTIONS)
    with pytest.raises(MismatchError, match="use the same model for both, and the same chat template"):
        check_same_model("it", three["here"].info(), model.info())


def test_names_decide_where_one_side_has_no_fingerprint(three) -> None:
    steerer = fitted(three["here"])
    steerer.info_["weights"] = None
    generate(three["namesake"], ["hello"], steer=steerer, **OPTIONS)
    with pytest.raises(MismatchError, match="'tiny-llama'; this model is 'my-llama'"):
        generate(three["renamed"], ["hello"], steer=steerer, **OPTIONS)


@pytest.mark.parametrize("known", [True, False])
def test_accepted_model_is_remembered_by_the_steerer_and_its_artifact(three, tmp_path: Path, known: bool) -> None:
    steerer, other = fitted(three["here"]), three["namesake" if known else "renamed"]
    if not known:
        steerer.info_["weights"] = None
    with pytest.raises(MismatchError, match="force=True"):
        load_steerer(save(steerer, tmp_path), other)
    generate(other, ["hello"], steer=Request(steerer, any_model=True), **OPTIONS)
    generate(other, ["hello"], steer=steerer, **OPTIONS)
    for loaded in (load_steerer(save(steerer, tmp_path), other), load_steerer(tmp_path)):
        generate(other, ["hello"], steer=loaded, **OPTIONS)
    third = model_of(tiny_hf("llama", seed=2), "third")
    with pytest.raises(MismatchError, match="'third'"):
        generate(third, ["hello"], steer=loaded, **OPTIONS)
    again = load_steerer(tmp_path, third, force=True)
    for model in (third, other):
        generate(model, ["hello"], steer=load_steerer(save(again, tmp_path), model), **OPTIONS)


def test_detector_of_a_namesake_gates_no_steerer(three) -> None:
    data = [Example("hello there"[: 5 + i], id=str(i), behavior=("a", "b")[i % 2]) for i in range(6)]
    probes = {k: LinearProbe(1, positive=["a"]).fit(capture(m, data, progress=False)) for k, m in three.items()}
    Gated(fitted(three["here"]), probes["renamed"], threshold=0.5)
    with pytest.raises(MismatchError, match=r"fitted on a model .*'tiny-llama' \(weights.*'tiny-llama' \(weights"):
        Gated(fitted(three["here"]), probes["namesake"], threshold=0.5)


def test_folders_are_continued_with_the_same_weights_only(three, tmp_path: Path) -> None:
    def stored(model: Model) -> list[object]:
        store = capture(model, PAIRS, layers=[1], folder=tmp_path / "acts", progress=False)
        steerers = {"v": {1: SteeringVector({1: torch.ones(32)})}}
        frame = sweep(model, PAIRS, steerers, [1], (1.0,), folder=tmp_path / "sweep", progress=False)
        return [store.load().values.tolist(), frame["value"].tolist()]

    assert stored(three["here"]) == stored(three["renamed"])
    for folder in ("acts", "sweep"):
        with pytest.raises(MismatchError, match=f"{folder} .*weights: '\\w{{16}}' there, '\\w{{16}}'"):
            stored(three["namesake"])
        (tmp_path / folder).rename(tmp_path / f"{folder}-of-here")
