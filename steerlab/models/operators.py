"""Operators: what an edit makes of a state, a vector and a strength, and `EditRule`, on which tokens and how strongly.

An operator works in float32 or wider: `h` is `(rows, tokens, width)`, `vector` `(rows, 1, width)`, and `strength`
broadcasts to `(rows, tokens, 1)`; of chosen heads, all have an axis of heads before the width. Strength 0 always gives
`h` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number
from steerlab.errors import SteeringError

States = Float[Tensor, "*#rows width"]
Strengths = Float[Tensor, "*#rows 1"]


class Operator(ABC):
    """What is done to a state; the base of all operators.

    Write your own as a frozen dataclass: operators that are equal share an edit.

    Example:
        >>> @dataclass(frozen=True)
        ... class Reflect(Operator):
        ...     uses = "direction"
        ...
        ...     def __call__(self, h, vector, strength):
        ...         u = vector / vector.norm(dim=-1, keepdim=True)
        ...         return h - 2 * strength * (h * u).sum(-1, keepdim=True) * u

    Attributes:
        uses: "vector", "direction" (a vector whose length does not matter, but which has one), or "nothing".
        strengths: the strengths it takes, from lowest to highest.
        by_head: whether it can change the part of a state that belongs to one attention head.
    """

    uses: ClassVar[str] = "vector"
    strengths: ClassVar[tuple[float, float]] = (-inf, inf)
    by_head: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """The new states."""


@dataclass(frozen=True)
class Add(Operator):
    """`h + strength * vector`: the default.

    Example:
        >>> Operation(vector, Add(), first=12)       # in the first twelve new tokens only
    """

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        return h + strength * vector


@dataclass(frozen=True)
class ProjectOut(Operator):
    """`h - strength * (h·u) u`, u being the vector's direction: strength 1 ablates it, 0.5 halves it.

    Example:
        >>> texts = steerlab.generate(model, prompts, steer=Operation(refusal, ProjectOut()))

    Source: directional ablation, arXiv 2406.11717.
    """

    uses = "direction"

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        u = unit(vector)
        return h - strength * (h * u).sum(-1, keepdim=True) * u


@dataclass(frozen=True)
class Clamp(Operator):
    """Moves the component `h·u` along the vector's direction u into the range from `low` to `high`.

    Example:
        >>> Clamp(high=2.0)          # caps the component
        >>> Clamp(-2.0, 2.0)         # on both sides

    Args:
        low, high: in units of the state; None: no limit there; a negative `high` moves every component below it.
            Strength 1 moves a component to the limit it exceeds, 0.5 half the way.

    Raises:
        SteeringError: no limit, or a low one above the high one.
    """

    low: float | None = None
    high: float | None = None
    uses = "direction"
    strengths = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_number(f"{name} of Clamp", getattr(self, name), error=SteeringError))
        if self.low is None and self.high is None:
            raise SteeringError("Clamp has no limit: give high=, the largest component along the vector, or low=")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise SteeringError(f"Clamp(low={self.low}, high={self.high}): the lower limit is above the upper one")

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        u = unit(vector)
        component = (h * u).sum(-1, keepdim=True)
        return h + strength * (component.clamp(self.low, self.high) - component) * u


@dataclass(frozen=True)
class Replace(Operator):
    """`(1 - strength) h + strength * vector`: strength 1 puts the vector in the place of the state.

    Example:
        >>> Operation({16: mean_state}, Replace())
    """

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        return torch.lerp(h, vector.to(h.dtype).expand_as(h), strength.to(h.dtype).expand_as(h))


@dataclass(frozen=True)
class Rotate(Operator):
    """Turns a state towards the vector by a share `strength` of the angle between them; the norm stays.

    Strength 1 gives the state the vector's direction; a negative strength turns it towards the opposite.

    Example:
        >>> texts = steerlab.generate(model, prompts, steer=Operation(refusal, Rotate()), alpha=0.2)

    Source: spherical steering, arXiv 2602.08169.
    """

    uses = "direction"
    strengths = (-1.0, 1.0)

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        return rotate(h, unit(vector) * strength.sign(), strength.abs())


@dataclass(frozen=True)
class Scale(Operator):
    """`h` times `factor`, at strength 1; at strength 0.5 half the way there. Factor 0 removes the state.

    Example:
        >>> Operation(Site(16, "mlp_out"), Scale(0.0))      # without this MLP

    Args:
        factor: a finite number.
    """

    factor: float
    uses = "nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", as_number("factor of Scale", self.factor, error=SteeringError))

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        return h * (1 + strength * (self.factor - 1))


OPERATORS: dict[str, Operator] = {"add": Add(), "project_out": ProjectOut(), "replace": Replace(), "rotate": Rotate()}


@dataclass(frozen=True)
class EditRule:
    """How an edit changes the states that it may write.

    Attributes:
        operator: what is done to each state.
        heads: of a site "heads", the heads that are changed; None: all, as one state.
        head_width: the width of a head's state, where `heads` are given.
        first: of the generated tokens, only so many are written; None: all.
        decay: the strength of the k-th generated token (from 0) is multiplied by `decay ** k`.
        gate: gives a factor for each state, `(rows, tokens)`, cut to 0 and 1, from the states before the edit.
        by_norm: multiply the strength by the norm of the state itself.
    """

    operator: Operator = OPERATORS["add"]
    heads: tuple[int, ...] | None = None
    head_width: int | None = None
    first: int | None = None
    decay: float = 1.0
    gate: Callable[[Tensor], Tensor] | None = None
    by_norm: bool = False

    @property
    def adds(self) -> bool:
        """Whether the operator adds a vector, so that the order of such edits at a site does not matter."""
        return type(self.operator) is Add  # a class made of it may do something else

    def apply(self, h: States, vector: States, strength: Strengths) -> States:
        """The new states, in float32; of heads that are not chosen the same."""
        if self.heads is None:
            return self.operator(h, vector, strength)
        split = h.unflatten(-1, (-1, self.head_width))
        changed = self.operator(self.parts(h), self.parts(vector), strength[..., None])
        new = split.expand(*changed.shape[:-2], *split.shape[-2:]).clone()  # added vectors may be one for all tokens
        new[..., list(self.heads), :] = changed
        return new.flatten(-2)

    def parts(self, h: Tensor) -> Tensor:
        """What the operator takes of states or vectors: the parts of the chosen heads, or the whole as one part."""
        if self.heads is None:
            return h[..., None, :]
        return h.unflatten(-1, (-1, self.head_width))[..., list(self.heads), :]

    def factors(self, h: Tensor, steps: Tensor | None) -> Tensor | None:
        """What the strength of each state is multiplied by, `(rows, tokens)`; None: 1.

        Args:
            h: the states before the edit.
            steps: `(rows, tokens)`, the number of each generated token, from 0; negative in the prompt.
        """
        found = None
        if steps is not None and self.decay != 1:
            found = self.decay ** steps.clamp_min(0).float()
        if self.gate is not None:
            factor = self.gate(h.float())
            if factor.shape != h.shape[:2]:
                raise SteeringError(
                    f"a gate gave {tuple(factor.shape)} for states {tuple(h.shape)}: one factor for each token is "
                    f"{tuple(h.shape[:2])}"
                )
            found = factor.float().clamp(0, 1) * (1 if found is None else found)
        if self.by_norm:
            found = h.float().norm(dim=-1) * (1 if found is None else found)
        return found


def unit(vector: Tensor) -> Tensor:
    """The vectors with norm 1; a zero vector stays zero."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def rotate(h: States, u: States, share: Strengths) -> States:
    """States turned towards the unit vectors `u` by a share, 0 to 1, of the angle between them; their norms stay.

    A state that is parallel to its u, or whose u is zero, stays as it is.
    """
    norm = h.norm(dim=-1, keepdim=True)
    along = (h * u).sum(-1, keepdim=True)
    across = h - along * u
    sine = across.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, along)
    # of a state that points almost the other way, rounding leaves `across` at less than a right angle to u
    turned = norm * unit(torch.cos((1 - share) * angle) * u + torch.sin((1 - share) * angle) * unit(across))
    still = (share == 0) | (sine <= 1e-6 * norm) | ~u.any(-1, keepdim=True)
    return torch.where(still, h, turned)
