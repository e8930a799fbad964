"""Representation shift: how the states of each concept move when a model is trained further."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import trim_mean
from torch import Tensor

from steerlab._support.checks import as_whole, check_option
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import ConceptDictionary, SteeringVector
from steerlab.metrics import match_directions
from steerlab.models.fingerprint import describe_origin, same_model

CENTERS = ("mean", "median", "trimmed")
ROWS = ("example_id", "side", "position", "column", "token")  # what says that two rows are the same place


@dataclass(frozen=True)
class RepresentationShift:
    """How far the states of each concept moved.

    Attributes:
        concepts: the dictionary of the first model.
        vectors: `(concept, hidden)`, the shift of each; zero for a concept that no state activates.
        members: `(concept,)`, the number of states that activate each.
        consistency: `(concept,)`, the mean cosine between the shifts of single states and `vectors`; NaN without
            members, 1 where nothing moved.
        consistency_others: the same with the mean of the *other* members, which one outlier or few members do not
            raise; NaN with fewer than two.
    """

    concepts: ConceptDictionary
    vectors: Float[Tensor, "concept hidden"]
    members: Int[Tensor, " concept"]
    consistency: Float[Tensor, " concept"]
    consistency_others: Float[Tensor, " concept"]

    def predicted(self, alpha: float = 1.0) -> Float[Tensor, "concept hidden"]:
        """The concepts with `alpha` times their shift."""
        return self.concepts.concepts_ + alpha * self.vectors

    def vector(self, concept: int) -> SteeringVector:
        """The shift of one concept, to be added to the first model: the mean change of its states at this site alone.

        Raises:
            DataError: no such concept. SteeringError: no state activates it.
        """
        as_whole("concept", concept, 0, len(self.vectors) - 1)
        if not self.members[concept]:
            raise SteeringError(f"no state activates concept {concept}: it has no shift")
        found = SteeringVector({self.concepts.site: self.vectors[concept]})
        found.info_ = dict(self.concepts.info_)
        return found

    def frame(self) -> pd.DataFrame:
        """A row for each concept: `concept, members, norm, consistency, consistency_others`."""
        columns = {"members": self.members, "norm": self.vectors.norm(dim=1), "consistency": self.consistency}
        columns |= {"consistency_others": self.consistency_others}
        numbers = {name: values.numpy() for name, values in columns.items()}
        return pd.DataFrame({"concept": range(len(self.vectors)), **numbers})

    def recovery(self, after: ConceptDictionary, alpha: float = 1.0) -> pd.DataFrame:
        """How close the shifted concepts come to those that the trained model has.

        Each concept before has a partner after, one to one, by the cosine after each model's mean concept is removed.
        Fit `after` to other examples than the shift: on the same ones, the mean of what moved is the moved mean. One
        mean shift for all may do as well: compare.

        Example:
            >>> after = ConceptDictionary(15, 20).fit(other_acts_of_trained_model)
            >>> shift.recovery(after)[["concept", "cosine_before", "cosine_predicted", "recovered"]]

        Returns:
            A row for each concept with members: `concept, partner, cosine_before, cosine_predicted, distance_before,
            distance_predicted, recovered`: the share of the distance to the partner that the shift takes away, below 0
            where it leads away, NaN where there is no distance.

        Raises:
            MismatchError: a dictionary of another layer or width.
            SteeringError: concepts of PCA or semi-NMF, which are no points and have no distance.

        Source: arXiv 2501.03012, section 3.
        """
        before = self.concepts.concepts_
        for one in (self.concepts, after):
            one.check_centroids()
        if after.site != self.concepts.site or after.concepts_.shape[1] != before.shape[1]:
            raise MismatchError(
                f"layer {after.site} of the dictionary, {self.concepts.site} of the shift: give one layer"
            )
        partner = torch.cdist(before, after.concepts_).argmin(1)
        if len(before) > 1:  # of one concept, the center says nothing
            partner = match_directions(*(one - one.mean(0) for one in (before, after.concepts_))).order
        wanted = after.concepts_[partner]
        found: dict[str, Tensor] = {"concept": torch.arange(len(partner)), "partner": partner}
        for name, rows in (("before", before), ("predicted", self.predicted(alpha))):
            found[f"cosine_{name}"] = torch.cosine_similarity(rows.double(), wanted.double())
            found[f"distance_{name}"] = (rows.double() - wanted.double()).norm(dim=1)
        frame = pd.DataFrame({name: values.numpy() for name, values in found.items()})
        distance = frame["distance_before"]
        frame["recovered"] = 1 - frame["distance_predicted"] / distance.where(distance > 0)
        return frame[self.members.numpy() > 0].reset_index(drop=True)


def representation_shift(
    concepts: ConceptDictionary, before: Activations, after: Activations, *, center: str = "mean"
) -> RepresentationShift:
    """How the states of each concept move between two models that read the same tokens.

    Example:
        >>> before, after = (capture_words(m, images, captions, ["dog"], layers=[15]) for m in (base, tuned))
        >>> concepts = ConceptDictionary(15, 20).fit(before)
        >>> representation_shift(concepts, before, after).frame()

    Args:
        concepts: a dictionary of the first model's states.
        before, after: the states of the same tokens of the same texts in the two models. Both must read one text: of
            texts that each generated for itself, the words before would differ too.
        center: "mean", "median" or "trimmed" (without a tenth at each end), coordinate by coordinate.

    Raises:
        MismatchError: models of two shapes, dtypes or tokenizers, other texts or rows, another model's dictionary.
        DataError: no rows.

    Source: arXiv 2501.03012, section 3.
    """
    check_option("center", center, CENTERS)
    old, new = before.at(concepts.site).double(), after.at(concepts.site).double()
    shapes = [{"width": x.shape[1], **acts.info} for x, acts in ((old, before), (new, after))]
    for key in ("width", "layers", "dtype"):  # rounding to another dtype would look like a shift
        here, there = (shape.get(key) for shape in shapes)
        if here is not None and there is not None and here != there:
            raise MismatchError(f"the models' {key} is {here} and {there}: give one model and its further training")
    one, other = (acts.index[list(ROWS)].reset_index(drop=True) for acts in (before, after))
    if not one.equals(other):
        raise MismatchError(
            f"the rows of the two models are not the same ({len(one)} and {len(other)}): capture the same texts, in "
            "the same order; or the models have two tokenizers"
        )
    for key, what in (("data", "examples"), ("tokens", "tokens")):
        if before.info.get(key) != after.info.get(key):
            raise MismatchError(f"the two models read other {what}: capture the same texts with both")
    if not same_model(getattr(concepts, "info_", {}), before.info):
        raise MismatchError(f"the dictionary is of {describe_origin(concepts.info_)}, not of the first model")
    if not len(old):
        raise DataError("there are no states")
    moved, active = new - old, concepts.assign(before.at(concepts.site))
    groups = [moved[active == k] for k in range(concepts.n_concepts)]
    measured = [_shift_of(group, center) for group in groups]
    vectors, consistency, others = (torch.stack(list(parts)).float() for parts in zip(*measured, strict=True))
    return RepresentationShift(concepts, vectors, torch.tensor([len(group) for group in groups]), consistency, others)


def _shift_of(moved: Float[Tensor, "state hidden"], center: str) -> tuple[Tensor, Tensor, Tensor]:
    """The shift of a concept's states and how far they agree, with and without their own part in it."""
    n, nan = len(moved), torch.tensor(torch.nan, dtype=torch.double)
    if not n:
        return torch.zeros(moved.shape[1], dtype=torch.double), nan, nan
    middle = moved.mean(0)
    if center == "median":
        middle = torch.from_numpy(np.median(moved.numpy(), axis=0))
    elif center == "trimmed":
        middle = torch.from_numpy(trim_mean(moved.numpy(), 0.1, axis=0))
    if not moved.any():
        one = torch.ones((), dtype=torch.double)
        return middle, one, one if n > 1 else nan
    rest = (moved.sum(0) - moved) / max(n - 1, 1)
    agreement = torch.cosine_similarity(moved, rest).mean() if n > 1 else nan
    return middle, torch.cosine_similarity(moved, middle[None]).mean(), agreement
