"""The vectors that a model is trained to be steered by, fitted to the model as it is now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.methods.contrasts import ContrastEstimator
from steerlab.methods.vector import added_vectors
from steerlab.models.encoding import Batch
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.model import Model
from steerlab.models.sites import Site

HELD_OUT = 5  # one in so many contrasts is left out of the fit, and shows whether steering still works
SIDES = ("positive", "negative")
MakeEstimator = Callable[[Sequence[Site]], ContrastEstimator]


class BehaviorVectors:
    """Contrasts by behavior, and the vectors fitted to them on a model whose weights change.

    Args:
        behaviors: examples with contrasts by name of the behavior, at least two each.
        sites: where the model is steered.
        estimator: makes what fits the vectors of these sites, such as `MeanDifference`.
        keep: other contrasts of the same behaviors, under which steering is to keep its effect; None: the same ones.

    Attributes:
        fitted, kept, held_out: contrasts by behavior: what vectors are fitted to, what is trained on, and what shows
            whether steering still works. Without `keep`, vectors are fitted to none of those held out; with it, to all
            contrasts of `behaviors`, whose prompts may be the same.

    Raises:
        DataError: no behaviors, one with fewer than two contrasts, contrasts without answers, or `keep` has others.
        SteeringError: a site outside the text.
    """

    def __init__(
        self, behaviors: Mapping[str, Data], sites: Sequence[Site], estimator: MakeEstimator,
        keep: Mapping[str, Data] | None = None,
    ) -> None:  # fmt: skip
        self.sites, self._estimator = list(sites), estimator
        self.fitted: dict[str, list[Example]] = {}
        self.kept: dict[str, list[Example]] = {}
        self.held_out: dict[str, list[Example]] = {}
        if any(site.part != "text" for site in sites):
            raise SteeringError("vectors are trained at tokens: give layers of the text, not of images")
        if keep is not None and set(keep) != set(behaviors):
            raise DataError(f"keep has contrasts for {sorted(keep)}, and the behaviors are {sorted(behaviors)}")
        for name, data in behaviors.items():
            examples = _with_answers(name, data if keep is None else keep[name])
            self.held_out[name] = examples[::HELD_OUT]
            self.kept[name] = [e for i, e in enumerate(examples) if i % HELD_OUT]
            self.fitted[name] = self.kept[name] if keep is None else _with_answers(name, data)
        if not self.fitted:
            raise DataError("there are no behaviors to steer to: give examples with contrasts, by name")
        self._vectors: dict[str, dict[Site, Tensor]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the behaviors."""
        return list(self.fitted)

    @property
    def examples(self) -> list[Example]:
        """All contrasts, those that are held out too; some occur twice."""
        return [e for name in self.names for e in (*self.fitted[name], *self.kept[name], *self.held_out[name])]

    def clear(self) -> None:
        """The weights have changed: vectors are fitted anew when they are next used."""
        self._vectors.clear()

    def vectors(self, model: Model, name: str) -> dict[Site, Tensor]:
        """The vectors of a behavior; fitted once until `clear` is called."""
        if name not in self._vectors:
            self._vectors[name] = added_vectors(self._estimator(self.sites).fit(model, self.fitted[name]))
        return self._vectors[name]

    def warn_about(self, benign: Sequence[Example]) -> None:
        """Warn where benign texts are those of a behavior: there the model would learn to undo the steering."""
        known = {_plain(e) for e in self.examples}
        if shared := sum(_plain(e) in known or e.behavior in self.fitted for e in benign):
            warnings.warn(
                f"{shared} of {len(benign)} benign texts have the prompt of a contrast, or its behavior: on them the "
                "model learns to undo the steering that is wanted there. Leave them out",
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


def _with_answers(name: str, data: Data) -> list[Example]:
    examples = [e for e in as_examples(data) if e.contrast is not None]
    if len(examples) < 2:
        raise DataError(f"behavior {name!r} has {len(examples)} examples with a contrast: give at least 2")
    if any(e.contrast and not e.contrast.has_answers for e in examples):
        raise DataError(f"behavior {name!r} has contrasts without answers: give pairs of answers")
    return examples


def _plain(example: Example) -> str:
    return " ".join(str(example.prompt).lower().split())
