"""A loaded method equals the saved one bit for bit; damaged or foreign artifacts are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from synthetic_acts import check_saved, make_acts, normal

from steerlab import Site, load_steerer
from steerlab._support.files import seal
from steerlab.errors import ActivationError, DataError, LoadError, MismatchError, StorageError
from steerlab.methods import L2S, L2S_PAPER, P2S, Context, MeanDifference, Prompt, RandomDirection, SteeringVector
from steerlab.methods.serialization import MANIFEST, deserialize, savable, save, serialize

INFO = {"model": "tiny", "layers": 12, "template": "t1"}
ACTS = make_acts(normal(30, 8), normal(30, 8, seed=1), behaviors=["a", "b", "c"] * 10, **INFO)
STEERERS = [
    MeanDifference(3, behaviors=("a", "b")), MeanDifference(Site(3)), P2S(3, zero_behaviors=("c",)),
    RandomDirection(3, seed=4), RandomDirection(3, per_example=True),
    L2S(
        3, hidden_units=4, config=replace(L2S_PAPER, epochs=2, equalize_norms=("a", "b")), zero_behaviors=("c",),
        max_norm=1.5, progress=False,
    ),
    L2S(3, hidden_units=4, config="paper", activation="relu", progress=False),
]  # fmt: skip

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)


def model(**changes):
    return SimpleNamespace(**{"id": "tiny", "hidden_size": 8, "n_layers": 12} | changes)


@pytest.fixture
def folder(tmp_path):
    return save(MeanDifference(3).fit(ACTS), tmp_path / "run")


@pytest.mark.parametrize("steerer", STEERERS, ids=lambda s: s.name)
def test_loaded_steerer_gives_identical_vectors(steerer, tmp_path):
    steerer.fit(ACTS)
    generator = torch.get_rng_state()
    loaded = check_saved(steerer, tmp_path / "run", Context(("s0003", "s0010"), ACTS), model())
    assert loaded.site == Site(3) and loaded.info_["model"] == "tiny"
    assert torch.equal(torch.get_rng_state(), generator)


def test_prompt_and_given_vector_are_loaded(tmp_path):
    assert load_steerer(save(Prompt("Be kind."), tmp_path / "p")).instruction == "Be kind."
    made = SteeringVector({2: torch.arange(4.0)})
    assert torch.equal(load_steerer(save(made, tmp_path / "m"), model(hidden_size=4)).vector_, torch.arange(4.0))


def test_manifest_describes_the_steerer(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["hidden_size"] == 8 and manifest["layers"] == [3] and manifest["schema"] == 2
    assert manifest["steerer"]["class"] == "MeanDifference"
    assert manifest["steerer"]["info"]["template"] == "t1"
    assert set(manifest["versions"]) >= {"steerlab", "torch", "safetensors"}
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", manifest["tensors"]]


def test_missing_folder_is_named_and_an_older_schema_is_refused(folder):
    with pytest.raises(LoadError, match=r"no file .*nowhere"):
        load_steerer(folder / "nowhere")
    (folder / MANIFEST).write_text(json.dumps({"schema": 1, "steerer": {}}))
    with pytest.raises(LoadError, match=r"schema 1; this steerlab reads schema 2\. .*fit the method again"):
        load_steerer(folder)


@pytest.mark.parametrize("step", range(4))
def test_artifact_saved_over_another_is_the_old_or_the_new_one_at_any_time(folder, step, monkeypatch):
    """A save that is interrupted at its first, second, ... change of the disk."""
    old, new = MeanDifference(3).fit(ACTS), SteeringVector({5: torch.ones(8)})
    left, change = [step], {"replace": os.replace, "unlink": Path.unlink}

    def counting(name):
        def changing(*paths, **options):
            if options or name == "replace":
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            return change[name](*paths, **options)

        return changing

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counting("replace"))
        patch.setattr(Path, "unlink", counting("unlink"))
        with pytest.raises(KeyboardInterrupt):
            save(new, folder)
    found = load_steerer(folder).vector_
    assert torch.equal(found, old.vector_) or torch.equal(found, new.vector_)
    save(new, folder)
    assert torch.equal(load_steerer(folder).vector_, new.vector_)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("pattern", ["*.safetensors", MANIFEST])
def test_full_disk_keeps_the_artifact_that_was_there(folder, pattern, tmp_path):
    new, before = SteeringVector({5: torch.ones(8)}), load_steerer(folder).vector_
    (name,) = (path.name for path in save(new, tmp_path / "new").glob(pattern))
    (folder / f".{name}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device.*what the folder held before is kept\. Make room"):
        save(new, folder)
    assert torch.equal(load_steerer(folder).vector_, before)
    with pytest.raises(StorageError, match=rf"{MANIFEST}.*could not be written .*Not a directory|File exists"):
        save(new, folder / MANIFEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, r"manifest\.json.*hidden_size 8.*16"),
        ({"n_layers": 24}, r"n_layers 12.*24"),
        ({"id": "other"}, r"id 'tiny'.*'other'.*force=True"),
        ({"info": lambda: {"template": "t2"}}, r"template t1.*t2.*force=True"),
    ],
)
def test_another_model_is_refused(changes, message, folder):
    with pytest.raises(MismatchError, match=message):
        load_steerer(folder, model(**changes))


def test_force_allows_another_id_but_not_another_width_or_missing_layers(folder, tmp_path):
    assert load_steerer(folder, model(id="other"), force=True).name == "meandifference"
    with pytest.raises(MismatchError, match="hidden_size"):
        load_steerer(folder, model(hidden_size=16), force=True)
    deep = save(SteeringVector({20: torch.ones(8)}), tmp_path / "deep")
    with pytest.raises(MismatchError, match=r"layers \[20\].*12 layers"):
        load_steerer(deep, model(), force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["steerer"].update({"class": "Ghost"}), "holds a 'Ghost', known are .*import its module first"),
        (lambda m: m["steerer"]["arguments"].update(unheard="of"), "the argument 'unheard', which it does not have"),
        (lambda m: m["steerer"].pop("info"), "KeyError: 'info'"),
        (lambda m: m.update(tensors="../other.safetensors"), "Invalid name"),
        (lambda m: m.update(layers="three"), "TypeError"),
    ],
)
def test_manifest_of_a_class_with_other_fields_is_refused_by_name(change, message, folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)))
    with pytest.raises((MismatchError, LoadError), match=rf"{folder / MANIFEST}.*{message}"):
        load_steerer(folder, model())


@pytest.mark.parametrize("value", [{"a": [ONE, ONE], "a.0": TWO}, {"a.b": ONE, "a": {"b": TWO}}, {1: ONE, "1": TWO}])
def test_names_that_hold_dots_keep_their_tensors(value) -> None:
    tensors: dict[str, torch.Tensor] = {}
    torch.testing.assert_close(deserialize(serialize(value, tensors, "x"), tensors), value)


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


def test_manifest_whose_method_is_no_method_is_refused(tmp_path) -> None:
    SteeringVector({1: torch.ones(4)}).save_pretrained(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"} | {"steerer": None}
    path.write_text(json.dumps(seal(manifest)))
    with pytest.raises(MismatchError, match=r"the field 'steerer' of .*manifest.json holds a NoneType, not a method"):
        load_steerer(tmp_path)
