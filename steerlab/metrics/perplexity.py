"""How surprising the unsteered model finds an answer: the price of steering in fluency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerlab._support.errors import DataError
from steerlab.capture.jobs import Data, as_examples
from steerlab.models.model import Model
from steerlab.steering import score


def perplexity(
    model: Model, prompts: Data, texts: Sequence[str], *, batch_size: int = 16, progress: bool = False
) -> NDArray[np.float64]:
    """Perplexity of each answer under the unsteered model, also inside a `with steerlab.steer(...)` block.

    Example:
        >>> perplexity(model, ["What is 2 + 2?"], ["2 + 2 is 4."])
        array([1.6])

    Args:
        model: from `steerlab.load`.
        prompts: the inputs the answers belong to; each answer is read after its prompt.
        texts: one answer per input.

    Returns:
        `(answers,)`: the exponential of the mean negative log-probability per token; nan for an empty answer. Loops
        score *low*: read it beside `distinct_n`.

    Raises:
        DataError: not one text per input.

    Source: own.
    """
    examples = as_examples(prompts)
    if len(texts) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(texts)} texts: give one answer per prompt")
    some = [i for i, text in enumerate(texts) if text.strip()]
    found = np.full(len(texts), np.nan)
    if some:
        frame = score(
            model,
            [examples[i] for i in some],
            [texts[i] for i in some],
            steer=(),
            batch_size=batch_size,
            progress=progress,
        )
        found[some] = np.exp(-frame["logprob"] / frame["n_tokens"])
    return found
