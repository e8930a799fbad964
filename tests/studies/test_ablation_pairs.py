"""Two directions ablated together in the study of operators."""

import pandas as pd
import pytest
import torch
from operators import SHARES, Directions, pairs_of_ablations, steering_of

ROWS = [
    ("ablate", "prompt", 13, 0.12, 1.06), ("ablate", "prompt", 12, 0.15, 1.05), ("level", "prompt", 9, 0.05, 1.40),
    ("level", "answer", 9, 0.60, 1.03), ("ablate", "answer", 13, 0.50, 1.04), ("add", "answer", 9, 1.00, 1.00),
]  # fmt: skip
TABLE = pd.DataFrame(ROWS, columns=["operator", "kind", "layer", "refuses", "perplexity_ratio"]).assign(
    refuses_fluently=0.0, alpha=1.0
)


def test_pairs_hold_the_best_allowed_ablation_of_each_kind_at_every_share() -> None:
    found = pairs_of_ablations(TABLE)
    assert found == [("pair", "ablate prompt 13 + ablate answer 13", 0, share, 0) for share in SHARES]
    assert not pairs_of_ablations(TABLE.assign(refuses=0.0)), "nothing is left to ablate"


def test_steering_of_a_pair_is_that_of_both_ablations_at_its_share() -> None:
    learned = Directions({("prompt", 1): torch.eye(4)[0], ("answer", 2): torch.eye(4)[1]}, torch.ones(3, 4))
    pair = steering_of(learned, ("pair", "ablate prompt 1 + level answer 2", 0, 0.6, 0))
    first = steering_of(learned, ("ablate", "prompt", 1, 0.6, 0))
    second = steering_of(learned, ("level", "answer", 2, 0.6, 0))
    assert [repr(one) for one in pair] == [repr(one) for one in [*first, *second]]
    assert {one.alpha for one in pair} == {0.6} and len(first) == 1 and len(second) == 3
    other = steering_of(learned, ("add", "prompt", 1, 1.5, 12), {("prompt", 1): 2 * torch.eye(4)[0]})
    assert other[0].steerer.steerer.at(1).tolist() == pytest.approx([2, 0, 0, 0])
