"""How the published steerability studies measured, and what they found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)

# the words are ours: the source asks for a short helpful, honest and concise persona
_PERSONA = "You are a helpful, honest and concise assistant."


@dataclass(frozen=True)
class Protocol:
    """The choices that two steerability numbers must share to be comparable.

    Example:
        >>> PROTOCOLS["paper"].positions
        'last+generated'

    Args:
        name: as in `PROTOCOLS`.
        layer: which layer as a fraction of the depth, or None where a sweep on validation rows picks it.
        positions: where the vector is added in the teacher-forced row.
        metric: what is compared between the two answers; "propensity" is the letter alone.
        alphas: the grid.
        system: the system message of the base variant.
        norm_matched: variant vectors are rescaled to the base vector's norm (`match_norm`).
        user_join: what stands between a user-side persona and the question.
        fractions: share of the shuffled rows in each split, in order.

    Source: Tan et al., arXiv 2407.12404, and its two code bases.
    """

    name: str
    layer: float | None
    positions: str
    metric: str
    alphas: tuple[float, ...]
    system: str | None
    norm_matched: bool
    user_join: str
    fractions: Mapping[str, float]


PROTOCOLS: dict[str, Protocol] = {
    "paper": Protocol(
        name="paper", layer=None, positions="last+generated", metric="logit_sum_difference", alphas=MULTIPLIERS,
        system=_PERSONA, norm_matched=True, user_join="\n\n",
        fractions={"train": 0.4, "validation": 0.1, "test": 0.5},
    ),
    "steering-bench": Protocol(
        name="steering-bench", layer=None, positions="generated", metric="logprob_difference", alphas=MULTIPLIERS,
        system=_PERSONA, norm_matched=False, user_join="",
        fractions={"train": 0.1, "unused": 0.89, "test": 0.01},
    ),
}  # fmt: skip
"""What the paper's runs did, and what the cleaned code released beside it does.

"paper": from the last prompt token on, raw logits of all answer tokens summed. "steering-bench": from the answer's
first token "(" on, log-probabilities summed. Both steer the token that predicts the letter.
"""

_LLAMA2 = (
    ("corrigible-neutral-HHH", 3.9, 0.0),
    ("self-awareness-text-model", 3.5, 0.03),
    ("power-seeking-inclination", 3.5, 0.08),
    ("self-awareness-good-text-model", 3.2, 0.03),
    ("self-awareness-training-web-gpt", 3.0, 0.09),
    ("interest-in-science", 2.8, 0.07),
    ("anti-LGBTQ-rights", 2.8, 0.04),
    ("corrigible-less-HHH", 2.7, 0.10),
    ("coordinate-other-versions", 2.5, 0.02),
    ("politically-liberal", 2.5, 0.21),
    ("coordinate-itself", 2.3, 0.06),
    ("openness", 2.2, 0.24),
    ("survival-instinct", 2.0, 0.08),
    ("believes-AIs-are-not-an-existential-threat-to-humanity", 2.0, 0.26),
    ("wealth-seeking-inclination", 1.7, 0.14),
    ("subscribes-to-Christianity", 1.5, 0.26),
    ("subscribes-to-Hinduism", 1.4, 0.41),
    ("truthfulqa", 1.2, 0.26),
    ("subscribes-to-deontology", 0.9, 0.37),
    ("sycophancy_test", 0.7, 0.41),
    ("one-box-tendency", 0.7, 0.17),
    ("subscribes-to-Islam", 0.4, 0.38),
    ("myopic-reward", 0.4, 0.49),
    ("believes-it-is-not-being-watched-by-humans", 0.2, 0.45),
    ("subscribes-to-average-utilitarianism", 0.2, 0.44),
    ("narcissism", 0.1, 0.33),
    ("willingness-to-use-physical-force-to-achieve-benevolent-goals", 0.1, 0.44),
)


def paper_llama2() -> pd.DataFrame:
    """The published slopes of Llama-2-7B-chat, layer 13, trained and tested on the base prompts.

    They were read off a figure: trust them to about 0.1 (`median`) and 0.02 (`anti`). An `anti` of 0 means close to
    none. The paper counts sycophancy's two files apart and the figure shows one; it is listed as "sycophancy_test".

    Example:
        >>> paper_llama2().head(2)
                            behavior  median  anti
        0      corrigible-neutral-HHH     3.9  0.00
        1   self-awareness-text-model     3.5  0.03

    Returns:
        One row per data set, by falling median: `behavior`, `median` (slope), `anti` (share of slopes not above 0).

    Source: Tan et al., arXiv 2407.12404, its figure of per-sample steerability.
    """
    return pd.DataFrame(list(_LLAMA2), columns=["behavior", "median", "anti_steerable"])
