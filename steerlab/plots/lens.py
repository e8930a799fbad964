"""The logit lens as a heat map: the most probable next token at each layer and token."""

from __future__ import annotations

from math import ceil

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.errors import DataError, require_columns
from steerlab.plots.style import get_axes


def lens_heatmap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The most probable next token at every layer (from bottom to top) and token, the darker the more probable.

    Example:
        >>> frame = logit_lens(model, ["The capital of France is"], positions="prompt", top=1)
        >>> ax = lens_heatmap(frame)

    Args:
        frame: from `logit_lens`, of one prompt.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes.

    Raises:
        DataError: columns are missing, or the frame holds several prompts or no most probable tokens.
    """
    columns = ["example_id", "column", "input_token", "layer", "token", "rank", "probability"]
    require_columns(frame, columns, "lens_heatmap", ["probability"])
    rows = frame[frame["rank"] == 1]
    if rows.empty or rows["example_id"].nunique() > 1:
        raise DataError(
            f"lens_heatmap draws the tokens of rank 1 of one prompt; the frame has {rows['example_id'].nunique()} "
            "prompts with such rows: select one, of a lens without tokens="
        )
    rows = rows.drop_duplicates(["column", "layer"])  # a token that several positions name
    values, shown = (
        rows.pivot_table(index="layer", columns="column", values=value, aggfunc="first", sort=False).sort_index(axis=1)
        for value in ("probability", "token")
    )
    ax = get_axes(ax, height=max(2.0, 0.17 * len(values)))
    words = rows.drop_duplicates("column").set_index("column")["input_token"]
    sns.heatmap(
        values, annot=shown.map(_shown), fmt="", cmap="Blues", vmin=0, vmax=1, ax=ax, annot_kws={"fontsize": 5},
        yticklabels=ceil(len(values) / 16), cbar_kws={"label": "Probability", "pad": 0.02},
        xticklabels=[_shown(words[column]) for column in values.columns],
    )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="Token of the prompt", ylabel="Layer")
    return ax


def _shown(text: str) -> str:
    """A token in a cell: white space visible, no mathematics, not too long."""
    visible = repr(text)[1:-1] if text.strip() else text.replace(" ", "␣").replace("\n", r"\n")
    return visible.replace("$", r"\$")[:8]
