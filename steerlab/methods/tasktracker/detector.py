"""TaskTracker: whether a text drew the model away from its task, by what it adds to the state of the task alone."""

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

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods.base import Context, Detector, RequiredActivation, check_fitted, provenance
from steerlab.methods.classes import check_disjoint, check_not_constant, select_two_classes
from steerlab.methods.probe import fit_logistic
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.published import check_last_layer, probe_site, read_probes
from steerlab.methods.tasktracker.two_prompts import Layers, unique_sites
from steerlab.models.sites import Site

log = logging.getLogger(__name__)
FEATURES = ("delta", "norm", "full")


@savable
class TaskTracker(Detector):
    """One logistic probe per layer on the state after task and text, less the state after the task alone.

    Example:
        >>> rows = injected({"films": paragraphs}, questions)        # Examples with extra_prompts={"task": ...}
        >>> acts = steerlab.capture(model, rows, layers=[7, 15])
        >>> probe = TaskTracker([7, 15]).fit(acts.select(split="train"))
        >>> probe.score(Context.of(acts.select(split="test")))       # (rows,), log-odds

    Args:
        layers: blocks whose output is compared, 0-based; or Sites.
        positive: labels of the inputs whose text holds a foreign task.
        negative: labels of those without; None: every other label.
        task: name of the capture with the task alone.
        label: the column of the index that holds the labels.
        position: where both prompts are read.
        features: "delta" (published); for comparison "norm", the length of the difference alone, and "full", the state
            after task and text with nothing subtracted.
        C: inverse strength of the L2 penalty.
        standardize: penalize weights of standardized features, so that C means the same at every layer and the fit
            converges; what is learned is stored in raw units. False: the published objective, on raw features.
        max_iter: iterations of the solver at most; the published 100 rarely suffice.

    Attributes:
        coef_: `(layers, features)` float64, in units of the residual stream.
        intercept_: `(layers,)` float64.
        final_norm_: Site whose states pass the final norm first, its weight and epsilon (published probes only).

    Raises:
        DataError: too few inputs in a class, an input in both, all differences alike, or unknown `features`.
        ActivationError: the task alone was not captured.
        MismatchError: states of another width than the probes'.

    Source: TaskTracker, arXiv 2406.00799; standardizing, and the mean over layers, are own.
    """

    final_norm_: tuple[Site, Tensor, float]

    def __init__(
        self, layers: Layers, *, positive: Sequence[str] = ("injected",), negative: Sequence[str] | None = None,
        task: str = "task", label: str = "behavior", position: str | int = "last",
        features: str = "delta",
        C: float = 1.0, standardize: bool = True, max_iter: int = 1000,
    ) -> None:  # fmt: skip
        if features not in FEATURES:
            raise DataError(f"unknown features {features!r}; expected one of {', '.join(FEATURES)}")
        self.layers = layers if isinstance(layers, int | Site) else tuple(layers)  # a range could not be saved
        self.positive, self.negative, self.task = positive, negative, task
        self.label, self.position, self.features = label, position, features
        self.C, self.standardize, self.max_iter = C, standardize, max_iter
        self.sites = unique_sites(layers)

    @property
    def name(self) -> str:
        """The baselines are told apart from the method."""
        return "tasktracker" if self.features == "delta" else f"tasktracker-{self.features}"

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The same place of both prompts, at every layer."""
        extra_prompts = ("prompt",) if self.features == "full" else ("prompt", self.task)
        return tuple(
            RequiredActivation(site, self.position, capture) for site in self.sites for capture in extra_prompts
        )

    def fit(self, acts: Activations) -> TaskTracker:
        """Fit one probe per layer."""
        (yes, _), (no, _) = select_two_classes(
            acts, self.required_activations[0], self.positive, self.negative, self.label
        )
        context = Context((*no, *yes), acts)
        truth = np.array([0] * len(no) + [1] * len(yes))
        fitted = []
        for site in self.sites:
            x = self._features(context, site)
            check_not_constant(x, "fitted")
            if self.features != "norm":  # two lengths may well be equal, two states can't
                check_disjoint("clean", no, x[: len(no)], "injected", yes, x[len(no) :])
            fitted.append(self._probe(x, truth))
        self.coef_ = torch.from_numpy(np.stack([w for w, _ in fitted]))
        self.intercept_ = torch.tensor([b for _, b in fitted], dtype=torch.float64)
        self.info_ = provenance(acts)
        return self

    def _probe(self, x: Float[Tensor, "row features"], truth: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
        """One layer's weights and intercept; the published setting rarely converges, which the log says."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            probe = fit_logistic(
                x.double().numpy(), truth, self.C, standardize=self.standardize, max_iter=self.max_iter
            )
        if told:
            log.warning("a probe did not converge in %d iterations: raise max_iter, or standardize", self.max_iter)
        return probe

    def delta(self, context: Context) -> Float[Tensor, "batch layers hidden"]:
        """What the text adds to each layer's state, float32."""
        return torch.stack(
            [self._state(context, s, "prompt") - self._state(context, s, self.task) for s in self.sites], 1
        )

    def scores(self, context: Context) -> Float[Tensor, "batch layers"]:
        """Log-odds of each layer's probe."""
        check_fitted(self, "coef_")
        return torch.stack([self._log_odds(context, i) for i in range(len(self.sites))], dim=1)

    def probabilities(self, context: Context) -> Float[Tensor, "batch layers"]:
        """What each layer's probe was published to answer: the probability of a foreign task."""
        return self.scores(context).sigmoid()

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The mean of the layers' log-odds: not a probability, since sure ones round to 1 and could not be ranked."""
        return self.scores(context).mean(dim=1)

    @classmethod
    def from_published(
        cls, path: str | Path, n_layers: int, *, layers: Sequence[int] | None = None,
        convention: str = "block", final_norm: tuple[Tensor, float] | None = None, **options: Any,
    ) -> TaskTracker:  # fmt: skip
        """A detector around published probes.

        The released states of the last block had passed the final norm and ours have not. Its probe is left out, and
        the log says so, unless `final_norm` is given.

        Example:
            >>> norm = phi3.hf.model.norm
            >>> TaskTracker.from_published(
            ...     "tasktracker_phi3_linear_probes.safetensors", phi3.n_layers,
            ...     final_norm=(norm.weight, norm.variance_epsilon),
            ... )

        Args:
            path: safetensors with `layer<n>.coef` and `layer<n>.intercept`; pickles are not opened.
            n_layers: how many blocks the model has.
            layers: which of the file's numbers to use; None: all.
            convention: what these numbers count: "block" outputs (training), or "hidden_states", of which the first is
                the embeddings (the released quick start reads so, one block too low).
            final_norm: weight and epsilon of the model's final RMSNorm, to apply to the last block's states.
            options: of the constructor.

        Raises:
            LoadError: no such file. MismatchError: other contents, a layer the model lacks, a norm of another width,
            or the last layer named in `layers` without `final_norm`.

        Source: the released code of arXiv 2406.00799 (file layout and conventions only).
        """
        probes = read_probes(path, layers)
        sites = {number: probe_site(number, n_layers, convention) for number in probes}
        last = check_last_layer(sites, n_layers, named=layers is not None, normed=final_norm is not None)
        if last is not None and final_norm is None:
            log.warning("left out the probe of layer %d: it was fitted after the final norm; give final_norm", last)
            probes.pop(last)
        if not probes:
            raise MismatchError(f"{str(path)!r} has a probe of the last block alone: give final_norm=(weight, epsilon)")
        made = cls([sites[number] for number in probes], **options)
        made.coef_ = torch.stack([w for w, _ in probes.values()])
        made.intercept_ = torch.stack([b for _, b in probes.values()])
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
        x = self._features(context, self.sites[i])
        if x.shape[1] != self.coef_.shape[1]:
            raise MismatchError(
                f"the states have width {x.shape[1]}, the probes {self.coef_.shape[1]}: they belong to another model"
            )
        # large coordinates cancel against the intercept, so the sum is taken in float64
        return (x.double() @ self.coef_[i] + self.intercept_[i]).float()

    def _features(self, context: Context, site: Site) -> Float[Tensor, "batch features"]:
        full = self._state(context, site, "prompt")
        if self.features == "full":
            return full
        delta = full - self._state(context, site, self.task)
        return delta.norm(dim=1, keepdim=True) if self.features == "norm" else delta

    def _state(self, context: Context, site: Site, capture: str) -> Float[Tensor, "batch hidden"]:
        # float32 before anything is subtracted: the difference of two long bfloat16 states would keep few digits
        state = context.get_states(RequiredActivation(site, self.position, capture)).float()
        if not hasattr(self, "final_norm_") or site != self.final_norm_[0]:
            return state
        _, weight, epsilon = self.final_norm_
        return state * (state.square().mean(dim=1, keepdim=True) + epsilon).rsqrt() * weight
