"""The triplet probe of TaskTracker: a learned space in which an injected instruction moves the point of the task.

The negative of a triplet may be any text with an injected instruction. A text under another task is far away in any
case, so the inputs must share their tasks, as those of `injection_examples` do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError
from steerlab.methods.base import Context, check_fitted, check_origin, provenance
from steerlab.methods.classes import check_disjoint
from steerlab.methods.layers import Layers
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.detector import TwoPromptDetector
from steerlab.methods.tasktracker.triplet_net import TripletShape, embed_batches, make_net
from steerlab.methods.tasktracker.triplet_train import TripletConfig, TripletRows, train_triplets


@savable
class TripletProbe(TwoPromptDetector):
    """The distance that a text moves the task, in a space learned from triplets (task, clean text, injected text).

    Example:
        >>> known = acts.select(split=["train", "validation"])
        >>> probe = TripletProbe(range(6)).fit(known)                 # as published, for many thousand inputs
        >>> probe = TripletProbe([8, 12], config=SMALL_CONFIG, shape=SMALL_SHAPE).fit(known)     # for a few hundred
        >>> probe.score(Context.of(acts.select(split="test")))       # (rows,), distances in [0, 2]

    Args:
        layers, positive, negative, task, label, position: as in `TwoPromptDetector`.
        config: the training configuration.
        shape: the architecture of the net.
        standardize: standardize every coordinate first; False: the published net, on raw states.
        validation: share of each class that is held out to select the best weights; 0: keep the last ones. Inputs
            whose split is "validation", if there are any, are held out instead.
        seed: of the initialization, batches, dropout and the held-out inputs.
        progress: show a progress bar.

    Attributes:
        net_: the `TripletNet`.
        history_: one row per evaluation on the held-out inputs (see `train_triplets`); not saved.

    Raises:
        DataError: too few inputs in a class, an input in both, or states too narrow for the kernels.
        ActivationError: the task alone was not captured.
        MismatchError: states of another width than the net's.

    Source: TaskTracker, arXiv 2406.00799; standardized coordinates are not in the paper.
    """

    def __init__(
        self, layers: Layers, *, positive: Sequence[str] = ("injected",), negative: Sequence[str] | None = None,
        task: str = "task", label: str = "behavior", position: str | int = "last",
        config: TripletConfig = TripletConfig(), shape: TripletShape = TripletShape(), standardize: bool = True,  # noqa: B008
        validation: float = 0.1, seed: int = 0, progress: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(layers, positive, negative, task, label, position)
        if not 0 <= validation < 1:
            raise DataError(f"validation={validation}: give the share to hold out, from 0 to below 1")
        self.config, self.shape, self.standardize = config, shape, standardize
        self.validation, self.seed, self.progress = validation, seed, progress

    def fit_activations(self, acts: Activations) -> None:
        """Train the net; only activations are needed, no model."""
        negative, positive = self._training_inputs(acts)
        ids, n = [*negative, *positive], len(negative)
        context, injected = Context(tuple(ids), acts), torch.arange(len(ids)) >= n
        rows = TripletRows(self._states(context, self.task), self._states(context, "prompt"), injected)
        check_disjoint("clean", negative, rows.full[:n].flatten(1), "injected", positive, rows.full[n:].flatten(1))
        train, held_out = self._split(acts.labels(ids, "split"), injected)
        net = make_net(len(self.sites), acts.hidden_size, self.shape, self.seed)
        if self.standardize:
            net.standardize(torch.cat([rows.primary[train], rows.full[train]]))
        self.history_ = train_triplets(
            net, rows.at(train), self.config, validation=rows.at(held_out) if len(held_out) else None,
            seed=self.seed, progress=self.progress,
        )  # fmt: skip
        self.net_, self.info_ = net, provenance(acts)

    def embed(self, states: Float[Tensor, "batch layers hidden"]) -> Float[Tensor, "batch embedding"]:
        """The point of each prompt on the unit sphere, from its states at `layers`."""
        check_fitted(self, "net_")
        expected = tuple(self.net_.offset.shape)
        if states.shape[1:] != expected:
            shape = tuple(states.shape[1:])
            raise MismatchError(f"the states are {shape} (layers, width), the net takes {expected}: use the same model")
        return embed_batches(self.net_.eval(), states.float())

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The distance between the points of the task alone and of task and text, in [0, 2]."""
        check_origin(self, context)
        full, primary = (self.embed(self._states(context, side)) for side in ("prompt", self.task))
        return (full - primary).norm(dim=1)

    def _split(self, splits: Sequence[str], injected: Tensor) -> tuple[Int[Tensor, " train"], Int[Tensor, " held"]]:
        """The rows to train on and the rows to select the weights on."""
        held_out = torch.tensor([split == "validation" for split in splits])
        if self.validation and not bool(held_out.any()):
            generator = torch.Generator().manual_seed(self.seed)
            for group in (injected, ~injected):
                rows = group.nonzero()[:, 0]
                size = max(1, round(self.validation * len(rows)))
                held_out[rows[torch.randperm(len(rows), generator=generator)[:size]]] = True
        for name, rows in {"train": ~held_out, "be held out": held_out}.items():
            if len(injected[rows].unique()) < 2 and bool(rows.any()):
                raise DataError(f"of {len(injected)} inputs, those to {name} are of one class: both need some of each")
        return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
