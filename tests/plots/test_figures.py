"""The figure scripts on committed or made-up results folders, the steerability panels, and saving."""

import json
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from steerlab.errors import DataError
from steerlab.plots import save, style, width

RESULTS = Path(__file__).parents[2] / "analyses" / "results"
STUDIES = (
    "compare_methods", "dependence", "driving", "fields", "kts", "l2s_images", "l2s_safety", "layer_sweep",
    "representation_shift", "safety_rivals", "scaling", "ssae", "steerability", "vector_similarity",
)  # fmt: skip


@pytest.fixture
def results(tmp_path, summary, grid):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    grid.to_csv(tmp_path / "grid.csv", index=False)
    return tmp_path


def is_uncut(fig: Figure) -> bool:
    (wide, high), box = fig.get_size_inches(), fig.get_tightbbox()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high


@pytest.mark.parametrize(
    ("name", "function"),
    [*((name, "draw") for name in STUDIES), ("representation_shift", "draw_answers"), ("driving", "draw_scenes")],
)
def test_figure_of_the_committed_results_is_uncut_without_overlapping_text(name, function, script):
    fig = script(name)[function](RESULTS / name)
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
def test_missing_results_are_named(name, script, tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path.name}.*analyses/({name}|\*)\.py"):
        script(name)["draw"](tmp_path)


@pytest.mark.parametrize("name", ["l2s_safety", "demo"])
def test_scripts_write_png_and_pdf(name, results, script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, str(results), "--out", str(results / "drawn")])
    script(name, run_name="__main__")
    assert {p.name for p in (results / "drawn").iterdir()} == {f"{name}.png", f"{name}.pdf"}
    assert f"{name}.pdf" in capsys.readouterr().out


def test_demo_and_safety_figures_draw_the_panels_that_have_data(results, summary, script):
    safety, demo = script("l2s_safety")["draw"], script("demo")["draw"]
    assert [len(draw(results).axes) for draw in (safety, demo)] == [3, 3] and is_uncut(demo(results))
    (results / "grid.csv").unlink()
    assert len(safety(results).axes) == 2
    (results / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if "refuse_harmful" in k}))
    assert [len(draw(results).axes) for draw in (safety, demo)] == [1, 1]


def test_layer_sweep_figure_has_one_color_scale_and_the_selected_layers(script):
    folder = RESULTS / "layer_sweep"
    axes = script("layer_sweep")["draw"](folder).axes
    first, second = (ax.collections[0] for ax in axes[:2])
    assert first.norm.vmax == second.norm.vmax == max(abs(mesh.get_array()).max() for mesh in (first, second))
    gains = json.loads((folder / "summary.json").read_text())["layer_ranges"]
    assert [p.get_width() for p in axes[3].patches] == [gains[m]["gain"]["value"] for m in reversed(gains)]
    assert "layers 19–20, α = 1.5" in [t.get_text() for t in axes[3].texts]
    assert "95 test examples" in axes[3].get_xlabel()


@pytest.fixture
def steerability_folder(tmp_path):
    """The committed results of six data sets, in random order."""
    sets = pd.read_csv(RESULTS / "steerability" / "sets.csv").sample(6, random_state=1)
    sets.to_csv(tmp_path / "sets.csv", index=False)
    for name in ("results", "curves", "layers", "shifts"):
        frame = pd.read_csv(RESULTS / "steerability" / f"{name}.csv")
        frame[frame["behavior"].isin(sets["behavior"])].to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "summary.json").write_bytes((RESULTS / "steerability" / "summary.json").read_bytes())
    return tmp_path


def test_steerability_rows_are_the_same_data_sets_in_three_panels(steerability_folder, script):
    module = script("steerability")
    sets = pd.read_csv(steerability_folder / "sets.csv").sort_values("median", ascending=False)
    rows, llama, parts = module["draw"](steerability_folder).axes[:3]
    names = [module["SHORT_NAMES"].get(n, n.replace("-", " ")) for n in sets["behavior"]]
    assert [t.get_text() for t in rows.get_yticklabels()] == names
    assert rows.get_ylim() == llama.get_ylim() == parts.get_ylim()
    dots = next(line for line in llama.lines if line.get_marker() == "o")
    known = np.flatnonzero(sets["llama2_median"].notna())
    np.testing.assert_allclose(dots.get_xydata(), np.column_stack([sets["llama2_median"].dropna(), known]))
    away = [f"{share:.0%}" if share == share else "–" for share in sets["llama2_anti_steerable"]]
    assert [t.get_text() for t in llama.texts] == [*away, "away"]
    assert [bar.get_width() for bar in parts.containers[0]] == pytest.approx(sets["option"].tolist())
    estimate = json.loads((steerability_folder / "summary.json").read_text())["rank_correlation_with_llama2"]["median"]
    assert f"{estimate['value']:.2f}".replace("-", "−") in llama.get_xlabel()


def test_steerability_without_shifted_prompts_or_correlation(steerability_folder, script):
    (steerability_folder / "shifts.csv").unlink()
    summary = {"layer": 17, "rank_correlation_with_llama2": {"median": None}}
    (steerability_folder / "summary.json").write_text(json.dumps(summary))
    axes = script("steerability")["draw"](steerability_folder).axes
    assert [ax.get_title(loc="left")[0] for ax in axes] == list("abcde")
    assert axes[1].get_xlabel() == "Median slope (logits)"
    layers = pd.read_csv(steerability_folder / "layers.csv").groupby("layer")["steerability"].mean()
    mean = max(axes[4].lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(mean.get_ydata(), layers, atol=1e-12)
    assert {"chosen: 17", "mean"} == {t.get_text() for t in axes[4].texts}


def test_save_is_reproducible(tmp_path):
    with style():
        fig = Figure(figsize=(width(1), 1))
        fig.subplots().plot([0, 1])
    first = [p.read_bytes() for p in save(fig, tmp_path / "new" / "a.v1.png")]
    assert first == [p.read_bytes() for p in save(fig, tmp_path / "b" / "a.v1")]
    assert (tmp_path / "new" / "a.v1.pdf").exists()


@pytest.fixture
def panels(script):
    return script("steerability")


@pytest.fixture
def slopes():
    rng = np.random.default_rng(0)
    means = {"low": 0.0, "high": 3.0, "middle": 1.0}
    rows = [(name, f"{name}/{i}", x) for name, mean in means.items() for i, x in enumerate(rng.normal(mean, 1, 80))]
    rows += [("equal", "equal/0", 2.0), ("equal", "equal/1", 2.0)]
    return pd.DataFrame(rows, columns=["behavior", "example_id", "slope"])


@pytest.fixture
def shares():
    rows = [("openness", 0.7, 0.2, 0.1), ("narcissism", 0.5, 0.0, 0.5), ("equal", np.nan, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["behavior", "option", "word", "unexplained"])


@pytest.fixture
def shifts(panels):
    pairs = [("base", "base"), *panels["PAIRS"]]
    rows = [(f"set {i}", *pair, 0.1 * i + 0.01 * j) for i in range(5) for j, pair in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["behavior", "train_variant", "test_variant", "steerability"])


def test_slopes_have_a_violin_per_color_a_median_and_the_share_moved_away(panels, slopes, ax):
    order = ["high", "equal", "middle", "low"]
    panels["slope_distributions"](slopes, ax, order=order, labels={"low": "Low one"})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["high", "equal", "middle", "Low one"]
    away = (slopes["slope"] <= 0).groupby(slopes["behavior"]).mean()[order]
    assert [t.get_text() for t in ax.texts] == [*(f"{share:.0%}" for share in away), "away"]
    assert [t.xy[1] for t in ax.texts[:4]] == [0, 1, 2, 3]
    medians = next(line for line in ax.lines if line.get_marker() == "|")
    np.testing.assert_allclose(medians.get_xdata(), slopes.groupby("behavior")["slope"].median()[order])
    left, right = ax.get_xlim()
    inner = slopes.groupby("behavior")["slope"].quantile([0.01, 0.99])
    assert left <= inner.min() and right >= inner.max() - 0.5
    colors = [to_hex(violin.get_facecolor()[0]).upper() for violin in ax.collections]
    assert colors == ["#4393C3"] * 3 + ["#D6604D"] * 3, "equal slopes have no violin"
    blue, red = (ax.collections[i].get_clip_box() for i in (0, 3))
    zero = ax.transData.transform((0, 0))[0]
    assert blue.x0 == pytest.approx(zero) and red.x1 == pytest.approx(zero)


def test_two_modes_of_slopes_are_not_smoothed_into_one(panels, ax):
    side = np.repeat([-0.15, 0.15], 125) + np.random.default_rng(0).normal(0, 0.03, 250)
    slopes = pd.DataFrame({"behavior": "openness", "example_id": range(250), "slope": side})
    panels["slope_distributions"](slopes, ax, order=["openness"])
    corners = ax.collections[0].get_paths()[0].vertices
    assert np.abs(corners[np.abs(corners[:, 0]) < 0.02, 1]).max() < 0.05 * np.abs(corners[:, 1]).max()


def test_explained_shares_stack_to_one(panels, shares, ax):
    panels["variance_bars"](shares, ax, order=["narcissism", "openness", "equal"])
    letter, word, rest = ([bar.get_width() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose([letter[:2], word[:2], rest[:2]], [[0.5, 0.7], [0, 0.2], [0.5, 0.1]])
    assert np.isnan([letter[2], word[2], rest[2]]).all()
    assert [bars[1].get_x() for bars in ax.containers] == pytest.approx([0, 0.7, 0.9])
    assert [t.get_text() for t in ax.texts] == ["letter", "word", "rest"]


def test_shift_points_have_base_and_shifted_slopes_and_the_legend_covers_none(panels, shifts, ax):
    pairs = panels["PAIRS"]
    panels["shift_scatter"](shifts.sample(frac=1, random_state=0), ax, labels={pairs[0]: "first"})
    base = np.tile(0.1 * np.arange(5), 4)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([base, base + 0.01 * np.repeat([1, 2, 3, 4], 5)]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", *map(panels["pair_label"], pairs[1:])]
    assert len({to_hex(color) for color in ax.collections[0].get_facecolor()}) == 4
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*xy) for xy in ax.transData.transform(points))


@pytest.mark.parametrize(
    ("panel", "data", "change", "order", "message"),
    [
        ("slope_distributions", "slopes", lambda f: pd.concat([f, f]), "low", "242 examples that occur twice"),
        ("slope_distributions", "slopes", lambda f: f.assign(slope=[np.nan, *f["slope"][1:]]), "low", "1 NaN"),
        ("slope_distributions", "slopes", lambda f: f, "nothing", "nothing"),
        ("slope_distributions", "slopes", lambda f: f.replace({"behavior": {"low": None}}), "openness",
         "80 slopes without"),
        ("slope_distributions", "slopes", lambda f: f.drop(columns="slope"), "low", "lacks"),
        ("variance_bars", "shares", lambda f: f.assign(option=f["option"] + [0.2, 0, 0]), "openness",
         "'openness' do not add up"),
        ("variance_bars", "shares", lambda f: pd.concat([f, f]), "openness", "one row for each behavior"),
        ("variance_bars", "shares", lambda f: f, "nothing", "nothing"),
        ("variance_bars", "shares", lambda f: f.drop(columns="word"), "openness", "lacks"),
        ("shift_scatter", "shifts", lambda f: f[f[["train_variant", "test_variant"]].ne("base").any(axis=1)], None,
         r"lacks the pairs \[\('base', 'base'\)\]"),
        ("shift_scatter", "shifts", lambda f: pd.concat([f, f]), None, "50 of them"),
    ],
)  # fmt: skip
def test_panels_reject_missing_repeated_and_broken_rows(request, panels, ax, panel, data, change, order, message):
    options = {"order": [order]} if order else {}
    with pytest.raises(DataError, match=message):
        panels[panel](change(request.getfixturevalue(data)), ax, **options)
