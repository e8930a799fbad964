"""Both figure scripts on made-up results, and saving."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from steerlab._support.errors import DataError
from steerlab.plots import save, style, width

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture
def results(tmp_path: Path, summary: dict[str, object], grid: pd.DataFrame) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    grid.to_csv(tmp_path / "grid.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("name", ["l2s_safety", "demo"])
def test_scripts_write_png_and_pdf(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, str(results), "--out", str(results / "drawn")])
    runpy.run_path(str(FIGURES / f"{name}.py"), run_name="__main__")
    assert {p.name for p in (results / "drawn").iterdir()} == {f"{name}.png", f"{name}.pdf"}
    assert f"{name}.pdf" in capsys.readouterr().out


def test_safety_figure_draws_what_there_is(results: Path, summary: dict[str, object]) -> None:
    draw = runpy.run_path(str(FIGURES / "l2s_safety.py"))["draw"]
    full = draw(results)
    assert len(full.axes) == 3
    assert full.get_size_inches()[0] == width(2)
    (results / "grid.csv").unlink()
    assert len(draw(results).axes) == 2
    few = {k: v for k, v in summary.items() if k.endswith("refuse_harmful")}
    (results / "summary.json").write_text(json.dumps(few))
    assert len(draw(results).axes) == 1


@pytest.mark.parametrize(("l2s", "claims"), [(0.9, True), (0.4, False)])
def test_demo_claims_only_what_the_numbers_say(l2s: float, claims: bool, results: Path, summary: dict) -> None:
    for name, value in (("refuse_harmful", l2s), ("defer_expert", 0.85), ("refuse_expert", 0.0)):
        summary[f"l2s.{name}"] |= {"value": value, "low": value - 0.1, "high": value + 0.1}
    (results / "summary.json").write_text(json.dumps(summary))
    fig = runpy.run_path(str(FIGURES / "demo.py"))["draw"](results)
    assert ("has to choose" in fig.get_suptitle()) == claims


def test_no_text_is_cut_off(results: Path) -> None:
    for name in ("l2s_safety", "demo"):
        fig = runpy.run_path(str(FIGURES / f"{name}.py"))["draw"](results)
        wide, high = fig.get_size_inches()
        box = fig.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high


def test_missing_results_are_named(tmp_path: Path) -> None:
    for name in ("l2s_safety", "demo"):
        with pytest.raises(DataError, match=r"summary\.json"):
            runpy.run_path(str(FIGURES / f"{name}.py"))["draw"](tmp_path)


def test_save_is_reproducible(tmp_path: Path) -> None:
    with style():
        fig = Figure(figsize=(width(1), 1))
        fig.subplots().plot([0, 1])
    first = [p.read_bytes() for p in save(fig, tmp_path / "new" / "a.v1.png")]
    second = [p.read_bytes() for p in save(fig, tmp_path / "b" / "a.v1")]
    assert first == second
    assert (tmp_path / "new" / "a.v1.pdf").exists()
