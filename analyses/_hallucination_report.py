"""Tables of the hallucination study: scores, paired differences, probe accuracies, measurements, examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import as_markdown, estimate
from _hallucination import SPLITS, by_split, gap_closed

from steerlab import Example, Request
from steerlab.metrics import l2s_accuracy, l2s_f1, pope_scores
from steerlab.models.model import Model

RANDOM_SEEDS = 4  # as published


def scores(rows: list[Example], found: dict[str, pd.DataFrame], seed: int) -> dict[str, object]:
    """Accuracy, F1 of both conventions and yes-rate of every method on every split, by token and by text."""
    summary: dict[str, object] = {}
    for method, frame in found.items():
        if method.startswith("random-"):
            continue
        for split in SPLITS:
            keep = [row.split == split for row in rows]
            gold = [row.behavior for row in rows if row.split == split]
            name = "base" if method == "none" else method
            for kind, column in (("", "answer"), ("text.", "text")):
                pope = pope_scores(gold, frame.loc[keep, column].astype(str).tolist())
                right = [float(g == p) for g, p in zip(gold, frame.loc[keep, column], strict=True)]
                value = estimate(right, seed) if column == "answer" else {"value": round(pope.accuracy, 4)}
                summary[f"{kind}{name}.{split}"] = value
                summary[f"{kind}{name}.f1.{split}"] = round(pope.f1, 4)
                summary[f"{kind}yes_rate.{name}.{split}"] = round(pope.yes_rate, 4)
                failed = pope.parse_failures if kind else int(frame.loc[keep, "other"].sum())
                summary[f"{kind}parse_failures.{name}.{split}"] = failed
            published = l2s_accuracy(gold, frame.loc[keep, "text"].astype(str).tolist())
            summary[f"published.{name}.{split}"] = round(published, 4)
            summary[f"published.{name}.l2s_f1.{split}"] = round(l2s_f1(published), 4)
    return summary | random_seeds(rows, found, seed)


def random_seeds(rows: list[Example], found: dict[str, pd.DataFrame], seed: int) -> dict[str, object]:
    """Random directions, averaged over seeds as published and each alone: one may shift the threshold by chance."""
    summary: dict[str, object] = {}
    gold = np.array([row.behavior for row in rows])
    drawn = [np.array(f["answer"]) == gold for method, f in found.items() if method.startswith("random")]
    for split in SPLITS:
        keep = np.array([row.split == split for row in rows])
        summary[f"random.{split}"] = estimate(np.mean(drawn, axis=0)[keep].tolist(), seed)
        summary |= {f"random.seed{i}.{split}": round(float(one[keep].mean()), 4) for i, one in enumerate(drawn)}
    return summary


def comparisons(rows: list[Example], found: dict[str, pd.DataFrame], seed: int) -> dict[str, object]:
    """Paired differences of L2S to other methods, and the share of the distance to the oracle that it closes."""
    right = {
        method: dict(zip(frame["example_id"], frame["answer"] == [r.behavior for r in rows], strict=True))
        for method, frame in found.items()
    }
    summary: dict[str, object] = {}
    for other in ("none", "mean", "always_no"):
        gains = pd.Series([float(right["l2s"][r.id]) - float(right[other][r.id]) for r in rows])
        # resampled by image: questions about one image are not independent, and a third of them occur in all splits
        by_image = gains.groupby([r.meta["image"] for r in rows]).mean()
        summary[f"l2s_minus_{other}.pooled"] = estimate(by_image.tolist(), seed)
        for split in SPLITS:
            split_gains = [gain for gain, r in zip(gains, rows, strict=True) if r.split == split]
            summary[f"l2s_minus_{other}.{split}"] = estimate(split_gains, seed)
    shares = {method: by_split(rows, values) for method, values in right.items()}
    for split in SPLITS:
        base, l2s, oracle = (float(np.mean(shares[m][split])) for m in ("none", "l2s", "p2s"))
        summary[f"gap_closed.{split}"] = round(gap_closed(base, l2s, oracle), 4)
    return summary


def page(rows: list[Example], found: dict[str, pd.DataFrame]) -> str:
    """A page with the answers of every method to questions whose answer L2S changed."""
    frames = {method: frame.set_index("example_id") for method, frame in found.items()}
    changed = [r for r in rows if frames["none"].loc[r.id, "answer"] != frames["l2s"].loc[r.id, "answer"]]
    blocks = {
        f"{r.id}: {r.prompt} (true: {r.behavior})": {m: str(f.loc[r.id, "text"]) for m, f in frames.items()}
        for r in changed[:12]
    }
    return as_markdown("The same question under every method", blocks)


def probe_accuracies(probes: pd.DataFrame, context: int) -> dict[str, float]:
    """Accuracy of the probe at the layer that L2S reads, and at the best layer."""
    found = {}
    for split in SPLITS:
        rows = probes[probes["group"] == split]
        found[f"probe.{split}"] = round(float(rows.loc[rows["layer"] == context, "probe_accuracy"].iloc[0]), 4)
        found[f"probe.best.{split}"] = round(float(rows["probe_accuracy"].max()), 4)
    return found


def measurements(
    rows: list[Example], found: dict[str, pd.DataFrame], requests: dict[str, Request | None], model: Model
) -> pd.DataFrame:
    """One row per measurement: whether the first token is the true answer."""
    frames = []
    for method, frame in found.items():
        request = requests[method]
        where = {"layer": "", "alpha": 0.0, "positions": ""}
        if request is not None and method != "prompt":
            layer = request.steerer.site.layer
            where = {"layer": str(layer), "alpha": request.alpha, "positions": str(request.positions)}
        right = [float(row.behavior == said) for row, said in zip(rows, frame["answer"], strict=True)]
        ids = {
            "example_id": [r.id for r in rows],
            "split": [r.split for r in rows],
            "behavior": [r.behavior for r in rows],
        }
        columns = {"method": method, "model": model.id, **where, **ids, "metric": "true_answer", "value": right}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
