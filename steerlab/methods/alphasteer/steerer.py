"""AlphaSteer: steer by what the state itself holds outside the space of benign inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods.alphasteer.detector import NullSpaceGate
from steerlab.methods.alphasteer.fit import (
    SiteMap,
    check_settings,
    describe_sites,
    given_targets,
    learn_gate,
    learn_matrix,
    mean_target,
)
from steerlab.methods.alphasteer.published import PUBLISHED_RATIOS, published_directions
from steerlab.methods.base import (
    Context,
    Intervention,
    RequiredActivation,
    Steerer,
    check_fitted,
    check_width,
    provenance,
)
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

Rows = Float[Tensor, "batch hidden"]


@savable
class AlphaSteer(Steerer):
    """Steer harmful inputs towards refusal by a map of their own state that sends benign states to about zero.

    At each site the added vector is S h, where S is the ridge solution that sends harmful states to their targets
    and lives in the null space of benign states. With one target r for all, S h = (w·h) r exactly: a learned gate
    times the mean contrast. The vector is computed once, from the last prompt token, and added to all of the prompt;
    decoding steps are left alone. Positive alpha is towards the positive side of the contrasts (refusal).

    Example:
        >>> alpha = AlphaSteer([12, 14], harmful=["refuse"], benign=["answer"]).fit(acts)
        >>> steerlab.generate(model, prompts, steer=alpha, alpha=0.4)

    Args:
        layers: blocks whose outputs are read and steered, 0-based; or `Site`s; or one of them.
        harmful, benign: labels of the two classes.
        target: "mean": the mean contrast of the harmful inputs. "each": every harmful input's own contrast (S is
            then a full `(hidden, hidden)` matrix per site). Or a tensor `(site, hidden)`, one target per site.
        position: where the states are read of the plain prompt.
        contrast_position: which captured contrast rows to use; None where there is only one kind.
        label: the index column that holds the labels.
        ratio: share of all directions taken as the null space; one, or one per site; None: chosen at each site, by
            the rule of `NullSpaceGate`, and by the scalar gate also for "each".
        ridge: penalty on the map; 10 in the release.
        leakage: the share of full strength that benign inputs may get: more is warned of.
        gates: "cumulative": the state is the one met, after lower steered sites have written (the reference).
            "frozen": that of the unsteered input, so that sites can't feed back on one another (own).
        dead_zone: inputs with a gate below this, either way, are not steered at all; 0 is the paper (own).

    Attributes:
        w_, r_: `(site, hidden)` float32: gates and vectors; not with "each".
        matrix_: `(site, hidden, hidden)` float32, with "each": h is sent to h @ matrix_[i].
        target_norm_: `(site,)`, with "each": mean norm of the targets; the gate is ‖S h‖ over it.
        ratio_, leakage_, held_out_leakage_: per site, as of `NullSpaceGate`, in shares of the target's norm; None
            where gates were given.

    Raises:
        DataError: too few benign inputs, overlapping classes, harmful inputs without a contrast, contrasts or a target
            that are all zero, settings outside their range.
        MismatchError: targets of another width.
        SteeringError: `vectors` of several sites, or the gate of a site that is not steered.

    Source: AlphaSteer, arXiv 2506.07022 (Δ = Δ̃ P, closed form, added as λ Δ h); the released code for the sites,
        the positions and the ridge.
    """

    default_positions: Positions = "prompt"
    w_: Tensor
    r_: Tensor
    matrix_: Tensor
    target_norm_: Tensor
    ratio_: tuple[float | None, ...]
    leakage_: tuple[float | None, ...]
    held_out_leakage_: tuple[float | None, ...]

    def __init__(
        self, layers: int | Site | Sequence[int | Site], *, harmful: Sequence[str] = ("refuse",),
        benign: Sequence[str] = ("answer",), target: str | Tensor = "mean", position: str | int = "last",
        contrast_position: str | None = None, label: str = "behavior", ratio: float | Sequence[float] | None = None,
        ridge: float = 10.0, leakage: float = 0.05, gates: str = "cumulative", dead_zone: float = 0.0,
    ) -> None:  # fmt: skip
        self.layers, self.harmful, self.benign, self.target = layers, harmful, benign, target
        self.position, self.contrast_position, self.label = position, contrast_position, label
        self.ratio, self.ridge, self.leakage, self.gates, self.dead_zone = ratio, ridge, leakage, gates, dead_zone
        given = [layers] if isinstance(layers, int | Site) else layers
        self.sites = tuple(map(Site.of, given))
        if len(self.sites) == 1:
            self.site = self.sites[0]

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """With frozen gates, one state of the plain prompt per site; else states are met on the way."""
        return self._states if self.gates == "frozen" else ()

    @property
    def _states(self) -> tuple[RequiredActivation, ...]:
        return tuple(RequiredActivation(site, self.position) for site in self.sites)

    def fit(self, acts: Activations) -> AlphaSteer:
        """Learn the map of every site, each from unsteered states."""
        self._check()
        found = [self._learn(acts, i) for i in range(len(self.sites))]
        for name in found[0].learned:
            setattr(self, f"{name}_", torch.stack([one.learned[name].float() for one in found]))
        self.ratio_ = tuple(one.ratio for one in found)
        self.leakage_ = tuple(one.leakage for one in found)
        self.held_out_leakage_ = tuple(one.held_out_leakage for one in found)
        self.info_ = provenance(acts)
        return self

    @classmethod
    def from_gates(
        cls, layers: int | Site | Sequence[int | Site], w: Float[Tensor, "site hidden"],
        r: Float[Tensor, "site hidden"], **options: Any,
    ) -> AlphaSteer:  # fmt: skip
        """A steerer from gates and vectors made elsewhere, a row per site; `options` are the constructor's.

        Raises:
            DataError: not one finite row of each per site.
        """
        made = cls(layers, **options)
        made._check()
        for name, given in (("w", w), ("r", r)):
            if given.shape != (len(made.sites), w.shape[-1]) or not bool(torch.isfinite(given).all()):
                shape = tuple(given.shape)
                raise DataError(f"{name} has shape {shape}, or holds NaN; expected a finite row each for {made._told}")
        made.w_, made.r_ = (given.detach().to("cpu", torch.float32, copy=True) for given in (w, r))
        made.ratio_ = made.leakage_ = made.held_out_leakage_ = (None,) * len(made.sites)
        made.info_ = {"hidden_size": w.shape[1]}
        return made

    @classmethod
    def from_published(
        cls, path: str | Path, name: str, *, layers: Sequence[int] | None = None, convention: str = "released",
        ratio: str | float | Sequence[float] | None = "published", **options: Any,
    ) -> AlphaSteer:  # fmt: skip
        """An unfitted steerer with a published setup: the refusal directions as targets, the layers, the ratios.

        Example:
            >>> alpha = AlphaSteer.from_published("refusal_vectors_all_layers.safetensors", "llama3.1").fit(acts)

        Args:
            path, name, convention: as of `published_directions`; `name` is one of `PUBLISHED_RATIOS`.
            layers: None: those steered in the release.
            ratio: "published", or as of the constructor.
            options: the constructor's.

        Raises:
            DataError: unknown name, or no published ratio for a layer; else as `published_directions`.
        """
        if name not in PUBLISHED_RATIOS:
            raise DataError(f"no setup was published for {name!r}; there are {list(PUBLISHED_RATIOS)}")
        table = PUBLISHED_RATIOS[name]
        found = published_directions(
            path, name, layers=list(table) if layers is None else layers, convention=convention
        )
        if ratio == "published":
            bare = [k for k in found.layers if k not in table]
            if bare:
                raise DataError(f"no ratio was published for the layers {bare} of {name}: give ratio=..., or None")
            ratio = tuple(table[k] for k in found.layers)
        return cls(found.sites, target=found.vectors, ratio=ratio, **options)  # type: ignore[arg-type]

    def gate(self, layer: int | Site, h: Rows) -> Float[Tensor, " batch"]:
        """The gate of some states at one steered site: which share of the vector they would get, dead zone included.

        Raises:
            SteeringError: no such site, or no such gate, which is with "each".
        """
        i = self._row(layer)
        self._check_rank_one()
        return self._gated(i, h)[0]

    def detector(self, layer: int | Site) -> NullSpaceGate:
        """The gate of one steered site as a detector, to gate anything else with; it has no dead zone.

        Raises:
            SteeringError: no such site, or no such gate, which is with "each".
        """
        i = self._row(layer)
        self._check_rank_one()
        made = self._gate_of(i)
        made.w_, made.ratio_ = self.w_[i].clone(), self.ratio_[i]
        made.leakage_, made.held_out_leakage_ = self.leakage_[i], self.held_out_leakage_[i]
        made.info_ = dict(self.info_)
        return made

    def vectors(self, context: Context) -> Rows:
        """What is added to each input by a steerer with one site, from its captured state."""
        if len(self.sites) != 1:
            raise SteeringError(f"AlphaSteer steers {self._told}: ask for its shifts, or for one site with at(layer)")
        gate, vectors = self._gated(0, context.get_states(self._states[0]))
        return gate[:, None] * vectors

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """One shift per site: a function of the state met there, or with frozen gates a vector and its gate."""
        check_fitted(self, self._fitted)
        if self.gates == "frozen":
            found = [self._gated(i, context.get_states(read)) for i, read in enumerate(self._states)]
            return tuple(Intervention(site, v, gate=g) for site, (g, v) in zip(self.sites, found, strict=True))
        return tuple(Intervention(site, vector_fn=partial(met, **self._at(i))) for i, site in enumerate(self.sites))

    def with_layer(self, layer: int | Site) -> AlphaSteer:
        """A steerer with the same settings for one layer, not fitted.

        Raises:
            SteeringError: ratios or targets are given by site, and there is none for this one.
        """
        site = Site.of(layer)
        options = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name != "layers"}
        if isinstance(self.ratio, Sequence):
            options["ratio"] = self._ratios[self._row(site)]
        if isinstance(self.target, Tensor):
            i = self._row(site)
            options["target"] = self.target[i : i + 1]
        return type(self)(layer, **options)

    def state_dict(self) -> dict[str, Any]:
        """What was learned.

        Raises:
            ActivationError: nothing yet.
        """
        check_fitted(self, self._fitted)
        return super().state_dict()

    @property
    def _fitted(self) -> str:
        return "matrix_" if isinstance(self.target, str) and self.target == "each" else "w_"

    @property
    def _told(self) -> str:
        return describe_sites(self.sites)

    @property
    def _ratios(self) -> tuple[float | None, ...]:
        return tuple(self.ratio) if isinstance(self.ratio, Sequence) else (self.ratio,) * len(self.sites)

    def _row(self, layer: int | Site) -> int:
        site = Site.of(layer)
        if site not in self.sites:
            raise SteeringError(f"this AlphaSteer steers {self._told}, not {site}")
        return self.sites.index(site)

    def _gate_of(self, i: int) -> NullSpaceGate:
        return NullSpaceGate(
            self.sites[i], harmful=self.harmful, benign=self.benign, position=self.position, label=self.label,
            ratio=self._ratios[i], ridge=self.ridge, leakage=self.leakage,
        )  # fmt: skip

    def _learn(self, acts: Activations, i: int) -> SiteMap:
        gate = self._gate_of(i)
        if isinstance(self.target, Tensor):
            return learn_gate(gate, acts, given_targets(self.target, self.sites)[i])
        if self.target == "each":
            return learn_matrix(gate, acts, self.contrast_position)
        return learn_gate(gate, acts, mean_target(gate, acts, self.contrast_position))

    def _gated(self, i: int, h: Rows) -> tuple[Float[Tensor, " batch"], Rows]:
        """Gate and vector of some states at site i; what is added is their product."""
        return gated(h, **self._at(i))

    def _at(self, i: int) -> dict[str, Any]:
        """What was learned for site i, as `gated` takes it."""
        check_fitted(self, self._fitted)
        learned, whole = getattr(self, self._fitted)[i], self._fitted == "matrix_"
        other = self.target_norm_[i] if whole else self.r_[i]
        return {"learned": learned, "target": other, "dead_zone": self.dead_zone}

    def _check_rank_one(self) -> None:
        if self._fitted == "matrix_":
            raise SteeringError(
                "with target='each' the state goes through a matrix, and no single gate scales a vector: fit with "
                "target='mean', or a NullSpaceGate of its own"
            )
        check_fitted(self, "w_")

    def _check(self) -> None:
        check_settings(self.sites, self._ratios, self.target, self.position, self.gates, self.dead_zone)


def gated(h: Rows, learned: Tensor, target: Tensor, dead_zone: float) -> tuple[Float[Tensor, " batch"], Rows]:
    """Gate and vector of some states; plain, with all it needs given, so that it can be sent to a server.

    Args:
        h: states.
        learned: `(hidden,)` the gate's direction, or `(hidden, hidden)` the whole map.
        target: the refusal vector, or with the whole map the norm of one.
        dead_zone: gates below it are 0.
    """
    learned, target = learned.to(h.device), target.to(h.device)
    moved = check_width(h, len(learned), "this AlphaSteer") @ learned
    if learned.ndim == 2:
        gate = moved.norm(dim=-1) / target
        vectors = torch.where(gate[:, None] > 0, moved / gate[:, None], 0.0)
    else:
        gate, vectors = moved, target.expand(len(h), -1)
    return torch.where(gate.abs() < dead_zone, 0.0, gate), vectors


def met(h: Rows, learned: Tensor, target: Tensor, dead_zone: float) -> Rows:
    """What is added to some states: gate times vector."""
    gate, vectors = gated(h, learned, target, dead_zone)
    return gate[:, None] * vectors
