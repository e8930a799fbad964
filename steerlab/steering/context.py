"""The activations of the unsteered prompts that steerers require, captured in one pass per kind of state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.capturing.capture import capture
from steerlab.data.example import Example
from steerlab.methods.base import Context, RequiredActivation, Steerer
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.sites import Site


@dataclass(frozen=True)
class MixedContext(Context):
    """A context with several kinds of states, which differ in width.

    Attributes:
        activations: those of the kind that the steerer reads first; None if it reads none.
        kinds: the activations by kind ("text", "heads", "vision", "projector").
    """

    kinds: Mapping[str, Activations] = field(default_factory=dict)

    def get_states(self, required: RequiredActivation) -> Float[Tensor, "batch hidden"]:
        """The states of one required activation; see `Context.get_states`."""
        return Context(self.example_ids, self.kinds.get(required.site.state_kind)).get_states(required)


ReadContexts = Callable[[Sequence[Steerer], Sequence[RequiredActivation]], list[MixedContext]]


def read_contexts(
    model: Model, steerers: Sequence[Steerer], extra_required: Sequence[RequiredActivation],
    examples: Sequence[Example], batch_size: int, rows: Sequence[EncodedPrompt] = (),
) -> list[MixedContext]:  # fmt: skip
    """One context per steerer; each holds what any of the steerers requires, and the extra activations.

    Args:
        extra_required: what a caller needs besides, such as the states whose norm scales the vectors.
        rows: the encoded examples, perhaps with answers; without them, the prompts are encoded here.
    """
    by_kind = group_by_kind(steerers, extra_required)
    prompts = [example.replace(contrast=None) for example in examples]
    encoded = {row.example_id: row.head(row.n_prompt) for row in rows} if by_kind else {}
    acts = {
        kind: capture(
            model, prompts, layers=sorted({model.site(one.site) for one in required}),
            positions=sorted({one.position for one in required}, key=str),
            extra_prompts=sorted({one.side for one in required} - {"prompt"}), batch_size=batch_size, progress=False,
            encoded=encoded,
        )
        for kind, required in by_kind.items()
    }  # fmt: skip
    example_ids = tuple(example.id for example in examples)
    return [context_of(steerer, example_ids, acts) for steerer in steerers]


def group_by_kind(
    steerers: Sequence[Steerer], extra_required: Sequence[RequiredActivation]
) -> dict[str, list[RequiredActivation]]:
    """What steerers and a caller require, by the kind of state."""
    by_kind: dict[str, list[RequiredActivation]] = {}
    for required in [*(one for steerer in steerers for one in steerer.required_activations), *extra_required]:
        by_kind.setdefault(required.site.state_kind, []).append(required)
    return by_kind


def context_of(steerer: Steerer, example_ids: tuple[str, ...], acts: Mapping[str, Activations]) -> MixedContext:
    """The context of a steerer: the activations come first that it reads, or of where it steers if it reads nothing."""
    sites = [*(one.site for one in steerer.required_activations), getattr(steerer, "site", Site(0))]
    return MixedContext(example_ids, acts.get(sites[0].state_kind), acts)
