"""AlphaSteer's gate, closed on the space of benign inputs, as a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations, ByExample
from steerlab.errors import DataError
from steerlab.methods.alphasteer.null_space import fit_map
from steerlab.methods.base import Context, StateDetector, check_fitted, check_origin, check_width
from steerlab.methods.classes import as_names, check_contrasts_nonzero, check_disjoint, contrast_table, select_class
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class NullSpaceGate(StateDetector):
    """Score inputs by a linear gate that is about 1 on harmful inputs and about 0 on inputs like the benign ones.

    If `ratio` is None, it is chosen from .05, .10, ... .95, as far as the benign inputs span the excluded directions:
    every fifth of the inputs of both classes is held out in turn, and the gate is fitted to the rest. Among the ratios
    whose leakage (95th percentile of |gate| on held-out benign inputs) is at most `leakage`, those remain whose mean
    gate on held-out harmful inputs is within 1 % of the best; of these, the ratio with the least leakage is taken.
    (The largest allowed ratio has the same gate on harmful inputs, and in our tests up to eight times the leakage.)
    If no ratio is allowed, the one with the least leakage is taken, with a warning.

    Example:
        >>> gate = NullSpaceGate(12, harmful=["refuse"], benign=["answer"]).fit(acts)
        >>> gate.score(Context.of(acts))                              # (inputs,)

    Args:
        layer: block whose output is read of the plain prompt, 0-based; or a `Site`.
        harmful, benign: labels of the two classes.
        position: the position of the prompt that is read.
        label: the index column that holds the labels.
        ratio: share p of all directions taken as the null space: those in which benign inputs are smallest; None:
            chosen. The guarantee only covers the space of the benign inputs, and leakage grows with p.
        ridge: penalty on the gate; it is not scaled by the states' norm or the number of inputs.
        leakage: the maximum |gate| that benign inputs may have.

    Attributes:
        w_: `(hidden,)` float32; the gate of a state h is h·w.
        ratio_: the ratio used.
        leakage_: the largest |gate| of the benign inputs of the fit.
        held_out_leakage_: that of held-out ones (95th percentile), if the ratio was chosen; else None.

    Raises:
        DataError: too few benign inputs for the ratio, classes that overlap or have fewer than two inputs, settings
            out of range.
        MismatchError: states of another width.

    Source: AlphaSteer, arXiv 2506.07022 (null-space projection, ridge regression), without the choice of the ratio.
    """

    w_: Tensor
    ratio_: float | None
    leakage_: float | None
    held_out_leakage_: float | None

    def __init__(
        self, layer: int | Site, *, harmful: Sequence[str] = ("refuse",), benign: Sequence[str] = ("answer",),
        position: str | int = "last", label: str = "behavior", ratio: float | None = None, ridge: float = 10.0,
        leakage: float = 0.05,
    ) -> None:  # fmt: skip
        self.layer, self.harmful, self.benign, self.position, self.label = layer, harmful, benign, position, label
        self.ratio, self.ridge, self.leakage = ratio, ridge, leakage

    def fit_activations(self, acts: Activations) -> None:
        """Find the null space of the benign inputs and the gate in it."""
        _, harmful, benign = self._classes(acts)
        matrix, _, measured = fit_map(benign, harmful, torch.ones(len(harmful), 1), **self._settings)
        self.load_state_dict({"w_": matrix[:, 0].float(), **measured})

    def gate(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """The gate of some states, float32 and unclipped: about 1 for harmful inputs, about 0 for benign ones."""
        check_fitted(self, "w_")
        return check_width(h, len(self.w_), "the gate") @ self.w_.to(h.device)

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The gate of each input."""
        check_origin(self, context)
        return self.gate(context.get_states(self.required_activations[0]))

    @property
    def _settings(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "ridge": self.ridge, "leakage": self.leakage, "site": self.site}

    def _classes(self, acts: Activations) -> tuple[list[str], Float[Tensor, "m hidden"], Float[Tensor, "n hidden"]]:
        """Ids and states of the harmful inputs, and states of the benign ones, all by sorted id."""
        required = self.required_activations[0]
        ids, harmful = select_class(acts, required, self.harmful, label=self.label)
        benign_ids, benign = select_class(acts, required, self.benign, label=self.label)
        check_disjoint("harmful", ids, harmful, "benign", benign_ids, benign)
        return ids, harmful, benign


def harmful_contrasts(gate: NullSpaceGate, acts: Activations, position: str | None) -> ByExample:
    """Ids and contrasts of the harmful inputs that have one, by sorted id.

    Raises:
        DataError: no harmful input has a contrast.
    """
    ids, contrasts = contrast_table(acts, gate.site, position)
    labels = acts.labels(ids, gate.label)
    keep = [i for i, label in enumerate(labels) if label in as_names(gate.harmful)]
    if not keep:
        raise DataError(
            f"no contrast is of an input with {gate.label} in {list(as_names(gate.harmful))}; there are contrasts of "
            f"{sorted(set(labels))}: capture those of the harmful inputs, or give a target"
        )
    return [ids[i] for i in keep], contrasts[keep]


def fit_matrix(gate: NullSpaceGate, acts: Activations, contrast_position: str | None) -> dict[str, Any]:
    """Learn the map of harmful states to their contrasts, with the settings of `gate`.

    Raises:
        DataError: a harmful input has no contrast, or all contrasts are zero.
    """
    ids, harmful, benign = gate._classes(acts)
    contrast_ids, contrasts = harmful_contrasts(gate, acts, contrast_position)
    row = {name: i for i, name in enumerate(contrast_ids)}
    if missing := sorted(set(ids) - set(row)):
        first = f"{len(missing)} harmful inputs have no contrast, first {missing[:3]}"
        raise DataError(f"{first}: capture them, leave those inputs out, or use target='mean'")
    targets = contrasts[[row[name] for name in ids]].double()
    check_contrasts_nonzero(targets, gate.site, acts)
    matrix, norm, measured = fit_map(benign, harmful, targets, **gate._settings)
    return {"matrix_": matrix, "target_norm_": torch.tensor(norm), **measured}
