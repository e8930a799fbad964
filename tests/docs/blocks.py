"""The python blocks of a page, in their order, and why one is not run.

A block is not run where the line above it is a comment that says why: `<!-- not run: needs an NDIF server -->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```python(?: (?P<tool>\S+))?\n(?P<code>.+?)```", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One block of a page: its code, the tool that it is written for, and why it is not run ("" if it is)."""

    page: Path
    line: int
    code: str
    tool: str
    reason: str

    def run(self, names: dict[str, Any]) -> None:
        """Run it in the names of the blocks before; a traceback shows the page and its line."""
        exec(compile("\n" * self.line + self.code, self.page.relative_to(ROOT), "exec"), names)


def blocks(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start("code")].count("\n"), found["code"], found["tool"] or "", found["reason"] or "")
        for found in FENCE.finditer(text)
    ]
