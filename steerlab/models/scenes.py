"""`scenes-vlm`: a small image-text model that sees one thing and says another, in the package itself."""

from __future__ import annotations

import json
from pathlib import Path

from steerlab._support.errors import LoadError

FOLDER = Path(__file__).parent / "scenes_vlm"


def scenes_vlm_folder() -> tuple[Path, str]:
    """The folder of the weights that ship with steerlab, and their version: size, seed and steps of the training.

    Example:
        >>> model = steerlab.load("scenes-vlm")
        >>> model.vision is not None
        True

    Raises:
        LoadError: this installation was made without them.

    Source: own; trained by `analyses/train_scenes_vlm.py`, described in the README.md beside the weights.
    """
    missing = [name for name in ("model.safetensors", "recipe.json") if not (FOLDER / name).is_file()]
    if missing:
        raise LoadError(
            f'"scenes-vlm" should lie in {FOLDER}, but {" and ".join(missing)} are missing there. Install steerlab '
            "again, or train it: python analyses/train_scenes_vlm.py --out results/scenes_vlm, then "
            'load("results/scenes_vlm/model")'
        )
    recipe = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
    return FOLDER, f"{recipe['size']}-seed{recipe['seed']}-{recipe['steps']}steps"
