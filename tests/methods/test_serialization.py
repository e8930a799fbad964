"""What is saved comes back bit for bit, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from synthetic_acts import make_acts

from steerlab._support.errors import ActivationError, DataError, LoadError, MismatchError
from steerlab.methods import (
    L2S,
    L2S_PAPER,
    P2S,
    Context,
    MeanDifference,
    Prompt,
    RandomDirection,
    load_steerer,
    save,
)  # fmt: skip
from steerlab.methods._codec import pack, savable
from steerlab.models.sites import Site

ACTS = make_acts(
    torch.randn(30, 8),
    torch.randn(30, 8),
    behaviors=["a", "b", "c"] * 10,
    model="tiny",
    layers=12,
    template="t1",
)
RECIPE = replace(L2S_PAPER, epochs=2, equalize_norms=("a", "b"))
STEERERS = [
    MeanDifference(3, behaviors=("a", "b")),
    MeanDifference(Site(3)),
    P2S(3, zero_behaviors=("c",)),
    RandomDirection(3, seed=4),
    RandomDirection(3, per_example=True),
    L2S(3, hidden_units=4, config=RECIPE, zero_behaviors=("c",), max_norm=1.5, progress=False),
    L2S(3, hidden_units=4, config="paper", activation="relu", progress=False),
]


def model(**changes):
    return SimpleNamespace(**{"id": "tiny", "hidden_size": 8, "n_layers": 12} | changes)


@pytest.mark.parametrize("steerer", STEERERS, ids=lambda s: s.name)
def test_a_loaded_steerer_answers_bit_for_bit_the_same(steerer, tmp_path):
    context = Context(("s0003", "s0010"), ACTS)
    expected = steerer.fit(ACTS).vectors(context)
    loaded = load_steerer(save(steerer, tmp_path / "run"), model())
    assert type(loaded) is type(steerer)
    assert torch.equal(loaded.vectors(context), expected)
    assert loaded.site == Site(3) and loaded.required_activations == steerer.required_activations
    assert loaded.info_["model"] == "tiny"


def test_a_prompt_and_a_handmade_vector_survive_too(tmp_path):
    assert load_steerer(save(Prompt("Be kind."), tmp_path / "p")).instruction == "Be kind."
    made = MeanDifference.from_tensor(2, torch.arange(4.0))
    assert torch.equal(load_steerer(save(made, tmp_path / "m"), model(hidden_size=4)).vector_, torch.arange(4.0))


def saved(folder):
    return save(MeanDifference(3).fit(ACTS), folder / "run")


def test_the_manifest_says_where_the_steerer_comes_from(tmp_path):
    manifest = json.loads((saved(tmp_path) / "manifest.json").read_text())
    assert manifest["hidden_size"] == 8 and manifest["layers"] == [3] and manifest["schema"] == 1
    assert manifest["steerer"]["class"] == "MeanDifference"
    assert manifest["steerer"]["info"]["template"] == "t1"
    assert set(manifest["versions"]) >= {"steerlab", "torch", "safetensors"}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["manifest.json", "steerer.safetensors"]


def test_a_changed_tensor_file_is_refused(tmp_path):
    path = saved(tmp_path) / "steerer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MismatchError, match="checksum"):
        load_steerer(path.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, r"hidden_size 8.*16"),
        ({"n_layers": 24}, r"n_layers 12.*24"),
        ({"id": "other"}, r"id 'tiny'.*'other'.*force=True"),
        ({"info": lambda: {"template": "t2"}}, r"template 't1'.*'t2'"),
    ],
)
def test_another_model_is_refused_with_both_sides_named(changes, message, tmp_path):
    with pytest.raises(MismatchError, match=message):
        load_steerer(saved(tmp_path), model(**changes))


def test_force_allows_another_id_but_not_another_width(tmp_path):
    folder = saved(tmp_path)
    assert load_steerer(folder, model(id="other"), force=True).name == "meandifference"
    with pytest.raises(MismatchError, match="hidden_size"):
        load_steerer(folder, model(hidden_size=16), force=True)


def test_a_layer_the_model_lacks_is_refused(tmp_path):
    made = save(MeanDifference.from_tensor(20, torch.ones(8)), tmp_path / "deep")
    with pytest.raises(MismatchError, match=r"layers \[20\].*12 layers"):
        load_steerer(made, model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m["steerer"].update({"class": "Ghost"}), "Ghost"),
    ],
)
def test_an_unknown_schema_or_class_is_refused(change, message, tmp_path):
    path = saved(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match=message):
        load_steerer(path.parent)


def test_an_unfitted_steerer_or_a_strange_value_is_not_saved(tmp_path):
    with pytest.raises(ActivationError, match="not fitted"):
        save(MeanDifference(3), tmp_path)
    with pytest.raises(DataError, match="object"):
        pack(object(), {}, "thing")


def test_a_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(LoadError, match="nowhere"):
        load_steerer(tmp_path / "nowhere")


def test_an_unfitted_method_of_several_sites_is_not_saved(tmp_path) -> None:
    @savable
    class Two(MeanDifference):
        sites = (Site(1), Site(2))

        def __init__(self) -> None:
            pass

    with pytest.raises(ActivationError, match="not fitted"):
        save(Two(), tmp_path)
