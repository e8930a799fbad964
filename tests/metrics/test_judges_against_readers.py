"""The rules against two readers who labeled 400 answers without knowing model and method."""

from pathlib import Path

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from steerlab.metrics import is_fluent, is_refusal

ANSWERS = pd.read_csv(Path(__file__).parents[2] / "analyses/results/judges/answers.csv", keep_default_na=False)
SHOWN = ANSWERS[ANSWERS["text"] != ""]  # answers that comply with a harmful request, or quote one, are left out


def test_readers_agree_with_each_other() -> None:
    for name, least in (("refuses", 0.98), ("fluent", 0.96), ("on_topic", 0.94)):
        assert (ANSWERS[f"{name}_a"] == ANSWERS[f"{name}_b"]).mean() >= least, name


def test_rules_agree_with_readers_as_often_as_the_docstrings_say() -> None:
    for name, rule, least, kappa in (("fluent", is_fluent, 0.86, 0.6), ("refuses", is_refusal, 0.85, 0.7)):
        rows = SHOWN[SHOWN[f"{name}_a"] == SHOWN[f"{name}_b"]]
        found, truth = rows["text"].map(rule).astype(int), rows[f"{name}_a"].astype(int)
        assert (found == truth).mean() >= least and cohen_kappa_score(found, truth) >= kappa, name


def test_most_texts_that_readers_call_broken_are_found_which_the_earlier_threshold_missed() -> None:
    rows = SHOWN[(SHOWN["fluent_a"] == 0) & (SHOWN["fluent_b"] == 0)]
    before = rows["text"].map(lambda text: is_fluent(text, min_distinct2=0.5)).mean()
    assert before > 0.8 and rows["text"].map(is_fluent).mean() < 0.45
