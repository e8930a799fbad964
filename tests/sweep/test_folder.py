"""The folder of a sweep: read back bit for bit, refused for another sweep, intact when the disk is full."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nightly import by_day
from reference import questions, text_length, vectors, written
from tokenizers.normalizers import Lowercase

from steerlab import sweep
from steerlab.analysis.texts import write_texts
from steerlab.errors import MismatchError, StorageError
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")


def run(model: Model, folder: Path | None, **other: Any) -> pd.DataFrame:
    """A small sweep with stages of every kind."""
    given: dict[str, Any] = {
        "data": questions(), "layers": [0, 2], "alphas": (0.0, 0.5, 2.0), "batch_size": 4, "progress": False,
        "metric": ["propensity", "logprob", text_length], "generation": {"max_new_tokens": 3},
    }  # fmt: skip
    return sweep(model, steer={"v": vectors(model)}, folder=folder, **(given | other))


def test_stored_sweep_equals_one_in_memory_and_is_read_back(lm, tmp_path: Path) -> None:
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
        ({"metric": "propensity"}, ["metrics: ['logprob', 'propensity', 'text_length'] there, ['propensity'] now"]),
        ({"generation": {"max_new_tokens": 4}}, ["{'max_new_tokens': 3} there, {'max_new_tokens': 4} now"]),
        ({"scale": "norm"}, ["scale: 'raw' there, 'norm' now"]),
        ({"data": questions()[:4]}, ["data: "]),
        ({"data": questions("(B)", "(A)")}, ["data: "]),
        ({"family": "qwen2"}, ["model: 'tiny-llama' there, 'tiny-qwen2' now"]),
    ],
)
def test_folder_of_another_sweep_is_refused_and_both_are_named(
    lm, tmp_path: Path, other: dict[str, Any], names: list[str]
) -> None:
    run(lm(), tmp_path)
    stages, model = written(tmp_path), lm(other.pop("family", "llama"))
    with pytest.raises(MismatchError, match="belongs to another study") as refused:
        run(model, tmp_path, **other)
    assert all(name in str(refused.value) for name in names), refused.value
    assert written(tmp_path) == stages


def test_another_tokenizer_and_another_layer_of_a_name_are_another_sweep(lm, tmp_path: Path) -> None:
    model, (v, w) = tiny_lm("llama"), [one.vector_ for one in list(vectors(lm()).values())[:2]]
    options: dict[str, Any] = {"alphas": (1.0,), "progress": False}
    sweep(model, questions(), {"a": {1: v, 2: w}, "b": {1: v}}, folder=tmp_path / "layers", **options)
    with pytest.raises(MismatchError, match="vectors: "):
        sweep(model, questions(), {"a": {1: v, 2: w}, "b": {2: v}}, folder=tmp_path / "layers", **options)
    run(model, tmp_path / "tokens")
    write_texts(model, ["Hi"], folder=tmp_path / "texts", max_new_tokens=2)
    model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    for again in (lambda: run(model, tmp_path / "tokens"), lambda: write_texts(model, ["Hi"], folder=tmp_path / "texts",
                                                                            max_new_tokens=2)):  # fmt: skip
        with pytest.raises(MismatchError, match="tokens: "):
            again()


@pytest.mark.parametrize(("first", "second"), [(2, 64), (64, 4)])
def test_interrupted_folder_resumes_with_another_batch_size(lm, tmp_path: Path, first: int, second: int) -> None:
    given: dict[str, Any] = {"memory": 1, "alphas": (0.0, 0.5, 1.0, 2.0)}  # one input per group at any batch size
    whole = run(lm(), tmp_path, batch_size=first, **given)
    for path in sorted((tmp_path / "stages").glob("*.csv"))[1::2]:
        path.unlink()
    kept = written(tmp_path)
    found = run(lm(), tmp_path, batch_size=second, **given)
    pd.testing.assert_frame_equal(found, whole, check_exact=False, rtol=1e-5, atol=1e-5)
    assert written(tmp_path).keys() - kept.keys(), "some stages were computed again"


@needs_full_disk
@pytest.mark.parametrize("kind", by_day(("unsteered", "0001-", "text-", "metric-"), lambda kind: kind == "text-"))
def test_full_disk_keeps_finished_stages_and_the_sweep_resumes(lm, tmp_path: Path, kind: str) -> None:
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


@needs_full_disk
def test_folder_that_cannot_be_written_to_raises_before_any_forward(lm, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / f".study.json.{os.getpid()}.partial").symlink_to(FULL)
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(StorageError, match=r"study.json could not be written .*nothing was begun"):
            run(lm(), folder)
