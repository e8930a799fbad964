"""`SteeringVector`: one vector per layer, the same for every input, and the base of the methods that fit one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerlab._support.checks import as_number, check_type, show
from steerlab._support.display import notebook_html
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted, repeat_vector
from steerlab.methods.layers import Layer, MultiSiteSteerer, unique_sites
from steerlab.methods.serialization import savable
from steerlab.models.fingerprint import describe_origin, same_model
from steerlab.models.sites import Site

# vectors in the place of a steerer: by layer or `Site`, or a row for each layer of the model
Vectors = Mapping[Any, Any] | Tensor | NDArray[Any]


@savable
class SteeringVector(MultiSiteSteerer):
    """A vector for each of some layers, added to every input: made by hand, or fitted (`MeanDifference`, `PCA`, ...).

    Vectors can be added, subtracted, and multiplied by numbers; a layer that one of two vectors does not have counts as
    zero there.

    Example:
        >>> vector = SteeringVector({15: torch.randn(576)})
        >>> texts = steerlab.generate(model, prompts, steer=2 * vector.unit())
        >>> polite = steerlab.MeanDifference([14, 15]).fit(model, pairs)
        >>> mix = 0.5 * polite - vector
        >>> mix.at(15).shape, mix.norm, polite.cosine(mix)

    Args:
        directions: the vector, `(hidden,)`, of each layer (0-based; its block's output) or `Site`, in units of the
            residual stream.

    Attributes:
        directions_: the vectors by site, float32, on the CPU.

    Raises:
        DataError: no layer, or one that is no whole number; a vector that is no tensor or array of one row, is empty,
            or holds NaN or infinity; vectors of several widths.
        MismatchError: two vectors that are combined have other widths, or were fitted on other models.

    Source: arXiv 2308.10248 (activation addition).
    """

    directions_: dict[Site, Tensor]
    is_fittable = False
    __array_ufunc__ = None  # so that NumPy's numbers multiply a vector as Python's do

    def __init__(self, directions: Mapping[Any, Any]) -> None:
        check_type("a steering vector", directions, Mapping, "vectors by layer, such as {15: tensor}")
        named = zip(unique_sites(tuple(directions)), directions.values(), strict=True)
        self._set_directions({site: _as_vector(site, vector) for site, vector in named})
        widths = sorted({len(vector) for vector in self.directions_.values()})
        if len(widths) > 1:
            raise DataError(f"the vectors have the widths {widths}: vectors of one model have the same")
        self.info_ = {"hidden_size": widths[0]}

    def fit_activations(self, acts: Activations) -> None:
        """Not available: a vector made by hand is not fitted.

        Raises:
            SteeringError: always.
        """
        raise SteeringError("a SteeringVector has its values already: fit MeanDifference, PCA or LogisticDirection")

    def at(self, layer: Layer) -> Float[Tensor, " hidden"]:
        """The vector at one layer.

        Raises:
            SteeringError: there is none.
        """
        check_fitted(self, "directions_")
        if Site.of(layer) not in self.directions_:
            raise SteeringError(f"there is no vector at layer {layer}, only at {', '.join(map(str, self.directions_))}")
        return self.directions_[Site.of(layer)]

    def part(self, layer: Layer) -> SteeringVector:
        """The vector at one layer, as a `SteeringVector`."""
        return self._with({Site.of(layer): self.at(layer)})

    def moved_to(self, layer: Layer) -> SteeringVector:
        """The vector of the only layer, at another layer, with the same operator.

        Example:
            >>> MeanDifference(16).fit(acts).moved_to(12).sites
            (Site(layer=12),)
        """
        return self._with({Site.of(layer): self.vector_})

    @property
    def vector_(self) -> Float[Tensor, " hidden"]:
        """The vector of the only layer."""
        check_fitted(self, "directions_")
        self._check_one_site()
        return self.at(self.sites[0])

    @property
    def norm(self) -> float | pd.Series:
        """The norm of the vector; for several layers, one number each."""
        check_fitted(self, "directions_")
        return self._by_layer({site: float(vector.double().norm()) for site, vector in self.directions_.items()})

    def __repr__(self) -> str:
        if not hasattr(self, "directions_"):
            return super().__repr__()
        numbers = [float(vector.double().norm()) for vector in self.directions_.values()]
        norms = f"norm {numbers[0]:.3g}" if len(numbers) == 1 else f"norms {min(numbers):.3g} to {max(numbers):.3g}"
        layers, name = ", ".join(map(str, self.directions_)), type(self).__name__
        width = len(next(iter(self.directions_.values())))
        return f"{name}(layer {layers}; {width} wide, {norms}; {self._origin})"

    def _repr_html_(self) -> str:
        norms = {str(site): float(vector.double().norm()) for site, vector in getattr(self, "directions_", {}).items()}
        return notebook_html(self, pd.DataFrame({"layer": list(norms), "norm": list(norms.values())}), 60)

    def unit(self) -> SteeringVector:
        """The vectors with norm 1.

        Raises:
            SteeringError: one is zero and has no direction.
        """
        check_fitted(self, "directions_")
        if zero := [str(site) for site, vector in self.directions_.items() if not bool(vector.any())]:
            raise SteeringError(f"the vector at layer {', '.join(zero)} is zero: it has no direction")
        return self._with({site: (v.double() / v.double().norm()).float() for site, v in self.directions_.items()})

    def cosine(self, other: SteeringVector) -> float | pd.Series:
        """The cosine of the angle to another vector; for several layers, one number each. NaN where one is zero.

        Raises:
            SteeringError: the vectors are of other layers. MismatchError: of another width or model.
        """
        self._check_combines(other)
        if set(other.directions_) != set(self.directions_):
            raise SteeringError(
                f"the vectors are of other layers: {', '.join(map(str, self.directions_))} and "
                f"{', '.join(map(str, other.directions_))}"
            )
        pairs = {site: (v.double(), other.at(site).double()) for site, v in self.directions_.items()}
        return self._by_layer({site: float(a @ b / (a.norm() * b.norm())) for site, (a, b) in pairs.items()})

    def __mul__(self, factor: float | Real) -> SteeringVector:
        if isinstance(factor, SteeringVector | Tensor):
            return NotImplemented
        number = as_number("the factor of a vector", factor)
        check_fitted(self, "directions_")
        return self._with({site: number * vector for site, vector in self.directions_.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Real) -> SteeringVector:
        number = as_number("the divisor of a vector", divisor)
        if number == 0:
            raise DataError("a vector was divided by 0")
        return self * (1 / number)

    def __neg__(self) -> SteeringVector:
        return self * -1

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return self._combined(other, torch.add)

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self._combined(other, torch.sub)

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The same vector for every input; only of one layer.

        Raises:
            SteeringError: several layers. MismatchError: the activations of the inputs have another width.
        """
        vector, acts = self.vector_, context.activations
        if acts is not None and acts.hidden_size != len(vector):
            raise MismatchError(f"the vector has width {len(vector)}, the activations {acts.hidden_size}")
        return repeat_vector(vector, context.example_ids)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """The vector of each layer."""
        check_fitted(self, "directions_")
        if len(self.sites) == 1:
            return (Intervention(self.site, self.vectors(context)),)
        return tuple(
            Intervention(site, repeat_vector(vector, context.example_ids)) for site, vector in self.directions_.items()
        )

    def state_dict(self) -> dict[str, Any]:
        """The fitted vectors; those of a vector made by hand are its argument."""
        return super().state_dict() if self.is_fittable else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the fitted vectors, if they are not the argument."""
        if state:
            self._set_directions(state["directions_"])

    def with_layer(self, layer: Layer) -> Steerer:
        """An unfitted steerer with the same settings for one layer; of a vector made by hand, its part there."""
        return super().with_layer(layer) if self.is_fittable else self.part(layer)

    @property
    def directions(self) -> dict[Site, Tensor]:
        """The vectors by site."""
        check_fitted(self, "directions_")
        return dict(self.directions_)

    def _set_directions(self, directions: dict[Site, Tensor]) -> None:
        self.directions_ = directions
        self.sites = tuple(directions)
        vars(self).pop("site", None)  # of an earlier fit
        if len(directions) == 1:
            self.site = self.sites[0]

    def _with(self, directions: Mapping[Site, Tensor]) -> SteeringVector:
        """Other vectors of the same origin."""
        made = SteeringVector(directions)
        made.info_ = dict(getattr(self, "info_", made.info_))
        return made

    def _by_layer(self, numbers: Mapping[Site, float]) -> float | pd.Series:
        if len(numbers) == 1:
            return next(iter(numbers.values()))
        return pd.Series(list(numbers.values()), pd.Index([site.label for site in numbers], name="layer"))

    def _combined(self, other: SteeringVector, function: Callable[[Tensor, Tensor], Tensor]) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        if type(other)._combined is not SteeringVector._combined:  # more than its vector: it refuses
            return other._combined(self, function)
        self._check_combines(other)
        sites = sorted({*self.directions_, *other.directions_})
        zero = torch.zeros_like(next(iter(self.directions_.values())))
        mine, theirs = self.directions_, other.directions_
        made = SteeringVector({site: function(mine.get(site, zero), theirs.get(site, zero)) for site in sites})
        made.info_ = _shared_origin(self.info_, other.info_)
        return made

    def __radd__(self, other: int) -> SteeringVector:
        """What `sum` begins with is 0."""
        return self._with(self.directions) if isinstance(other, int) and other == 0 else NotImplemented

    def _check_combines(self, other: SteeringVector) -> None:
        check_type("the other vector", other, SteeringVector, "a SteeringVector", SteeringError)
        for one in (self, other):
            check_fitted(one, "directions_")
        widths = [len(next(iter(one.directions_.values()))) for one in (self, other)]
        if widths[0] != widths[1]:
            raise MismatchError(f"the vectors are {widths[0]} and {widths[1]} wide: they are of two models")
        if all("model" in one.info_ for one in (self, other)) and not same_model(self.info_, other.info_):
            origins = f"{describe_origin(self.info_)} and {describe_origin(other.info_)}"
            raise MismatchError(
                f"the vectors were fitted on two models: {origins}. To combine them all the same, take the numbers "
                "alone, SteeringVector(vector.directions)"
            )


def as_steerer(given: object, n_layers: int | None = None) -> Steerer:
    """A steerer from what users give for one: a `Steerer`, vectors by layer, or a tensor with a row for each layer.

    Example:
        >>> as_steerer({15: torch.randn(576)})

    Args:
        n_layers: of the model; None: a tensor is refused.

    Raises:
        SteeringError: anything else, such as a tensor that does not say its layer.
    """
    if isinstance(given, Steerer):
        return given
    if isinstance(given, Mapping):
        return SteeringVector(given)
    if isinstance(given, Tensor | np.ndarray):
        if given.ndim == 2 and len(given) == n_layers:
            return SteeringVector(dict(enumerate(given)))
        rows = "" if n_layers is None else f", or {n_layers} rows, one for each layer"
        raise SteeringError(
            f"the vector has shape {tuple(given.shape)} and does not say its layer: give {{layer: vector}}{rows}"
        )
    raise SteeringError(f"steerer is {show(given)}: expected a fitted Steerer, or vectors by layer, {{15: tensor}}")


def _shared_origin(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Where a sum comes from: that of the part that was fitted; of two, what they have in common.

    Raises:
        MismatchError: they were fitted with two chat templates.
    """
    if "model" not in one or "model" not in other:
        return dict(other if "model" in other else one)
    templates = [info["template"] for info in (one, other) if info.get("template")]
    if len(templates) == 2 and templates[0] != templates[1]:
        raise MismatchError("the vectors were fitted with two chat templates: their states differ in meaning")
    accepted = sorted({*one.get("accepted_models", ())} & {*other.get("accepted_models", ())})
    common = {key: value for key, value in one.items() if key in other and other[key] == value}
    return common | ({"template": templates[0]} if templates else {}) | {"accepted_models": accepted}


def _as_vector(site: Site, vector: object) -> Float[Tensor, " hidden"]:
    """A copy of a vector as float32 on the CPU."""
    if isinstance(vector, np.ndarray) and vector.dtype.kind in "fiu":
        vector = torch.from_numpy(vector.astype(np.float32))
    check_type(f"the vector at layer {site}", vector, Tensor, "a tensor (hidden,)")
    assert isinstance(vector, Tensor)
    dense = vector.layout == torch.strided and not vector.is_meta
    if not dense or vector.is_complex() or vector.dtype == torch.bool:
        kind = f"{vector.dtype} {vector.layout} tensor on {vector.device}"
        raise DataError(f"the vector is a {kind}: expected a dense tensor of real numbers")
    if vector.ndim != 1 or vector.numel() == 0:
        raise DataError(f"a steering vector has shape (hidden,), got {tuple(vector.shape)}; pass one row")
    copied = vector.detach().to("cpu", torch.float32, copy=True)
    if not bool(torch.isfinite(copied).all()):
        raise DataError("the vector holds NaN or infinity; compute it again in float32")
    return copied


def added_vectors(steerer: Any) -> dict[Site, Tensor]:
    """The vectors of a steerer that adds the same ones to every input.

    Example:
        >>> added_vectors(MeanDifference(13).fit(acts))[Site(13)].shape
        torch.Size([896])

    Raises:
        SteeringError: what depends on the input, or does something else than to add.
    """
    if not isinstance(steerer, SteeringVector):
        raise SteeringError(f"{type(steerer).__name__} is no vector that is the same for every input")
    found: dict[Site, Tensor] = {}
    for one in steerer.interventions(Context(("-",), None)):
        if one.gate is not None or one.vectors is None or not one.rule.adds or one.positions is not None:
            raise SteeringError(f"{type(steerer).__name__} does something else than to add its vector")
        found[one.site] = one.vectors[0]
    return found
