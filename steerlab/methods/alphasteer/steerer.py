"""AlphaSteer: a steering vector that is a linear map of the input's state, zero on the space of benign inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods.alphasteer.detector import NullSpaceGate, fit_matrix, harmful_contrasts
from steerlab.methods.alphasteer.published import PUBLISHED_RATIOS, published_directions
from steerlab.methods.base import Context, Intervention, RequiredActivation, check_fitted, check_origin, check_width
from steerlab.methods.classes import check_contrasts_nonzero
from steerlab.methods.layers import Layer, Layers, MultiSiteSteerer
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

Rows = Float[Tensor, "batch hidden"]


@savable
class AlphaSteer(MultiSiteSteerer):
    """Steer harmful inputs towards refusal by a linear map of their state that is about zero on benign states.

    At each site the added vector is S h, where S is the ridge solution that sends harmful states to their targets,
    restricted to the null space of benign states. With one target r for all, S h = (w·h) r exactly: a learned gate
    times the mean contrast. The vector is computed once, from the last prompt token, and added to all prompt tokens;
    decoding steps are not steered. Positive alpha is towards the positive side of the contrasts (refusal).

    Example:
        >>> alpha = AlphaSteer([12, 14], harmful=["refuse"], benign=["answer"]).fit(acts)
        >>> steerlab.generate(model, prompts, steer=alpha, alpha=0.4)

    Args:
        layers: blocks whose outputs are read and steered, 0-based; or `Site`s; or one of them.
        harmful, benign: labels of the two classes.
        target: "mean": the mean contrast of the harmful inputs. "each": the contrast of each harmful input (S is
            then a full `(hidden, hidden)` matrix per site). Or a tensor `(site, hidden)`, one target per site.
        position: the position of the plain prompt where states are read.
        contrast_position: which captured contrast rows to use; None if there is only one kind.
        label: the index column that holds the labels.
        ratio: share of all directions taken as the null space; one, or one per site; None: chosen at each site by the
            rule of `NullSpaceGate` (by the scalar gate also for "each").
        ridge: penalty on the map; 10 in the release.
        leakage: the share of full strength that benign inputs may get without a warning.
        gates: "cumulative": the gate reads the state after lower sites were steered (the released code).
            "frozen": it reads the state of the unsteered input, so that sites do not interact.
        dead_zone: inputs whose |gate| is below this are not steered at all; 0 in the paper.

    Attributes:
        w_, r_: `(site, hidden)` float32: gates and vectors; not with "each".
        matrix_: `(site, hidden, hidden)` float32, with "each": h is sent to h @ matrix_[i].
        target_norm_: `(site,)`, with "each": mean norm of the targets; the gate is ‖S h‖ over it.
        ratio_, leakage_, held_out_leakage_: per site, as in `NullSpaceGate`, in shares of the target's norm; None
            if the gates were given.

    Raises:
        DataError: too few benign inputs, overlapping classes, harmful inputs without a contrast, contrasts or a target
            that are all zero, settings out of range.
        MismatchError: targets of another width.
        SteeringError: `vectors` of several sites, or the gate of a site that is not steered.

    Source: AlphaSteer, arXiv 2506.07022 (Δ = Δ̃ P, closed form, added as λ Δ h); the released code for the sites,
        the positions and the ridge. "frozen" gates and the dead zone are not in the paper.
    """

    default_positions: Positions = "prompt"
    gates_by_length = True
    w_: Tensor
    r_: Tensor
    matrix_: Tensor
    target_norm_: Tensor
    ratio_: tuple[float | None, ...]
    leakage_: tuple[float | None, ...]
    held_out_leakage_: tuple[float | None, ...]

    contrast_argument = "contrast_position"

    def __init__(
        self, layers: Layers, *, harmful: Sequence[str] = ("refuse",), benign: Sequence[str] = ("answer",),
        target: str | Tensor = "mean", position: str | int = "last", contrast_position: str | None = None,
        label: str = "behavior", ratio: float | Sequence[float] | None = None, ridge: float = 10.0,
        leakage: float = 0.05, gates: str = "cumulative", dead_zone: float = 0.0,
    ) -> None:  # fmt: skip
        self._set_layers(layers)
        self.harmful, self.benign, self.target = harmful, benign, target
        self.position, self.contrast_position, self.label = position, contrast_position, label
        self.ratio, self.ridge, self.leakage, self.gates, self.dead_zone = ratio, ridge, leakage, gates, dead_zone

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """With frozen gates, one state of the plain prompt per site; else none."""
        return self._states if self.gates == "frozen" else ()

    @property
    def _states(self) -> tuple[RequiredActivation, ...]:
        return tuple(RequiredActivation(site, self.position) for site in self.sites)

    def fit_activations(self, acts: Activations) -> None:
        """Learn the map of every site, each from unsteered states."""
        self._check_settings()
        fits = [self._fit_site(acts, i) for i in range(len(self.sites))]
        for name in fits[0]:
            values = [fit[name] for fit in fits]
            setattr(self, name, torch.stack(values).float() if isinstance(values[0], Tensor) else tuple(values))

    @classmethod
    def from_gates(
        cls, layers: Layers, w: Float[Tensor, "site hidden"], r: Float[Tensor, "site hidden"], **options: Any
    ) -> AlphaSteer:
        """A steerer from existing gates and vectors, one row per site; `options` are the constructor's.

        Raises:
            DataError: not one finite row of each per site.
        """
        made = cls(layers, **options)
        made._check_settings()
        for name, given in (("w", w), ("r", r)):
            if given.shape != (len(made.sites), w.shape[-1]) or not bool(torch.isfinite(given).all()):
                shape, n = tuple(given.shape), len(made.sites)
                raise DataError(f"{name} has shape {shape}, or holds NaN; expected a finite row for each of {n} sites")
            setattr(made, f"{name}_", given.detach().to("cpu", torch.float32, copy=True))
        made.ratio_ = made.leakage_ = made.held_out_leakage_ = (None,) * len(made.sites)
        made.info_ = {"hidden_size": w.shape[1]}
        return made

    @classmethod
    def from_published(
        cls, path: str | Path, name: str, *, layers: Sequence[int] | None = None, convention: str = "released",
        ratio: str | float | Sequence[float] | None = "published", **options: Any,
    ) -> AlphaSteer:  # fmt: skip
        """An unfitted steerer with the published refusal directions as targets, and the published layers and ratios.

        Example:
            >>> alpha = AlphaSteer.from_published("refusal_vectors_all_layers.safetensors", "llama3.1").fit(acts)

        Args:
            path, name, convention: as in `published_directions`; `name` is one of `PUBLISHED_RATIOS`.
            layers: None: the layers steered in the release.
            ratio: "published", or as in the constructor.
            options: the constructor's.

        Raises:
            DataError: unknown name, or no published ratio for a layer; else as `published_directions`.
        """
        if name not in PUBLISHED_RATIOS:
            raise DataError(f"no setup was published for {name!r}; there are {list(PUBLISHED_RATIOS)}")
        ratios = PUBLISHED_RATIOS[name]
        layers = list(ratios) if layers is None else layers
        found = published_directions(path, name, layers=layers, convention=convention)
        if ratio == "published":
            if missing := [k for k in layers if k not in ratios]:
                raise DataError(f"no ratio was published for the layers {missing} of {name}: give ratio=..., or None")
            ratio = tuple(ratios[k] for k in layers)
        return cls(found.sites, target=found.vectors, ratio=ratio, **options)  # type: ignore[arg-type]

    def gate(self, layer: Layer, h: Rows) -> Float[Tensor, " batch"]:
        """The gate of some states at one site, dead zone included: the share of the vector that they get.

        Raises:
            SteeringError: no such site, or no scalar gate, which is the case with "each".
        """
        return gate_and_vectors(h, **self._scalar_gate(layer))[0]

    def detector(self, layer: Layer) -> NullSpaceGate:
        """The gate of one site as a detector, without its dead zone.

        Raises:
            SteeringError: no such site, or no scalar gate, which is the case with "each".
        """
        self._scalar_gate(layer)
        i = self._index(layer)
        made = self._unfitted_gate(i)
        made.w_, made.info_ = self.w_[i].clone(), dict(self.info_)
        made.ratio_, made.leakage_, made.held_out_leakage_ = self.ratio_[i], self.leakage_[i], self.held_out_leakage_[i]
        return made

    def vectors(self, context: Context) -> Rows:
        """The vector added to each input by a steerer with one site, from the captured state."""
        self._check_one_site()
        check_origin(self, context)
        return steering_vectors(context.get_states(self._states[0]), **self._map(0))

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """One intervention per site: a function of the state in the forward; with frozen gates, a vector and a gate."""
        maps = [self._map(i) for i in range(len(self.sites))]
        if self.gates == "cumulative":
            pairs = zip(self.sites, maps, strict=True)
            return tuple(Intervention(site, vector_fn=partial(steering_vectors, **one)) for site, one in pairs)
        check_origin(self, context)
        found = [gate_and_vectors(context.get_states(at), **one) for at, one in zip(self._states, maps, strict=True)]
        return tuple(Intervention(site, v, gate=g) for site, (g, v) in zip(self.sites, found, strict=True))

    def with_layer(self, layer: Layer) -> AlphaSteer:
        """An unfitted steerer with the same settings for one layer.

        Raises:
            SteeringError: ratios or targets are given per site, and there is none for this one.
        """
        made = super().with_layer(layer)
        assert isinstance(made, AlphaSteer)
        if isinstance(self.ratio, Sequence):
            made.ratio = self.ratio[self._index(layer)]
        if isinstance(self.target, Tensor):
            made.target = self.target[self._index(layer)][None]
        return made

    def state_dict(self) -> dict[str, Any]:
        """The learned values.

        Raises:
            ActivationError: not fitted.
        """
        check_fitted(self, self._fitted_name)
        return super().state_dict()

    @property
    def _fitted_name(self) -> str:
        return "matrix_" if isinstance(self.target, str) and self.target == "each" else "w_"

    @property
    def _ratios(self) -> tuple[float | None, ...]:
        return tuple(self.ratio) if isinstance(self.ratio, Sequence) else (self.ratio,) * len(self.sites)

    def _index(self, layer: Layer) -> int:
        site = Site.of(layer)
        if site not in self.sites:
            raise SteeringError(f"this AlphaSteer steers the sites {', '.join(map(str, self.sites))}, not {site}")
        return self.sites.index(site)

    def _unfitted_gate(self, i: int) -> NullSpaceGate:
        return NullSpaceGate(
            self.sites[i], harmful=self.harmful, benign=self.benign, position=self.position, label=self.label,
            ratio=self._ratios[i], ridge=self.ridge, leakage=self.leakage,
        )  # fmt: skip

    def _fit_site(self, acts: Activations, i: int) -> dict[str, Any]:
        """The learned values of one site, by attribute."""
        gate = self._unfitted_gate(i)
        if isinstance(self.target, str):
            if self.target == "each":
                return fit_matrix(gate, acts, self.contrast_position)
            _, contrasts = harmful_contrasts(gate, acts, self.contrast_position)
            check_contrasts_nonzero(contrasts, gate.site, acts)
            target = contrasts.double().mean(0).float()
        else:
            target = self.target[i].detach().to("cpu", torch.float32, copy=True)
            if len(target) != acts.hidden_size:
                widths = f"width {len(target)}, the activations {acts.hidden_size}"
                raise MismatchError(f"the target of site {gate.site} has {widths}: take both from the same model")
        return {**gate.fit(acts).state_dict(), "r_": target}

    def _map(self, i: int) -> dict[str, Any]:
        """The learned map of one site, as the arguments of `gate_and_vectors`."""
        check_fitted(self, self._fitted_name)
        w, target = (self.w_, self.r_) if self._fitted_name == "w_" else (self.matrix_, self.target_norm_)
        return {"w": w[i], "target": target[i], "dead_zone": self.dead_zone}

    def _scalar_gate(self, layer: Layer) -> dict[str, Any]:
        i = self._index(layer)
        if self._fitted_name == "matrix_":
            raise SteeringError("target='each' learns a matrix and no single gate: use 'mean', or a NullSpaceGate")
        return self._map(i)

    def _check_settings(self) -> None:
        if self.gates not in ("cumulative", "frozen"):
            raise DataError(f"gates={self.gates!r}; expected 'cumulative' or 'frozen'")
        if self.gates == "cumulative" and self.position != "last":
            reason = "cumulative gates read the last prompt token, so they must be learned there"
            raise DataError(f"position={self.position!r}: {reason}. Use position='last', or gates='frozen'")
        if len(self._ratios) != len(self.sites):
            raise DataError(f"{len(self._ratios)} ratios for {len(self.sites)} sites: give one for each or one for all")
        if not (isfinite(self.dead_zone) and self.dead_zone >= 0):
            raise DataError(f"dead_zone={self.dead_zone}: give the |gate| below which nothing is added, 0 for none")
        if isinstance(self.target, str):
            if self.target not in ("mean", "each"):
                raise DataError(f"target={self.target!r}; expected 'mean', 'each' or a tensor with a row for each site")
        elif self.target.ndim != 2 or len(self.target) != len(self.sites):
            shape = tuple(self.target.shape)
            raise DataError(f"the target has shape {shape}, expected ({len(self.sites)}, hidden): a row for each site")
        elif not bool(torch.isfinite(self.target).all() and self.target.any(dim=1).all()):
            raise DataError("a row of the target holds NaN or infinity, or is all zero: there is nothing to steer with")


def gate_and_vectors(h: Rows, w: Tensor, target: Tensor, dead_zone: float) -> tuple[Float[Tensor, " batch"], Rows]:
    """Gates and vectors of some states; a plain function, so that it can be sent to a server.

    Args:
        h: states.
        w: `(hidden,)` the gate's direction, or `(hidden, hidden)` the full map.
        target: the refusal vector; with the full map, its norm.
        dead_zone: gates below it are 0.
    """
    w, target = w.to(h.device), target.to(h.device)
    mapped = check_width(h, len(w), "this AlphaSteer") @ w
    if w.ndim == 2:
        gate = mapped.norm(dim=-1) / target
        vectors = torch.where(gate[:, None] > 0, mapped / gate[:, None], 0.0)
    else:
        gate, vectors = mapped, target.expand(len(h), -1)
    return torch.where(gate.abs() < dead_zone, 0.0, gate), vectors


def steering_vectors(h: Rows, w: Tensor, target: Tensor, dead_zone: float) -> Rows:
    """The vectors added to some states: gate times vector."""
    gate, vectors = gate_and_vectors(h, w, target, dead_zone)
    return gate[:, None] * vectors
