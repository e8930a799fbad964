"""A gradient field: steer each token by the gradient of a small scorer of its own state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from steerlab._support.checks import as_number, as_seed, as_whole, show
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted
from steerlab.methods.classes import as_names, check_answers_differ
from steerlab.methods.regression import Standardizer
from steerlab.methods.serialization import savable
from steerlab.models.operators import EditRule, Operator, States, Strengths, unit
from steerlab.models.sites import Site

# published settings by name: the code released with K-Steering, and a third party's of steering vector fields
PUBLISHED_FIELDS: dict[str, dict[str, Any]] = {
    "k-steering": {"hidden_units": 128, "epochs": 1, "steps": 1, "decay": 1.0},
    "steering vector fields": {"hidden_units": 256, "epochs": 50, "normalize": True},
}
Weights = tuple[tuple[Tensor, Tensor], ...]  # of each layer: `(out, in)` and `(out,)`


@dataclass(frozen=True, eq=False)
class GradientStep(Operator):
    """`h - strength * decay ** k * gradient(h)` for k = 0 ... steps - 1, the gradient being that of a scorer's loss.

    Attributes:
        weights: of a net with ReLU between its layers, from a state to a logit per class.
        signs: `(class,)`: the loss is the sum of `signs * logits`.
        steps, decay: how many steps, and the factor from one to the next.
        normalize: divide each gradient by its norm.
    """

    weights: Weights
    signs: Tensor
    steps: int
    decay: float
    normalize: bool
    uses = "nothing"
    by_head = False  # the scorer reads whole states

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        for step in range(self.steps):
            gradient = scorer_gradient(self.weights, self.signs, h)
            h = h - strength * self.decay**step * (unit(gradient) if self.normalize else gradient)
        return h


def scorer_logits(weights: Weights, h: Float[Tensor, "... width"]) -> Float[Tensor, "... classes"]:
    """The logits of a net with ReLU between its layers."""
    for number, (w, b) in enumerate(weights):
        h = torch.nn.functional.linear(h if number == 0 else h.relu(), w.to(h), b.to(h))
    return h


def scorer_gradient(weights: Weights, signs: Tensor, h: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """The gradient of the sum of `signs * logits` at each state; written out, since forwards run without autograd."""
    active, x = [], h
    for w, b in weights[:-1]:
        x = torch.nn.functional.linear(x, w.to(h), b.to(h))
        active.append(x > 0)
        x = x.relu()
    gradient = (signs.to(h) @ weights[-1][0].to(h)).expand(x.shape)
    for (w, _), on in zip(reversed(weights[:-1]), reversed(active), strict=True):
        gradient = (gradient * on) @ w.to(h)
    return gradient


@savable
class GradientField(Steerer):
    """Move each token's state down the gradient of a small scorer, trained to tell wanted from unwanted answers.

    Where a state is, decides which way it is moved: one vector cannot do that. Several attributes can be wanted or
    avoided at once.

    Example:
        >>> field = GradientField(15).fit(model, pairs)
        >>> texts = steerlab.generate(model, prompts, steer=field, alpha=3.0)

    Args:
        layer: block whose output is scored and steered, 0-based; or a `Site`. At several, give a field for each.
        wanted, avoided: classes whose logits are raised and lowered. An answer's class is its example's behavior if it
            is the wanted answer of a contrast, else "not " and the behavior. None: all classes of wanted, or of
            unwanted answers.
        steps, decay: gradient steps at each token, and the factor from one step to the next.
        normalize: divide each gradient by its norm, so that alpha is in units of the state.
        hidden_units: width of the scorer's two hidden layers.
        epochs: passes over the answers in training; `PUBLISHED_FIELDS` has the published settings.
        position: which captured contrast rows to use; None: all.
        seed: of the scorer's training.

    Attributes:
        classes_: the names of the scorer's classes.
        unwanted_: those of unwanted answers.
        weights_: of the scorer's layers, in units of the state.

    Raises:
        DataError: no contrast, one whose answers have the same states, an unknown class, or nothing wanted or avoided.

    Source: K-Steering, arXiv 2505.24535 (gradient steps); steering vector fields, arXiv 2602.01654 (`normalize`).
    """

    contrast_argument = "position"

    def __init__(
        self, layer: int | Site, *, wanted: Sequence[str] | None = None, avoided: Sequence[str] | None = None,
        steps: int = 1, decay: float = 1.0, normalize: bool = False, hidden_units: int = 128, epochs: int = 50,
        position: str | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(layer, int | Site | np.integer):
            raise DataError(f"layer={show(layer)}: a scorer reads one layer; give a field for each")
        self.layer, self.wanted, self.avoided, self.position = layer, wanted, avoided, position
        self.steps, self.decay = as_whole("steps", steps), as_number("decay", decay, 0.0, 1.0)
        self.normalize, self.seed = normalize, as_seed(seed)
        self.hidden_units, self.epochs = as_whole("hidden_units", hidden_units), as_whole("epochs", epochs)
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Train the scorer on both answers of every contrast."""
        index = acts.index.reset_index(drop=True)
        rows = index["side"].isin(["positive", "negative"])
        if self.position is not None:
            rows &= index["position"] == self.position
        if set(index["side"][rows]) != {"positive", "negative"}:
            raise DataError("a gradient field is fitted to both answers of contrasts, which the activations don't hold")
        index = index[rows].sort_values(["example_id", "side", "position"], kind="stable")  # batches are drawn by place
        labels = index["behavior"].where(index["side"] == "positive", "not " + index["behavior"])
        self.classes_ = tuple(sorted(labels.unique()))
        self.unwanted_ = tuple(sorted(labels[index["side"] == "negative"].unique()))
        if both := set(self.unwanted_) & set(labels[index["side"] == "positive"]):
            raise DataError(f"{sorted(both)} names a behavior and the lack of another: rename the behaviors")
        self._signs()  # refuses unknown classes before the training
        check_answers_differ(acts if self.position is None else acts.select(position=self.position), self.site)
        states = acts.at(self.site)[torch.tensor(index.index.to_numpy())].double().numpy()
        truth = np.stack([labels == name for name in self.classes_], 1).astype(int)
        scaler = Standardizer().fit(states)
        net = MLPClassifier(
            (self.hidden_units, self.hidden_units), batch_size=min(64, len(states)), learning_rate_init=1e-3,
            max_iter=self.epochs, n_iter_no_change=self.epochs, random_state=self.seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it trains for so many epochs, not to convergence
            net.fit(scaler.transform(states), truth)
        first = net.coefs_[0].T / scaler.scale_
        weights = [first, *(w.T for w in net.coefs_[1:])]
        biases = [net.intercepts_[0] - first @ scaler.mean_, *net.intercepts_[1:]]
        self.weights_ = tuple(
            (torch.from_numpy(w).float().contiguous(), torch.from_numpy(b).float())
            for w, b in zip(weights, biases, strict=True)
        )

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... classes"]:
        """The scorer's logits of some states, in the order of `classes_`."""
        check_fitted(self, "weights_")
        return scorer_logits(self.weights_, states.float())

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """Not available: each token has a vector of its own.

        Raises:
            SteeringError: always.
        """
        raise SteeringError("a GradientField has a vector for each token's state: call interventions(context)")

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """A gradient step at every token."""
        check_fitted(self, "weights_")
        step = GradientStep(self.weights_, self._signs(), self.steps, self.decay, self.normalize)
        return (Intervention(self.site, rule=EditRule(step)),)

    def remote_interventions(self) -> tuple[Intervention, ...]:
        """The same: the scorer is sent along."""
        return self.interventions(Context(()))

    def _signs(self) -> Tensor:
        """The share of each class in the loss: wanted ones below 0."""
        wanted = [name for name in self.classes_ if name not in self.unwanted_]
        given = {
            -1.0: wanted if self.wanted is None else as_names(self.wanted),
            1.0: self.unwanted_ if self.avoided is None else as_names(self.avoided),
        }
        unknown = sorted({*given[-1.0], *given[1.0]} - set(self.classes_))
        if unknown or not any(given.values()) or set(given[-1.0]) & set(given[1.0]):
            raise DataError(
                f"wanted={show(self.wanted)}, avoided={show(self.avoided)}: name at least one class, none twice; the "
                f"classes are {list(self.classes_)}"
            )
        signs = torch.zeros(len(self.classes_))
        for sign, names in given.items():
            for name in names:
                signs[self.classes_.index(name)] = sign / len(names)
        return signs
