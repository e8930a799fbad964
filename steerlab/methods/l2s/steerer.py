"""L2S: a small net that predicts each input's own steering vector from one state of the plain input."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Intervention, RequiredActivation, Steerer, check_fitted, provenance
from steerlab.methods.l2s.config import PRESETS, TrainingConfig
from steerlab.methods.l2s.data import split_rows, training_pairs
from steerlab.methods.l2s.net import SteeringNet, load_published, net_from_state, seeded_net
from steerlab.methods.l2s.train import train_net
from steerlab.models.sites import Site


@savable
class L2S(Steerer):
    """Predict the contrast vector of an unseen input from its own activation (learn-to-steer).

    Example:
        >>> l2s = L2S(layer=15, context_layer=30).fit(acts)
        >>> l2s.predict(acts.select(side="prompt").at(30))            # (rows, hidden_units)

    Args:
        layer: block whose output is contrasted and steered (L*), 0-based; or a `Site`.
        context_layer: block whose output is read of the plain prompt (L'); None: the same as `layer`.
        context_position: where it is read.
        position: which captured contrast rows to learn; None where there is only one kind.
        hidden_units: hidden units K.
        activation: "tanh", or "relu" where some targets are zero.
        config: a `TrainingConfig`, or the name of one: "paper", "released" (the released code for safety, also called
            "released_safety"), "released_pope".
        zero_behaviors: behaviors whose target is the zero vector (their samples need no contrast).
        groups: the index column with the groups that a recipe balances or rescales; samples without one are not
            rescaled. The published groups of MM-SafetyBench are finer than its behaviors, and leave scenario 13 out:
            `acts.index["class"] = acts.index["sample"].map({e.id: e.meta["class"] for e in rows if e.behavior})`.
        validation: share of the samples held out in training; None: 0.1 where the recipe keeps the best
            epoch, else 0.
        max_norm: shorten predictions longer than so many times `target_norm_`; None: leave them as they are.
        seed: decides initialization, batches and the held-out samples.
        progress: show a bar.

    Attributes:
        net_: the `SteeringNet`, from raw context to vector.
        history_: one row per epoch (see `train_net`); not stored with the artifact.
        target_norm_: mean norm of the non-zero targets as trained on, in units of the residual stream.

    Raises:
        DataError: samples without contrast whose behavior is not in `zero_behaviors`, or without a context; every
            contrast is
            exactly zero.
        MismatchError: contexts of another width.

    Source: arXiv 2508.12815, section 3 and equation 8.
    """

    def __init__(
        self, layer: int | Site, *, context_layer: int | Site | None = None,
        context_position: str | int = "last", position: str | None = None, hidden_units: int = 100,
        activation: str = "tanh",
        config: str | TrainingConfig = "paper",
        zero_behaviors: Sequence[str] | None = (), groups: str = "behavior",
        validation: float | None = None, max_norm: float | None = None,
        seed: int = 0, progress: bool = True,
    ) -> None:  # fmt: skip
        self.layer, self.context_layer, self.context_position = layer, context_layer, context_position
        self.position, self.hidden_units, self.activation, self.config = position, hidden_units, activation, config
        self.zero_behaviors, self.groups, self.validation, self.max_norm = zero_behaviors, groups, validation, max_norm
        self.seed, self.progress = seed, progress
        self.site = Site.of(layer)

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The context: one state of the plain prompt."""
        site = self.site if self.context_layer is None else self.context_layer
        return (RequiredActivation(Site.of(site), self.context_position),)

    def fit(self, acts: Activations) -> L2S:
        """Train the net on all samples; only activations are needed, no model."""
        recipe = self._recipe()
        contexts, targets, labels = training_pairs(
            acts, self.required_activations[0], self.site, self.position, self.zero_behaviors, recipe, self.groups
        )
        norms = targets.norm(dim=-1)
        self.target_norm_ = float(norms[norms > 0].double().mean()) if bool((norms > 0).any()) else 0.0
        codes = {name: i for i, name in enumerate(sorted(set(labels)))}
        groups = torch.tensor([codes[name] for name in labels])
        train, held = split_rows(len(targets), self.validation, recipe, self.seed)
        self.net_ = seeded_net(acts.hidden_size, self.hidden_units, self.activation, self.seed)
        self.history_ = train_net(
            self.net_, contexts[train], targets[train], recipe, groups=groups[train], seed=self.seed,
            validation=(contexts[held], targets[held]) if len(held) else None, progress=self.progress,
        )  # fmt: skip
        self.info_ = provenance(acts)
        return self

    def predict(self, contexts: Float[Tensor, "batch _"]) -> Float[Tensor, "batch _"]:
        """One vector per context, `(batch, hidden_units)` float32, in units of the residual stream."""
        check_fitted(self, "net_")
        if contexts.shape[-1] != self.net_.hidden_size:
            raise MismatchError(
                f"the contexts have width {contexts.shape[-1]}, the net takes {self.net_.hidden_size}; "
                "read them from the same model"
            )
        with torch.no_grad():
            return predicted(contexts, self.net_, self._longest)

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, predicted from its own activation."""
        check_fitted(self, "net_")
        return self.predict(context.read(self.required_activations[0]))

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        """The net itself goes to where the model runs, and predicts from the state it meets there."""
        check_fitted(self, "net_")
        read = self.required_activations[0]
        if read.position != "last":
            return None
        net = copy.deepcopy(self.net_).requires_grad_(False)
        if not all(bool(weights.isfinite().all()) for weights in net.parameters()):  # the server would not tell
            raise SteeringError(
                "the net of L2S has weights that are not finite: its vectors would be none. Fit it again"
            )
        return (
            Intervention(self.site, vector_fn=partial(predicted, net=net, longest=self._longest), read_site=read.site),
        )

    @classmethod
    def from_published(
        cls, path: str | Path, layer: int | Site, context_layer: int | Site | None = None,
        *, activation: str = "tanh", **options: Any,
    ) -> L2S:  # fmt: skip
        """A steerer around a published net (see `load_published`); `options` are the constructor's."""
        net = load_published(path, activation)
        options |= {"hidden_units": net.encoder.out_features, "activation": activation}
        made = cls(layer, context_layer=context_layer, **options)
        made.net_, made.info_ = net, {"hidden_size": net.hidden_size}
        return made

    def state_dict(self) -> dict[str, Any]:
        """The net's weights and the norm of its targets."""
        if not hasattr(self, "net_"):
            return {}
        return {"net_": dict(self.net_.state_dict()), "target_norm_": getattr(self, "target_norm_", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the net."""
        if state:
            self.net_ = net_from_state(state["net_"], self.activation)
        if state.get("target_norm_") is not None:
            self.target_norm_ = state["target_norm_"]

    def _recipe(self) -> TrainingConfig:
        if isinstance(self.config, TrainingConfig):
            return self.config
        if self.config not in PRESETS:
            raise DataError(f"unknown preset {self.config!r}; expected a Recipe or one of {list(PRESETS)}")
        return PRESETS[self.config]

    @property
    def _longest(self) -> float | None:
        """The norm that predictions are cut to, in units of the residual stream."""
        if self.max_norm is None:
            return None
        if not hasattr(self, "target_norm_"):
            raise DataError(
                "max_norm is in units of the targets' norm, which a published net comes without; use max_norm=None"
            )
        return self.max_norm * self.target_norm_


def predicted(contexts: Float[Tensor, "batch _"], net: SteeringNet, longest: float | None) -> Float[Tensor, "batch _"]:
    """The net's vectors, those longer than `longest` shortened to it."""
    vectors: Tensor = net(contexts.to(torch.float32))
    if longest is None:
        return vectors
    return vectors * (longest / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
