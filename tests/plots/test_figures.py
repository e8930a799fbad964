"""The figure scripts on committed or made-up results folders, and saving."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from steerlab._support.errors import DataError
from steerlab.plots import save, style, width

RESULTS = Path(__file__).parents[2] / "analyses" / "results"
STUDIES = (
    "compare_methods", "l2s_hallucination", "l2s_safety", "layer_sweep", "scaling", "steerability",
    "vector_similarity",
)  # fmt: skip
Script = Callable[..., dict[str, Any]]


@pytest.fixture
def results(tmp_path: Path, summary: dict[str, object], grid: pd.DataFrame) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    grid.to_csv(tmp_path / "grid.csv", index=False)
    return tmp_path


def is_uncut(fig: Figure) -> bool:
    (wide, high), box = fig.get_size_inches(), fig.get_tightbbox()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high


@pytest.mark.parametrize("name", STUDIES)
def test_figure_of_the_committed_results_is_uncut_without_overlapping_text(name: str, script: Script) -> None:
    fig = script(name)["draw"](RESULTS / name)
    assert fig.get_size_inches()[0] == width(2) and is_uncut(fig)
    letters = [ax.get_title(loc="left")[:1] for ax in fig.axes if ax.get_title(loc="left")]
    assert letters == sorted(letters)
    texts = [
        text
        for ax in fig.axes
        for text in (ax._left_title, *ax.texts, ax.xaxis.label, ax.yaxis.label)
        if text.get_text() and text.get_visible()
    ]
    boxes = [(t.get_text(), mpl.text.Text.get_window_extent(t)) for t in texts]
    assert [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)] == []


@pytest.mark.parametrize("name", STUDIES)
def test_missing_results_are_named(name: str, script: Script, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path.name}.*analyses/({name}|\*)\.py"):
        script(name)["draw"](tmp_path)


@pytest.mark.parametrize("name", ["l2s_safety", "demo"])
def test_scripts_write_png_and_pdf(
    name: str, results: Path, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, str(results), "--out", str(results / "drawn")])
    script(name, run_name="__main__")
    assert {p.name for p in (results / "drawn").iterdir()} == {f"{name}.png", f"{name}.pdf"}
    assert f"{name}.pdf" in capsys.readouterr().out


def test_demo_and_safety_figures_draw_the_panels_that_have_data(
    results: Path, summary: dict[str, object], script: Script
) -> None:
    safety, demo = script("l2s_safety")["draw"], script("demo")["draw"]
    assert [len(draw(results).axes) for draw in (safety, demo)] == [3, 3] and is_uncut(demo(results))
    (results / "grid.csv").unlink()
    assert len(safety(results).axes) == 2
    (results / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if "refuse_harmful" in k}))
    assert [len(draw(results).axes) for draw in (safety, demo)] == [1, 1]


def test_layer_sweep_figure_has_one_color_scale_and_the_selected_layers(script: Script) -> None:
    folder = RESULTS / "layer_sweep"
    axes = script("layer_sweep")["draw"](folder).axes
    first, second = (ax.collections[0] for ax in axes[:2])
    assert first.norm.vmax == second.norm.vmax == max(abs(mesh.get_array()).max() for mesh in (first, second))
    gains = json.loads((folder / "summary.json").read_text())["layer_ranges"]
    assert [p.get_width() for p in axes[3].patches] == [gains[m]["gain"]["value"] for m in reversed(gains)]
    assert "layers 19–20, α = 1.5" in [t.get_text() for t in axes[3].texts]
    assert "95 test examples" in axes[3].get_xlabel()


@pytest.fixture
def steerability(tmp_path: Path) -> Path:
    """The committed results of six data sets, in random order."""
    sets = pd.read_csv(RESULTS / "steerability" / "sets.csv").sample(6, random_state=1)
    sets.to_csv(tmp_path / "sets.csv", index=False)
    for name in ("results", "curves", "layers", "shifts"):
        frame = pd.read_csv(RESULTS / "steerability" / f"{name}.csv")
        frame[frame["behavior"].isin(sets["behavior"])].to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "summary.json").write_bytes((RESULTS / "steerability" / "summary.json").read_bytes())
    return tmp_path


def test_steerability_rows_are_the_same_data_sets_in_three_panels(steerability: Path, script: Script) -> None:
    module = script("steerability")
    sets = pd.read_csv(steerability / "sets.csv").sort_values("median", ascending=False)
    rows, llama, parts = module["draw"](steerability).axes[:3]
    names = [module["SHORT_NAMES"].get(n, n.replace("-", " ")) for n in sets["behavior"]]
    assert [t.get_text() for t in rows.get_yticklabels()] == names
    assert rows.get_ylim() == llama.get_ylim() == parts.get_ylim()
    dots = next(line for line in llama.lines if line.get_marker() == "o")
    known = np.flatnonzero(sets["llama2_median"].notna())
    np.testing.assert_allclose(dots.get_xydata(), np.column_stack([sets["llama2_median"].dropna(), known]))
    away = [f"{share:.0%}" if share == share else "–" for share in sets["llama2_anti_steerable"]]
    assert [t.get_text() for t in llama.texts] == [*away, "away"]
    assert [bar.get_width() for bar in parts.containers[0]] == pytest.approx(sets["option"].tolist())
    estimate = json.loads((steerability / "summary.json").read_text())["rank_correlation_with_llama2"]["median"]
    assert f"{estimate['value']:.2f}".replace("-", "−") in llama.get_xlabel()


def test_steerability_without_shifted_prompts_or_correlation(steerability: Path, script: Script) -> None:
    (steerability / "shifts.csv").unlink()
    summary = {"layer": 17, "rank_correlation_with_llama2": {"median": None}}
    (steerability / "summary.json").write_text(json.dumps(summary))
    axes = script("steerability")["draw"](steerability).axes
    assert [ax.get_title(loc="left")[0] for ax in axes] == list("abcde")
    assert axes[1].get_xlabel() == "Median slope (logits)"
    layers = pd.read_csv(steerability / "layers.csv").groupby("layer")["steerability"].mean()
    mean = max(axes[4].lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(mean.get_ydata(), layers, atol=1e-12)
    assert {"chosen: 17", "mean"} == {t.get_text() for t in axes[4].texts}


def test_save_is_reproducible(tmp_path: Path) -> None:
    with style():
        fig = Figure(figsize=(width(1), 1))
        fig.subplots().plot([0, 1])
    first = [p.read_bytes() for p in save(fig, tmp_path / "new" / "a.v1.png")]
    assert first == [p.read_bytes() for p in save(fig, tmp_path / "b" / "a.v1")]
    assert (tmp_path / "new" / "a.v1.pdf").exists()
