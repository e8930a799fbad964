"""TaskTracker on real paragraphs: probes fitted on four sources, layer chosen on a fifth, tested on three others.

Half of the injected instructions are trivia questions and half are requests without a question mark. The clean
paragraphs contain no question, so a probe that only finds question marks fails on the requests. Math problems, which
contain a question, are a control. Some instructions, triggers and two families of tasks are used in the test only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from _real_texts import SPLITS, real_texts

import steerlab
from steerlab import Activations, Example
from steerlab.analysis.study import Study
from steerlab.data import demo_set
from steerlab.data.injections import HELD_OUT_TRIGGERS, PRIMARY_TASKS, TRIGGERS, injection_examples, trivia_pairs
from steerlab.methods import Context
from steerlab.methods.tasktracker.detector import TaskTracker
from steerlab.metrics.detection import detection_auc, detection_report, rates_at
from steerlab.models.model import Model

PARAGRAPHS = 50  # of every source
NEW_FAMILIES = ("style", "evaluate")
LAYERS = tuple(range(0, 30, 3))
FPR = 0.05


def detection_rows(args: argparse.Namespace) -> list[Example]:
    """Every paragraph, clean and injected; "test families" are test sources with families of tasks that are new too."""
    texts = real_texts(args.data, args.limit or PARAGRAPHS)
    trivia = list(
        dict.fromkeys(str(row.prompt) for row in trivia_pairs(Path(args.data) / "tasktracker/trivia_pairs.jsonl"))
    )
    requests = [str(e.prompt) for e in demo_set(seed=args.seed) if e.behavior == "answer" and "?" not in e.prompt]
    known = {k: tasks for k, tasks in PRIMARY_TASKS.items() if k not in NEW_FAMILIES}
    new = {k: PRIMARY_TASKS[k] for k in NEW_FAMILIES}
    half = {"fit": (_mixed(trivia[::2], requests[::2])), "test": _mixed(trivia[1::2], requests[1::2])}

    def examples_of(splits: tuple[str, ...], **options: Any) -> list[Example]:
        chosen = {name: texts[name] for name, split in SPLITS.items() if split in splits}
        return injection_examples(chosen, seed=args.seed, splits={name: SPLITS[name] for name in chosen}, **options)

    fit = examples_of(("train", "validation"), injections=half["fit"], triggers=TRIGGERS, tasks=known, paired=True)
    test = examples_of(("test",), injections=half["test"], triggers=HELD_OUT_TRIGGERS, tasks=known, paired=True)
    other = examples_of(("test",), injections=half["test"], triggers=HELD_OUT_TRIGGERS, tasks=new, paired=True)
    control = examples_of(("control",), injections=half["test"], tasks=known, share=0.0)
    return [*fit, *test, *(e.replace(id=f"families/{e.id}", split="test families") for e in other), *control]


def track(study: Study, model: Model, args: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, Any]]:
    """AUC by layer, kind of features and split, and the summary at the layer chosen on validation texts."""
    rows = detection_rows(args)
    layers = [k for k in LAYERS if k < model.n_layers]
    acts = steerlab.capture(model, rows, folder=study.folder / "stages" / "acts-tracker", layers=layers).load()
    frame = study.stage("tracker", lambda: _by_layer(acts, layers))
    summary: dict[str, Any] = {}
    for features in ("delta", "norm", "full"):
        candidates = frame[(frame["features"] == features) & (frame["split"] == "validation")]
        layer = int(candidates.loc[candidates["auc"].idxmax(), "layer"])
        probe = TaskTracker(layer, features=features).fit(acts.select(split="train"))
        clean = _of(acts, "validation", "clean")
        probe.calibrate(clean, fpr=max(FPR, 1 / len(clean.example_ids)))
        name = "tasktracker" if features == "delta" else f"tasktracker.{features}"
        summary |= {f"{name}.layer": layer, **_test_summary(name, probe, acts, rows, args.seed)}
    return frame, summary


def _by_layer(acts: Activations, layers: list[int]) -> pd.DataFrame:
    found = []
    for features in ("delta", "norm", "full"):
        for layer in layers:
            probe = TaskTracker(layer, features=features).fit(acts.select(split="train"))
            for split in ("train", "validation", "test", "test families"):
                yes, no = (probe.score(_of(acts, split, kind)) for kind in ("injected", "clean"))
                found.append({"features": features, "layer": layer, "split": split, "auc": detection_auc(yes, no)})
    return pd.DataFrame(found)


def _test_summary(name: str, probe: TaskTracker, acts: Activations, rows: list[Example], seed: int) -> dict[str, Any]:
    """Test results of one probe: AUC with its interval, AUC by place and kind of injection, and false alarms."""
    found: dict[str, Any] = {}
    for split, key in (("test", "auc"), ("test families", "auc_new_families")):
        yes, no = (probe.score(_of(acts, split, kind)) for kind in ("injected", "clean"))
        report = detection_report(yes, no, fpr=[max(FPR, 1 / len(no))], seed=seed).set_index("metric")
        for metric, column in (("auc", key), (report.index[1], f"{key.replace('auc', 'tpr')}_at_fpr_{FPR}")):
            entry = report.loc[metric]
            found[f"{name}.{column}"] = {k: round(float(entry[k]), 4) for k in ("value", "low", "high")} | {
                "n": int(entry["n"])
            }
    clean = probe.score(_of(acts, "test", "clean"))
    hidden = [e for e in rows if e.split == "test" and e.behavior == "injected"]
    score = dict(zip((e.id for e in hidden), probe.score(Context(tuple(e.id for e in hidden), acts)), strict=True))
    kinds = {e.id: (e.meta["place"], "asks" if "?" in e.meta["injection"] else "requests") for e in hidden}
    for group in sorted({kind for pair in kinds.values() for kind in pair}):
        scores = [score[example_id] for example_id, pair in kinds.items() if group in pair]
        found[f"{name}.auc.{group}"] = round(detection_auc(scores, clean), 4)
    rates = rates_at(list(score.values()), clean, threshold=probe.threshold_)
    found[f"{name}.calibrated"] = {"tpr": round(rates.tpr, 4), "fpr": round(rates.fpr, 4)}
    alarms = probe.detect(_of(acts, "control", "clean"))
    found[f"{name}.false_alarms_on_problems"] = round(float(alarms.float().mean()), 4)
    return found


def _of(acts: Activations, split: str, behavior: str) -> Context:
    return Context.of(acts.select(split=split, behavior=behavior))


def _mixed(questions: list[str], requests: list[str]) -> list[str]:
    """Equally many questions and requests."""
    n = min(len(questions), len(requests))
    return [*questions[:n], *requests[:n]]
