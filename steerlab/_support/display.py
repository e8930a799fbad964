"""What notebooks show: frames of texts as HTML."""

from __future__ import annotations

import pandas as pd


def as_html(frame: pd.DataFrame, rows: int = 20) -> str:
    """A table that wraps its texts, of the first rows; everything in it is escaped.

    Example:
        >>> "a &lt; b</td>" in as_html(pd.DataFrame({"text": ["a < b"]}))
        True
    """
    with pd.option_context("display.max_colwidth", None):
        table = frame.head(rows).to_html(index=False, border=0, justify="left", escape=True)
    more = f"<p>and {len(frame) - rows} more</p>" if len(frame) > rows else ""
    return table.replace("<table", '<table style="text-align: left; white-space: pre-wrap"', 1) + more
