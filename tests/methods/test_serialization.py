"""A loaded method equals the saved one bit for bit; damaged or foreign artifacts are refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from synthetic_acts import check_saved, make_acts, normal

from steerlab import ActivationError, DataError, LoadError, MismatchError, Site, load_detector, load_steerer, save
from steerlab.methods import L2S, L2S_PAPER, P2S, ConditionVector, Context, MeanDifference, Prompt, RandomDirection
from steerlab.methods.serialization import MANIFEST, savable, serialize

INFO = {"model": "tiny", "layers": 12, "template": "t1"}
ACTS = make_acts(normal(30, 8), normal(30, 8, seed=1), behaviors=["a", "b", "c"] * 10, **INFO)
STEERERS = [
    MeanDifference(3, behaviors=("a", "b")),
    MeanDifference(Site(3)),
    P2S(3, zero_behaviors=("c",)),
    RandomDirection(3, seed=4),
    RandomDirection(3, per_example=True),
    L2S(
        3, hidden_units=4, config=replace(L2S_PAPER, epochs=2, equalize_norms=("a", "b")), zero_behaviors=("c",),
        max_norm=1.5, progress=False,
    ),
    L2S(3, hidden_units=4, config="paper", activation="relu", progress=False),
]  # fmt: skip


def model(**changes):
    return SimpleNamespace(**{"id": "tiny", "hidden_size": 8, "n_layers": 12} | changes)


@pytest.fixture
def folder(tmp_path):
    return save(MeanDifference(3).fit(ACTS), tmp_path / "run")


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("steerer", STEERERS, ids=lambda s: s.name)
def test_loaded_steerer_gives_identical_vectors(steerer, tmp_path):
    steerer.fit(ACTS)
    generator = torch.get_rng_state()
    loaded = check_saved(steerer, tmp_path / "run", Context(("s0003", "s0010"), ACTS), model())
    assert loaded.site == Site(3) and loaded.info_["model"] == "tiny"
    assert torch.equal(torch.get_rng_state(), generator)


def test_prompt_and_given_vector_are_loaded(tmp_path):
    assert load_steerer(save(Prompt("Be kind."), tmp_path / "p")).instruction == "Be kind."
    made = MeanDifference.from_tensor(2, torch.arange(4.0))
    assert torch.equal(load_steerer(save(made, tmp_path / "m"), model(hidden_size=4)).vector_, torch.arange(4.0))


def test_manifest_describes_the_steerer(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["hidden_size"] == 8 and manifest["layers"] == [3] and manifest["schema"] == 1
    assert manifest["steerer"]["class"] == "MeanDifference"
    assert manifest["steerer"]["info"]["template"] == "t1"
    assert set(manifest["versions"]) >= {"steerlab", "torch", "safetensors"}
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "steerer.safetensors"]


def test_changed_tensor_file_and_missing_manifest_are_refused(folder):
    path = folder / "steerer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MismatchError, match="checksum"):
        load_steerer(folder)
    with pytest.raises(LoadError, match="nowhere"):
        load_steerer(folder / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, r"hidden_size 8.*16"),
        ({"n_layers": 24}, r"n_layers 12.*24"),
        ({"id": "other"}, r"id 'tiny'.*'other'.*force=True"),
        ({"info": lambda: {"template": "t2"}}, r"template 't1'.*'t2'"),
    ],
)
def test_another_model_is_refused(changes, message, folder):
    with pytest.raises(MismatchError, match=message):
        load_steerer(folder, model(**changes))


def test_force_allows_another_id_but_not_another_width_or_missing_layers(folder, tmp_path):
    assert load_steerer(folder, model(id="other"), force=True).name == "meandifference"
    with pytest.raises(MismatchError, match="hidden_size"):
        load_steerer(folder, model(hidden_size=16), force=True)
    deep = save(MeanDifference.from_tensor(20, torch.ones(8)), tmp_path / "deep")
    with pytest.raises(MismatchError, match=r"layers \[20\].*12 layers"):
        load_steerer(deep, model(), force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m["steerer"].update({"class": "Ghost"}), "Ghost"),
        (lambda m: m["steerer"].update({"class": "Recipe"}), r"field 'Recipe'.*now called 'TrainingConfig'"),
        (lambda m: m["steerer"]["arguments"].update(behaviours=None), r"field 'behaviours'.*now called 'behaviors'"),
        (lambda m: m["steerer"]["arguments"].update(behaviour="a"), r"field 'behaviour'.*now called 'behavior'"),
        (lambda m: m["steerer"]["arguments"].update(normalise=True), r"field 'normalise'.*now called 'normalize'"),
        (lambda m: m.update(artefact=m.pop("steerer")), r"field 'artefact'.*now called 'artifact'"),
    ],
)
def test_unknown_schema_class_or_renamed_field_is_refused(change, message, folder):
    edit_manifest(folder, change)
    with pytest.raises(MismatchError, match=message):
        load_steerer(folder)


def test_renamed_fitted_value_is_refused(tmp_path):
    folder = save(ConditionVector(3, positive=("a",)).fit(ACTS), tmp_path / "run")
    edit_manifest(folder, lambda m: m["steerer"]["state"].update(centre_=None))
    with pytest.raises(MismatchError, match=r"field 'centre_'.*now called 'center_'"):
        load_detector(folder)


def test_unfitted_steerer_and_unsupported_value_are_not_saved(tmp_path):
    @savable
    class TwoSites(MeanDifference):
        sites = (Site(1), Site(2))

        def __init__(self) -> None:
            pass

    for unfitted in (MeanDifference(3), TwoSites()):
        with pytest.raises(ActivationError, match="not fitted"):
            save(unfitted, tmp_path)
    with pytest.raises(DataError, match="object"):
        serialize(object(), {}, "thing")
