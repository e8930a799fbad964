"""Yes/no questions about objects: the standard POPE scores, and the numbers printed in the L2S tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from steerlab._support.checks import as_number, as_texts
from steerlab.errors import DataError
from steerlab.metrics._checks import answer_of

ANSWER_WORDS = 12
ANSWER_CHARACTERS = 15  # what the released code of L2S looks at

_WORD = re.compile(r"[a-zß-öø-ÿ]+(?:['’][a-zß-öø-ÿ]+)*")


@dataclass(frozen=True)
class PopeScores:
    """Standard POPE scores with "yes" as the positive class.

    Example:
        >>> pope_scores(["yes", "no"], ["Yes.", "No."]).f1
        1.0

    Attributes:
        accuracy, precision, recall, f1, yes_rate: shares in [0, 1]; NaN where the denominator is 0.
        parse_failures: answers with neither yes nor no; they count as wrong and as not "yes".
        n: questions.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float
    parse_failures: int
    n: int


def parse_yes_no(text: str) -> str | None:
    """The first whole word "yes" or "no" among the first twelve words, or None.

    Example:
        >>> parse_yes_no("Yes, another dog is there."), parse_yes_no("Nothing of the kind.")
        ('yes', None)

    Args:
        text: the answer, without the question.

    Source: window of L2S, arXiv 2508.12815 (its code searches substrings, where "no" is found in "another").
    """
    found = (word for word in _WORD.findall(answer_of(text).lower())[:ANSWER_WORDS] if word in ("yes", "no"))
    return next(found, None)


def pope_scores(gold: Sequence[str], predicted: Sequence[str]) -> PopeScores:
    """Accuracy, precision, recall, F1 and yes-rate of yes/no answers.

    Example:
        >>> scores = pope_scores(["yes", "no"], ["Yes, there is.", "Yes."])
        >>> scores.accuracy, scores.recall, scores.yes_rate
        (0.5, 1.0, 1.0)

    Args:
        gold: "yes" or "no" per question.
        predicted: the model's answers as text, in the same order.

    Raises:
        DataError: nothing to score, different lengths, or a gold label other than "yes" and "no".

    Source: POPE, arXiv 2305.10355.
    """
    gold, predicted = _checked("pope_scores", gold, predicted)
    parsed = [parse_yes_no(text) or "neither" for text in predicted]
    said_yes = [answer == "yes" for answer in parsed]
    precision, recall, f1, _ = precision_recall_fscore_support(
        [answer == "yes" for answer in gold], said_yes, average="binary", zero_division=math.nan
    )
    return PopeScores(
        accuracy=float(accuracy_score(gold, parsed)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        yes_rate=sum(said_yes) / len(said_yes),
        parse_failures=parsed.count("neither"),
        n=len(parsed),
    )


def l2s_accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The accuracy printed in the L2S tables: the true word occurs in the first fifteen characters of the answer.

    Example:
        >>> l2s_accuracy(["yes", "no"], ["Yes, there is.", "Yes, another."])  # "no" occurs in "another"
        1.0

    Args:
        gold: "yes" or "no" per question.
        predicted: the model's answers as text, in the same order.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: nothing to score, different lengths, or a gold label other than "yes" and "no".

    Source: code of L2S, arXiv 2508.12815; use `pope_scores` for the standard score.
    """
    gold, predicted = _checked("l2s_accuracy", gold, predicted)
    read = [answer_of(text).lstrip()[:ANSWER_CHARACTERS].lower() for text in predicted]
    return sum(g in p for g, p in zip(gold, read, strict=True)) / len(gold)


def l2s_f1(accuracy: float) -> float:
    """The number printed as "F1" in the L2S tables: a function of accuracy alone, not POPE's F1.

    Example:
        >>> round(l2s_f1(0.8), 3)
        0.889

    Args:
        accuracy: a share in [0, 1].

    Returns:
        2a / (1 + a): the F1 of "was the answer correct" against an all-true reference (precision is 1).

    Raises:
        DataError: accuracy outside [0, 1], for instance given in percent.

    Source: L2S, arXiv 2508.12815; use `pope_scores` for the standard score.
    """
    if not 0 <= as_number("accuracy", accuracy) <= 1:
        raise DataError(f"l2s_f1 got accuracy={accuracy}; expected a share (divide percent by 100)")
    return 2 * accuracy / (1 + accuracy)


def _checked(name: str, gold: Sequence[str], predicted: Sequence[str]) -> tuple[list[str], list[str]]:
    gold, predicted = as_texts("gold", gold), as_texts("predicted", predicted)
    if unknown := sorted(set(gold) - {"yes", "no"}):
        raise DataError(f"{name} got the gold labels {unknown[:3]}; expected only 'yes' and 'no', lower-cased")
    if not gold or len(gold) != len(predicted):
        raise DataError(f"{name} got {len(gold)} labels and {len(predicted)} answers; expected one of each")
    return gold, predicted
