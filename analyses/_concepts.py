"""Pairs of texts that change several attributes at once, and the directions that methods find in their differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

import steerlab
from steerlab import Activations, Example
from steerlab.analysis.study import Study
from steerlab.data import attribute_pairs, change_labels
from steerlab.errors import SteeringError
from steerlab.methods import SSAE
from steerlab.metrics import correlations
from steerlab.models.model import Model

SETTINGS: dict[str, tuple[float | None, ...]] = {
    "random": (None,), "mean": (None,), "pca": (None,), "affine": (None,), "ica": (None,),
    "dictionary": (0.01, 0.03, 0.1, 0.3), "ssae": (2.5, 2.0, 1.6, 1.3, 1.0), "labels": (None,),
}  # fmt: skip
SEEDED = ("random", "affine", "ica", "dictionary", "ssae")


@dataclass(frozen=True)
class Directions:
    """What a method found: `codes` reads them off differences, of which `codes @ rows + constant` is explained."""

    codes: Callable[[Tensor], Tensor]
    rows: Tensor
    constant: Tensor | float = 0.0


def find_directions(method: str, z: Tensor, labels: Tensor, setting: float | None, seed: int) -> Directions | None:
    """Fit a method to differences `(pair, hidden)`; only "labels" looks at what changed. None: it did not converge.

    "random" are random directions; "mean" is one, the mean of all differences; "affine" is an autoencoder without a
    bound; "labels" are the mean differences of the values, by least squares.
    """
    k = labels.shape[1]
    if method in ("ssae", "affine"):
        try:
            ssae = SSAE(0, k, setting, seed=seed).fit_differences(z)
        except SteeringError:  # a level that is not reached
            return None
        return Directions(ssae.encode, ssae.decoder_, ssae.decoder_offset_)
    if method in ("random", "mean", "labels"):
        rows = {
            "random": lambda: torch.randn(k, z.shape[1], generator=torch.Generator().manual_seed(seed)),
            "mean": lambda: z.mean(0, keepdim=True),
            "labels": lambda: torch.from_numpy(np.linalg.lstsq(labels.double().numpy(), z.double().numpy())[0]).float(),
        }[method]()
        inverse = torch.linalg.pinv(rows)
        return Directions(lambda x: x @ inverse, rows)
    size = float(z.norm(dim=1).mean())
    made: dict[str, Callable[[], Any]] = {
        "pca": lambda: PCA(k, svd_solver="full"),
        "ica": lambda: FastICA(k, random_state=seed, max_iter=2000),
        "dictionary": lambda: MiniBatchDictionaryLearning(
            k, alpha=setting, random_state=seed, max_iter=100, transform_algorithm="lasso_lars", transform_alpha=setting
        ),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            fitted = made[method]().fit((z / size).double().numpy())
        except ConvergenceWarning:
            return None
    rows = torch.from_numpy(fitted.mixing_.T if method == "ica" else fitted.components_).float() * size
    constant = torch.from_numpy(np.asarray(getattr(fitted, "mean_", 0.0))).float() * size
    return Directions(lambda x: torch.from_numpy(fitted.transform((x / size).double().numpy())).float(), rows, constant)


class Part:
    """The pairs of one kind: their differences by layer, and what changed in them.

    Args:
        study, model, args: of the study.
        kind: "objects" or "sentences".
        n: the number of pairs.
        layers: the layers that are read.
        changed: how many attributes change in a pair.
    """

    def __init__(
        self, study: Study, model: Model, kind: str, n: int, layers: Sequence[int], changed: tuple[int, int],
        seed: int, batch_size: int,
    ) -> None:  # fmt: skip
        self.rows, self.layers = attribute_pairs(kind, n, changed=changed, seed=seed), list(layers)
        folder = study.folder / "activations" / f"{kind}-{changed[0]}"
        self.acts: Activations = steerlab.capture(
            model, self.rows, layers=self.layers, context=None, batch_size=batch_size, folder=folder, progress=False
        ).load()
        self.labels = change_labels(self.rows)
        self.ids = split_ids(self.rows)
        order = {example_id: i for i, example_id in enumerate(self.acts.contrast(self.layers[0])[0])}
        self.fit = cache(self._fit)  # chosen, tested and added directions are the same ones
        self._places = {part: [order[i] for i in ids] for part, ids in self.ids.items()}

    def _fit(self, method: str, layer: int, setting: float | None, seed: int) -> Directions | None:
        """The directions that a method finds in the training pairs at a layer; None: it did not converge."""
        return find_directions(method, self.differences(layer, "train"), self.truth("train"), setting, seed)

    def differences(self, layer: int, part: str) -> Tensor:
        """The differences of the pairs of a part."""
        return self.acts.contrast(layer)[1].float()[self._places[part]]

    def start_and_end(self, layer: int, part: str) -> tuple[Tensor, Tensor]:
        """The states of the two texts of each pair of a part."""
        sides = (self.acts.by_example(layer, side=side)[1].float() for side in ("negative", "positive"))
        start, end = (states[self._places[part]] for states in sides)
        return start, end

    def truth(self, part: str) -> Tensor:
        """What changed in the pairs of a part."""
        return torch.tensor(self.labels.loc[self.ids[part]].to_numpy()).float()

    def best_columns(self, found: Directions, layer: int) -> tuple[Tensor, Tensor]:
        """For each value the direction that follows it best on training pairs, and the sign with which it does."""
        table = correlations(self.truth("train"), found.codes(self.differences(layer, "train")))
        best = table.abs().argmax(1)
        return best, table[torch.arange(len(best)), best].sign()

    def followed(self, found: Directions, layer: int, part: str) -> Tensor:
        """`(pair, value)`: the code of the direction that follows each value best on training pairs."""
        return found.codes(self.differences(layer, part))[:, self.best_columns(found, layer)[0]]


def split_ids(rows: Sequence[Example]) -> dict[str, list[str]]:
    """Ids of training, validation and test pairs; a pair and its mirror image are on one side."""
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    unordered: dict[frozenset[str], str] = {}
    for row in rows:
        assert row.contrast is not None
        key = frozenset((row.contrast.positive, row.contrast.negative))
        part = unordered.setdefault(key, "validation" if len(unordered) % 4 == 0 else "train")
        found["test" if row.split == "test" else part].append(row.id)
    return found


def matched_correlation(truth: Tensor, codes: Tensor) -> Tensor:
    """`(value,)`: the absolute correlation of each value's changes with the code in its column."""
    return correlations(truth, codes).diag().abs()


def resampled(truth: Tensor, of_seeds: Sequence[Tensor], draws: Sequence[np.ndarray]) -> list[float]:
    """The mean of `matched_correlation` over values and seeds, for each draw of pairs."""
    return [
        float(torch.stack([matched_correlation(truth[rows], codes[rows]) for codes in of_seeds]).mean())
        for rows in map(torch.from_numpy, draws)
    ]
