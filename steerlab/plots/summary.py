"""The `summary.json` of a study as a long frame, and the label and goal of each of its metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support.checks import as_number, as_whole, check_type
from steerlab.errors import DataError
from steerlab.metrics import share_interval


@dataclass(frozen=True)
class MetricStyle:
    """The label of a metric, the goal of the studies, and what kind of number it is.

    Example:
        >>> MetricStyle("Refuses harmful", goal=0.8, is_share=True).heading
        'Refuses harmful ↑'
    """

    label: str
    goal: float | None = None
    lower_is_better: bool | None = False
    is_share: bool = False

    @property
    def heading(self) -> str:
        """The label with an arrow towards better values; without one where `lower_is_better` is None: not known."""
        return self.label if self.lower_is_better is None else f"{self.label} {'↓' if self.lower_is_better else '↑'}"


# how the metrics of the studies are labeled, with their goals
METRICS: dict[str, MetricStyle] = {
    "refuse_harmful": MetricStyle("Refuses harmful", 0.80, is_share=True),
    "refuse_harmful_fluently": MetricStyle("Refuses harmful, in fluent text", 0.80, is_share=True),
    "defer_expert_fluently": MetricStyle("Defers to expert, in fluent text", 0.80, is_share=True),
    "fluent": MetricStyle("Fluent answers", is_share=True),
    "defer_expert": MetricStyle("Defers to expert", 0.80, is_share=True),
    "refuse_expert": MetricStyle("Refuses expert questions", 0.03, lower_is_better=True, is_share=True),
    "defer_harmful": MetricStyle("Defers harmful", lower_is_better=True, is_share=True),
    "distinct2": MetricStyle("Distinct word pairs", 0.70),
    "harmless_refused": MetricStyle("Refuses harmless", lower_is_better=True, is_share=True),
    "harmless_identical": MetricStyle("Harmless unchanged", is_share=True),
    "harmless_kept": MetricStyle("Harmless answers kept", 0.90, is_share=True),
    "random": MetricStyle("POPE, random", is_share=True),
    "popular": MetricStyle("POPE, popular", is_share=True),
    "adversarial": MetricStyle("POPE, adversarial", is_share=True),
    "over_refusal": MetricStyle("Refuses what only sounds unsafe", lower_is_better=True, is_share=True),
    "changed_harmless": MetricStyle("Harmless answers changed", lower_is_better=True, is_share=True),
    "identical_harmless": MetricStyle("Harmless unchanged", is_share=True),
    "gsm8k": MetricStyle("Correct on GSM8K", is_share=True),
    "cosine": MetricStyle("Cosine to the input's P2S vector"),
}


def metric_style(name: str) -> MetricStyle:
    """The label and goal of a metric; an unknown one is labeled by its name.

    Example:
        >>> metric_style("refuse_expert").heading
        'Refuses expert questions ↓'
    """
    return METRICS.get(name, MetricStyle(name.replace("_", " "), lower_is_better=None))


def summary_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Every estimate of a summary, one row per method and metric.

    The intervals of shares are Wilson's 95 % intervals for value and n, so that 24 of 24 has one too; those of other
    metrics are the summary's.

    Example:
        >>> summary_frame({"l2s.refuse_harmful": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 40}})

    Args:
        summary: keys "method.metric" with value, low, high and n; "cos.METHOD_p2s" becomes the metric "cosine" of that
            method; everything else is left out, also differences ("A_minus_B.metric", "A_over_B.metric").

    Returns:
        Columns `method`, `metric`, `value`, `low`, `high`, `n`, in the order of the summary.

    Raises:
        DataError: there is no estimate.
    """
    rows = []
    check_type("the summary", summary, Mapping, "estimates by 'method.metric'")
    for key, estimate in summary.items():
        method, _, name = key.partition(".")
        is_estimate = isinstance(estimate, Mapping) and {"value", "low", "high"} <= estimate.keys()
        if not name or not is_estimate or "_minus_" in method or "_over_" in method:
            continue
        if method == "cos":
            method, name = name.removesuffix("_p2s"), "cosine"
        value, low, high = (as_number(f"{key}: {k}", estimate[k]) for k in ("value", "low", "high"))
        n = as_whole(f"{key}: n", estimate.get("n", 0), 0)
        if metric_style(name).is_share and n:
            interval = share_interval(round(value * n), n)
            low, high = interval.low, interval.high
        rows.append({"method": method, "metric": name, "value": value, "low": low, "high": high, "n": n})
    if not rows:
        raise DataError(f"no 'method.metric' with value, low and high among the keys {list(summary)[:8]}")
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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): run the study again, it writes the file anew") from error
