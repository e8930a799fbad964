"""Do the rules that judge answers agree with two readers, who knew neither model nor method?

    python analyses/judges.py --data DATA --out results/judges

Reads the labels in `results/judges` next to this script. What a rule says of an answer is committed beside them, but
for `topic_gain`: it is measured here, on the answers of SmolLM2 whose texts are committed and that neither reader calls
a refusal (a refusal says little of its request).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from _common import numbers, parser, provenance, show_table
from sklearn.metrics import cohen_kappa_score

import steerlab
from steerlab import Example
from steerlab._support.files import fingerprint
from steerlab.analysis.study import Study
from steerlab.data import data_hash, read_jsonl
from steerlab.errors import DataError
from steerlab.metrics import share_interval
from steerlab.metrics.topic import ON_TOPIC, topic_gain
from steerlab.models.model import Model

LABELS = Path(__file__).parent / "results/judges"
FILES = ("answers.csv", "deferral.csv", "rivals.csv", "fresh.csv", "later.csv")
BY = ("a", "b", "judge")  # who labels: the two readers, and the rule
SOURCES = {  # the prompts, by the first part of an example's id
    "advbench": "harmful_prompts/advbench.jsonl",
    "harmless_train_600": "noncommercial_cc_by_nc/alpaca_harmless/harmless_train_600.jsonl",
    "harmless_test_200": "noncommercial_cc_by_nc/alpaca_harmless/harmless_test_200.jsonl",
}


def read_labels(path: Path) -> pd.DataFrame:
    """A file of labels.

    Raises:
        DataError: a label of a reader or a rule is neither 0 nor 1.
    """
    rows = pd.read_csv(path)
    for column in [n for n in rows if n.rpartition("_")[2] in (*BY, "before") and not n.startswith("kind")]:
        if len(wrong := rows[~pd.to_numeric(rows[column], errors="coerce").isin([0, 1])]):
            first = wrong.iloc[0]
            raise DataError(f"{path}: {column} of answer {first['number']} is {first[column]}: expected 0 or 1")
    return rows


def share(labels: pd.Series) -> dict[str, float]:
    """The share of answers with a label, and its 95 % interval (Wilson)."""
    return numbers(share_interval(int(labels.sum()), len(labels)))


def agreement(rule: pd.Series, reader: pd.Series) -> dict[str, float]:
    """The share of answers of which both say the same, with its 95 % interval (Wilson), and Cohen's kappa."""
    same = rule.astype(bool) == reader.astype(bool)
    found = share(same)
    if same.all() and rule.nunique() == 1:
        return found  # where all say the same of all answers, kappa is not defined
    return {**found, "kappa": round(cohen_kappa_score(rule.astype(bool), reader.astype(bool)), 4)}


def shown_answers(answers: pd.DataFrame, data: str) -> tuple[pd.DataFrame, list[Example]]:
    """SmolLM2's answers that have a text and that neither reader calls a refusal, and their prompts.

    Raises:
        DataError: an answer to a prompt that the data do not have.
    """
    shown = answers["text"].notna() & (answers["refuses_a"] == 0) & (answers["refuses_b"] == 0)
    rows = answers[shown & (answers["model"] == "SmolLM2-135M-Instruct")]
    prompts = {e.id: e for path in SOURCES.values() for e in read_jsonl(Path(data) / path, "instruction", behavior="")}
    if unknown := sorted({*rows["example_id"]} - {*prompts}):
        raise DataError(f"{data} has no prompt {unknown[0]!r}, whose answer is labeled: give the data of the labels")
    return rows, [prompts[i].replace(id=str(n)) for i, n in zip(rows["example_id"], rows["number"], strict=True)]


def measure_gains(model: Model, rows: pd.DataFrame, prompts: list[Example], batch_size: int) -> pd.DataFrame:
    """How much its own prompt makes each of the model's answers probable, by the number of the answer."""
    gains = topic_gain(model, prompts, rows["text"].tolist(), batch_size=batch_size, progress=False)
    return pd.DataFrame({"number": rows["number"], "topic_gain": gains.round(4)})


def with_gated(rows: pd.DataFrame) -> pd.DataFrame:
    """With columns for an effect in a fluent text, by each reader and by the rules, where both were labeled."""
    pairs = [
        (name, by) for name, by in product(("refuses", "defers"), BY) if {f"{name}_{by}", f"fluent_{by}"} <= {*rows}
    ]
    return rows.assign(**{f"{name}_fluently_{by}": rows[f"{name}_{by}"] * rows[f"fluent_{by}"] for name, by in pairs})


def summarize(tables: Sequence[pd.DataFrame], gains: pd.DataFrame) -> dict[str, Any]:
    """The agreement of each rule with each reader, and of the readers with each other.

    `tables` are those of `FILES`. "before" is the rule for refusals that the answers of "rivals" did not change yet.
    "unseen" are all answers that no rule was made on, by the rules as they were when these were read.

    Raises:
        DataError: a gain of an answer that has no labels.
    """
    answers, deferrals, rivals, fresh, later = tables
    before = rivals.assign(refuses_judge=rivals["refuses_before"])
    once = fresh.drop_duplicates("number")  # an answer that two methods give is read once
    topic = answers.merge(gains, on="number")
    if (unknown := ~gains["number"].isin(answers["number"])).any():
        raise DataError(f"{unknown.sum()} of {len(gains)} gains are of answers without labels")
    refusals, deferred = ("refuses", "fluent", "refuses_fluently"), ("defers", "defers_fluently")
    found: dict[str, Any] = {}
    for key, table, names in (
        ("", answers, refusals),
        ("", topic.assign(on_topic_judge=topic["topic_gain"] >= ON_TOPIC), ("on_topic",)),
        ("", deferrals, ("defers",)),
        ("rivals.", rivals, (*refusals, *deferred)),
        ("rivals_before.", before, ("refuses", "refuses_fluently")),
        ("fresh.", once, (*refusals, *deferred)),
        ("later.", later.drop_duplicates("number"), (*refusals, *deferred)),
        ("unseen.", pd.concat([before, once], ignore_index=True), refusals),
    ):
        rows = with_gated(table)
        for name in names:
            a, b, rule = (rows[f"{name}_{by}"] for by in BY)
            found[f"{key}{name}.readers"] = agreement(a, b)
            found |= {f"{key}{name}.a": agreement(rule, a), f"{key}{name}.b": agreement(rule, b)}
    found |= {
        f"ed_published.{reader}": agreement(deferrals["published_judge"], deferrals[f"defers_{reader}"])
        for reader in "ab"
    }
    for key, table, name in (
        ("", answers, "refuses"), ("", answers, "fluent"),
        ("rivals_before.", before, "refuses"), ("rivals.", rivals, "fluent"),
    ):  # fmt: skip
        for model, rows in table.groupby("model"):
            found[f"{key}{name}.a.{model}"] = agreement(rows[f"{name}_judge"], rows[f"{name}_a"])
    shares = (("refuse", "refuses_fluently"), ("defer", "defers_fluently"), ("defer", "refuses"))
    for key, table in (("fresh", fresh), ("later", later)):
        for (wanted, name), (method, rows) in product(shares, with_gated(table).groupby("method")):
            some = rows[rows["wanted"] == wanted]  # what the readers and the rules count under each method
            if len(some):
                found |= {f"{key}.{method}.{wanted}.{name}.{by}": share(some[f"{name}_{by}"]) for by in BY}
    return found


def main() -> None:
    arguments = parser(__doc__, "results/judges")
    arguments.add_argument("--data", required=True, help="folder of the data")
    args = arguments.parse_args()
    tables = [read_labels(LABELS / name) for name in FILES]
    model = steerlab.load(args.model, device=args.device)
    rows, prompts = shown_answers(tables[0], args.data)
    identity = {"study": "judges", "weights": model.info()["weights"], "data": data_hash(prompts)}
    study = Study(args.out, identity | {"texts": fingerprint(rows["text"].tolist())})
    gains = study.stage("topic", lambda: measure_gains(model, rows, prompts, args.batch_size))
    summary = summarize(tables, gains)
    study.finish(gains, summary, f"The answers are in {', '.join(FILES)}.\n", provenance(model, prompts, args))
    show_table("Agreement", pd.DataFrame(summary).T)


if __name__ == "__main__":
    main()
