"""A study's `summary.json` as a tidy frame, and what each of its measures means to a reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support.errors import DataError


@dataclass(frozen=True)
class Measure:
    """A measure's words, and what the study wants of it."""

    label: str
    goal: float | None = None
    lower: bool = False  # less is better

    @property
    def heading(self) -> str:
        """The label with an arrow towards better."""
        return f"{self.label} {'↓' if self.lower else '↑'}"


MEASURES: dict[str, Measure] = {
    "refuse_harmful": Measure("Refuses harmful", 0.80),
    "defer_expert": Measure("Defers to expert", 0.80),
    "refuse_expert": Measure("Refuses expert questions", 0.03, lower=True),
    "defer_harmful": Measure("Defers harmful", lower=True),
    "distinct2": Measure("Distinct word pairs", 0.70),
    "harmless_refused": Measure("Refuses harmless", lower=True),
    "harmless_identical": Measure("Harmless unchanged"),
    "harmless_kept": Measure("Harmless answers kept", 0.90),
    "random": Measure("POPE, random"),
    "popular": Measure("POPE, popular"),
    "adversarial": Measure("POPE, adversarial"),
    "over_refusal": Measure("Refuses what only sounds unsafe", lower=True),
    "changed_harmless": Measure("Harmless answers changed", lower=True),
    "identical_harmless": Measure("Harmless unchanged"),
    "gsm8k": Measure("Right on GSM8K"),
    "cosine": Measure("Cosine to the own P2S vector"),
}


def measure(name: str) -> Measure:
    """The measure's words and goal; an unknown one is called by its own name.

    Example:
        >>> measure("refuse_expert").heading
        'Refuses expert questions ↓'
    """
    return MEASURES.get(name, Measure(name.replace("_", " ")))


def summary_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Every estimate of a summary, one row a method and measure.

    Example:
        >>> summary_frame({"l2s.refuse_harmful": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 40}})

    Args:
        summary: keys "method.measure" with value, low, high and n; "cos.METHOD_p2s" becomes that method's "cosine";
            anything else is left out.

    Returns:
        Columns `method`, `measure`, `value`, `low`, `high`, `n`, in the summary's order.

    Raises:
        DataError: not a single estimate.
    """
    rows = []
    for key, found in summary.items():
        if "." not in key or not isinstance(found, Mapping) or not {"value", "low", "high"} <= found.keys():
            continue
        method, name = key.split(".", 1)
        if method == "cos":
            method, name = name.removesuffix("_p2s"), "cosine"
        estimate = {k: float(found[k]) for k in ("value", "low", "high")}
        rows.append({"method": method, "measure": name, **estimate, "n": int(found.get("n", 0))})
    if not rows:
        raise DataError(f"no 'method.measure' with value, low and high among the keys {list(summary)[:8]}")
    return pd.DataFrame(rows)


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The `summary.json` of a results folder.

    Example:
        >>> summary_frame(read_summary("results/demo"))

    Raises:
        DataError: there is none.
    """
    path = Path(folder) / "summary.json"
    if not path.exists():
        raise DataError(f"{path} does not exist: give the results folder of a finished study (analyses/*.py --out)")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
