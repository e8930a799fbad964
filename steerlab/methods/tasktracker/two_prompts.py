"""The layers of detectors that compare two prompts about one input."""

from __future__ import annotations

from collections.abc import Sequence

from steerlab._support.errors import DataError
from steerlab.models.sites import Site

Layers = int | Site | Sequence[int | Site]


def unique_sites(layers: Layers) -> tuple[Site, ...]:
    """Layers as Sites, in the order given.

    Raises:
        DataError: none, or one twice.
    """
    sites = tuple(map(Site.of, [layers] if isinstance(layers, int | Site) else layers))
    if not sites or len(set(sites)) < len(sites):
        raise DataError(f"layers={layers}: give at least one layer, each once")
    return sites
