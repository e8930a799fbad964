"""The triplet probe of TaskTracker: a learned space in which a foreign task moves the task's point.

Any text with a foreign task may be the far one of a triplet, but one under another task is far anyway: the inputs must
share their tasks, as those of `injected` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods.base import Context, Detector, RequiredActivation, check_fitted, provenance
from steerlab.methods.classes import check_disjoint, select_two_classes
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.triplet_mining import TripletRows, embed_batches
from steerlab.methods.tasktracker.triplet_net import TripletShape, seeded_triplet_net, triplet_net_from_state
from steerlab.methods.tasktracker.triplet_train import TripletConfig, train_triplets
from steerlab.methods.tasktracker.two_prompts import Layers, unique_sites
from steerlab.models.sites import Site


@savable
class TripletProbe(Detector):
    """How far a text moves the task in a space learned from triplets: task, task with clean text, task with foreign.

    Example:
        >>> probe = TripletProbe(range(6)).fit(acts)                 # as published, for many thousand inputs
        >>> probe = TripletProbe([8, 12], config=SMALL_CONFIG, shape=SMALL_SHAPE).fit(acts)     # for a few hundred
        >>> probe.score(Context.of(acts.select(split="test")))       # (rows,), distances in [0, 2]

    Args:
        layers: blocks whose output is read, 0-based; or Sites.
        positive, negative, task, label, position: as in `TaskTracker`.
        config: how it is trained.
        shape: how the net is built.
        standardize: bring every coordinate to mean 0 and deviation 1 first; False: the published net, on raw states.
        validation: share of each class that is held out to choose the weights to keep; 0: keep the last. Inputs whose
            split is "validation", where there are some, are held out instead.
        seed: decides initialization, batches, dropout and the inputs held out.
        progress: show a bar.

    Attributes:
        net_: the `TripletNet`.
        history_: one row per look at the validation inputs (see `train_triplets`); not stored with the artifact.

    Raises:
        DataError: too few inputs in a class, an input in both, or states too narrow for the kernels.
        ActivationError: the task alone was not captured.
        MismatchError: states of another width than the net's.

    Source: TaskTracker, arXiv 2406.00799; standardizing is own.
    """

    def __init__(
        self, layers: Layers, *, positive: Sequence[str] = ("injected",), negative: Sequence[str] | None = None,
        task: str = "task", label: str = "behavior", position: str | int = "last",
        config: TripletConfig = TripletConfig(), shape: TripletShape = TripletShape(), standardize: bool = True,  # noqa: B008
        validation: float = 0.1, seed: int = 0, progress: bool = True,
    ) -> None:  # fmt: skip
        if not 0 <= validation < 1:
            raise DataError(f"validation={validation}: give the share to hold out, from 0 to below 1")
        self.layers = layers if isinstance(layers, int | Site) else tuple(layers)  # a range could not be saved
        self.positive, self.negative, self.task = positive, negative, task
        self.label, self.position, self.config, self.shape = label, position, config, shape
        self.standardize, self.validation, self.seed, self.progress = standardize, validation, seed, progress
        self.sites = unique_sites(layers)

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The same place of both prompts, at every layer."""
        return tuple(
            RequiredActivation(site, self.position, capture) for site in self.sites for capture in ("prompt", self.task)
        )

    def fit(self, acts: Activations) -> TripletProbe:
        """Train the net; only activations are needed, no model."""
        (yes, _), (no, _) = select_two_classes(
            acts, self.required_activations[0], self.positive, self.negative, self.label
        )
        ids = [*no, *yes]
        context = Context(tuple(ids), acts)
        injected = torch.tensor([False] * len(no) + [True] * len(yes))
        rows = TripletRows(self._states(context, self.task), self._states(context, "prompt"), injected)
        check_disjoint("clean", no, rows.full[~injected].flatten(1), "injected", yes, rows.full[injected].flatten(1))
        train, held = self._divided(acts.labels(ids, "split"), injected)
        net = seeded_triplet_net(len(self.sites), acts.hidden_size, self.shape, self.seed)
        if self.standardize:
            net.standardize(torch.cat([rows.primary[train], rows.full[train]]))
        self.history_ = train_triplets(
            net, rows.at(train), self.config, validation=rows.at(held) if len(held) else None, seed=self.seed,
            progress=self.progress,
        )  # fmt: skip
        self.net_, self.info_ = net, provenance(acts)
        return self

    def embed(self, states: Float[Tensor, "batch layers hidden"]) -> Float[Tensor, "batch embedding"]:
        """The point of each prompt on the unit sphere, from its states at `layers`."""
        check_fitted(self, "net_")
        expected = tuple(self.net_.offset.shape)
        if states.shape[1:] != expected:
            raise MismatchError(
                f"the states are {tuple(states.shape[1:])} (layers, width), the net takes {expected}: "
                "read them at the same layers of the same model"
            )
        return embed_batches(self.net_, states.float())

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The distance between the points of the task alone and of task and text, in [0, 2]."""
        full, primary = self.embed(self._states(context, "prompt")), self.embed(self._states(context, self.task))
        return (full - primary).norm(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """The net's weights, and the threshold if there is one."""
        if not hasattr(self, "net_"):
            return {}
        state = {key: value for key, value in super().state_dict().items() if key not in ("net_", "history_")}
        return state | {"net_": dict(self.net_.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the net."""
        super().load_state_dict({key: value for key, value in state.items() if key != "net_"})
        if "net_" in state:
            self.net_ = triplet_net_from_state(state["net_"], self.shape)

    def _states(self, context: Context, capture: str) -> Float[Tensor, "batch layers hidden"]:
        return torch.stack(
            [context.get_states(RequiredActivation(site, self.position, capture)).float() for site in self.sites], dim=1
        )

    def _divided(self, splits: Sequence[str], injected: Tensor) -> tuple[Int[Tensor, " train"], Int[Tensor, " held"]]:
        """The rows to train on and those to choose by."""
        named = torch.tensor([split == "validation" for split in splits])
        if not bool(named.any()):
            generator = torch.Generator().manual_seed(self.seed)
            for group in (injected, ~injected):
                rows = group.nonzero()[:, 0]
                least = 1 if self.validation else 0
                held = max(least, round(self.validation * len(rows)))
                named[rows[torch.randperm(len(rows), generator=generator)[:held]]] = True
        for name, rows in {"train": ~named, "be held out": named}.items():
            if len(set(injected[rows].tolist())) < 2 and bool(rows.any()):
                raise DataError(f"of {len(injected)} inputs, those to {name} are of one class: both need some of each")
        return (~named).nonzero()[:, 0], named.nonzero()[:, 0]
