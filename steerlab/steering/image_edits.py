"""Checks of interventions before the text: in the vision tower and the projector, whose states belong to images."""

from __future__ import annotations

from steerlab.errors import PositionError, SteeringError
from steerlab.methods.base import Intervention
from steerlab.models.encoding import Batch
from steerlab.models.families import deepest_used_block
from steerlab.models.layout import module_at
from steerlab.models.model import Model
from steerlab.models.patches import refuse_padded_images
from steerlab.models.positions import Positions, describe


def check_image_edit(model: Model, name: str, intervention: Intervention, positions: Positions, batch: Batch) -> None:
    """Refuse an intervention that cannot be added to the image patches of every row.

    Raises:
        PositionError: positions that mean tokens, or a row without images.
        SteeringError: vectors that are computed during the forward, or a block whose output the model does not use.
    """
    site = model.site(intervention.site)
    if site.part == "vision" and model.layout.vision_path is not None:
        blocks = list(module_at(model.hf, model.layout.vision_path).children())
        deepest = deepest_used_block(model.hf.config, len(blocks))
        if site.layer > deepest:
            raise SteeringError(
                f"{model.id} takes its images from block {deepest} of the vision tower (vision_feature_layer="
                f"{model.hf.config.vision_feature_layer}): a vector at {site} would have no effect. Steer "
                f"vision.{deepest} or below, or the projector."
            )
    if not isinstance(positions, str) or positions not in ("images", "vectors", "all"):
        raise PositionError(
            f"position {describe(positions)} means nothing at site {intervention.site}: states there belong to images, "
            "not to tokens; use 'images' (or 'all', which is the same there)"
        )
    if bare := [row.example_id for row, n in zip(batch.rows, batch.units, strict=True) if n == 0]:
        raise PositionError(f"the inputs {bare[:3]} have no image, so they cannot be steered at {intervention.site}")
    refuse_padded_images(batch.extra)
    if intervention.vector_fn is not None:
        raise SteeringError(
            f"{name} computes its vectors from token states; at {intervention.site} states belong to images: give a "
            "vector"
        )
