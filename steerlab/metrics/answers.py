"""Metrics of the two answers of a contrast, computed from the logits that predict them (float32).

| name | definition |
|---|---|
| `propensity` | logit of the positive minus that of the negative answer, at the first token that differs |
| `accuracy` | 1 where the propensity is above 0 |
| `first_token_accuracy` | 1 where the positive answer's first token is the likeliest of the whole vocabulary |
| `answer_probability` | probability of the two tokens together; it falls where steering breaks the answer format |
| `logprob` | log-probability of the complete positive answer, in nats |
| `logprob_difference` | `logprob` minus that of the negative answer (steering-bench's score) |
| `logit_sum_difference` | the same with raw logits (the score of the steerability paper's runs) |

Source: arXiv 2407.12404, section 3 (propensity) and its two code bases; the others are standard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steerlab.errors import DataError
from steerlab.models.encoding import Batch

Quantities = Mapping[str, Float[Tensor, " row"]]


@dataclass(frozen=True)
class AnswerMetric:
    """One number per example, computed from quantities that `AnswerReader` reads from the logits.

    Attributes:
        compute: the metric, from the quantities by name.
        both_answers: whether both complete answers must be teacher-forced; otherwise one row up to the first token
            that differs is enough.
        requires: quantities that need a pass over the vocabulary: "lse", "top".
        first_token: whether the metric is only defined where the answers differ at their first token.
    """

    compute: Callable[[Quantities], Float[Tensor, " row"]]
    both_answers: bool = False
    requires: tuple[str, ...] = ()
    first_token: bool = False


ANSWER_METRICS: dict[str, AnswerMetric] = {
    "propensity": AnswerMetric(lambda q: q["positive"] - q["negative"]),
    # plus 0 times the difference: NaN and infinity stay NaN, where a comparison would make them wrong answers
    "accuracy": AnswerMetric(lambda q: (q["positive"] > q["negative"]).float() + 0 * (q["positive"] - q["negative"])),
    "first_token_accuracy": AnswerMetric(
        lambda q: q["top_is_positive"] + 0 * (q["positive"] - q["negative"]), requires=("top",), first_token=True
    ),
    "answer_probability": AnswerMetric(
        lambda q: (q["positive"] - q["lse"]).exp() + (q["negative"] - q["lse"]).exp(), requires=("lse",)
    ),
    "logprob": AnswerMetric(lambda q: q["logprob_positive"], both_answers=True, requires=("lse",)),
    "logprob_difference": AnswerMetric(
        lambda q: q["logprob_positive"] - q["logprob_negative"], both_answers=True, requires=("lse",)
    ),
    "logit_sum_difference": AnswerMetric(lambda q: q["logit_positive"] - q["logit_negative"], both_answers=True),
}


@dataclass(frozen=True)
class AnswerTokens:
    """The columns of a batch that predict its answers, and the answers' token ids.

    Attributes:
        columns: `(k,)` columns of the batch whose logits are needed, ascending.
        first_difference: `(row,)` index into `columns` of the column that predicts the first token that differs.
        ids: `(row, 2)` the positive and the negative answer's token there.
        places, targets, real: `(row, token)` indices into `columns`, ids and mask of the row's complete answer.
    """

    columns: Int[Tensor, " k"]
    first_difference: Int[Tensor, " row"]
    ids: Int[Tensor, "row two"]
    places: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]
    real: Bool[Tensor, "row token"]


def locate_answers(batch: Batch, ids: Sequence[tuple[int, int]], both_answers: bool) -> AnswerTokens:
    """Find the columns that predict the answers of a batch.

    Args:
        batch: rows with a positive or negative answer, or its beginning up to the first token that differs.
        ids: per row, the positive and the negative answer's token there.
        both_answers: whether the complete answer of each row is read.
    """
    rows = list(zip(batch.rows, batch.offsets, strict=True))
    choice = torch.tensor([offset + (row.first_difference or 0) - 1 for row, offset in rows])
    answers = [torch.tensor(row.ids[row.n_prompt :] if both_answers else [], dtype=torch.long) for row, _ in rows]
    spans = [
        torch.arange(len(answer)) + offset + row.n_prompt - 1
        for answer, (row, offset) in zip(answers, rows, strict=True)
    ]
    columns = torch.cat([choice, *spans]).unique()
    return AnswerTokens(
        columns,
        torch.searchsorted(columns, choice),
        torch.tensor(ids),
        torch.searchsorted(columns, pad_sequence(spans, batch_first=True, padding_value=int(columns[0]))),
        pad_sequence(answers, batch_first=True),
        pad_sequence([torch.ones_like(answer, dtype=torch.bool) for answer in answers], batch_first=True),
    )


@dataclass(frozen=True)
class AnswerReader:
    """A logits reducer that returns the quantities of the metrics for every row, on the device of the logits.

    `logit` and `logprob` belong to the answer in the row; the caller knows which of the two it is.

    Attributes:
        tokens: where the answers are in each row.
        copies: how often these rows are repeated in the batch.
        requires: the quantities that the metrics require.
    """

    tokens: AnswerTokens
    copies: int
    requires: tuple[str, ...]

    def __call__(self, logits: Float[Tensor, "row k vocabulary"]) -> dict[str, Float[Tensor, " row"]]:
        """The quantities by name."""
        logits = logits.float()
        choice, ids, places, targets, real = (
            tensor.to(logits.device).repeat(self.copies, *[1] * (tensor.ndim - 1))
            for tensor in list(vars(self.tokens).values())[1:]
        )
        rows = torch.arange(len(logits), device=logits.device)
        pair = logits[rows[:, None], choice[:, None], ids]
        found = {"positive": pair[:, 0], "negative": pair[:, 1]}
        lse = logits.logsumexp(-1) if "lse" in self.requires else None
        if lse is not None:
            found["lse"] = lse[rows, choice]
        if "top" in self.requires:
            found["top_is_positive"] = (logits[rows, choice].argmax(-1) == ids[:, 0]).float()
        if real.shape[1]:
            picked = logits[rows[:, None], places, targets]
            found["logit"] = (picked * real).sum(-1)
            if lse is not None:
                found["logprob"] = ((picked - lse[rows[:, None], places]) * real).sum(-1)
        return found

    def for_row(self, number: int) -> AnswerReader:
        """The reducer of one row (see `PerRowReducer`)."""
        at = number % len(self.tokens.first_difference)
        one = {name: value[at : at + 1].clone() for name, value in vars(self.tokens).items() if name != "columns"}
        return AnswerReader(replace(self.tokens, **one), 1, self.requires)


def check_first(names: Sequence[str], shared: Sequence[str]) -> None:
    """Refuse metrics of the first token where the answers of some examples share it.

    Raises:
        DataError: names the examples.
    """
    bad = [name for name in names if name in ANSWER_METRICS and ANSWER_METRICS[name].first_token]
    if bad and shared:
        raise DataError(
            f"the two answers of {len(shared)} examples begin with the same token, first {list(shared[:3])}: "
            f"{bad[0]} cannot compare them. Use 'propensity' or 'accuracy', which read the first token that differs."
        )
