"""What every script in `figures/` does around its own `draw`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from steerlab.plots.style import save


def figure_script(draw: Callable[[Path], Figure], doc: str | None, results: Path, name: str) -> None:
    """Read the command line `[RESULTS_DIR] [--out DIR]`, draw, save, and tell the paths.

    Example:
        >>> figure_script(draw, __doc__, Path("results/demo"), "demo")

    Args:
        draw: makes the figure of a results folder.
        doc: the script's own description.
        results: the folder when none is given.
        name: of the files, without a suffix; they go to `--out`, or beside the results.
    """
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", nargs="?", default=results, type=Path)
    arguments.add_argument("--out", default=None, type=Path, help="where to write; beside the results otherwise")
    args = arguments.parse_args()
    for path in save(draw(args.results), (args.out or args.results) / name):
        sys.stdout.write(f"{path}\n")
