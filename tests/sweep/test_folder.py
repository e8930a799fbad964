"""A sweep's folder: refused where it is another's, whole where the disk was full, read back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from swept import questions, vectors

from steerlab import Example, MismatchError, Model, sweep
from steerlab._support.errors import StorageError

FULL = Path("/dev/full")


def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    return [len(text) / 3 for text in texts]


def run(model: Model, folder: Path | None, **other: Any) -> pd.DataFrame:
    """A small sweep with stages of every kind."""
    asked: dict[str, Any] = {
        "data": questions(), "layers": [0, 2], "alphas": (0.0, 0.5, 2.0), "metric": ["propensity", "logprob", length],
        "generation": {"max_new_tokens": 3}, "batch_size": 4, "progress": False,
    }  # fmt: skip
    return sweep(model, {"v": vectors(model)}, folder=folder, **(asked | other))


def written(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "stages").iterdir()}


def test_a_folder_changes_no_bit_and_is_read_back(lm, tmp_path: Path) -> None:
    first = run(lm(), tmp_path)
    stages = written(tmp_path)
    again = run(lm(), tmp_path)
    pd.testing.assert_frame_equal(first, run(lm(), None), check_exact=True)
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    assert written(tmp_path) == stages
    assert first.attrs["forward_equivalents"]["spent"] > again.attrs["forward_equivalents"]["spent"] == 0


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"alphas": (0.0, 3.0)}, ["alphas: [0.0, 0.5, 2.0] there, [0.0, 3.0] now"]),
        ({"layers": [0, 1]}, ["layers: [0, 2] there, [0, 1] now", "vectors: "]),
        ({"positions": "all"}, ["positions: ['last+generated'] there, ['all'] now"]),
        ({"metric": "propensity"}, ["metrics: ['length', 'logprob', 'propensity'] there, ['propensity'] now"]),
        ({"generation": {"max_new_tokens": 4}}, ["{'max_new_tokens': 3} there, {'max_new_tokens': 4} now"]),
        ({"scale": "norm"}, ["scale: 'raw' there, 'norm' now"]),
        ({"data": questions()[:4]}, ["data: "]),
        ({"data": questions("(B)", "(A)")}, ["data: "]),
    ],
)
def test_the_folder_of_another_sweep_is_refused_and_both_are_named(
    lm, tmp_path: Path, other: dict[str, Any], names: list[str]
) -> None:
    run(lm(), tmp_path)
    stages = written(tmp_path)
    with pytest.raises(MismatchError, match="belongs to another study") as refused:
        run(lm(), tmp_path, **other)
    assert all(name in str(refused.value) for name in names), refused.value
    assert written(tmp_path) == stages


def test_the_folder_of_another_model_is_refused(lm, tmp_path: Path) -> None:
    run(lm(), tmp_path)
    with pytest.raises(MismatchError, match="model: 'tiny-llama' there, 'tiny-qwen2' now"):
        run(lm("qwen2"), tmp_path)


@pytest.mark.parametrize(("first", "second"), [(2, 64), (64, 4)])
def test_an_interrupted_folder_goes_on_with_another_batch_size(lm, tmp_path: Path, first: int, second: int) -> None:
    asked: dict[str, Any] = {"memory": 1, "alphas": (0.0, 0.5, 1.0, 2.0)}  # blocks of one input at any batch size
    whole = run(lm(), tmp_path, batch_size=first, **asked)
    for path in sorted((tmp_path / "stages").glob("*.csv"))[1::2]:
        path.unlink()
    kept = written(tmp_path)
    found = run(lm(), tmp_path, batch_size=second, **asked)
    pd.testing.assert_frame_equal(found, whole, check_exact=False, rtol=1e-5, atol=1e-5)
    assert written(tmp_path).keys() - kept.keys(), "the premise"


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["unsteered", "0001-", "text-", "metric-"])
def test_on_a_full_disk_what_is_finished_is_safe_and_the_rest_is_done_afterwards(lm, tmp_path: Path, kind: str) -> None:
    whole = run(lm(), tmp_path / "whole")
    name = sorted(name for name in written(tmp_path / "whole") if kind in name)[-1]
    folder = tmp_path / "full"
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / f".{name}.{os.getpid()}.partial").symlink_to(FULL)
    with pytest.raises(StorageError, match=f"{name} could not be written .No space left on device") as refused:
        run(lm(), folder)
    stages = written(folder)
    finished = [stage for stage in stages if stage.endswith(".csv")]
    assert 0 < len(finished) < len(written(tmp_path / "whole")) - 1
    assert f"{len(finished)} finished stages are safe there" in str(refused.value)
    assert "run the same again" in str(refused.value)
    assert name not in stages and not [stage for stage in stages if stage.endswith(".partial")]
    pd.testing.assert_frame_equal(run(lm(), folder), whole, check_exact=True)
    assert stages.items() <= written(folder).items(), "nothing was computed twice"


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_folder_that_cannot_be_begun_says_so(lm, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / f".study.json.{os.getpid()}.partial").symlink_to(FULL)
    with pytest.raises(StorageError, match=r"study.json could not be written .*nothing was begun"):
        run(lm(), tmp_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="nothing was begun"):
        run(lm(), tmp_path / "file")
