"""Methods with several sites: their `layers` argument, and the base class of steerers that write to each of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from steerlab._support.checks import as_whole
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import Steerer
from steerlab.models.sites import Site

Layer = int | Site
Layers = Layer | Sequence[Layer]


def unique_sites(layers: Layers) -> tuple[Site, ...]:
    """The sites of some layers, in the order given.

    Raises:
        DataError: no layer, one layer twice, or some counted from the first and some from the last.
    """
    given = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    sites = tuple(Site.of(_as_layer(one)) for one in given)
    if not sites or len(set(sites)) < len(sites):
        raise DataError(f"layers={layers}: give at least one layer, each once")
    if len({site.layer < 0 for site in sites}) > 1:  # -1 and 3 are one layer in a model of four
        raise DataError(f"layers={layers}: count all layers from the first, or all from the last (-1)")
    return sites


def storable(layers: Layers) -> Layer | tuple[Layer, ...]:
    """The argument `layers` as `save_pretrained` can write it: a range becomes a tuple."""
    return tuple(map(_as_layer, layers)) if isinstance(layers, Iterable) else _as_layer(layers)


def _as_layer(layer: Layer) -> Layer:
    """A layer with Python's own number: those out of a data frame are NumPy's."""
    as_whole("layers: one", layer.layer if isinstance(layer, Site) else layer, None)
    return layer if isinstance(layer, Site) else int(layer)


class MultiSiteSteerer(Steerer):
    """A steerer whose constructor takes `layers`; it has `sites`, and `site` as well if there is only one."""

    def _set_layers(self, layers: Layers) -> None:
        self.layers, self.sites = storable(layers), unique_sites(layers)
        if len(self.sites) == 1:
            self.site = self.sites[0]

    def _check_one_site(self) -> None:
        if len(self.sites) > 1:
            sites = ", ".join(map(str, self.sites))
            raise SteeringError(f"this {type(self).__name__} steers the sites {sites}: call interventions(context)")

    def with_layer(self, layer: Layer) -> Steerer:
        """An unfitted steerer with the same settings for one layer."""
        options = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name != "layers"}
        return type(self)(layer, **options)  # type: ignore[call-arg]
