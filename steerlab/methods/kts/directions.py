"""The directions that a model is trained to bear: a vector per concept and layer, fitted to the model as it is now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from steerlab.capturing.capture import capture
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.methods.contrasts import ContrastEstimator
from steerlab.models.encoding import Batch
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.model import Model
from steerlab.models.sites import Site

HELD_OUT = 5  # one in so many contrasts is left out of the fit, and shows whether steering still works
Fit = Callable[[Sequence[Site]], ContrastEstimator]


class Concepts:
    """Contrasts by concept, and the vectors fitted to them on a model whose weights change.

    Args:
        concepts: examples with contrasts by name of the concept, at least two each.
        sites: where the model is steered.
        fit: makes the estimator for these sites, such as `MeanDifference`.

    Raises:
        DataError: no concepts, or one with fewer than two contrasts.
    """

    def __init__(self, concepts: Mapping[str, Data], sites: Sequence[Site], fit: Fit) -> None:
        self.sites, self._fit = list(sites), fit
        self.fitted: dict[str, list[Example]] = {}
        self.held_out: dict[str, list[Example]] = {}
        for name, data in concepts.items():
            examples = [e for e in as_examples(data) if e.contrast is not None]
            if len(examples) < 2:
                raise DataError(f"concept {name!r} has {len(examples)} examples with a contrast: give at least 2")
            self.held_out[name] = examples[::HELD_OUT]
            self.fitted[name] = [e for i, e in enumerate(examples) if i % HELD_OUT]
        if not self.fitted:
            raise DataError("there are no concepts to steer by: give examples with contrasts, by name")
        self._vectors: dict[str, dict[Site, Tensor]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the concepts."""
        return list(self.fitted)

    def forget(self) -> None:
        """The weights have changed: vectors are fitted anew when they are next used."""
        self._vectors.clear()

    def vectors(self, model: Model, name: str) -> dict[Site, Tensor]:
        """The vectors of a concept; fitted once until `forget` is called."""
        if name not in self._vectors:
            acts = capture(model, self.fitted[name], layers=self.sites, context=None, progress=False)
            fitted = self._fit(self.sites).fit(acts)
            self._vectors[name] = {site: fitted.at(site) for site in self.sites}
        return self._vectors[name]

    def warn_about(self, benign: Sequence[Example]) -> None:
        """Warn where benign texts are those of a concept: there the model would learn to undo the steering."""
        known = {_plain(e) for some in (self.fitted, self.held_out) for rows in some.values() for e in rows}
        shared = sum(_plain(e) in known or e.behavior in self.fitted for e in benign)
        if shared:
            warnings.warn(
                f"{shared} of {len(benign)} benign texts have the prompt or the behavior of a concept: on them the "
                "model learns to cancel the steering that is wanted there. Leave them out",
                stacklevel=3,
            )


def edits_for(batch: Batch, vectors: Mapping[Site, Tensor], strength: float, device: torch.device) -> SiteEdits:
    """Edits that add the vectors times the strength to every token of a batch, padding left out; none for 0."""
    if not strength:
        return {}
    rows, mask = len(batch.rows), batch.attention_mask.bool().to(device)
    strengths = torch.full((rows,), strength, device=device)
    return {
        site: [Edit(vector.to(device).expand(rows, -1), mask, False, strengths=strengths)]
        for site, vector in vectors.items()
    }


def _plain(example: Example) -> str:
    return " ".join(str(example.prompt).lower().split())
