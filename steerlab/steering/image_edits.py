"""Writing before the text: in the vision tower and the projector, where states belong to pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from steerlab._support.errors import PositionError, SteeringError
from steerlab.methods.base import Intervention
from steerlab.models.encoding import Batch
from steerlab.models.families import deepest_used_block
from steerlab.models.interventions import ImageEdit
from steerlab.models.layout import module_at
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe
from steerlab.models.sites import Site


def image_edits(
    model: Model,
    positions: Positions,
    name: str,
    intervention: Intervention,
    factor: Tensor,
    batch: Batch,
    numbers: Sequence[int],
) -> ImageEdit:
    """An edit of every patch of each row's own pictures.

    Args:
        positions, name: of the steerer, whose name is for messages.
        factor: `(row, 1)` strength of each row, gate included.
        numbers: which input each row is of.

    Raises:
        PositionError: a position that means tokens, or a row without pictures.
        SteeringError: vectors that come in flight, or a block that nothing after it looks at.
    """
    site, positions = model.site(intervention.site), intervention.positions_or(positions)
    _check_is_read(model, site)
    if not isinstance(positions, str) or positions not in ("images", "all"):
        raise PositionError(
            f"position {describe(positions)} means nothing at site {intervention.site}: states there belong to "
            "pictures, not to tokens; use 'images' (or 'all', which is the same there)"
        )
    bare = [row.example_id for row, n in zip(batch.rows, batch.units, strict=True) if n == 0]
    if bare:
        raise PositionError(
            f"the inputs {bare[:3]} have no picture, so nothing of them can be steered at {intervention.site}"
        )
    if intervention.vectors is None:
        raise SteeringError(
            f"{name} computes its vectors from the states it meets; at {intervention.site}, where states "
            "belong to pictures, it can't"
        )
    return ImageEdit(factor * intervention.vectors[list(numbers)].float().to(factor.device), batch.units)


def _check_is_read(model: Model, site: Site) -> None:
    """Refuse to write to a block of the vision tower that nothing after it looks at."""
    if site.part != "vision" or model.layout.vision_path is None:
        return
    deepest = deepest_used_block(model.hf.config, len(list(module_at(model.hf, model.layout.vision_path).children())))
    if site.layer > deepest:
        raise SteeringError(
            f"{model.id} takes its pictures from block {deepest} of the vision tower (vision_feature_layer="
            f"{model.hf.config.vision_feature_layer}): a vector at {site} would reach nothing. Write at "
            f"vision.{deepest} or below, or at the projector."
        )
