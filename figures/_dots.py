"""A dot with its interval, for figures with a row for each method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from steerlab.plots import method_style


def estimate_dot(
    ax: Axes, estimate: Mapping[str, float], y: float, method: str, *, marker: str = "o", **line: Any
) -> None:
    """An estimate of a summary (value, low, high) at the height `y`, in the color of a method."""
    sides = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
    color = method_style(method).color
    ax.errorbar(estimate["value"], y, xerr=sides, fmt=marker, ms=4, color=color, **{"lw": 1.0, **line})
