"""The cells of a sweep: every method at every layer, fitted, with its shifts for every input."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from steerlab._support.errors import DataError, SteeringError
from steerlab.capture import Activations, capture
from steerlab.capture.rows import Layers, as_sites
from steerlab.data.example import Example
from steerlab.methods import Steerer
from steerlab.methods.base import Intervention, steering_sites
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe, position_key
from steerlab.models.sites import Site
from steerlab.steering.batched_settings import BatchedSetting
from steerlab.steering.interventions import Request, Scale, resolve_interventions

Fitted = Mapping[int | Site, Steerer]
Methods = Steerer | Sequence[Steerer] | Mapping[str, "Steerer | Fitted"]


@dataclass(frozen=True)
class Setting:
    """One setting: a method at a layer, a strength, and where it writes."""

    method: str
    site: Site
    alpha: float
    positions: Positions
    interventions: tuple[Intervention, ...]
    learned: str = ""  # of vectors that are computed in flight, which can't be compared themselves

    @property
    def layer(self) -> int | str:
        """What tables call the place: the layer's number, or the site where it is not a block's output."""
        return self.site.layer if str(self.site).isdigit() else str(self.site)

    @property
    def restart(self) -> int | None:
        """The deepest block whose output the cell leaves as it is without steering (its own may be edited); or None."""
        firsts = [
            s.site.layer - (s.site.point != "block_out") if s.site.part == "text" else -1 for s in self.interventions
        ]
        first = min(firsts, default=-1)
        return first if first >= 0 else None

    @property
    def written(self) -> str:
        """Where the cell really writes, in short: a method's own positions go before those that were asked for."""
        places = dict.fromkeys(position_key(one.positions_or(self.positions)) for one in self.interventions)
        return " and ".join(places) or position_key(self.positions)

    @property
    def clipped(self) -> bool:
        """Whether all it writes has places of its own, which a short prompt may not have."""
        return bool(self.interventions) and all(
            intervention.positions is not None for intervention in self.interventions
        )

    @property
    def vector_fn(self) -> bool:
        """Whether vectors are computed from the state at the last prompt token, inside the forward."""
        return any(intervention.vector_fn is not None for intervention in self.interventions)

    @property
    def packed(self) -> BatchedSetting:
        """The cell as rows of a batch."""
        return BatchedSetting(self.interventions, self.alpha, self.positions)

    def label(self) -> dict[str, str | int | float]:
        """Its columns in the frame."""
        return {
            "method": self.method, "layer": self.layer, "alpha": self.alpha, "positions": describe(self.positions),
        }  # fmt: skip


def make_settings(
    model: Model,
    steerer: Methods,
    examples: list[Example],
    *,
    layers: Layers | None,
    alphas: Sequence[float],
    positions: Sequence[Positions],
    scale: Scale,
    train: Activations | Sequence[Example] | None,
    batch_size: int,
) -> list[Setting]:
    """Every cell, ordered by positions, method, layer and strength; each steerer is fitted and asked once.

    Raises:
        SteeringError: nothing to sweep over, or strengths that are not finite or given twice.
    """
    _check_alphas(alphas)
    _check_positions(positions)
    steerers = fitted(model, named(steerer), examples, layers, train, batch_size)
    if not steerers:
        raise SteeringError("there is no method to sweep: give a Steerer, a list of them or {name: Steerer}")
    requests = [Request(one, alpha=1.0, scale=scale) for _, _, one in steerers]
    prepared = resolve_interventions(model, requests, examples, batch_size, once=False)
    return [
        Setting(name, site, float(alpha), position, tuple(interventions), _learnt(one, interventions))
        for position in positions
        for (name, site, one), (_, interventions) in zip(steerers, prepared, strict=True)
        for alpha in alphas
    ]


def _check_positions(positions: Sequence[Positions]) -> None:
    """Refuse positions that the frame could not tell apart."""
    named = [describe(p) for p in positions]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise SteeringError(
            f"the positions {twice} were given more than once; in the frame they would have one name. Give each once, "
            "and masks in sweeps of their own."
        )


def _learnt(steerer: Steerer, interventions: Sequence[Intervention]) -> str:
    """What a steerer has learned, in short, if its vectors come in flight: what was learned anew is another sweep."""
    if all(intervention.vector_fn is None for intervention in interventions):
        return ""
    # settings too: a dead zone changes what is done and not what was learned
    settings = {name: getattr(steerer, name, None) for name in inspect.signature(type(steerer)).parameters}
    total = hashlib.sha256(type(steerer).__name__.encode())
    for name, value in sorted({**settings, **steerer.state_dict()}.items()):
        told = value.float().cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        total.update(name.encode() + told)
    return total.hexdigest()[:16]


def named(steerer: Methods) -> dict[str, Steerer | Fitted]:
    """Methods by name.

    Raises:
        SteeringError: two of a list have the same name.
    """
    if isinstance(steerer, Steerer):
        return {steerer.name: steerer}
    if isinstance(steerer, Mapping):
        return dict(steerer)
    names = [one.name for one in steerer]
    if len(set(names)) < len(names):
        raise SteeringError(f"the methods are called {names}: give a dict with a name of its own for each")
    return dict(zip(names, steerer, strict=True))


def fitted(
    model: Model,
    methods: Mapping[str, Steerer | Fitted],
    examples: list[Example],
    layers: Layers | None,
    train: Activations | Sequence[Example] | None,
    batch_size: int,
) -> list[tuple[str, Site, Steerer]]:
    """Name, site and fitted steerer of every method at every layer."""
    ready: list[tuple[str, Site, Steerer]] = []
    learning: list[tuple[str, Steerer]] = []
    for name, one in methods.items():
        if isinstance(one, Mapping):
            wanted = None if layers is None else as_sites(layers, model)
            given = {model.site(layer): steerer for layer, steerer in one.items()}
            missing = [str(site) for site in wanted or () if site not in given]
            if missing:
                raise SteeringError(
                    f"{name} was given for the layers {list(map(str, given))}; {missing} are wanted too"
                )
            ready += [(name, site, given[site]) for site in wanted or given]
        elif train is None and not one.oracle:
            ready.append((name, _own_site(model, name, one, layers), one))
        else:
            learning.append((name, one))
    if not learning:
        return ready
    sites = as_sites("all" if layers is None else layers, model)
    for name, prototype in learning:
        made = [prototype.with_layer(_as_given(site)) for site in sites]
        acts = _activations(model, made, examples if prototype.oracle else train, batch_size)
        if not prototype.oracle:
            _check_apart(name, acts, examples)
        ready += [(name, site, steerer.fit(acts)) for site, steerer in zip(sites, made, strict=True)]
    return ready


def _as_given(site: Site) -> int | Site:
    return site.layer if str(site).isdigit() else site


def _own_site(model: Model, name: str, steerer: Steerer, layers: Layers | None) -> Site:
    site = getattr(steerer, "site", None)
    if site is None and layers is not None:
        raise SteeringError(f"{name} ({type(steerer).__name__}) has no layer of its own: give layers=None")
    own = Site(0) if site is None else model.site(site)
    if layers is not None and as_sites(layers, model) != (own,):
        raise SteeringError(
            f"{name} is fitted at layer {own}, but layers={layers!r} were asked for: give train= (activations or "
            "examples) to fit one for each layer, or {layer: steerer}"
        )
    return own


def _activations(
    model: Model, made: Sequence[Steerer], train: Activations | Sequence[Example] | None, batch_size: int
) -> Activations:
    """What the steerers of all layers are fitted to, in one pass."""
    if isinstance(train, Activations):
        return train
    assert train is not None
    required_activations = [read for steerer in made for read in steerer.required_activations]
    sites = sorted(
        {
            model.site(s)
            for s in [*(w for one in made for w in steering_sites(one)), *(read.site for read in required_activations)]
        }
    )
    context = sorted({read.position for read in required_activations}, key=str) or ["last"]
    return capture(model, train, layers=sites, context=context, batch_size=batch_size, progress=False)


def _check_apart(name: str, acts: Activations, examples: Sequence[Example]) -> None:
    both = set(acts.index["example_id"]) & {e.id for e in examples}
    if both:
        warnings.warn(
            f"{name} was fitted on {len(both)} of the {len(examples)} inputs it is measured on (first "
            f"{sorted(both)[:3]}): what is found there says little about new inputs",
            stacklevel=2,
        )


def _check_alphas(alphas: Sequence[float]) -> None:
    given = [float(alpha) for alpha in alphas]
    if not given or not all(map(math.isfinite, given)):
        raise SteeringError(f"alphas={given}: give at least one finite strength")
    if len(set(given)) < len(given):
        raise DataError(f"alphas={given}: one is given twice")
