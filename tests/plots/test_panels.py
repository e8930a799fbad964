"""Lines, bars, heat maps, maps in the plane, names at line ends, and colors."""

from itertools import combinations, product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from _probe_gap import probe_gap_lines
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from sklearn.metrics.pairwise import cosine_similarity

from steerlab import plots
from steerlab.analysis.layer_selection import select_layers
from steerlab.analysis.steerability import propensity_curves, slopes
from steerlab.errors import DataError
from steerlab.plots.style import BEHAVIORS, METHODS, OTHER_COLORS, behavior_styles, readable_name, separate_labels


def lines_by_color(ax: Axes) -> dict[str, np.ndarray]:
    return {to_hex(line.get_color()).upper(): line.get_xydata() for line in ax.lines}


@pytest.fixture
def curves():
    rows = [
        (name, layer, alpha, slope * alpha + layer)
        for name, slope in (("openness", 2.0), ("narcissism", -1.0), ("self-awareness-text-model", 2.1))
        for layer in (3, 4)
        for alpha in (-1.5, 0.0, 1.5)
    ]
    frame = pd.DataFrame(rows, columns=["behavior", "layer", "alpha", "mean"])
    return frame.assign(low=frame["mean"] - 0.2, high=frame["mean"] + 0.3, method="mean")


@pytest.fixture
def geometry():
    rows = [
        (layer, a, b, "within" if a == b else "between", 0.9 - 0.01 * layer if a == b else 0.1)
        for layer in (0, 4, 8)
        for a, b in (("defer", "defer"), ("refuse", "refuse"), ("defer", "refuse"))
    ]
    frame = pd.DataFrame(rows, columns=["layer", "a", "b", "kind", "cosine"])
    return frame.assign(low=frame["cosine"] - 0.02, high=frame["cosine"] + 0.03, shuffled=0.5)


def test_propensity_has_one_named_line_with_its_interval_per_behavior(curves, ax):
    assert plots.propensity_lines(curves.sample(frac=1, random_state=0), ax, layer=3) is ax
    for color, name in zip(OTHER_COLORS, ("self-awareness-text-model", "openness", "narcissism"), strict=False):
        assert color in lines_by_color(ax), name
    names = {t.get_text(): t for t in ax.texts}
    assert set(names) == {"openness", "narcissism", "self awareness text model"}
    for name, text in names.items():
        rows = curves[(curves["behavior"].map(readable_name) == name) & (curves["layer"] == 3)]
        color = to_hex(text.get_color()).upper()
        np.testing.assert_allclose(lines_by_color(ax)[color], rows[["alpha", "mean"]])
        assert text.xy == tuple(rows[["alpha", "mean"]].iloc[-1]), "a name points at the end of its line"
        (band,) = [c for c in ax.collections if to_hex(c.get_facecolor()[0]).upper() == color]
        corners = band.get_paths()[0].vertices
        assert (corners[:, 1].min(), corners[:, 1].max()) == (rows["low"].min(), rows["high"].max())
    assert np.diff(sorted(t.xyann[1] for t in ax.texts)).min() >= 0.0699


def test_propensity_names_highlighted_lines_alone(curves):
    ax = plots.propensity_lines(curves, highlight=["openness"], labels={"openness": "Open"}, layer=4)
    assert [t.get_text() for t in ax.texts] == ["Open"]
    assert len(ax.collections) == 1 and len(ax.lines) == 4
    ax = plots.propensity_lines(curves[curves["behavior"] == "openness"], hue="method", layer=4)
    assert [t.get_text() for t in ax.texts] == ["mean vector"]
    assert METHODS["mean"].color in lines_by_color(ax)


def test_names_of_two_text_lines_get_twice_the_distance():
    settings = list(product(("one", "two"), (-1.0, 1.0)))
    curves = pd.DataFrame(settings, columns=["behavior", "alpha"]).assign(mean=[0, 1, 0, 1.01], low=-1.0, high=2.0)
    ax = plots.propensity_lines(curves, labels={"one": "a\nb", "two": "c\nd"})
    assert np.ptp([t.xyann[1] for t in ax.texts]) == pytest.approx(0.14)


def test_ambiguous_curves_are_rejected(curves):
    with pytest.raises(DataError, match=r"\['layer'\]"):
        plots.propensity_lines(curves)
    with pytest.raises(DataError, match="leaves 0"):
        plots.propensity_lines(curves, layer=9)
    with pytest.raises(DataError, match="nothing"):
        plots.propensity_lines(curves, highlight=["nothing"], layer=3)
    with pytest.raises(DataError, match="lacks"):
        plots.propensity_lines(curves.drop(columns="low"), layer=3)
    many = pd.concat([curves[curves["layer"] == 3].assign(behavior=f"set{i}") for i in range(9)])
    with pytest.raises(DataError, match="highlight"):
        plots.propensity_lines(many.drop_duplicates(["behavior", "alpha"]))


def test_geometry_lines_have_behavior_colors_and_names_that_do_not_overlap(geometry):
    ax = plots.geometry_lines(geometry.sample(frac=1, random_state=0))
    lines = lines_by_color(ax)
    np.testing.assert_allclose(lines[BEHAVIORS["refuse"].color], [[0, 0.9], [4, 0.86], [8, 0.82]])
    np.testing.assert_allclose(lines[OTHER_COLORS[0]], [[0, 0.1], [4, 0.1], [8, 0.1]])
    dashed = {to_hex(line.get_color()).upper(): line.is_dashed() for line in ax.lines}
    assert dashed[OTHER_COLORS[0]] and not dashed[BEHAVIORS["refuse"].color]
    assert {t.get_text() for t in ax.texts} == {"within refuse", "within defer", "defer – refuse", "labels shuffled"}
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(t) for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    with pytest.raises(DataError, match="18 of them"):
        plots.geometry_lines(pd.concat([geometry, geometry]))


def test_probe_gap_lines_show_probe_and_answers_of_each_group():
    frame = pd.DataFrame(list(product((0, 1, 2), ("random", "popular"))), columns=["layer", "group"])
    frame = frame.assign(probe_accuracy=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0], model_accuracy=[0.4, 0.3] * 3)
    ax = probe_gap_lines(frame)
    drawn = sorted(line.get_ydata().tolist() for line in ax.lines)
    assert drawn == [[0.3] * 3, [0.4] * 3, [0.5, 0.7, 0.9], [0.6, 0.8, 1.0]]
    ends = {t.get_text(): t.xy for t in ax.texts}
    assert ends["probe, popular"] == (2, 1.0) and ends["answers, random"] == (2, 0.4) and len(ends) == 4
    with pytest.raises(DataError, match="model_accuracy"):
        probe_gap_lines(frame.drop(columns="model_accuracy"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_separate_labels_keeps_order_and_distance(heights, gap):
    moved = np.array(separate_labels(heights, gap))
    order = np.argsort(heights, kind="stable")
    assert (np.diff(moved[order]) >= gap - 1e-9).all()
    assert moved.mean() == pytest.approx(np.mean(heights), abs=1e-9)
    if (np.diff(np.array(heights)[order]) >= gap).all():
        np.testing.assert_allclose(moved, heights, atol=1e-9)


def test_methods_and_behaviors_have_distinct_fixed_colors_and_readable_names():
    known = [*METHODS.values(), *BEHAVIORS.values()]
    assert len({look.color for look in known} | set(OTHER_COLORS)) == len(known) + len(OTHER_COLORS)
    first, second = behavior_styles(["defer", "openness"]), behavior_styles(["refuse", "narcissism", "defer"])
    assert first["defer"] == second["defer"] == BEHAVIORS["defer"]
    assert first["openness"].color == second["narcissism"].color == OTHER_COLORS[0]
    assert readable_name("sycophancy_test") == "sycophancy test"
    long = readable_name("willingness-to-use-physical-force-to-achieve-benevolent-goals")
    assert len(long) <= 44 and long.endswith("…")


def test_style_keeps_interactive_mode_for_later_figures():
    with plt.ioff():  # restores the mode at the end
        with plots.style():
            mpl.interactive(True)  # as the first figure of a notebook does
        assert mpl.is_interactive()


def square(n: int) -> pd.DataFrame:
    names = [f"vector {i}" for i in range(n)]
    return pd.DataFrame(cosine_similarity(np.random.default_rng(0).normal(size=(n, 5))), index=names, columns=names)


def map_points(labels: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20 * len(labels), 2)), columns=["x", "y"])
    return frame.assign(label=np.repeat(labels, 20))


@pytest.fixture
def sweep():
    rng = np.random.default_rng(1)
    rows = [
        [layer, alpha, f"{split}/{i}", split, "propensity", 3 + alpha * (layer in (2, 3)) + rng.normal(0, 0.05)]
        for split in ("validation", "test")
        for layer in range(5)
        for alpha in (-1.0, 0.0, 1.0)
        for i in range(20)
    ]
    columns = ["layer", "alpha", "example_id", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(method="mean", positions="last")


def test_cosines_have_a_fixed_scale_and_are_written_where_there_is_room(ax):
    matrix = square(4)
    assert plots.cosine_heatmap(matrix, ax) is ax
    (mesh,) = ax.collections
    np.testing.assert_allclose(mesh.get_array(), matrix)
    assert mesh.get_clim() == (-1, 1) and mesh.norm(0) == 0.5
    assert [t.get_text() for t in ax.get_yticklabels()] == list(matrix.index)
    texts = {t.get_text() for t in ax.texts}
    assert "1" in texts and f"{matrix.iloc[0, 1]:.2f}".replace("0.", ".").replace("-", "−") in texts
    assert len(ax.texts) == 16 and len(ax.figure.axes) == 2
    assert len(plots.cosine_heatmap(square(13)).texts) == 0


def test_tuples_are_joined_and_large_tables_have_few_ticks():
    names = pd.MultiIndex.from_tuples([("refuse", 3), ("defer", 3)])
    ax = plots.cosine_heatmap(pd.DataFrame(np.eye(2), index=names, columns=names))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["refuse 3", "defer 3"]
    ax = plots.cosine_heatmap(square(60))
    assert len(ax.get_yticks()) <= 14 and ax.get_yticklabels()[1].get_text() == "vector 5"


def test_layer_zero_is_at_the_lower_left():
    matrix = square(20).abs()
    matrix.index = matrix.columns = range(20)
    ax = plots.layer_heatmap(matrix)
    assert not ax.yaxis.get_inverted() and ax.collections[0].get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Layer", "Layer")


def test_map_labels_differ_and_the_legend_covers_no_point():
    names = ["refuse", "b", "c", "d", "e"]
    frame = map_points(names)
    frame.attrs["explained"] = (0.31, 0.123)
    ax = plots.map_scatter(frame)
    (dots,) = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), frame[["x", "y"]])
    assert to_hex(dots.get_facecolor()[0]).upper() == BEHAVIORS["refuse"].color
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*xy) for xy in ax.transData.transform(frame[["x", "y"]]))
    assert "31%" in ax.get_xlabel() and "12%" in ax.get_ylabel()
    assert plots.map_scatter(map_points(["a", "b"])).get_xlabel() == "Axis 1"
    (many,) = plots.map_scatter(map_points(list("abcdefghi"))).collections
    shapes = [path.vertices.tobytes() for path in many.get_paths()]
    assert len({(to_hex(c), s) for c, s in zip(many.get_facecolor(), shapes, strict=True)}) == 9


def test_sweep_shows_changes_against_no_steering_and_frames_the_selected_layers(sweep):
    chosen = select_layers(sweep)
    ax = plots.sweep_heatmap(sweep, split="validation", layers=chosen.layers, alpha=chosen.alpha, best=chosen.best)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), [[0, 0], [0, 0], [-1, 1], [-1, 1], [0, 0]], atol=0.05)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["−1", "1"]
    (box,) = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert (box.get_x(), box.get_y(), box.get_height()) == (1, 2, 2)
    assert mesh.norm.vmin == -mesh.norm.vmax, "white is no change"
    assert not ax.yaxis.get_inverted(), "layer 0 is at the bottom"
    labels = [plots.sweep_heatmap(rows).figure.axes[1].get_ylabel() for rows in (sweep, sweep[sweep["alpha"] != 0])]
    assert labels == ["Change of mean propensity", "Mean propensity"]
    bars = [plots.sweep_heatmap(sweep, max_change=most).collections[0].colorbar.extend for most in (0.5, 2.0)]
    assert bars == ["both", "neither"], "a bar of another color says where the scale ends"
    ax = plots.sweep_heatmap(sweep.assign(layer=sweep["layer"].map(lambda k: f"{k}.mlp_out")))
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{k}.mlp_out" for k in range(5)]
    ax = plots.layer_range_lines(chosen.table)
    assert len(ax.containers[0].lines[0].get_xdata()) == 5
    (span,) = ax.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == (1.5, 3.5)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda _: plots.cosine_heatmap(3 * square(3)), r"from -1 to 1.*3"),
        (lambda _: plots.layer_heatmap(-square(3).abs()), r"'CKA' .* from 0 to 1"),
        (lambda _: plots.cosine_heatmap(square(3) * np.nan), "NaN"),
        (lambda _: plots.cosine_heatmap(pd.DataFrame()), "no finite value"),
        (lambda _: plots.map_scatter(map_points(["a"]).drop(columns="label")), "label"),
        (lambda sweep: plots.sweep_heatmap(sweep, metric="accuracy"), "0 of 600 rows"),
        (lambda sweep: plots.sweep_heatmap(pd.concat([sweep, sweep.assign(method="l2s")])), "several of"),
        (lambda sweep: plots.sweep_heatmap(sweep, layers=[9], alpha=1.0), "not among the settings"),
        (lambda sweep: plots.sweep_heatmap(sweep[(sweep["split"] != "test") | (sweep["layer"] == 2)]), "every input"),
        (lambda sweep: plots.sweep_heatmap(pd.concat([sweep, sweep.assign(value=3.0)])), "1200 of them share"),
        (lambda sweep: plots.layer_range_lines(sweep), "gap_low"),
    ],
)
def test_values_off_the_scale_and_ambiguous_sweeps_are_rejected(sweep, draw, message):
    with pytest.raises(DataError, match=message):
        draw(sweep)


def test_lens_shows_the_most_probable_token_of_each_layer_and_token() -> None:
    rows = [
        ("0:a", column, word, layer, token, rank, 0.1 * (layer + 1) / rank)
        for column, word in ((1, " of"), (2, " "))
        for layer, token in ((0, " the"), (1, "$x"), (2, "\n"))
        for rank in (1, 2)
    ]
    frame = pd.DataFrame(rows, columns=["example_id", "column", "input_token", "layer", "token", "rank", "probability"])
    ax = plots.lens_heatmap(frame.iloc[::-1])
    assert [label.get_text() for label in ax.get_xticklabels()] == [" of", "␣"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
    shown = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert ((0.5, 0.5), " the") in shown and ((1.5, 1.5), r"\$x") in shown and ((0.5, 2.5), r"\n") in shown
    low, high = ax.get_ylim()
    assert low < high, "the last layer is on top"
    with pytest.raises(DataError, match="the frame has 2 prompts with such rows"):
        plots.lens_heatmap(pd.concat([frame, frame.assign(example_id="1:b")]))
    with pytest.raises(DataError, match="the frame has 0 prompts"):
        plots.lens_heatmap(frame[frame["rank"] == 2])


def test_patch_heat_map_shows_the_share_restored_and_both_tokens() -> None:
    rows = [
        ("0:a", layer, -1, column, *tokens, share)
        for column, tokens in ((2, (" Italy", " France")), (3, (" is", " is")))
        for layer, share in ((0, 0.9 - 0.7 * (column - 2)), (1, 0.4), (10, -0.2))
    ]
    frame = pd.DataFrame(rows, columns=["example_id", "layer", "head", "column", "token", "clean_token", "restored"])
    ax = plots.patch_heatmap(frame)
    assert [label.get_text() for label in ax.get_xticklabels()] == [" France→ Italy", " is"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "10"]
    values = ax.collections[0].get_array()
    assert np.asarray(values).reshape(3, 2) == pytest.approx(np.array([[0.9, 0.2], [0.4, 0.4], [-0.2, -0.2]]))
    assert ax.collections[0].get_clim() == (-1, 1), "0 is white"
    with pytest.raises(DataError, match=r"one pair of prompts and one head; the frame's \['head'\] differ"):
        plots.patch_heatmap(pd.concat([frame, frame.assign(head=2)]))
    with pytest.raises(DataError, match="a layer and token several times"):
        plots.patch_heatmap(pd.concat([frame, frame.assign(restored=0.5)]))
    with pytest.raises(DataError, match="restored"):
        plots.patch_heatmap(frame.drop(columns="restored"))


def test_dependence_shows_what_is_explained_within_and_between_behaviors(ax):
    names = ["net", "linear", "one vector"]
    frame = pd.DataFrame({"predictor": names, "between": [0.9, 0.95, 0.0], "within": [0.4, 0.5, -0.2]})
    frame = frame.assign(within_low=frame["within"] - 0.1, within_high=frame["within"] + 0.1)
    assert plots.dependence_bars(frame, ax) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one vector", "linear map", "net (L2S)"]
    assert [bar.get_width() for bar in ax.patches] == [0.0, 0.5, 0.4], "nothing is drawn below 0"
    assert [t.get_text() for t in ax.texts] == ["-0.20", "0.50", "0.40"]
    *intervals, dots = ax.lines
    np.testing.assert_allclose([line.get_xdata() for line in intervals], [[0, 0], [0.4, 0.6], [0.3, 0.5]], atol=1e-12)
    assert dots.get_xdata().tolist() == [0.0, 0.95, 0.9]
    for wrong, message in (
        (frame.drop(columns="within_low"), "within_low"),
        (frame.assign(predictor="oracle"), "oracle"),
    ):
        with pytest.raises(DataError, match=message):
            plots.dependence_bars(wrong)


def test_axes_name_the_metric_that_was_measured() -> None:
    rows = [("x", f"e{i}", a, "first_token_accuracy", i % 2 + a) for i in range(4) for a in (0.0, 1.0)]
    frame = pd.DataFrame(rows, columns=["behavior", "example_id", "alpha", "metric", "value"])
    lines = plots.propensity_lines(propensity_curves(frame, "first_token_accuracy", n_boot=10))
    assert lines.get_ylabel() == "Mean first token accuracy"
    violins = plots.slope_distributions(slopes(frame, "first_token_accuracy"))
    assert violins.get_xlabel() == "Slope of an example's first token accuracy per unit of α"
    as_before = frame.assign(metric="propensity")
    assert plots.propensity_lines(propensity_curves(as_before)).get_ylabel() == "Mean propensity (logit difference)"
