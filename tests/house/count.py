"""Count the house: code lines by room, lengths of functions and modules, lines of tests.

    python tests/house/count.py

A code line is a line that holds code: docstrings, comments and blank lines are left out. `docs/design.md` states what
this prints, and `test_house.py` holds both to the limits below.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[2]
MAX_PACKAGE = 22_340  # code lines of steerlab/
MAX_TESTS = 36_420  # lines of tests/, all of them
MAX_FUNCTION_MEDIAN, MAX_FUNCTION_P90, MAX_MODULE = 8, 30, 350

_LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold code."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in _LAYOUT]
    lines = {number for t in tokens for number in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def function_lengths(text: str) -> Iterator[int]:
    """Code lines of each function, from `def` to its end; decorators and docstrings are not counted."""
    code = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))


@dataclass(frozen=True)
class Count:
    """What was counted."""

    rooms: dict[str, int]
    functions: list[int]
    modules: dict[str, int]
    tests: int

    @property
    def package(self) -> int:
        """Code lines of the package."""
        return sum(self.rooms.values())

    @property
    def function_median(self) -> float:
        """Half of all functions are at most this long."""
        return median(self.functions)

    @property
    def function_p90(self) -> float:
        """Nine of ten functions are at most this long."""
        return quantiles(self.functions, n=10)[-1]


def count(root: Path = ROOT) -> Count:
    """Count the package and the tests below `root`."""
    rooms: Counter[str] = Counter()
    functions: list[int] = []
    modules: dict[str, int] = {}
    for path in sorted((root / "steerlab").rglob("*.py")):
        text = path.read_text()
        parts = path.relative_to(root / "steerlab").parts
        rooms[parts[0] if len(parts) > 1 else "(top)"] += len(code_lines(text))
        functions += function_lengths(text)
        modules[str(path.relative_to(root))] = text.count("\n")
    return Count(
        dict(rooms), functions, modules, sum(p.read_text().count("\n") for p in (root / "tests").rglob("*.py"))
    )


def main() -> None:
    """Print the table."""
    counted = count()
    longest = max(counted.modules, key=lambda name: counted.modules[name])
    lines = [f"{name:<12} {n:>6,}" for name, n in sorted(counted.rooms.items())]
    lines += [
        f"package      {counted.package:>6,} code lines (at most {MAX_PACKAGE:,}) in {len(counted.modules)} modules",
        f"functions    median {counted.function_median:g} (at most {MAX_FUNCTION_MEDIAN}), "
        f"p90 {counted.function_p90:g} (at most {MAX_FUNCTION_P90}) code lines",
        f"modules      longest {counted.modules[longest]} lines (at most {MAX_MODULE}): {longest}",
        f"tests        {counted.tests:>6,} lines (at most {MAX_TESTS:,})",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
