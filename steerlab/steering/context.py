"""What steerers read of the plain prompts before they can answer: one unsteered pass for each part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from steerlab.capture.activations import Activations
from steerlab.capture.capture import capture
from steerlab.data.example import Example
from steerlab.methods.base import Context, RequiredActivation, Steerer
from steerlab.models.model import Model
from steerlab.models.sites import Site


@dataclass(frozen=True)
class PartsContext(Context):
    """A context of several parts of the model: their states differ in width, so each has activations of its own.

    Attributes:
        parts: the activations of each part that was read.
    """

    parts: Mapping[str, Activations] = field(default_factory=dict)

    def get_states(self, required: RequiredActivation) -> Float[Tensor, "batch hidden"]:
        """The activations of one `RequiredActivation`, out of those of its part.

        Raises:
            ActivationError: they were not captured.
        """
        return Context(self.example_ids, self.parts.get(required.site.part)).get_states(required)


def read_contexts(
    model: Model,
    steerers: Sequence[Steerer],
    also: Sequence[RequiredActivation],
    examples: Sequence[Example],
    batch_size: int,
) -> list[PartsContext]:
    """What each steerer may look at: what they all read, and what is read `also`."""
    required_activations: dict[str, list[RequiredActivation]] = {}
    for read in [*(read for steerer in steerers for read in steerer.required_activations), *also]:
        model.site(read.site)
        required_activations.setdefault(read.site.part, []).append(read)
    acts = {part: _captured(model, own, examples, batch_size) for part, own in required_activations.items()}
    example_ids = tuple(example.id for example in examples)
    return [PartsContext(example_ids, acts.get(_part(steerer)), acts) for steerer in steerers]


def _part(steerer: Steerer) -> str:
    """The part of the model that a steerer looks at, or writes to if it looks at nothing."""
    sites = [*(read.site for read in steerer.required_activations), getattr(steerer, "site", Site(0))]
    return sites[0].part


def _captured(
    model: Model, required_activations: Sequence[RequiredActivation], examples: Sequence[Example], batch_size: int
) -> Activations:
    return capture(
        model,
        [example.replace(contrast=None) for example in examples],
        layers=sorted({model.site(read.site) for read in required_activations}),
        positions=sorted({read.position for read in required_activations}, key=str),
        extra_prompts=sorted({read.side for read in required_activations} - {"prompt"}),
        batch_size=batch_size,
        progress=False,
    )
