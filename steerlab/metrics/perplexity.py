"""Perplexity of steered answers under the unsteered model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerlab._support.checks import as_texts
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.models.model import Model
from steerlab.steering import score


def perplexity(
    model: Model, prompts: Data, texts: Sequence[str], *, batch_size: int = 16, progress: bool = True
) -> NDArray[np.float64]:
    """Perplexity of each answer under the unsteered model, also inside a `with steerlab.steer(...)` block.

    Example:
        >>> perplexity(model, ["What is 2 + 2?"], ["2 + 2 is 4."])
        array([1.6])

    Args:
        model: from `steerlab.load`.
        prompts: the inputs of the answers; each answer is scored after its prompt.
        texts: one answer per input.
        batch_size, progress: as in `score`.

    Returns:
        `(answers,)`: the exponential of the mean negative log-probability per token; NaN for an empty answer. Loops
        have a *low* perplexity, so report `distinct_n` with it.

    Raises:
        DataError: not one text per input.
    """
    examples, texts = as_examples(prompts), as_texts("texts", texts)
    if len(texts) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(texts)} texts: give one answer per prompt")
    some = [i for i, text in enumerate(texts) if text.strip()]
    found = np.full(len(texts), np.nan)
    if some:
        prompts, answers = [examples[i] for i in some], [texts[i] for i in some]
        frame = score(model, prompts, answers, steer=(), batch_size=batch_size, progress=progress)
        found[some] = np.exp(-frame["logprob"] / frame["n_tokens"])
    return found
