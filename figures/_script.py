"""The command line shared by the scripts in `figures/`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from steerlab.plots import save


def figure_script(figures: Mapping[str, Callable[[Path], Figure | None]], doc: str | None, results: Path) -> None:
    """Parse `[RESULTS_DIR] [--out DIR]`, draw the figures, save them and print their paths.

    Example:
        >>> figure_script({"demo": draw}, __doc__, Path("results/demo"))

    Args:
        figures: for each file name without suffix, the function that draws a results folder; if it returns None, no
            file is written. Files go to `--out`, or beside the results.
        doc: the description shown by `--help`.
        results: the folder when none is given.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", default=results, type=Path)
    parser.add_argument("--out", default=None, type=Path, help="where to write; beside the results otherwise")
    args = parser.parse_args()
    for name, draw in figures.items():
        fig = draw(args.results)
        for path in save(fig, (args.out or args.results) / name) if fig is not None else ():
            print(path)
