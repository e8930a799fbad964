"""Heat maps of what a model knows where: each row a layer, each column a token."""

from __future__ import annotations

from math import ceil
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.errors import DataError, require_columns
from steerlab.models.sites import in_layer_order
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
    rows = rows.rename(columns={"token": "said", "input_token": "token"})
    shown = _grid(rows, "said").map(_shown)
    return _layers_by_tokens(
        rows, "probability", ax, annot=shown, fmt="", cmap="Blues", vmin=0, vmax=1, annot_kws={"fontsize": 5},
        cbar_kws={"label": "Probability", "pad": 0.02},
    )  # fmt: skip


def patch_heatmap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How much of the clean answer a patched state restores, at every layer (from bottom to top) and token.

    Blue restores the clean answer (1: in full), red moves away from it.

    Example:
        >>> frame = patch(model, ["The capital of France is"], ["The capital of Italy is"], (" Paris", " Rome"))
        >>> ax = patch_heatmap(frame)

    Args:
        frame: from `patch`, of one pair of prompts, at one point of the blocks and one head (or all).
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes. Tokens of the corrupted prompt are below; where the clean one has another, it is shown as clean → own.

    Raises:
        DataError: columns are missing, or a layer and token have several rows.
    """
    columns = ["example_id", "column", "token", "clean_token", "layer", "head", "restored"]
    require_columns(frame, columns, "patch_heatmap", ["restored"])
    if several := [name for name in ("example_id", "head") if frame[name].nunique() != 1]:
        raise DataError(f"patch_heatmap draws one pair of prompts and one head; the frame's {several} differ: select")
    if frame.duplicated(["layer", "column"]).any():
        raise DataError("the frame has a layer and token several times, of several metrics: select one")
    names = frame["token"].where(frame["token"] == frame["clean_token"], frame["clean_token"] + "→" + frame["token"])
    limit = max(1.0, float(frame["restored"].abs().max()))
    return _layers_by_tokens(
        frame.assign(token=names), "restored", ax, cmap="RdBu", vmin=-limit, vmax=limit,
        cbar_kws={"label": "Share restored", "pad": 0.02},
    )  # fmt: skip


def _layers_by_tokens(rows: pd.DataFrame, value: str, ax: Axes | None, **options: Any) -> Axes:
    """A heat map of a value, with the tokens of the prompt below."""
    values = _grid(rows, value)
    ax = get_axes(ax, height=max(2.0, 0.17 * len(values)))
    words = rows.drop_duplicates("column").set_index("column")["token"]
    sns.heatmap(
        values, ax=ax, yticklabels=ceil(len(values) / 16), xticklabels=[_shown(words[c], 14) for c in values.columns],
        **options,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0, rotation=0)
    ax.tick_params(axis="x", length=0, rotation=90)
    ax.set(xlabel="Token of the prompt", ylabel="Layer")
    return ax


def _grid(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """The values by layer and column; a token that several positions name counts once."""
    once = rows.drop_duplicates(["column", "layer"])
    found = once.pivot_table(index="layer", columns="column", values=value, aggfunc="first", sort=False)
    return found.loc[in_layer_order(found.index)].sort_index(axis=1)


def _shown(text: str, most: int = 8) -> str:
    """A token in a cell: white space visible, no mathematics, not too long."""
    visible = text if text.strip() else text.replace(" ", "␣")
    visible = "".join(one if one.isprintable() else repr(one)[1:-1] for one in visible)
    return visible[:most].replace("$", r"\$")
