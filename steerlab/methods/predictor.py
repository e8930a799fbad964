"""The base of methods that predict the contrast vector of an input from states of its plain prompt."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.base import Context, RequiredActivation, Steerer, are_same, check_origin
from steerlab.methods.classes import as_names, check_acts, check_contrasts_nonzero, contrast_table
from steerlab.models.sites import Site

Layers = int | Site | Sequence[int | Site] | None
TrainingPairs = tuple[Float[Tensor, "example context"], Float[Tensor, "example hidden"], list[str]]


class VectorPredictor(Steerer):
    """A method that is fitted to pairs of context and contrast vector, and predicts the vector of an unseen input.

    The context is one state of the plain prompt, or those of several layers side by side. A subclass stores the
    arguments below, sets `site`, and implements `fit_activations` with `training_pairs`, and `predict`.
    """

    layer: int | Site
    context_layer: Layers
    context_position: str | int
    position: str | None
    zero_behaviors: Sequence[str] | None
    #: the index column of the groups that `training_pairs` returns
    label: str = "behavior"

    contrast_argument = "position"

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The context: a state of the plain prompt at each context layer."""
        layers = self.layer if self.context_layer is None else self.context_layer
        several = tuple(layers) if isinstance(layers, (list, tuple, range)) else (layers,)
        if not several:
            raise DataError("context_layer=(): give the layers whose states are read, or None for the steered one")
        sites = [one if isinstance(one, Site) else Site(as_whole("context_layer", one, None)) for one in several]
        return tuple(RequiredActivation(site, self.context_position) for site in sites)

    @abstractmethod
    def predict(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch _"]:
        """One vector per context, `(batch, hidden)` float32, in units of the residual stream."""

    def contexts(self, context: Context) -> Float[Tensor, "batch context"]:
        """The states that are read, of all context layers side by side, float32; those of another model are refused."""
        check_origin(self, context)
        return self._read(context)

    def _read(self, context: Context) -> Float[Tensor, "batch context"]:
        return torch.cat([context.get_states(one).float() for one in self.required_activations], dim=-1)

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, predicted from its context."""
        return self.predict(self.contexts(context))

    def training_pairs(self, acts: Activations) -> TrainingPairs:
        """The contexts, targets and groups that `fit` uses, by sorted example id.

        Raises:
            DataError: an example has a context but no target, or a target but no context; or every contrast is zero.
        """
        required = self.required_activations[0]
        check_acts(acts, required.site)
        with_context, _ = acts.by_example(required.site, side="prompt", position=str(required.position))
        ids, targets = contrast_table(acts, self.site, self.position, self.zero_behaviors)
        no_target, no_context = sorted(set(with_context) - set(ids)), sorted(set(ids) - set(with_context))
        if no_target:
            raise DataError(
                f"{len(no_target)} examples have no contrast, first {no_target[:3]}, behaviors "
                f"{sorted(set(acts.labels(no_target)))}; capture their contrasts, leave them out, or name these "
                "behaviors in zero_behaviors=(...)"
            )
        if no_context:
            raise DataError(
                f"{len(no_context)} examples have no context, first {no_context[:3]}; capture their plain prompts at "
                f"site {required.site}, position {required.position!r}"
            )
        zeroed = as_names(self.zero_behaviors)
        check_contrasts_nonzero(targets[torch.tensor([b not in zeroed for b in acts.labels(ids)])], self.site, acts)
        if len(targets) > 1 and targets.any() and are_same(targets):
            warnings.warn(
                f"all {len(targets)} targets are the same vector, so there is nothing to predict: "
                f"MeanDifference({self.layer!r}) steers in the same way",
                stacklevel=5,
            )
        return self._read(Context(tuple(ids), acts)), targets, acts.labels(ids, self.label)
