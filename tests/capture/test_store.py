"""Captures in a folder: atomic shards, resumed runs, and no mixing of data."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from steerlab import Activations, Contrast, Example, Site, Store, capture
from steerlab._support.errors import ActivationError, LoadError, MismatchError

# ids, behaviors and splits that look like numbers, truth values and dates must come back as the text they are
DATA = [
    Example("007", "hello there", "1", Contrast("I can't.", "Sure."), split="1.0"),
    Example("2024-01-01", "how are you today, my friend?", "true", Contrast("No.", "Yes, of course.")),
    Example("naïve/“c”", "no", "", Contrast("Harmful", "Safe", suffix="safe or harmful?")),
    Example("null", "in the end", "null"),
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
    data = [*DATA, Example("task", "one two", extra_prompts={"task": "one"})]
    store = capture(model, data, folder=tmp_path / "acts", **options)
    expected = capture(model, data, **options)
    assert_same(store.load(), expected)
    assert_same(Store.open(str(tmp_path / "acts")).load(), expected)
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


def test_partly_written_shard_is_not_kept(model, tmp_path, monkeypatch):
    def cut_off(contents: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(import_module("steerlab.capture.store"), "save_file", cut_off)
        with pytest.raises(OSError, match="disk full"):
            capture(model, DATA, folder=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert_same(capture(model, DATA, folder=tmp_path, **OPTIONS).load(), capture(model, DATA, **OPTIONS))


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
    with pytest.raises(LoadError, match=r"there is no manifest\.json"):
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
    path.write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(LoadError, match="written in schema 99; this steerlab reads schema 1"):
        Store.open(tmp_path)


def test_engines_can_share_a_folder(lm, tmp_path):
    capture(lm("llama", "hooks"), DATA, folder=tmp_path, **OPTIONS)
    store = capture(lm("llama", "nnsight"), DATA, folder=tmp_path, **OPTIONS)
    assert_same(store.load(), capture(lm("llama", "nnsight"), DATA, **OPTIONS))
