"""Do the rules that judge answers agree with two readers, who knew neither model nor method?

    python analyses/judges.py --data DATA --out results/judges

Reads the labels in `results/judges` next to this script. What a rule says of an answer is committed beside them, but
for `topic_gain`: it is measured here, on the answers of SmolLM2 whose texts are committed and that neither reader calls
a refusal (a refusal says little of its request).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from _common import numbers, parser, provenance, show_table
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

import steerlab
from steerlab import Example
from steerlab._support.files import fingerprint
from steerlab.analysis.study import Study
from steerlab.data import data_hash, read_jsonl
from steerlab.metrics import Estimate
from steerlab.metrics.topic import ON_TOPIC, topic_gain
from steerlab.models.model import Model

LABELS = Path(__file__).parent / "results/judges"
FILES = ("answers.csv", "deferral.csv", "rivals.csv")
BY = ("a", "b", "judge")  # who labels: the two readers, and the rule
SOURCES = {  # the prompts, by the first part of an example's id
    "advbench": "harmful_prompts/advbench.jsonl",
    "harmless_train_600": "noncommercial_cc_by_nc/alpaca_harmless/harmless_train_600.jsonl",
    "harmless_test_200": "noncommercial_cc_by_nc/alpaca_harmless/harmless_test_200.jsonl",
}


def agreement(rule: pd.Series, reader: pd.Series) -> dict[str, float]:
    """The share of answers of which both say the same, with its 95 % interval (Wilson), and Cohen's kappa."""
    same = rule.astype(bool) == reader.astype(bool)
    interval = binomtest(int(same.sum()), len(same)).proportion_ci(method="wilson")
    found = numbers(Estimate(same.mean(), interval.low, interval.high, len(same)))
    if same.all() and rule.nunique() == 1:
        return found  # where all say the same of all answers, kappa is not defined
    return {**found, "kappa": round(cohen_kappa_score(rule.astype(bool), reader.astype(bool)), 4)}


def shown_answers(answers: pd.DataFrame, data: str) -> tuple[pd.DataFrame, list[Example]]:
    """SmolLM2's answers that have a text and that neither reader calls a refusal, and their prompts."""
    shown = answers["text"].notna() & (answers["refuses_a"] == 0) & (answers["refuses_b"] == 0)
    rows = answers[shown & (answers["model"] == "SmolLM2-135M-Instruct")]
    prompts = {e.id: e for path in SOURCES.values() for e in read_jsonl(Path(data) / path, "instruction", behavior="")}
    return rows, [prompts[i].replace(id=str(n)) for i, n in zip(rows["example_id"], rows["number"], strict=True)]


def measure_gains(model: Model, rows: pd.DataFrame, prompts: list[Example], batch_size: int) -> pd.DataFrame:
    """How much its own prompt makes each of the model's answers probable, by the number of the answer."""
    gains = topic_gain(model, prompts, rows["text"].tolist(), batch_size=batch_size, progress=False)
    return pd.DataFrame({"number": rows["number"], "topic_gain": gains.round(4)})


def with_gated(rows: pd.DataFrame, *effects: str) -> pd.DataFrame:
    """With columns for an effect in a fluent text, by each reader and by the rules."""
    gated = {f"{name}_fluently_{by}": rows[f"{name}_{by}"] * rows[f"fluent_{by}"] for name in effects for by in BY}
    return rows.assign(**gated)


def summarize(
    answers: pd.DataFrame, deferrals: pd.DataFrame, rivals: pd.DataFrame, gains: pd.DataFrame
) -> dict[str, Any]:  # fmt: skip
    """The agreement of each rule with each reader, and of the readers with each other."""
    found: dict[str, Any] = {}
    answers, rivals = with_gated(answers, "refuses"), with_gated(rivals, "refuses", "defers")
    topic = answers.merge(gains, on="number")
    topic = topic.assign(on_topic_judge=topic["topic_gain"] >= ON_TOPIC)
    tables = {name: answers for name in ("refuses", "fluent", "refuses_fluently")}
    tables |= {"on_topic": topic, "defers": deferrals}
    tables |= {f"rivals.{name}": rivals for name in (*tables, "defers_fluently") if name != "on_topic"}
    for key, rows in tables.items():
        a, b, rule = (rows[f"{key.removeprefix('rivals.')}_{by}"] for by in BY)
        found |= {f"{key}.readers": agreement(a, b), f"{key}.a": agreement(rule, a), f"{key}.b": agreement(rule, b)}
    before = rivals.assign(refuses_judge=rivals["refuses_before"])  # by the rule that these answers did not change
    pooled = pd.concat([answers, before], ignore_index=True)
    for key, rows in (("rivals_before", with_gated(before, "refuses")), ("all_before", with_gated(pooled, "refuses"))):
        for name, reader in product(("refuses", "fluent", "refuses_fluently"), "ab"):
            found[f"{key}.{name}.{reader}"] = agreement(rows[f"{name}_judge"], rows[f"{name}_{reader}"])
    found |= {
        f"ed_published.{reader}": agreement(deferrals["published_judge"], deferrals[f"defers_{reader}"])
        for reader in "ab"
    }
    for (key, table), name in product((("", answers), ("rivals_before.", before)), ("refuses", "fluent")):
        for model, rows in table.groupby("model"):
            found[f"{key}{name}.a.{model}"] = agreement(rows[f"{name}_judge"], rows[f"{name}_a"])
    return found


def main() -> None:
    arguments = parser(__doc__, "results/judges")
    arguments.add_argument("--data", required=True, help="folder of the data")
    args = arguments.parse_args()
    answers, deferrals, rivals = (pd.read_csv(LABELS / name) for name in FILES)
    model = steerlab.load(args.model, device=args.device)
    rows, prompts = shown_answers(answers, args.data)
    identity = {"study": "judges", "weights": model.info()["weights"], "data": data_hash(prompts)}
    study = Study(args.out, identity | {"texts": fingerprint(rows["text"].tolist())})
    gains = study.stage("topic", lambda: measure_gains(model, rows, prompts, args.batch_size))
    summary = summarize(answers, deferrals, rivals, gains)
    study.finish(gains, summary, f"The answers are in {', '.join(FILES)}.\n", provenance(model, prompts, args))
    show_table("Agreement", pd.DataFrame(summary).T)


if __name__ == "__main__":
    main()
