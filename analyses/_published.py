"""Settings and results of the published steerability study, arXiv 2407.12404."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from steerlab.analysis.sweep import MULTIPLIERS


@dataclass(frozen=True)
class Protocol:
    """The settings that two steerability numbers must share to be comparable.

    Example:
        >>> PROTOCOLS["paper"].positions
        'last+generated'

    Attributes:
        positions: where the vector is added in the teacher-forced row.
        metric: what is compared between the two answers; "propensity" is the letter alone.
        alphas: the strengths.

    Source: Tan et al., arXiv 2407.12404, and its two code bases.
    """

    positions: str
    metric: str
    alphas: tuple[float, ...] = MULTIPLIERS


PROTOCOLS = {
    "paper": Protocol("last+generated", "logit_sum_difference"),
    "steering-bench": Protocol("generated", "logprob_difference"),
}
"""Protocols by name: the paper's runs, and those of the code released as steering-bench.

Both steer the token that predicts the letter: "paper" from the last prompt token on, with the summed raw logits of all
answer tokens; "steering-bench" from the answer's first token "(" on, with summed log-probabilities. "paper" splits the
shuffled rows into 40 % train, 10 % validation and 50 % test, and rescales the vectors of prompt variants to the norm
of the base vector; "steering-bench" splits into 10 % train and 1 % test.
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
    """Published slopes of Llama-2-7B-chat, layer 13, trained and tested on the base prompts.

    The values were read off a figure, to about 0.1 (`median`) and 0.02 (`anti_steerable`; 0 means close to none). The
    paper counts the two files of sycophancy separately and the figure shows one; it is listed as "sycophancy_test".

    Example:
        >>> paper_llama2().head(2)
                            behavior  median  anti_steerable
        0      corrigible-neutral-HHH     3.9            0.00
        1   self-awareness-text-model     3.5            0.03

    Returns:
        One row per data set, by falling median: `behavior`, `median` (slope), `anti_steerable` (share of slopes not
        above 0).

    Source: Tan et al., arXiv 2407.12404, figure of per-sample steerability.
    """
    return pd.DataFrame(list(_LLAMA2), columns=["behavior", "median", "anti_steerable"])
