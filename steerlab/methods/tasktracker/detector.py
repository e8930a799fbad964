"""TaskTracker: detect that a text diverts the model from its task, from the change it makes to the task's state."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError
from steerlab.methods.base import Context, Detector, RequiredActivation, check_fitted, check_origin, check_width
from steerlab.methods.classes import check_disjoint, check_not_constant, select_two_classes
from steerlab.methods.layers import Layers, storable, unique_sites
from steerlab.methods.probe import fit_logistic
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.published import probe_site, read_probes
from steerlab.models.sites import Site

log = logging.getLogger(__name__)
FEATURES = ("delta", "norm", "full")


class TwoPromptDetector(Detector):
    """A detector that compares the states after the task alone with those after task and text.

    Args:
        layers: blocks whose output is compared, 0-based; or Sites.
        positive: labels of the inputs whose text holds an injected instruction.
        negative: labels of those without; None: every other label.
        task: name of the extra prompt that holds the task alone.
        label: the column of the index that holds the labels.
        position: where both prompts are read.
    """

    def __init__(
        self, layers: Layers, positive: Sequence[str], negative: Sequence[str] | None, task: str, label: str,
        position: str | int,
    ) -> None:  # fmt: skip
        self.layers, self.sites = storable(layers), unique_sites(layers)
        self.positive, self.negative, self.task = positive, negative, task
        self.label, self.position = label, position

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The same position of both prompts, at every layer."""
        sides = ("prompt", self.task)
        return tuple(RequiredActivation(site, self.position, side) for site in self.sites for side in sides)

    def _training_inputs(self, acts: Activations) -> tuple[list[str], list[str]]:
        """Ids of the negative and of the positive inputs."""
        required = self.required_activations[0]
        (positive, _), (negative, _) = select_two_classes(acts, required, self.positive, self.negative, self.label)
        return negative, positive

    def _state(self, context: Context, site: Site, side: str) -> Float[Tensor, "batch hidden"]:
        """The states of one prompt at one site, in float32: a difference of bfloat16 states has few digits."""
        return context.get_states(RequiredActivation(site, self.position, side)).float()

    def _states(self, context: Context, side: str) -> Float[Tensor, "batch layers hidden"]:
        return torch.stack([self._state(context, site, side) for site in self.sites], dim=1)


@savable
class TaskTracker(TwoPromptDetector):
    """One logistic probe per layer on the state after task and text, minus the state after the task alone.

    Example:
        >>> rows = injection_examples({"films": paragraphs}, questions)   # with extra_prompts={"task": ...}
        >>> acts = steerlab.capture(model, rows, layers=[7, 15])
        >>> probe = TaskTracker([7, 15]).fit(acts.select(split="train"))
        >>> probe.score(Context.of(acts.select(split="test")))       # (rows,), log-odds

    Args:
        layers, positive, negative, task, label, position: as in `TwoPromptDetector`.
        features: "delta" (published); for comparison "norm", the length of the difference alone, and "full", the state
            after task and text with nothing subtracted.
        C: inverse strength of the L2 penalty.
        standardize: penalize weights of standardized features, so that C means the same at every layer and the fit
            converges; the learned weights are stored in raw units. False: the published objective, on raw features.
        max_iter: maximum iterations of the solver; the published 100 are rarely enough.

    Attributes:
        coef_: `(layers, features)` float64, in units of the residual stream.
        intercept_: `(layers,)` float64.
        final_norm_: Site whose states pass the final norm first, its weight and epsilon (published probes only).

    Raises:
        DataError: too few inputs in a class, an input in both, all differences equal, or unknown `features`.
        ActivationError: the task alone was not captured.
        MismatchError: states of another width than the probes'.

    Source: TaskTracker, arXiv 2406.00799; standardized features and the mean over layers are not in the paper.
    """

    final_norm_: tuple[Site, Tensor, float]

    def __init__(
        self, layers: Layers, *, positive: Sequence[str] = ("injected",), negative: Sequence[str] | None = None,
        task: str = "task", label: str = "behavior", position: str | int = "last", features: str = "delta",
        C: float = 1.0, standardize: bool = True, max_iter: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__(layers, positive, negative, task, label, position)
        if features not in FEATURES:
            raise DataError(f"unknown features {features!r}; expected one of {', '.join(FEATURES)}")
        self.features, self.C, self.standardize, self.max_iter = features, C, standardize, max_iter

    @property
    def name(self) -> str:
        """The label of this detector in tables and figures; the baselines have other labels."""
        return "tasktracker" if self.features == "delta" else f"tasktracker-{self.features}"

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The same position of both prompts, or with "full" of the second alone, at every layer."""
        required = super().required_activations
        return required[::2] if self.features == "full" else required

    def fit_activations(self, acts: Activations) -> None:
        """Fit one probe per layer."""
        vars(self).pop("final_norm_", None)  # of published probes
        negative, positive = self._training_inputs(acts)
        n = len(negative)
        context = Context((*negative, *positive), acts)
        truth = np.repeat([0, 1], [n, len(positive)])
        probes = []
        for site in self.sites:
            x = self._features(context, site)
            check_not_constant(x, "training")
            if self.features != "norm":  # two norms may be equal by chance, two states cannot
                check_disjoint("clean", negative, x[:n], "injected", positive, x[n:])
            probes.append(self._fit_probe(x, truth))
        self.coef_ = torch.from_numpy(np.stack([w for w, _ in probes]))
        self.intercept_ = torch.tensor([b for _, b in probes], dtype=torch.float64)

    def _fit_probe(
        self, x: Float[Tensor, "row features"], truth: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], float]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            probe = fit_logistic(
                x.double().numpy(), truth, self.C, standardize=self.standardize, max_iter=self.max_iter
            )
        if caught:
            log.warning("a probe did not converge in %d iterations: raise max_iter, or standardize", self.max_iter)
        return probe

    def delta(self, context: Context) -> Float[Tensor, "batch layers hidden"]:
        """The change that the text makes to each layer's state, float32."""
        return self._states(context, "prompt") - self._states(context, self.task)

    def scores(self, context: Context) -> Float[Tensor, "batch layers"]:
        """Log-odds of each layer's probe."""
        check_fitted(self, "coef_")
        check_origin(self, context)
        return torch.stack([self._log_odds(context, i) for i in range(len(self.sites))], dim=1)

    def probabilities(self, context: Context) -> Float[Tensor, "batch layers"]:
        """The probability of an injected instruction by each layer's probe, as published."""
        return self.scores(context).sigmoid()

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The mean of the layers' log-odds. Probabilities near 1 would round to 1 and could not be ranked."""
        return self.scores(context).mean(dim=1)

    @classmethod
    def from_published(
        cls, path: str | Path, n_layers: int, *, layers: Sequence[int] | None = None,
        convention: str = "block", final_norm: tuple[Tensor, float] | None = None, **options: Any,
    ) -> TaskTracker:  # fmt: skip
        """A detector with published probes.

        The released states of the last block were read after the final norm, and ours are read before it. The probe of
        that block is left out with a log message, unless `final_norm` is given.

        Example:
            >>> norm = phi3.hf.model.norm
            >>> TaskTracker.from_published(
            ...     "tasktracker_phi3_linear_probes.safetensors", phi3.n_layers,
            ...     final_norm=(norm.weight, norm.variance_epsilon),
            ... )

        Args:
            path: safetensors with `layer<n>.coef` and `layer<n>.intercept`; pickles are not opened.
            n_layers: number of blocks of the model.
            layers: which of the file's layer numbers to use; None: all.
            convention: the meaning of these numbers: "block" outputs (training), or "hidden_states", of which the first
                is the embeddings (the released quick start uses these, one block too low).
            final_norm: weight and epsilon of the model's final RMSNorm, to apply to the last block's states.
            options: of the constructor.

        Raises:
            LoadError: no such file. MismatchError: other contents, a layer the model lacks, a norm of another width,
                or the last layer named in `layers` without `final_norm`.

        Source: the released code of arXiv 2406.00799 (file layout and conventions only).
        """
        probes = read_probes(path, layers)
        sites = {number: probe_site(number, n_layers, convention) for number in probes}
        last = next((number for number, site in sites.items() if site == Site(n_layers - 1)), None)
        if last is not None and final_norm is None:
            message = f"the probe of layer {last} was fitted on states after the final norm: give final_norm"
            if layers is not None:
                raise MismatchError(f"{message}=(weight, epsilon), or leave that layer out")
            log.warning("left out: %s", message)
            probes.pop(last)
        if not probes:
            raise MismatchError(f"{str(path)!r} has a probe of the last block alone: give final_norm=(weight, epsilon)")
        made = cls([sites[number] for number in probes], **options)
        made.coef_, made.intercept_ = (torch.stack(part) for part in zip(*probes.values(), strict=True))
        width = made.coef_.shape[1]
        if last is not None and final_norm is not None:
            if final_norm[0].shape != (width,):
                raise MismatchError(
                    f"the final norm has shape {tuple(final_norm[0].shape)}, the probes have width {width}"
                )
            made.final_norm_ = (sites[last], final_norm[0].detach().cpu().float(), float(final_norm[1]))
        made.info_ = {"hidden_size": width, "layers": n_layers}
        return made

    def _log_odds(self, context: Context, i: int) -> Float[Tensor, " batch"]:
        x = check_width(self._features(context, self.sites[i]), self.coef_.shape[1], "this TaskTracker")
        # large coordinates cancel against the intercept, so the sum is taken in float64
        return (x.double() @ self.coef_[i] + self.intercept_[i]).float()

    def _features(self, context: Context, site: Site) -> Float[Tensor, "batch features"]:
        full = self._state(context, site, "prompt")
        if self.features == "full":
            return full
        delta = full - self._state(context, site, self.task)
        return delta.norm(dim=1, keepdim=True) if self.features == "norm" else delta

    def _state(self, context: Context, site: Site, side: str) -> Float[Tensor, "batch hidden"]:
        state = super()._state(context, site, side)
        if not hasattr(self, "final_norm_") or site != self.final_norm_[0]:
            return state
        _, weight, epsilon = self.final_norm_
        return state * (state.square().mean(dim=1, keepdim=True) + epsilon).rsqrt() * weight
