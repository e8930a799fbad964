"""Sparse autoencoders: features by hand, planted dictionaries, and what they read in a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic_acts import normal

from steerlab import Site, capture, generate
from steerlab.analysis.sae_features import sae_features
from steerlab.errors import DataError, LoadError, MismatchError, SteeringError
from steerlab.methods import SAE, Operation, train_sae
from steerlab.testing import tiny_lm

PROMPTS = ["Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?"]
PARTS = (normal(6, 10), 0.3 * normal(10, seed=1), normal(10, 6, seed=2), normal(6, seed=3))
KINDS = {
    "standard": {}, "raw": {"subtracts_bias": False},
    "jumprelu": {"threshold": torch.linspace(0, 2, 10)}, "topk": {"k": 3},
}  # fmt: skip


def made(kind: str) -> SAE:
    return SAE(*PARTS, Site(2), architecture="standard" if kind == "raw" else kind, **KINDS[kind], info={"model": "m"})


def by_hand(kind: str, h: torch.Tensor) -> torch.Tensor:
    """The features of one state, one at a time."""
    encoder, bias, _, shift = PARTS
    before = [float((h - (0 if kind == "raw" else shift)) @ encoder[:, i] + bias[i]) for i in range(10)]
    found = [max(value, 0.0) for value in before]
    if kind == "jumprelu":
        found = [value if before[i] > KINDS[kind]["threshold"][i] else 0.0 for i, value in enumerate(found)]
    if kind == "topk":
        found = [value if value in sorted(found)[-3:] else 0.0 for value in found]
    return torch.tensor(found)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_by_hand_and_files_give_them_back(kind: str, tmp_path: Path) -> None:
    sae, states = made(kind), normal(7, 6, seed=9)
    features = sae.encode(states)
    for state, found in zip(states, features, strict=True):
        torch.testing.assert_close(found, by_hand(kind, state))
    torch.testing.assert_close(sae.decode(features), features @ PARTS[2] + PARTS[3])
    loaded = SAE.load(sae.save(tmp_path / kind))
    assert torch.equal(loaded.encode(states), features) and (loaded.site, loaded.info) == (Site(2), {"model": "m"})
    names = set(load_file(tmp_path / kind / "sae_weights.safetensors"))
    assert names >= {"W_enc", "b_enc", "W_dec", "b_dec"}, "the names that SAELens has"
    written = json.loads((tmp_path / kind / "cfg.json").read_text())["metadata"]
    assert written["sae_lens_version"] >= "6" and written["hook_name"] == "blocks.2.hook_resid_post"
    assert torch.equal(sae.direction(4).at(2), PARTS[2][4])


def test_training_finds_a_planted_dictionary() -> None:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    active = torch.rand(4000, 24, generator=generator).topk(2, dim=1).indices
    sizes = 3 + 2 * torch.rand(4000, 2, generator=generator)
    states = 5 + torch.zeros(4000, 24).scatter(1, active, sizes) @ dictionary
    sae = train_sae(states, 3, n_features=48, k=2, epochs=30, learning_rate=3e-3)
    assert sae.explained(states) > 0.9 and sae.site == Site(3)
    assert ((dictionary @ sae.decoder.T).max(1).values > 0.9).float().mean() > 0.75
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(48)) and not sae.decoder.requires_grad
    assert torch.equal(train_sae(states, 3, n_features=48, k=2, epochs=30, learning_rate=3e-3).decoder, sae.decoder)


def test_features_of_tokens_and_a_feature_ablated() -> None:
    model = tiny_lm("llama")
    states = capture(model, PROMPTS, layers=[2], positions="prompt", reduce="none")
    sae = train_sae(states.at(2), 2, n_features=64, k=4, epochs=60)
    frame = sae_features(model, PROMPTS, sae, top=2)
    later = states.at(2)[(states.index["column"] > 0).tolist()]
    assert frame.attrs["explained_variance"] == pytest.approx(sae.explained(later)) and len(frame) == 2 * len(states)
    assert frame.attrs["active_features"] == 4
    first = frame.iloc[2]
    own = sae.encode(states.at(2))[1]
    assert (first["feature"], first["activation"]) == (int(own.argmax()), pytest.approx(float(own.max())))
    assert (first["column"], first["input_token"]) == (1, model.tokenizer.decode([model.encode(PROMPTS[0]).ids[1]]))
    ablated = Operation(sae.direction(int(own.argmax())), "project_out")
    assert generate(model, PROMPTS, steer=ablated, max_new_tokens=3).steered_tokens > 0


def test_an_sae_of_other_states_is_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        train_sae(torch.full((8, 4), torch.nan), 1, 4, 2)
    model = tiny_lm("llama")
    strange = SAE(normal(32, 40), normal(40), 3 * normal(40, 32), normal(32), Site(1))
    with pytest.raises(MismatchError, match=r"explains -\d.* less than their mean does: it was made for another model"):
        sae_features(model, PROMPTS, strange)
    with pytest.raises(MismatchError, match="states of width 32, and the SAE reads 6"):
        sae_features(model, PROMPTS, made("standard"))


def test_files_and_settings_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    folder = made("topk").save(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    changes = {
        "architecture": ("gated", "architecture 'gated'"),
        "normalize_activations": ("layer_norm", "normalize_activations="),
        "rescale_acts_by_decoder_norm": (True, "rescale_acts_by_decoder_norm=True"),
        "hook_head_index": (3, "hook_head_index=3"),
        "activation_fn_str": ("topk", "activation_fn_str='topk'"),
        "model_from_pretrained_kwargs": ({"center_writing_weights": True}, "weights that were changed"),
        "metadata": ({"hook_name": "blocks.3.attn.hook_z"}, "blocks.3.attn.hook_z"),
    }  # fmt: skip
    for name, (value, message) in changes.items():
        (folder / "cfg.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(MismatchError, match=message):
            SAE.load(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(LoadError, match=r"cfg.json could not be read"):
        SAE.load(folder)
    with pytest.raises(LoadError, match=r"there is no file .*nowhere"):
        SAE.load(tmp_path / "nowhere")
    with pytest.raises(SteeringError, match=r"no name for the site 1.heads"):
        SAE(*PARTS, Site(1, "heads")).save(tmp_path / "heads")
    with pytest.raises(DataError, match="a topk SAE has k"):
        SAE(*PARTS, Site(1), architecture="topk")
    with pytest.raises(DataError, match="count its layer from 0"):
        SAE(*PARTS, Site(-1))
    with pytest.raises(DataError, match="9 states, of which"):
        train_sae(torch.ones(9, 6), 1, n_features=8, k=4)
    with pytest.raises(DataError, match="3 states, of which"):
        train_sae(normal(3, 6), 1, n_features=8, k=4)
