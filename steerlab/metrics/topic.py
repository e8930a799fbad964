"""Whether an answer is about its own request: how much its prompt, rather than another one, makes it probable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab._support.checks import as_texts, as_whole
from steerlab.data.example import prompt_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.metrics.perplexity import perplexity
from steerlab.models.model import Model

ON_TOPIC = 0.45  # nats per token


def topic_gain(
    model: Model, prompts: Data, texts: Sequence[str], *, others: int = 2, batch_size: int = 16, progress: bool = True
) -> NDArray[np.float64]:
    """How much more probable each answer is after its own prompt than after other inputs' prompts, in nats per token.

    Example:
        >>> topic_gain(model, ["How do I boil eggs?", "Who wrote Faust?"], ["Put them in water.", "Goethe did."])
        array([0.8, 1.4])
        >>> topic_gain(model, prompts, texts) >= ON_TOPIC      # which answers are about their own request

    Args:
        model: from `steerlab.load`; it is unsteered here, also inside a `with steerlab.steer(...)` block.
        prompts: the inputs of the answers, at least two different ones.
        texts: one answer per input.
        others: how many other prompts each answer is compared with (fewer where there are not as many), at equal
            distances in the list. Among prompts of one topic gains are small: compare with those of other topics.
        batch_size, progress: as in `score`.

    Returns:
        `(answers,)`; NaN for an empty answer. `ON_TOPIC` sorts .945 of 128 answers that do not refuse as each of two
        readers does (kappa .89; the threshold was chosen on these and others, `analyses/judges.py`). A refusal says
        little of its request: don't measure its topic.

    Raises:
        DataError: not one text per input, or all prompts (with their images and system messages) are the same.

    Source: pointwise mutual information of prompt and answer; Li et al. (2016), arXiv 1510.03055, section 4.
    """
    examples, texts = as_examples(prompts), as_texts("texts", texts)
    as_whole("others", others)
    if len(texts) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(texts)} texts: give one answer per prompt")
    keys = [prompt_hash(example) for example in examples]
    places, different = pd.factorize(np.array(keys))
    distinct = [keys.index(key) for key in different]
    if len(distinct) < 2:
        raise DataError("all prompts are the same: there is no other prompt to compare an answer with")
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    own = np.log(perplexity(model, examples, texts, **options))
    number = min(others, len(distinct) - 1)
    steps = [len(distinct) * (k + 1) // (number + 1) for k in range(number)]
    compared = [[distinct[(place + step) % len(distinct)] for place in places] for step in steps]
    rows = [examples[i].replace(id=f"{step}/{n}") for step, some in enumerate(compared) for n, i in enumerate(some)]
    after_others = np.log(perplexity(model, rows, list(texts) * len(compared), **options))
    return after_others.reshape(len(compared), -1).mean(0) - own
