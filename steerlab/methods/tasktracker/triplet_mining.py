"""Which triplets are mined of a batch, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab.methods.tasktracker.triplet_net import TripletNet

AT_ONCE = 512  # rows embedded at a time where no gradient is needed


@dataclass(frozen=True)
class TripletRows:
    """States of inputs: the task alone, task and text, and whether the text holds a foreign task."""

    primary: Float[Tensor, "row layers hidden"]
    full: Float[Tensor, "row layers hidden"]
    injected: Bool[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.injected)

    def at(self, rows: Int[Tensor, " some"]) -> TripletRows:
        """Some of the rows."""
        return TripletRows(self.primary[rows], self.full[rows], self.injected[rows])


def triplet_losses(
    positive: Float[Tensor, "*rows"], negative: Float[Tensor, "*rows"], margin: float
) -> Float[Tensor, "*rows"]:
    """ReLU(‖a − p‖ − ‖a − n‖ + margin), of distances.

    Example:
        >>> triplet_losses(torch.tensor([0.2, 0.2]), torch.tensor([0.5, 0.1]), 0.3)
        tensor([0.0000, 0.4000])

    Source: TaskTracker, arXiv 2406.00799.
    """
    return (positive - negative + margin).relu()


def mine_triplets(
    anchors: Float[Tensor, "clean embedding"], positives: Float[Tensor, "clean embedding"],
    negatives: Float[Tensor, "injected embedding"], margin: float, *, hard: bool = False,
) -> Int[Tensor, "triplet 2"]:  # fmt: skip
    """Pairs (row of the anchors, row of the negatives) whose triplet costs between 0 and the margin, both exclusive.

    Example:
        >>> mine_triplets(a, p, n, margin=0.3)       # every negative may serve every anchor
        tensor([[0, 2], [1, 0]])

    Args:
        anchors, positives: embeddings of the task alone and of task and clean text, row by row.
        negatives: embeddings of tasks with a text that holds a foreign task.
        margin: of the loss.
        hard: take those that cost more than the margin as well.

    Source: TaskTracker, arXiv 2406.00799, released code; one distance matrix instead of its loops.
    """
    near = (anchors - positives).norm(dim=1, keepdim=True).expand(-1, len(negatives))
    # the exact distance: the faster product form is off by 1e-3 where points nearly coincide
    far = torch.cdist(anchors, negatives, compute_mode="donot_use_mm_for_euclid_dist")
    losses = triplet_losses(near, far, margin)
    wanted = (losses > 0) & (losses < margin)
    return (wanted | (losses > margin) if hard else wanted).nonzero()


def drift(net: TripletNet, rows: TripletRows) -> Float[Tensor, " row"]:
    """How far the text moves the task's point, in [0, 2]; the net must be in evaluation mode."""
    return (embed_batches(net, rows.full) - embed_batches(net, rows.primary)).norm(dim=1)


@torch.no_grad()
def embed_batches(net: TripletNet, states: Float[Tensor, "row layers hidden"]) -> Float[Tensor, "row embedding"]:
    """The points of many rows, a few hundred at a time."""
    return torch.cat([net(part) for part in states.split(AT_ONCE)])
