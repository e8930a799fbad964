"""The example that the README opens with does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import steerlab
from steerlab import Example, LoadError
from steerlab.models.smollm2 import smollm2_folder
from steerlab.testing import tiny_lm

README = Path(__file__).parents[1] / "README.md"


def some(rows: list[Example], most: int = 8) -> list[Example]:
    """A few rows of every behavior and split."""
    kinds = dict.fromkeys((e.behavior, e.split) for e in rows)
    return [e for kind in kinds for e in [e for e in rows if (e.behavior, e.split) == kind][:most]]


@pytest.mark.slow
def test_the_ten_lines_run_as_they_stand_there(
    smollm2_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word; the data alone are fewer, or two cores would read for a minute."""
    (code,) = re.findall(r"```python\n(import steerlab\n.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    try:
        smollm2_folder()
    except LoadError as error:
        pytest.skip(f"the weights of SmolLM2 are not here: {error}")
    rows = some(steerlab.data.demo_set())
    monkeypatch.setattr(steerlab.data, "demo_set", lambda: rows)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(compile(code, str(README), "exec"), names)
    assert len(names["texts"]) == 4 and all(names["texts"])
    assert names["run"].steered_tokens > 0 and names["run"].norm_ratio > 0
    shown = capsys.readouterr().out
    assert shown == f"{names['texts'][0]} {names['run'].steered_tokens} {names['run'].norm_ratio}\n"


def test_the_sweep_runs_as_it_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model, with the names that the ten lines leave."""
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from steerlab\.analysis\.band.+?)```", text, re.DOTALL)
    rows = some(steerlab.data.demo_set())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "steerlab": steerlab, "model": tiny_lm("llama"), "rows": rows, "train": [e for e in rows if e.split == "train"],
    }  # fmt: skip
    exec(compile(code, str(README), "exec"), names)
    plan, layer_range, share = capsys.readouterr().out.rsplit("\n", 3)[:3]
    assert "forward-equivalents" in plan and "chosen on 16 rows" in layer_range and share.endswith("n=32")
    assert names["layer_range"].gain is not None and (tmp_path / "results" / "sweep" / "stages").is_dir()
