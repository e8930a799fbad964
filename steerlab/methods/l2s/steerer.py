"""L2S: a small module that predicts the steering vector of each input from states of its plain prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, as_seed
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import Intervention, check_fitted, check_width
from steerlab.methods.l2s.config import PRESETS, TrainingConfig
from steerlab.methods.l2s.data import equalize_norms, reduce_rank, split_rows
from steerlab.methods.l2s.net import LinearMap, SteeringNet, load_published_net, seeded_net
from steerlab.methods.l2s.train import train_net
from steerlab.methods.predictor import Layers, TrainingPairs, VectorPredictor
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site

# what an "mlp" has if it is not given
MLP: dict[str, Any] = {"hidden_units": 100, "activation": "tanh", "config": "paper", "validation": None}


@savable
class L2S(VectorPredictor):
    """Predict the contrast vector of an unseen input from its activation (learn-to-steer).

    Example:
        >>> l2s = L2S(layer=15, context_layer=30).fit(acts)
        >>> l2s.predict(acts.select(side="prompt").at(30))            # (rows, hidden)

    Args:
        layer: block whose output is contrasted and steered (L*), 0-based; or a `Site`.
        context_layer: block whose output is read from the plain prompt (L'), or several, whose states are put side by
            side; None: the same as `layer`.
        context_position: token at which it is read.
        position: which captured contrast rows are the targets; None if there is only one kind.
        net: "linear", a ridge regression in closed form, whose penalty is chosen by leaving examples out; or "mlp", one
            hidden layer as published, to which `hidden_units`, `activation`, `config` and `validation` belong. None:
            "mlp" if one of these is given, else "linear", our choice: it did as well in our study of languages.
        hidden_units: K; None: 100.
        activation: "tanh" (None), or "relu" if some targets are zero.
        config: a `TrainingConfig`, or the name of a preset: "paper" (None; `L2S_PAPER` says which of its numbers are
            ours), "released" (the released code for safety, also called "released_safety"), "released_pope".
        zero_behaviors: behaviors whose target is the zero vector (their examples need no contrast).
        label: the index column of the groups that a config balances or rescales; examples without a group are
            not rescaled. The published groups of MM-SafetyBench are finer than its behaviors, and leave scenario 13
            out: `acts.index["class"] = acts.index["example_id"].map({e.id: e.meta["class"] for e in examples
            if e.behavior})`.
        validation: share of the examples held out in training; None: 0.1 if the config keeps the best epoch, else 0.
        rank: train on targets of this rank, the closest in squared error; None: on the targets themselves.
        max_norm: largest norm of a prediction, in units of `target_norm_`; longer ones are shortened. None: no limit.
        seed: decides initialization, batches and the held-out examples.
        progress: show a bar.

    Attributes:
        net_: the `SteeringNet` or `LinearMap`, from raw context to vector.
        history_: one row per epoch (see `train_net`), for an "mlp"; not stored in the artifact.
        target_norm_: mean norm of the non-zero targets as trained on, in units of the residual stream.

    Raises:
        DataError: an example without a contrast whose behavior is not in `zero_behaviors`, or without a context; or
            every contrast is exactly zero.
        MismatchError: contexts of another width.

    Source: arXiv 2508.12815, section 3 and equation 8.
    """

    def __init__(
        self, layer: int | Site, *, context_layer: Layers = None, context_position: str | int = "last",
        position: str | None = None, net: str | None = None, hidden_units: int | None = None,
        activation: str | None = None, config: str | TrainingConfig | None = None,
        zero_behaviors: Sequence[str] | None = (), label: str = "behavior", validation: float | None = None,
        rank: int | None = None, max_norm: float | None = None, seed: int = 0, progress: bool = True,
    ) -> None:  # fmt: skip
        options = {"hidden_units": hidden_units, "activation": activation, "config": config, "validation": validation}
        given = {name: value for name, value in options.items() if value is not None}
        if net not in (None, "mlp", "linear"):
            raise DataError(f"net={net!r}; expected 'mlp' or 'linear'")
        self.net = net or ("mlp" if given else "linear")
        if self.net == "linear" and (changed := [name for name in given if given[name] != MLP[name]]):
            raise DataError(f"net='linear' is a ridge regression in closed form, where {changed} have no effect")
        self.hidden_units, self.activation, self.config, self.validation = (MLP | given).values()
        self.layer, self.context_layer, self.context_position = layer, context_layer, context_position
        self.position, self.rank, self.zero_behaviors, self.label = position, rank, zero_behaviors, label
        self.max_norm, self.seed, self.progress = max_norm, seed, progress
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Train the net on all examples; only activations are needed, no model."""
        config = self.training_config
        as_seed(self.seed)
        if self.max_norm is not None:
            as_number("max_norm", self.max_norm, 0.0)
        contexts, targets, labels = self.training_pairs(acts)
        norms = targets.norm(dim=-1)
        self.target_norm_ = float(norms[norms > 0].double().mean()) if bool((norms > 0).any()) else 0.0
        if self.net == "linear":
            self.net_: SteeringNet | LinearMap = LinearMap.fit(contexts, targets)
            return
        names = sorted(set(labels))
        groups = torch.tensor([names.index(name) for name in labels])
        train, held_out = split_rows(len(targets), self.validation, config, self.seed)
        net = seeded_net(acts.hidden_size, self.hidden_units, self.activation, self.seed, contexts.shape[1])
        self.history_ = train_net(
            net, contexts[train], targets[train], config, groups=groups[train], seed=self.seed,
            validation=(contexts[held_out], targets[held_out]) if len(held_out) else None, progress=self.progress,
        )  # fmt: skip
        self.net_ = net

    def training_pairs(self, acts: Activations) -> TrainingPairs:
        """The contexts, targets (as `config` and `rank` change them) and groups that `fit` uses, by sorted example id.

        Raises:
            DataError: an example has a context but no target, or a target but no context; or every contrast is zero.
        """
        contexts, targets, groups = super().training_pairs(acts)
        equalize = self.training_config.equalize_norms if self.net == "mlp" else False
        order = [] if isinstance(equalize, bool) else list(equalize)
        if equalize is True:
            labels = acts.labels(acts.index["example_id"].tolist(), self.label)
            order = [one for one in dict.fromkeys(labels) if one != ""]
        targets = equalize_norms(targets, groups, order) if order else targets
        return contexts, targets if self.rank is None else reduce_rank(targets, self.rank), groups

    def predict(self, contexts: Float[Tensor, "batch _"]) -> Float[Tensor, "batch _"]:
        """One vector per context, `(batch, hidden)` float32, in units of the residual stream."""
        check_fitted(self, "net_")
        check_width(contexts, self.net_.context_size, f"this {self.name}")
        with torch.no_grad():
            return _predict(contexts, self.net_, self._norm_limit)

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        """The net as a function of the state at the context layer, to be evaluated on the server."""
        check_fitted(self, "net_")
        required, *more = self.required_activations
        if required.position != "last" or more:
            return None
        net = copy.deepcopy(self.net_).requires_grad_(False)
        if not all(bool(weights.isfinite().all()) for weights in net.parameters()):  # a server would not report this
            raise SteeringError("the net of L2S has weights that are not finite: fit it again")
        vector_fn = partial(_predict, net=net, norm_limit=self._norm_limit)
        return (Intervention(self.site, vector_fn=vector_fn, read_site=required.site),)

    @classmethod
    def from_published(
        cls, path: str | Path, layer: int | Site, context_layer: int | Site | None = None,
        *, activation: str = "tanh", **options: Any,
    ) -> L2S:  # fmt: skip
        """A steerer with a published net (see `load_published_net`); `options` are the constructor's."""
        net = load_published_net(path, activation)
        options |= {"hidden_units": net.hidden_units, "activation": activation}
        steerer = cls(layer, context_layer=context_layer, net="mlp", **options)
        steerer.net_, steerer.info_ = net, {"hidden_size": net.hidden_size}
        return steerer

    @property
    def training_config(self) -> TrainingConfig:
        """How its net is trained: `config`, or the preset of that name."""
        if isinstance(self.config, TrainingConfig):
            return self.config
        if not isinstance(self.config, str) or self.config not in PRESETS:
            raise DataError(f"unknown config {self.config!r}; expected a TrainingConfig or one of {list(PRESETS)}")
        return PRESETS[self.config]

    @property
    def _norm_limit(self) -> float | None:
        """The largest norm of a prediction, in units of the residual stream."""
        if self.max_norm is None:
            return None
        if not hasattr(self, "target_norm_"):
            raise DataError("max_norm is in units of the targets' norm, which a published net lacks: use max_norm=None")
        return self.max_norm * self.target_norm_


def _predict(
    contexts: Float[Tensor, "batch _"], net: SteeringNet | LinearMap, norm_limit: float | None
) -> Float[Tensor, "batch _"]:
    """The vectors of the net, shortened to `norm_limit`; a plain function, so that it can be sent to a server."""
    vectors: Tensor = net(contexts.to(torch.float32))
    if norm_limit is None:
        return vectors
    return vectors * (norm_limit / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
