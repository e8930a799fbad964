"""Command-line arguments, provenance, estimates and tables shared by the studies."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import steerlab
from steerlab import Example, Request
from steerlab._support.files import fingerprint
from steerlab.analysis.behavior import judge_answers
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.errors import MismatchError
from steerlab.metrics import Estimate, bootstrap_ci, perplexity
from steerlab.models.model import Model

Requests = Request | list[Request]  # several are added up
LazyRequest = Requests | Callable[[], Requests] | None
ROOT = Path(__file__).parents[1]
# arguments that name folders of one machine: left out of the provenance
PATH_ARGUMENTS = (
    "data",
    "harmless",
    "out",
    "grid",
    "earlier",
    "pope",
    "images",
    "easy_vqa",
    "coco_free",
    "emoji",
    "readings",
    "pictures",
    "safety",
    "language_model",
    "repe",
)


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every study takes."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument(
        "--out", default=out, help="folder of the results; stages that are finished there are not run again"
    )
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--limit", type=int, default=None, help="maximal number of inputs of each behavior and split"
    )
    arguments.add_argument("--model", default="smollm2", help="a hub id, a folder, a gguf file, or smollm2")
    arguments.add_argument("--device", default=None)
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--max-new-tokens", type=int, default=60)
    return arguments


def limit_per_group(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` examples of every behavior and split."""
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for example in examples:
        key = (example.behavior, example.split)
        seen[key] = seen.get(key, 0) + 1
        if limit is None or seen[key] <= limit:
            kept.append(example)
    return kept


def of_split(examples: Sequence[Example], *splits: str) -> list[Example]:
    """The examples whose split is one of `splits`."""
    return [e for e in examples if e.split in splits]


def provenance(model: Model, examples: Sequence[Example], args: argparse.Namespace) -> dict[str, Any]:
    """What is needed to repeat the run. `dirty`: the code differs from the commit (results are ignored)."""
    changed = _git("status", "--porcelain", "--", "analyses", "steerlab", ":(exclude)analyses/results")
    info = model.info()
    arguments = {k: v for k, v in vars(args).items() if k not in PATH_ARGUMENTS} | {"model": info["model"]}
    return {
        **info,
        "device": str(model.device),
        "data": data_hash(examples),
        "arguments": arguments,
        "commit": _git("rev-parse", "--short", "HEAD") or None,
        "dirty": None if changed is None else bool(changed),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _git(*arguments: str) -> str | None:
    """The output of a git command; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def estimate(values: Sequence[float], seed: int, statistic: Literal["mean", "median"] = "mean") -> dict[str, float]:
    """A statistic with its 95 % bootstrap interval."""
    return numbers(bootstrap_ci(list(values), statistic=statistic, seed=seed))


def numbers(found: Estimate) -> dict[str, float]:
    """An estimate as a dictionary of rounded numbers."""
    return {"value": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n}


def stage_of_answers(
    study: Study, stage: str, model: Model, rows: Sequence[Example], request: LazyRequest, *,
    max_new_tokens: int, batch_size: int,
) -> list[str]:  # fmt: skip
    """A model's answers, kept as a stage; a request that is a function is only made where the stage is missing.

    Raises:
        MismatchError: the stage holds answers to other rows.
    """

    def answer() -> pd.DataFrame:
        steer = request() if callable(request) else request
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": False}
        found = steerlab.generate(model, rows, steer=() if steer is None else steer, **options)
        return pd.DataFrame({"example_id": found.example_ids, "text": found.texts})

    found = study.stage(stage, answer)
    if found["example_id"].astype(str).tolist() != [e.id for e in rows]:
        raise MismatchError(f"the stage {stage} in {study.folder} holds answers to other rows: delete it")
    return found["text"].astype(str).tolist()


def judge_with_perplexity(
    study: Study, name: str, model: Model, examples: Sequence[Example], texts: Sequence[str],
    unsteered: Sequence[str] | None = None, *, batch_size: int = 16,
) -> pd.DataFrame:  # fmt: skip
    """`judge_answers` with the perplexities of the answers, which are a stage of their own for these texts.

    Answers and perplexities are kept, judgments are made when they are read: a better rule needs no new run.
    """
    texts = [str(text) for text in texts]  # a table reads a text such as "12" back as a number

    def measure() -> pd.DataFrame:
        found = perplexity(model, examples, texts, batch_size=batch_size, progress=False)
        return pd.DataFrame({"example_id": [e.id for e in examples], "perplexity": found})

    found = study.stage(f"perplexity-{name}-{fingerprint(texts)[:8]}", measure)
    return judge_answers(examples, texts, unsteered, perplexity=found["perplexity"].tolist())


def to_long(judged: pd.DataFrame, model: str, measures: Sequence[str]) -> pd.DataFrame:
    """Long form, one row per measurement, without the texts."""
    keys = ["method", "layer", "alpha", "positions", "example_id", "behavior"]
    long = judged.melt(
        id_vars=keys, value_vars=[m for m in measures if m in judged], var_name="metric", value_name="value"
    )
    long.insert(1, "model", model)
    return long.dropna(subset="value").round({"value": 4})


def show_table(title: str, table: pd.DataFrame) -> None:
    """Print a table, rounded to three digits."""
    print(f"\n{title}\n{table.round(3).to_string(na_rep='')}\n")


def as_markdown(heading: str, blocks: Mapping[str, Mapping[str, str]]) -> str:
    """A page with one section per prompt that lists the answer of every method."""
    lines = [f"# {heading}", ""]
    for prompt, answers in blocks.items():
        lines += [f"## {prompt}", ""]
        lines += [f"- **{method}**: {' '.join(text.split()) or '(nothing)'}" for method, text in answers.items()]
        lines.append("")
    return "\n".join(lines)
