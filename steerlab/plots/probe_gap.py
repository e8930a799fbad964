"""What a probe reads off each layer against what the model says."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import require_columns
from steerlab.plots.style import MUTED, get_axes, method_style

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (3, 1, 1, 1)))


def probe_gap_lines(frame: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """A line a group: the accuracy of the probe at every layer; its own answers as a level line.

    Example:
        >>> ax = probe_gap_lines(probe_gap(train, test, answers, group="split"))

    Args:
        frame: from `steerlab.analysis.probe_gap`: columns `layer`, `group`, `probe`, `own`.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.

    Returns:
        The axes; lines carry the labels "GROUP probe" and "GROUP own".

    Raises:
        DataError: columns are missing.

    Source: own.
    """
    require_columns(frame, ["layer", "group", "probe_accuracy", "model_accuracy"], "probe_gap_lines")
    ax = get_axes(ax)
    known = method_style("l2s").color
    layers = frame["layer"]
    ends = []
    for name, dashes in zip(dict.fromkeys(frame["group"]), _DASHES * 4, strict=False):
        here = frame[frame["group"] == name].sort_values("layer")
        ax.plot(here["layer"], here["probe_accuracy"], color=known, ls=dashes, lw=1.4, label=f"{name} probe")
        ax.plot(here["layer"], here["model_accuracy"], color=MUTED, ls=dashes, lw=1.0, label=f"{name} own")
        ends += [
            (float(here["probe_accuracy"].iloc[-1]), name, known),
            (float(here["model_accuracy"].iloc[-1]), name, MUTED),
        ]
    low, high = (
        float(frame[["probe_accuracy", "model_accuracy"]].min().min()),
        float(frame[["probe_accuracy", "model_accuracy"]].max().max()),
    )
    room = 0.055 * (high - low + 0.1)
    for value, name, color in _apart(sorted(ends), room, high):
        ax.annotate(
            name, (float(layers.max()), value), (4, 0), textcoords="offset points", color=color, fontsize=6,
            va="center", annotation_clip=False,
        )  # fmt: skip
    ax.set_xticks(sorted(set(layers)))
    ax.set_xlabel("Layer whose last prompt state is read")
    ax.set_ylabel("Accuracy")
    if title:
        ax.set_title(title)
    return ax


def _apart(ends: list[tuple[float, str, str]], room: float, top: float) -> list[tuple[float, str, str]]:
    """The same labels, each at least `room` below the one above it, none above `top`."""
    placed: list[tuple[float, str, str]] = []
    for value, name, color in reversed(ends):
        ceiling = placed[-1][0] - room if placed else top
        placed.append((min(value, ceiling), name, color))
    return placed
