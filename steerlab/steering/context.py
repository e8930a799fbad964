"""The activations of the unsteered prompts that steerers require, captured in one pass per part of the model."""

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
    """A context with activations of several parts of the model, whose states differ in width.

    Attributes:
        parts: the activations by part ("text", "vision", "projector").
    """

    parts: Mapping[str, Activations] = field(default_factory=dict)

    def get_states(self, required: RequiredActivation) -> Float[Tensor, "batch hidden"]:
        """The states of one required activation; see `Context.get_states`."""
        return Context(self.example_ids, self.parts.get(required.site.part)).get_states(required)


def read_contexts(
    model: Model, steerers: Sequence[Steerer], also: Sequence[RequiredActivation], examples: Sequence[Example],
    batch_size: int,
) -> list[PartsContext]:  # fmt: skip
    """One context per steerer, with what all steerers require and what is required `also`."""
    by_part: dict[str, list[RequiredActivation]] = {}
    for one in [*(one for steerer in steerers for one in steerer.required_activations), *also]:
        by_part.setdefault(model.site(one.site).part, []).append(one)
    prompts = [example.replace(contrast=None) for example in examples]
    acts = {
        part: capture(
            model, prompts, layers=sorted({model.site(one.site) for one in required}),
            positions=sorted({one.position for one in required}, key=str),
            extra_prompts=sorted({one.side for one in required} - {"prompt"}), batch_size=batch_size, progress=False,
        )
        for part, required in by_part.items()
    }  # fmt: skip
    example_ids = tuple(example.id for example in examples)
    return [PartsContext(example_ids, acts.get(_part(steerer)), acts) for steerer in steerers]


def _part(steerer: Steerer) -> str:
    """The part of the model that a steerer reads, or steers if it reads nothing."""
    sites = [*(one.site for one in steerer.required_activations), getattr(steerer, "site", Site(0))]
    return sites[0].part
