"""Captures in a folder: atomic shards, resumed runs, and no mixing of data."""

import errno
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from steerlab import Activations, Contrast, Example, Site, capture
from steerlab._support import files
from steerlab.capturing import Store
from steerlab.errors import ActivationError, LoadError, MismatchError, StorageError

# ids, behaviors and splits that look like numbers, truth values and dates must come back as the text they are
DATA = [
    Example("hello there", id="007", behavior="1", contrast=Contrast("I can't.", "Sure."), split="1.0"),
    Example("how are you today, my friend?", Contrast("No.", "Yes, of course."), id="2024-01-01", behavior="true"),
    Example("no", id="naïve/“c”", behavior="", contrast=Contrast("Harmful", "Safe", suffix="safe or harmful?")),
    Example("in the end", id="null", behavior="null"),
]
OPTIONS: dict[str, Any] = {"positions": ["answer", "last", -1], "batch_size": 2, "progress": False}


def assert_same(a: Activations, b: Activations) -> None:
    assert torch.equal(a.values, b.values) and a.values.dtype == b.values.dtype
    assert a.sites == b.sites
    assert a.index.astype(object).values.tolist() == b.index.astype(object).values.tolist()
    assert list(a.index.columns) == list(b.index.columns)


@pytest.mark.parametrize("reduce", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_store_loads_what_capture_returns(model, tmp_path, reduce, dtype):
    options = {"reduce": reduce, "dtype": dtype, **OPTIONS}
    data = [*DATA, Example("one two", id="task", extra_prompts={"task": "one"})]
    store = capture(model, data, folder=tmp_path / "acts", **options)
    expected = capture(model, data, **options)
    assert_same(store.load(), expected)
    assert_same(Store.open(str(tmp_path / "acts")).load(), expected)
    assert_same(store.load(-1), store.load(store.sites[-1].layer))
    added = expected.index.assign(p_value=1 / (3 + expected.index.index), seen_at="2024-01-01", small=3e-13)
    added = Activations(expected.values, added, expected.sites, expected.info)
    added.save_pretrained(tmp_path / "saved")
    assert_same(Activations.from_pretrained(tmp_path / "saved"), added)
    names = sorted(path.name for path in (tmp_path / "acts").iterdir())
    assert names == ["manifest.json", *(f"shard-{n:05d}.safetensors" for n in range(store.n_shards))]


def test_killed_capture_runs_only_what_is_missing(model, tmp_path, monkeypatch):
    capture_states, calls = model.engine.capture_states, [0]

    def counting(*args: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return capture_states(*args)

    monkeypatch.setattr(model.engine, "capture_states", counting)
    with pytest.raises(KeyboardInterrupt):
        capture(model, DATA, folder=tmp_path, **OPTIONS)
    unfinished = Store.open(tmp_path)
    assert [unfinished.has_shard(n) for n in range(unfinished.n_shards)] == [True, True, False, False]
    with pytest.raises(ActivationError, match="unfinished: 2 of 4 shards are missing"):
        unfinished.load()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    for _ in range(2):
        store = capture(model, DATA, folder=tmp_path, **OPTIONS)
        assert calls[0] == 3 + 2
    assert all(path.stat().st_mtime_ns == at for path, at in first.items())
    assert_same(store.load(), capture(model, DATA, **OPTIONS))


def interrupted(shards: int, interrupt: Callable[[Path], None]) -> Callable[..., None]:
    """A `save_file` that gives so many shards and then does something to the file it should write."""
    left = [shards]

    def save(contents: Any, path: Path, metadata: Any) -> None:
        if left[0] == 0:
            interrupt(path)
        left[0] -= 1
        save_file(contents, path, metadata)

    return save


def half_written(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def half_serialized(path: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


def folder_gone(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(("interrupt", "kept"), [(half_written, 2), (half_serialized, 2), (folder_gone, 0)])
def test_storage_trouble_names_the_shard_and_keeps_the_others(model, tmp_path, monkeypatch, interrupt, kept):
    folder = tmp_path / "acts"
    with monkeypatch.context() as patch:
        patch.setattr(import_module("steerlab.capturing.store"), "save_file", interrupted(2, interrupt))
        message = r"shard-00002\.safetensors could not be written .*2 of 4 shards are kept"
        with pytest.raises(StorageError, match=message):
            capture(model, DATA, folder=folder, **OPTIONS)
    names = ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    assert sorted(path.name for path in folder.glob("*")) == (names if kept else [])
    assert_same(capture(model, DATA, folder=folder, **OPTIONS).load(), capture(model, DATA, **OPTIONS))


def test_folder_that_cannot_be_made_raises_before_any_forward(model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=r"could not be written .*nothing was captured yet\. Make room"):
            capture(model, DATA, folder=folder, **OPTIONS)


def test_two_captures_into_one_folder_at_once_give_the_same(model, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: capture(model, DATA, folder=tmp_path, **OPTIONS), range(2)))
    expected = capture(model, DATA, **OPTIONS)
    for store in (*stores, Store.open(tmp_path)):
        assert_same(store.load(), expected)


def test_manifest_that_another_capture_wrote_meanwhile_is_refused(model, tmp_path, monkeypatch):
    """Both found no manifest; the second one's took the place of the first one's."""
    capture(model, DATA[:2], folder=tmp_path / "second", **OPTIONS)
    write = files.write_json

    def write_and_lose(path: Path, *rest: Any) -> None:
        write(path, *rest)
        shutil.copy(tmp_path / "second" / "manifest.json", path)

    monkeypatch.setattr(files, "write_json", write_and_lose)
    with pytest.raises(MismatchError, match="holds another capture"):
        capture(model, DATA, folder=tmp_path / "first", **OPTIONS)


def test_damaged_shard_is_named_and_alone_captured_again(model, tmp_path):
    store = capture(model, DATA, folder=tmp_path, **OPTIONS)
    expected, path = store.load(), tmp_path / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the last site alone
    assert torch.equal(store.load(layers=[0, 1, 2]).values, expected.values[:, :3])
    with pytest.raises(
        MismatchError, match=rf"{path}: the states at site 3 do not have their checksum\. Delete this file"
    ):
        store.load()
    path.unlink()
    others = {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    assert_same(capture(model, DATA, folder=tmp_path, **OPTIONS).load(), expected)
    assert all(p.stat().st_mtime_ns == at for p, at in others.items())


def test_deleted_manifest_is_written_again_for_the_same_shards(model, tmp_path):
    expected = capture(model, DATA, folder=tmp_path, **OPTIONS).load()
    (tmp_path / "manifest.json").unlink()
    assert_same(capture(model, DATA, folder=tmp_path, **OPTIONS).load(), expected)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(MismatchError, match=r"shard-00000\.safetensors: this is shard 0 of the capture"):
        capture(model, [e.replace(behavior="") for e in DATA], folder=tmp_path, **OPTIONS).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": DATA[:2]}, "data: '[0-9a-f]{16}' there, '[0-9a-f]{16}' here"),
        ({"layers": [1]}, r"sites: \['0', '1', '2', '3'\] there, \['1'\] here"),
        ({"reduce": "none"}, "reduce: 'mean' there, 'none' here"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 here"),
        ({"dtype": torch.float16}, "storage: 'torch.float32' there, 'torch.float16' here"),
        ({"family": "qwen2"}, "model: 'tiny-llama' there, 'tiny-qwen2' here"),
    ],
)
def test_folder_with_another_capture_raises_with_both_values(model, lm, tmp_path, change, message):
    capture(model, DATA, folder=tmp_path, **OPTIONS)
    other = lm(change.pop("family"), "hooks") if "family" in change else model
    with pytest.raises(MismatchError, match=message):
        capture(other, folder=tmp_path, **{"data": DATA, **OPTIONS, **change})


def test_store_loads_selected_layers(model, tmp_path):
    store = capture(model, DATA, folder=tmp_path, layers=[0, 2, Site(2, "attn_out"), 3], **OPTIONS)
    everything = store.load()
    some = store.load(layers=[3, 0, Site(2, "attn_out")])
    assert some.sites == (Site(3), Site(0), Site(2, "attn_out"))
    for site in some.sites:
        assert torch.equal(some.at(site), everything.at(site))
    with pytest.raises(
        ActivationError, match=r"sites \['1'\] were not captured; .* has \['0', '2.attn_out', '2', '3'\]"
    ):
        store.load(layers=[0, 1])


def test_manifest_holds_the_provenance_and_other_schemas_raise(model, tmp_path):
    with pytest.raises(LoadError, match=r"there is no file .*manifest\.json.*Give a folder that steerlab\.capture"):
        Store.open(tmp_path)
    capture(model, DATA, folder=tmp_path, **OPTIONS)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    info = manifest["info"]
    assert info["model"] == "tiny-llama" and info["hidden_size"] == 32 and info["dtype"] == "float32"
    assert info["positions"] == ["answer", "last", "-1"] and info["context"] == ["last"]
    assert {"data", "tokens", "template", "versions", "backend", "revision"} <= set(info)
    assert set(info["versions"]) >= {"steerlab", "torch", "transformers", "nnsight"}
    assert Store.open(tmp_path).load().info == info
    assert capture(model, DATA, **OPTIONS).info.items() >= info.items()
    assert info["weights"] == model.info()["weights"]
    path.write_text(json.dumps(manifest | {"schema": 1}))
    with pytest.raises(LoadError, match="written in schema 1; this steerlab reads schema 2"):
        Store.open(tmp_path)


def test_engines_can_share_a_folder(lm, tmp_path):
    capture(lm("llama", "hooks"), DATA, folder=tmp_path, **OPTIONS)
    store = capture(lm("llama", "nnsight"), DATA, folder=tmp_path, **OPTIONS)
    assert_same(store.load(), capture(lm("llama", "nnsight"), DATA, **OPTIONS))


def test_what_the_disk_does_not_give_is_a_storage_error_and_what_it_gives_damaged_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(StorageError, match=r"folder\.json could not be read \(Is a directory\)\. Delete it"):
        files.read_sealed(tmp_path / "folder.json", 1, "Delete it")
    with pytest.raises(LoadError, match=r"text\.json could not be read .*Delete it"):
        files.read_sealed(tmp_path / "text.json", 1, "Delete it")


def test_json_is_indented_and_keeps_letters(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"name": "für"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "für"\n}\n'
