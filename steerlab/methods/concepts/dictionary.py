"""Concept dictionaries: a set of states written with few vectors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from steerlab._support.checks import as_seed, as_whole, check_option
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import FittedMixin, check_fitted, check_width
from steerlab.methods.classes import median, numeric_rank
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site

METHODS = ("kmeans", "pca", "seminmf")
UPDATES = 200  # of semi-NMF
States = Float[Tensor, "state hidden"]


@savable
class ConceptDictionary(FittedMixin):
    """The concepts of a set of states: a few vectors, and how strongly each state activates each of them.

    Example:
        >>> acts = capture_words(model, images, captions, ["dog"], layers=[15])
        >>> concepts = ConceptDictionary(15, 20).fit(acts)
        >>> concepts.concepts_.shape, concepts.assign(acts.at(15)).shape
        (torch.Size([20, 576]), torch.Size([412]))

    Args:
        layer: whose states are described.
        n_concepts: how many concepts; at most the number of different states, or, for "pca" and "seminmf", their rank.
        method: "kmeans" (concepts are means of clusters), "pca" (directions from the mean state, orthogonal, of norm 1)
            or "seminmf" (states are sums of concepts with weights that are never negative; where a state has a concept
            at all, its weight is 1 in the median). Only the centroids of k-means are points that a state
            can be moved from and to.
        seed: of k-means, from which semi-NMF begins too.

    Attributes:
        concepts_: `(concept, hidden)`, those with most states first.
        members_: `(concept,)`, how many of the states activate each concept more than the others.
        mean_: `(hidden,)`, the mean state.

    Raises:
        DataError: more concepts than states or their rank allow, or NaN.

    Source: arXiv 2501.03012, section 3, and arXiv 2406.08074; semi-NMF: Ding et al., 2010. Own choices: activations of
        semi-NMF are the exact least squares without negative weights, and the order of the concepts.
    """

    def __init__(
        self, layer: int | Site, n_concepts: int = 20, *, method: Literal["kmeans", "pca", "seminmf"] = "kmeans",
        seed: int = 0,
    ) -> None:  # fmt: skip
        check_option("method", method, METHODS)
        self.layer, self.method, self.seed = layer, method, as_seed(seed)
        self.n_concepts = as_whole("n_concepts", n_concepts)
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Fit to all rows of activations."""
        self.fit_states(acts.at(self.site))

    def fit_states(self, states: States) -> ConceptDictionary:
        """Fit to states that were captured before; returns self."""
        x = states.cpu().double().numpy()
        if not np.isfinite(x).all():
            raise DataError("the states hold NaN or infinity")
        self._check_number(x)
        self.mean_, self.info_ = torch.from_numpy(x.mean(0)).float(), {"hidden_size": x.shape[1]}
        if self.method == "pca":
            found = PCA(self.n_concepts, svd_solver="covariance_eigh").fit(x).components_  # the default may be random
        else:
            clusters = KMeans(self.n_concepts, n_init=10, random_state=self.seed).fit(x)
            found = clusters.cluster_centers_
            if self.method == "seminmf":
                found = _semi_nmf(x, clusters.labels_, self.n_concepts)
        self.concepts_ = torch.from_numpy(found).float()
        if self.method == "seminmf":  # the size of a concept and that of its weights are one number: fix it
            weights = self.activations(states)
            self.concepts_ *= median(weights.masked_fill(weights <= 0, torch.nan)).nan_to_num(1.0)[:, None]
        counts = torch.bincount(self.assign(states) + 1, minlength=self.n_concepts + 1)[1:]
        order = counts.argsort(descending=True, stable=True)
        self.concepts_, self.members_ = self.concepts_[order], counts[order]
        return self

    def _check_number(self, x: NDArray[np.float64]) -> None:
        if self.method == "kmeans":
            most, of = len(np.unique(x, axis=0)), "different states"
        else:
            centered = x - x.mean(0) if self.method == "pca" else x
            most, of = numeric_rank(torch.from_numpy(centered)), f"as the rank of {len(x)} states"
        if self.n_concepts > most:
            raise DataError(f"n_concepts={self.n_concepts}, and there are {most} {of}: give at most that")

    def activations(self, states: States) -> Float[Tensor, "state concept"]:
        """How strongly each state activates each concept.

        "kmeans": 1 / (1 + the distance), in (0, 1]; "pca": the coordinate, of either sign; "seminmf": the weight, from
        0.
        """
        check_fitted(self, "concepts_")
        x = check_width(states.cpu(), self.concepts_.shape[1], self.name)
        if self.method == "kmeans":
            return (1 / (1 + torch.cdist(x.double(), self.concepts_.double()))).float()
        if self.method == "pca":
            return (x - self.mean_) @ self.concepts_.T
        q, r = np.linalg.qr(self.concepts_.double().numpy().T)  # the same least squares, in as few rows as concepts
        weights = [nnls(r, row)[0] for row in x.double().numpy() @ q]
        return torch.from_numpy(np.stack(weights)).float() if weights else torch.zeros(0, self.n_concepts)

    def between(self, source: int, target: int) -> Float[Tensor, " hidden"]:
        """The vector from one concept to another.

        Raises:
            DataError: no such concept. SteeringError: concepts that are no points (`check_centroids`).
        """
        self.check_centroids()
        for one in (source, target):
            as_whole("a concept", one, 0, self.n_concepts - 1)
        return self.concepts_[target] - self.concepts_[source]

    def check_centroids(self) -> None:
        """Refuse what needs points in the space of states: directions and summands have no distance to a state.

        Raises:
            SteeringError: the method is "pca" or "seminmf".
        """
        check_fitted(self, "concepts_")
        if self.method != "kmeans":
            kind = "directions" if self.method == "pca" else "summands of states"
            raise SteeringError(
                f"the concepts of {self.method} are {kind}, no points in the space of states: use method='kmeans'"
            )

    def assign(self, states: States) -> Int[Tensor, " state"]:
        """The number of the concept that each state activates most; -1 where it activates none (PCA and semi-NMF)."""
        strongest = self.activations(states).max(1)
        return strongest.indices.masked_fill(strongest.values <= 0, -1)


def _semi_nmf(x: NDArray[np.float64], labels: NDArray[np.int32], n: int) -> NDArray[np.float64]:
    """Concepts such that states are close to sums of them with weights that are not negative (Ding et al., 2010)."""
    weights = np.eye(n)[labels] + 0.2
    for _ in range(UPDATES):
        concepts = np.linalg.pinv(weights.T @ weights) @ (weights.T @ x)
        products, gram = x @ concepts.T, concepts @ concepts.T
        up = np.maximum(products, 0) + weights @ np.maximum(-gram, 0)
        down = np.maximum(-products, 0) + weights @ np.maximum(gram, 0)
        weights *= np.sqrt(up / np.maximum(down, 1e-12))
    return np.asarray(np.linalg.pinv(weights.T @ weights) @ (weights.T @ x), dtype=np.float64)
