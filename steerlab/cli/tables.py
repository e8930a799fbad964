"""Frames and texts for people: rich tables with bars in a terminal, the same without color elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from steerlab.cli.job import Result

# in a terminal: the states of `doctor`, the prompts and strengths of `generate`
_STYLES = {
    r"(?m)^  ok\b": "cyan", r"(?m)^  note\b": "yellow", r"(?m)^  (?:missing|wrong)\b": "bold magenta",
    r"(?m)^> .*$": "bold", r"(?m)^  (?:without|alpha [\d.-]+)": "cyan",
}  # fmt: skip
_WIDTH = 12  # of a bar, in characters
_PIPED = 200  # columns of what is written to a file or to another program


def console() -> Console:
    """Where answers go: color in a terminal only, and no line cut off elsewhere."""
    made = Console(highlight=False, markup=False, emoji=False)
    return made if made.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_PIPED)


def print_result(result: Result) -> None:
    """Print a result: its table, then its text."""
    shown = console()
    if result.table is not None:
        shown.print(frame_table(result.table, result.bars))
    if result.text:
        text = Text(result.text)
        for pattern, style in _STYLES.items():
            text.highlight_regex(pattern, style)
        shown.print(text, soft_wrap=True)


def frame_table(frame: pd.DataFrame, bars: Sequence[str] = ()) -> Table:
    """A frame as a table, with a bar beside each number of some columns.

    Example:
        >>> Console().print(frame_table(pd.DataFrame({"layer": [1, 2], "effect": [0.1, 0.4]}), bars=["effect"]))
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in frame:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
        if column in bars:
            table.add_column("", no_wrap=True)
    reach = {name: float(np.nanmax(np.abs(frame[name].to_numpy(float)), initial=0.0)) for name in bars}
    for row in frame.to_dict("records"):
        cells = []
        for name, value in row.items():
            cells.append(Text(f"{value:.3g}" if isinstance(value, float) else str(value)))
            if name in bars:
                cells.append(bar(float(value), reach[str(name)]))
        table.add_row(*cells)
    return table


def bar(value: float, reach: float) -> Text:
    """A bar for a number, as long as its share of the largest; one below zero is drawn hollow.

    Example:
        >>> bar(0.5, 1.0).plain
        '██████'
    """
    length = round(_WIDTH * abs(value) / reach) if reach and np.isfinite(value) else 0
    return Text("█" * length, style="cyan") if value >= 0 else Text("░" * length, style="magenta")
