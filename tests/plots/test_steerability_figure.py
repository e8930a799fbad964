"""The figure of the steerability study, drawn from a made-up results folder."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from steerlab._support.errors import DataError
from steerlab.data import PAPER_SETS, VARIANTS
from steerlab.plots import width

SCRIPT = Path(__file__).parents[2] / "figures" / "steerability.py"
SETS = sorted((n for n in PAPER_SETS if n != "truthfulqa" and not n.startswith("sycophancy")), key=len)[-6:]
LAYERS = (1, 13, 29)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Six sets with long names, of which Llama-2's medians are known for four."""
    rng = np.random.default_rng(0)
    medians = np.linspace(0.05, -0.01, 6)
    slopes = pd.DataFrame([(n, f"{n}/{i}") for n in SETS for i in range(20)], columns=["behavior", "example_id"])
    sets = pd.DataFrame({"behavior": SETS, "steerability": medians, "median": medians})
    curves = pd.DataFrame(list(product(SETS, (-1.5, 0.0, 1.5))), columns=["behavior", "alpha"])
    layers = pd.DataFrame(list(product(SETS, LAYERS)), columns=["behavior", "layer"])
    shifts = pd.DataFrame(
        list(product(SETS, VARIANTS, VARIANTS)), columns=["behavior", "train_variant", "test_variant"]
    )
    mean = rng.normal(0, 0.2, len(curves))
    tables = {
        "results": slopes.assign(slope=np.repeat(medians, 20) + rng.normal(0, 0.1, len(slopes))),
        "sets": sets.assign(
            option=0.8, word=0.1, unexplained=0.1, llama2_median=[3.9, np.nan, 1.0, 0.4, np.nan, 0.1],
            llama2_anti=[0.0, np.nan, 0.3, 0.4, np.nan, 0.5],
        ),
        "curves": curves.assign(mean=mean, low=mean - 0.1, high=mean + 0.1),
        "layers": layers.assign(steerability=rng.normal(0, 0.1, len(layers))),
        "shifts": shifts.assign(steerability=rng.normal(0, 0.1, len(shifts))),
    }  # fmt: skip
    for name, frame in tables.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    estimate = {"value": 0.25, "low": -0.5, "high": 0.75, "n": 4}
    summary = {
        "layer": 13,
        "rank_correlation_with_llama2": {"median": estimate, "anti_steerable": None},
        "shifts": {"rank_correlation_with_base": {"base to user_neg": estimate, "base to user_pos": None}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


@pytest.fixture
def draw() -> Callable[[Path], Figure]:
    return runpy.run_path(str(SCRIPT))["draw"]


def test_six_panels_say_what_they_show(results: Path, draw: Callable[[Path], Figure]) -> None:
    fig = draw(results)
    assert fig.get_size_inches()[0] == width(2)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert [t[0] for t in titles] == list("abcdef") and "layer 13" in titles[0]
    assert all(ax.get_xlabel() for ax in fig.axes) and all(ax.get_ylabel() for ax in fig.axes[3:])
    rows, llama, parts, curves, layers, shifted = fig.axes
    assert len(rows.get_yticklabels()) == len(SETS) and rows.get_ylim() == llama.get_ylim() == parts.get_ylim()
    assert "0.25 (−0.50 to 0.75)" in llama.get_xlabel() and "80%" in parts.get_xlabel()
    assert [t.get_text() for t in llama.texts if t.get_text() != "wrong\nway"] == ["0%", "–", "30%", "40%", "–", "50%"]
    dots = [line.get_xydata()[0].tolist() for line in llama.lines if line.get_marker() == "o"]
    assert dots == [[3.9, 0], [1.0, 2], [0.4, 3], [0.1, 5]]
    assert len(curves.texts) == 3 and "layer 13" in [t.get_text() for t in layers.texts]
    key = [t.get_text() for t in shifted.get_legend().get_texts()]
    assert key[:2] == ["base → user −, ρ = 0.25", "base → user +"]


def test_rows_of_all_three_panels_are_the_same_sets(results: Path, draw: Callable[[Path], Figure]) -> None:
    sets = pd.read_csv(results / "sets.csv")
    sets.sample(frac=1, random_state=1).to_csv(results / "sets.csv", index=False)
    first, again = draw(results).axes[:3], sets.sort_values("median", ascending=False)
    dots = [line.get_ydata()[0] for line in first[1].lines if line.get_marker() == "o"]
    assert dots == np.flatnonzero(again["llama2_median"].notna()).tolist()


def test_nothing_is_cut_off_and_no_names_overlap(results: Path, draw: Callable[[Path], Figure]) -> None:
    fig = draw(results)
    (wide, high), box = fig.get_size_inches(), fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high
    readable_name = [
        text
        for ax in fig.axes
        for text in (ax._left_title, *ax.texts, ax.xaxis.label, ax.yaxis.label)
        if text.get_text() and text.get_visible()
    ]
    readable_name += fig.axes[0].get_yticklabels()
    boxes = [(t.get_text(), t.get_window_extent()) for t in readable_name]
    assert [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)] == []


def test_without_shifted_prompts_or_correlation_there_are_five_panels(
    results: Path, draw: Callable[[Path], Figure]
) -> None:
    (results / "shifts.csv").unlink()
    told = {"layer": 13, "rank_correlation_with_llama2": {"median": None}}
    (results / "summary.json").write_text(json.dumps(told))
    fig = draw(results)
    assert [ax.get_title(loc="left")[0] for ax in fig.axes] == list("abcde")
    assert fig.axes[1].get_xlabel() == "Median slope (logits)"


def test_missing_files_are_named(results: Path, draw: Callable[[Path], Figure]) -> None:
    (results / "sets.csv").unlink()
    (results / "layers.csv").unlink()
    with pytest.raises(DataError, match=r"lacks \['sets\.csv', 'layers\.csv'\].*analyses/steerability\.py"):
        draw(results)


def test_the_script_writes_png_and_pdf(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["steerability", str(results), "--out", str(results / "drawn")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert {p.name for p in (results / "drawn").iterdir()} == {"steerability.png", "steerability.pdf"}
    assert "steerability.pdf" in capsys.readouterr().out
