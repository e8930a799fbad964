"""What notebooks show of an object: its line, and a table or a text below."""

from __future__ import annotations

from html import escape

import pandas as pd


def notebook_html(value: object, body: pd.DataFrame | str, rows: int = 20) -> str:
    """The `repr` of an object above a text, or above the first rows of a frame; everything in it is escaped.

    Example:
        >>> "a &lt; b</td>" in notebook_html(1, pd.DataFrame({"text": ["a < b"]}))
        True
    """
    title = f"<p>{escape(repr(value))}</p>"
    if isinstance(body, str):
        return f"{title}<pre>{escape(body)}</pre>"
    with pd.option_context("display.max_colwidth", None):
        table = body.head(rows).to_html(index=False, border=0, justify="left", escape=True)
    more = f"<p>and {len(body) - rows} more</p>" if len(body) > rows else ""
    return title + table.replace("<table", '<table style="text-align: left; white-space: pre-wrap"', 1) + more
