"""The settings of a sweep: every method at every layer, fitted, with its interventions for every input."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from steerlab._support.checks import as_number, show
from steerlab._support.contents import content_fingerprint
from steerlab.capturing import Activations, capture
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.example import Example
from steerlab.data.inputs import as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.methods import Steerer
from steerlab.methods.base import Intervention
from steerlab.methods.vector import SteeringVector, Vectors, as_steerer
from steerlab.models.model import Model
from steerlab.models.positions import Positions, check_positions, describe, position_key
from steerlab.models.sites import Site
from steerlab.steering.interventions import BatchedSetting, restart_layer
from steerlab.steering.requests import Request, Scale, check_strengths, resolve_interventions

Fitted = Mapping[int | Site, Steerer]
Train = Activations | Sequence[Example] | None
Methods = Steerer | Vectors | Sequence[Steerer | Vectors] | Mapping[str, "Steerer | Vectors | Fitted"]


@dataclass(frozen=True)
class Setting(BatchedSetting):
    """One combination of a sweep: a method at a layer, a strength, and positions.

    Attributes:
        site: the method's layer.
        fitted_hash: of what the method learned, if its vectors are computed during the forward and cannot be hashed.
    """

    site: Site
    fitted_hash: str = ""

    @property
    def layer(self) -> int | str:
        """The layer's number, or the site where it is not a block's output; all of them where there are several."""
        sites = dict.fromkeys(one.site for one in self.interventions)
        return ", ".join(map(str, sites)) if len(sites) > 1 else self.site.label

    @property
    def restart_layer(self) -> int | None:
        """The block from whose output its forwards start; see `steerlab.steering.interventions.restart_layer`."""
        return restart_layer([self])

    @property
    def written_positions(self) -> str:
        """A name of the positions that are steered; an intervention's positions override those of the sweep."""
        places = dict.fromkeys(position_key(one.positions_or(self.positions)) for one in self.interventions)
        return " and ".join(places) or position_key(self.positions)

    @property
    def has_fixed_positions(self) -> bool:
        """Whether every intervention has positions itself, which a short prompt may not have."""
        return bool(self.interventions) and all(one.positions is not None for one in self.interventions)

    def label(self) -> dict[str, str | int | float]:
        """Its columns in the frame."""
        positions = describe(self.positions)
        return {"method": self.name, "layer": self.layer, "alpha": float(self.alpha), "positions": positions}


def make_settings(
    model: Model, steerer: Methods, examples: list[Example], *, layers: Layers | None, alphas: Sequence[float],
    positions: Sequence[Positions], scale: Scale, train: Train, batch_size: int,
) -> list[Setting]:  # fmt: skip
    """Every setting, ordered by positions, method, layer and strength; each steerer is fitted and called once.

    Raises:
        SteeringError: nothing to sweep over, a method that changes the prompt, or strengths that are not finite.
    """
    check_positions(positions, len(examples), SteeringError)
    if not positions:
        raise SteeringError("positions=[]: give at least one")
    steerers = _fit_steerers(model, methods_by_name(model, steerer), examples, layers, train, batch_size)
    if not steerers:
        raise SteeringError("there is no method to sweep: give a Steerer, a list of them or {name: Steerer}")
    if changing := [name for name, _, one in steerers if one.changes_prompt]:
        raise SteeringError(f"{changing[0]} changes the prompt, and a sweep does not: use generate or score")
    requests = [Request(one, scale=scale) for _, _, one in steerers]
    resolved = resolve_interventions(model, requests, examples, batch_size, once=False, check_alpha=False)
    found = [
        (name, site, one.interventions, _fitted_hash(fitted, one.interventions))
        for (name, site, fitted), one in zip(steerers, resolved, strict=True)
    ]
    for name, _, interventions, _ in found:
        for one, alpha in product(interventions, alphas):
            check_strengths(name, one, torch.tensor(alpha))
    settings = [
        Setting(name, interventions, float(alpha), where, site, fitted_hash)
        for where in positions
        for name, site, interventions, fitted_hash in found
        for alpha in alphas
    ]
    if len(positions) > 1 and (own := [one.name for one in settings if one.has_fixed_positions]):
        raise SteeringError(f"{own[0]} steers at positions of its own: give one of positions=, and sweep it by itself")
    return settings


def as_alphas(alphas: Iterable[float]) -> list[float]:
    """The strengths of a sweep as a list.

    Raises:
        SteeringError: none, or one that is no finite number. DataError: one is given twice.
    """
    if isinstance(alphas, str | bytes | Mapping) or not isinstance(alphas, Iterable):
        raise SteeringError(f"alphas={show(alphas)}: expected a list of finite strengths, [alpha] for one")
    items = alphas.tolist() if isinstance(alphas, Tensor) else alphas
    given = [as_number("an item of alphas", alpha, error=SteeringError) for alpha in items]
    if not given:
        raise SteeringError("alphas=[]: give at least one finite strength")
    if len(set(given)) < len(given):
        raise DataError(f"alphas={given}: one is given twice")
    return given


def _fitted_hash(steerer: Steerer, interventions: Sequence[Intervention]) -> str:
    """A hash of what a steerer learned and of its arguments, if its vectors are computed during the forward."""
    return content_fingerprint(steerer) if any(one.vector_fn is not None for one in interventions) else ""


def _as_method(model: Model, given: Any) -> Steerer | Fitted:
    if isinstance(given, Mapping) and any(isinstance(one, Steerer) for one in given.values()):
        return given
    return as_steerer(given, model.n_layers)


def methods_by_name(model: Model, steerer: Methods) -> dict[str, Steerer | Fitted]:
    """Methods by name.

    Raises:
        SteeringError: two of a list have the same name.
    """
    if isinstance(steerer, Mapping) and all(isinstance(name, str) for name in steerer):
        return {str(name): _as_method(model, one) for name, one in steerer.items()}
    listed = [as_steerer(one, model.n_layers) for one in (steerer if isinstance(steerer, list | tuple) else [steerer])]
    names = [one.name for one in listed]
    if len(set(names)) < len(names):
        raise SteeringError(f"the methods are called {names}: give a dict with a different name for each")
    return dict(zip(names, listed, strict=True))


def _fit_steerers(
    model: Model, methods: Mapping[str, Steerer | Fitted], examples: list[Example], layers: Layers | None, train: Train,
    batch_size: int,
) -> list[tuple[str, Site, Steerer]]:  # fmt: skip
    """Name, site and fitted steerer of every method at every layer."""
    ready: list[tuple[str, Site, Steerer]] = []
    to_fit: dict[str, Steerer] = {}
    for name, one in methods.items():
        if isinstance(one, Steerer) and _is_fitted_here(one, train):
            to_fit[name] = one
            continue
        if isinstance(one, SteeringVector) and layers is not None and len(getattr(one, "directions_", ())) > 1:
            one = {site: one.part(site) for site in one.directions}  # a sweep over layers takes each by itself
        if isinstance(one, Mapping):
            ready += [(name, site, fitted) for site, fitted in _at_layers(model, name, one, layers).items()]
        else:
            ready.append((name, _check_own_site(model, name, one, layers), one))
    for name, one in to_fit.items():
        sites = as_sites("all" if layers is None else layers, model)
        made = [one.with_layer(site.layer if site == Site(site.layer) else site) for site in sites]
        acts = _activations(model, made, examples if one.oracle else train, batch_size)
        if not one.oracle:
            _warn_of_overlap(name, acts, examples)
        ready += [(name, site, steerer.fit(acts)) for site, steerer in zip(sites, made, strict=True)]
    return ready


def _is_fitted_here(steerer: Steerer, train: Train) -> bool:
    """Whether the sweep fits a steerer: to `train`, or an oracle to the measured inputs, if it is not fitted already.

    A fitted oracle holds the vectors that its user wants, perhaps others than the inputs' own.
    """
    wanted = not getattr(steerer, "info_", None) if steerer.oracle else train is not None
    return wanted and steerer.is_fittable


def _at_layers(model: Model, name: str, given: Fitted, layers: Layers | None) -> dict[Site, Steerer]:
    """The steerers given for the layers of the sweep."""
    by_site = {model.site(layer): steerer for layer, steerer in given.items()}
    wanted = tuple(by_site) if layers is None else as_sites(layers, model)
    if missing := [str(site) for site in wanted if site not in by_site]:
        raise SteeringError(f"{name} was given for the layers {list(map(str, by_site))}; {missing} are missing")
    for site, steerer in by_site.items():
        if model.site(getattr(steerer, "site", site)) != site:
            raise SteeringError(f"what {name} was given for layer {site} steers at {steerer.site}: give its own layer")
    return {site: by_site[site] for site in wanted}


def _check_own_site(model: Model, name: str, steerer: Steerer, layers: Layers | None) -> Site:
    """The site of a fitted steerer, which must be the only one of the sweep."""
    site = getattr(steerer, "site", None)
    if site is None and layers is not None:
        raise SteeringError(f"{name} ({type(steerer).__name__}) has no single layer: give layers=None")
    own = Site(0) if site is None else model.site(site)
    if layers is not None and as_sites(layers, model) != (own,):
        way = "an unfitted one" if steerer.oracle else "train= (activations or examples)"
        raise SteeringError(
            f"{name} is fitted at layer {own}, but the sweep has layers={layers!r}: give {way} to fit one for each "
            "layer, or {layer: steerer}"
        )
    return own


def _activations(model: Model, steerers: Sequence[Steerer], train: Train, batch_size: int) -> Activations:
    """The training activations of the steerers of all layers, captured in one pass."""
    if isinstance(train, Activations):
        return train
    assert train is not None
    examples = as_examples(train)
    options = [steerer.capture_options(examples) for steerer in steerers]  # they differ in the layer only
    layers = sorted({site for one in options for site in as_sites(one["layers"], model)})
    return capture(model, examples, **options[0] | {"layers": layers, "batch_size": batch_size})


def _warn_of_overlap(name: str, acts: Activations, examples: Sequence[Example]) -> None:
    if both := set(acts.index["example_id"]) & {e.id for e in examples}:
        warnings.warn(
            f"{name} was fitted on {len(both)} of the {len(examples)} inputs it is measured on (first "
            f"{sorted(both)[:3]}): the results say little about new inputs",
            stacklevel=2,
        )
