"""Out-of-fold vectors: nobody is predicted by a steerer that saw them."""

import pytest
import torch
from _crossfit import crossfit
from synthetic_acts import activations

from steerlab import L2S, Activations, MeanDifference
from steerlab.errors import DataError
from steerlab.methods import TrainingConfig

N, WIDTH = 11, 6


def _acts() -> Activations:
    """Sample i has the contrast e_i-ish: its own number in every coordinate, so a mean tells who was in it."""
    columns = {"side": ["prompt", "positive", "negative"] * N, "position": ["last", "answer", "answer"] * N}
    columns["example_id"] = [f"s{i:02d}" for i in range(N) for _ in range(3)]
    values = torch.tensor([[0.0, 2.0**i, 0.0] for i in range(N)]).reshape(-1, 1, 1).expand(-1, 1, WIDTH)
    return activations(values, [3], {}, **columns, behavior="refuse", split="train")


def test_the_own_sample_and_its_fold_are_not_in_the_fit() -> None:
    ids, vectors = crossfit(MeanDifference(3), _acts(), folds=4)
    assert ids == [f"s{i:02d}" for i in range(N)]
    folds = set()
    for i, vector in enumerate(vectors):
        left_out = [2**N - 1 - vector[0].double().item() * m for m in range(1, N)]  # the sum of the missing powers
        whole = next(round(s) for m, s in zip(range(1, N), left_out, strict=True)
                     if abs(s - round(s)) < 1e-2 and bin(round(s)).count("1") == N - m)  # fmt: skip
        assert whole >> i & 1, "the sample's own contrast was part of the mean"
        folds.add(whole)
    assert len(folds) == 4
    assert sum(folds) == 2**N - 1, "the folds do not partition the samples"


def test_the_seed_decides_and_the_given_steerer_stays_unfitted() -> None:
    for steerer in (MeanDifference(3), L2S(3, hidden_units=2, config=TrainingConfig(epochs=1), progress=False)):
        first, again = (crossfit(steerer, _acts(), folds=3)[1] for _ in range(2))
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        assert not {"vector_", "net_"} & vars(steerer).keys()
    mean = MeanDifference(3)
    assert not torch.equal(crossfit(mean, _acts(), seed=0)[1], crossfit(mean, _acts(), seed=1)[1])


@pytest.mark.parametrize("folds", [0, 1, N + 1])
def test_too_few_samples_or_folds_are_refused(folds: int) -> None:
    with pytest.raises(DataError, match="folds"):
        crossfit(MeanDifference(3), _acts(), folds=folds)
