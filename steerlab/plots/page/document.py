"""A page as one HTML file: data, style and module inline, and a plain table for browsers without JavaScript."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

# nothing may be fetched; a served page may ask its own server for answers
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


@cache
def asset(name: str) -> str:
    """The text of a file beside this module: "page.js" or "page.css"."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def document(data: Mapping[str, Any], server: str | None = None) -> str:
    """The HTML of a page.

    Args:
        data: the contract.
        server: the address, relative to the page, that answers what the page does not hold.
    """
    policy = _POLICY + ("; connect-src 'self'" if server else "")
    options = f"{{ hash: true{f', ask: askServer({json.dumps(server)})' if server else ''} }}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(data["title"])}</title>
<style>
{asset("page.css")}</style>
</head>
<body>
<main id="page" class="steerlab-page"><noscript>
{plain_table(data)}
</noscript></main>
<script type="application/json" id="data">{_as_script(data)}</script>
<script type="module">
{asset("page.js")}
mount(document.getElementById("page"), JSON.parse(document.getElementById("data").textContent), {options});
</script>
</body>
</html>
"""


def plain_table(data: Mapping[str, Any]) -> str:
    """All texts as an HTML table, for browsers without JavaScript."""
    methods, prompts = data["methods"], data["prompts"]
    rows = []
    for text in sorted(data["texts"], key=lambda one: one["prompt"]):
        steered = text["method"] is not None
        cells = (
            prompts[text["prompt"]]["text"], methods[text["method"]]["label"] if steered else "no steering",
            data["layers"][text["layer"]] if steered else "", f"{data['alphas'][text['alpha']]:g}", text["text"],
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("prompt", "method", "layer", "strength", "text"))
    line = "This page needs JavaScript for its slider and its maps. Its texts are in this table."
    return (
        f"<h1>{escape(data['title'])}</h1>\n<p>{line}</p>\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>"
    )


def _as_script(data: Mapping[str, Any]) -> str:
    """JSON that no text in it can end the script element of."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
