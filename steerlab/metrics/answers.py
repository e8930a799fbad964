"""What a model thinks of the two answers of a contrast, from the logits that predict them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.models.encoding import Batch

Read = Mapping[str, Float[Tensor, " row"]]


@dataclass(frozen=True)
class AnswerMetric:
    """One number per input, from what was read off the logits.

    Attributes:
        compute: from the quantities of `at_choice` (and `of_whole`, where `whole`).
        whole: whether both whole answers must be teacher-forced; else one row up to where they part is enough.
        requires: quantities that cost a pass over the vocabulary: "lse", "top".
        first: whether it only makes sense where the answers part at their first token.
    """

    compute: Callable[[Read], Float[Tensor, " row"]]
    whole: bool = False
    requires: tuple[str, ...] = ()
    first: bool = False


ANSWER_METRICS: dict[str, AnswerMetric] = {
    "propensity": AnswerMetric(lambda r: r["positive"] - r["negative"]),
    "accuracy": AnswerMetric(lambda r: (r["positive"] > r["negative"]).float()),
    "first_token_accuracy": AnswerMetric(lambda r: r["top_is_positive"], requires=("top",), first=True),
    "answer_probability": AnswerMetric(
        lambda r: (r["positive"] - r["lse"]).exp() + (r["negative"] - r["lse"]).exp(), requires=("lse",)
    ),
    "logprob": AnswerMetric(lambda r: r["logprob_positive"], whole=True, requires=("lse",)),
    "logprob_difference": AnswerMetric(
        lambda r: r["logprob_positive"] - r["logprob_negative"], whole=True, requires=("lse",)
    ),
    "logit_sum_difference": AnswerMetric(lambda r: r["logit_positive"] - r["logit_negative"], whole=True),
}
"""Metrics by name, all of a contrast's two answers; every logit is float32.

| name | what |
|---|---|
| `propensity` | logit of the positive minus that of the negative answer, at the first token where they part |
| `accuracy` | 1 where that is above 0 |
| `first_token_accuracy` | 1 where the positive answer's first token is the likeliest of the whole vocabulary |
| `answer_probability` | probability of the two tokens together: falls where steering breaks the answer's form |
| `logprob` | log-probability of the whole positive answer, in nats |
| `logprob_difference` | that, minus the negative answer's (steering-bench's score) |
| `logit_sum_difference` | the same with raw logits (the score of the steerability paper's own runs) |

Source: arXiv 2407.12404, section 3 (propensity); its two code bases; the others are standard.
"""


@dataclass(frozen=True)
class AnswerTokens:
    """Where the answers of a batch's rows are predicted, and by which tokens.

    Attributes:
        columns: `(k,)` columns of the batch whose logits are needed, ascending.
        choice: `(row,)` place in `columns` that predicts the token where the answers part.
        ids: `(row, 2)` the positive and the negative answer's token there.
        places, targets, real: `(row, token)` places in `columns`, ids and mask of the row's own whole answer.
    """

    columns: Int[Tensor, " k"]
    choice: Int[Tensor, " row"]
    ids: Int[Tensor, "row two"]
    places: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]
    real: Bool[Tensor, "row token"]


def locate_answers(batch: Batch, ids: Sequence[tuple[int, int]], whole: bool) -> AnswerTokens:
    """Where to read a batch of rows that know their `choice`.

    Args:
        batch: rows with a positive or negative answer, or its beginning up to where the two part.
        ids: per row, the two tokens at `choice`.
        whole: whether the whole answer of each row is wanted.
    """
    at = [o + (r.first_difference or 0) - 1 for r, o in zip(batch.rows, batch.offsets, strict=True)]
    answers = [
        [(o + i - 1, r.ids[i]) for i in (range(r.n_prompt, len(r)) if whole else ())]
        for r, o in zip(batch.rows, batch.offsets, strict=True)
    ]
    columns = sorted({*at, *(column for answer in answers for column, _ in answer)})
    place = {column: i for i, column in enumerate(columns)}
    longest = max([len(answer) for answer in answers] or [0])
    padded = [answer + [(columns[0], 0)] * (longest - len(answer)) for answer in answers]
    shape = (len(answers), longest)
    return AnswerTokens(
        torch.tensor(columns),
        torch.tensor([place[column] for column in at]),
        torch.tensor(ids),
        torch.tensor([[place[c] for c, _ in answer] for answer in padded]).reshape(shape).long(),
        torch.tensor([[token for _, token in answer] for answer in padded]).reshape(shape).long(),
        torch.tensor([[i < len(answer) for i in range(longest)] for answer in answers]).reshape(shape).bool(),
    )


@dataclass(frozen=True)
class AnswerReader:
    """What the metrics are made of, from a forward's logits, for every row and where the logits are.

    `logit` and `logprob` are of the row's own answer: which side that is, the caller knows.

    Attributes:
        where: where to look in each row.
        copies: how often these rows occur in the batch, one after the other.
        requires: what the metrics are made of.
    """

    where: AnswerTokens
    copies: int
    requires: tuple[str, ...]

    def __call__(self, logits: Float[Tensor, "row k vocabulary"]) -> dict[str, Float[Tensor, " row"]]:
        """The parts by name."""
        logits, where = logits.float(), self.where
        device, rows = logits.device, torch.arange(len(logits), device=logits.device)
        choice, ids = where.choice.to(device).repeat(self.copies), where.ids.to(device).repeat(self.copies, 1)
        here = logits[rows[:, None], choice[:, None], ids]
        found = {"positive": here[:, 0], "negative": here[:, 1]}
        lse = logits.logsumexp(-1) if "lse" in self.requires else None
        if lse is not None:
            found["lse"] = lse[rows, choice]
        if "top" in self.requires:
            found["top_is_positive"] = (logits[rows, choice].argmax(-1) == ids[:, 0]).float()
        if where.real.shape[1]:
            places, targets = (t.to(device).repeat(self.copies, 1) for t in (where.places, where.targets))
            real = where.real.to(device).repeat(self.copies, 1)
            picked = logits[rows[:, None], places, targets]
            found["logit"] = (picked * real).sum(-1)
            if lse is not None:
                found["logprob"] = ((picked - lse[rows[:, None], places]) * real).sum(-1)
        return found

    def for_row(self, number: int) -> AnswerReader:
        """See `PerRowReducer`."""
        at, where = number % len(self.where.choice), self.where
        names = ("choice", "ids", "places", "targets", "real")
        return AnswerReader(
            replace(where, **{name: getattr(where, name)[at : at + 1].clone() for name in names}), 1, self.requires
        )


def check_first(names: Sequence[str], shared: Sequence[str]) -> None:
    """Refuse metrics of the first token where the answers of some inputs share it.

    Raises:
        DataError: names the inputs.
    """
    bad = [name for name in names if name in ANSWER_METRICS and ANSWER_METRICS[name].first]
    if bad and shared:
        raise DataError(
            f"the two answers of {len(shared)} inputs begin with the same token, first {list(shared[:3])}: "
            f"{bad[0]} can't tell them apart. Use 'propensity' or 'accuracy', which read where the answers part."
        )
