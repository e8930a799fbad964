"""CONFST: the mean of those items of a history that are confidently of one preference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from warnings import warn

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods._confidence import History, confident, cross_fitted, gather
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted, provenance, repeat_vector
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@savable
class CONFST(Steerer):
    """Steer every input towards one preference of several, or a mix, learned from a history of labeled texts.

    A classifier tells the preferences apart; the vector of a preference is the mean state of the items that are more
    probably than `threshold` of it. With threshold=0 that is mean steering. Longer spans add a vector of its own to
    each of their tokens.

    Vectors grow with the threshold, so at one alpha a comparison of thresholds is one of strengths: compare with
    `normalize=True`, or with scale="norm" (which makes the vectors of all a span's tokens equally long).

    Example:
        >>> acts = steerlab.capture(model, history, layers=[15])      # Examples, their behavior the preference
        >>> confst = CONFST(15, "sports").fit(acts)
        >>> confst.n_selected_, confst.accuracy_, confst.cosine_to_mean_
        >>> both = confst.combine({"sports": 1.0, "world": 0.5})
        >>> span = CONFST(15, "sports", span=3)                       # the last three tokens
        >>> span.fit(steerlab.capture(model, history, layers=[15], positions=list(span.positions)))

    Args:
        layer: block whose output is read and steered, 0-based; or a `Site`.
        target: the preference to steer towards, or weights of several, `{name: weight}`, whose vectors are summed.
        threshold: items count whose own class has a larger probability; 0 or less takes all.
        label: the index column that holds the preferences; items without one are left out.
        side: which rows are the history: "prompt", or "positive", ... for answers; None: the rows of all sides, each an
            item.
        position: where items are read, if the span is one token long and has no start.
        span: how many consecutive tokens make an item (`capture` refuses prompts that are shorter).
        start: the span's first token, counted from the beginning of the prompt, template included; None: the span ends
            with the last prompt token.
        center: subtract the mean of all items ("grand"), of the other classes' items ("others"), or nothing (None).
            Language models have large states in common, whatever is said: a plain mean is mostly that, and adding it
            mostly rescales the stream (see `cosine_to_mean_`). Hence "grand", while the paper's is the plain mean.
        normalize: make each class's vector, over all its tokens, of norm 1.
        folds: probabilities are those of items left out, in so many folds.
        least: where fewer items of a class are above the threshold, so many of the most probable ones are taken.
        C: the classifier's inverse penalty.
        seed: decides the folds.

    Attributes:
        default_positions: "prompt": a vector of one token goes to all prompt tokens where no positions are given.
            Spans are
            written to their own tokens, whatever is given, and clipped where a prompt is shorter.
        vectors_: by class, `(span, hidden)` float32, in units of the residual stream (summed in float64).
        cosine_to_mean_: by class, the cosine of its vector and the mean of all items.
        n_selected_: by class, how many items its vector is the mean of.
        accuracy_: share of items whose own class is the most probable one, out of fold.
        names_, labels_, probability_, chosen_: of each item, its id, class, out-of-fold probability of that class and
            whether it was taken; `table` shows them.

    Raises:
        ActivationError: rows at a position of the span were not captured, or there is no such label.
        DataError: one class only, or one with fewer samples than folds; an unknown target; settings that make no sense.
        SteeringError: one vector per input is asked of a span, which has several.

    Source: CONFST, arXiv 2503.02989. The idea, several preferences at once and no search over layers are the
        abstract's; that the states of a span are concatenated, judged by a logistic regression, kept above a threshold
        and averaged is from its reviews. The full text was not at hand, and there is no released code. Own:
        probabilities out of fold, `center`, `normalize`, `least` and all defaults.
    """

    default_positions: Positions = "prompt"

    def __init__(
        self, layer: int | Site, target: str | Mapping[str, float], *, threshold: float = 0.5,
        label: str = "behavior", side: str | None = "prompt", position: str | int = "last",
        span: int = 1, start: int | None = None, center: str | None = "grand", normalize: bool = False,
        folds: int = 5, least: int = 5, C: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.layer, self.target = layer, dict(target) if isinstance(target, Mapping) else target
        self.label, self.side, self.position, self.span, self.start = label, side, position, span, start
        self.threshold, self.center, self.normalize = threshold, center, normalize
        self.folds, self.least, self.C, self.seed = folds, least, C, seed
        self.site = Site.of(layer)

    @property
    def positions(self) -> tuple[str, ...]:
        """What has to be captured of each item, in order: `capture(..., positions=list(confst.positions))`."""
        if self.start is not None:
            return tuple(f"prompt[{self.start + k}]" for k in range(self.span))
        if self.span == 1:
            return (str(self.position),)
        return (*(f"last-{k}" for k in range(self.span - 1, 0, -1)), "last")

    @property
    def steering_vectors(self) -> Float[Tensor, "span hidden"]:
        """What is added to each token of the span at alpha 1: the target's vector, or the weighted sum of several."""
        check_fitted(self, "vectors_")
        weights = _weights(self.target, list(self.vectors_))
        terms = [weight * self.vectors_[name].double() for name, weight in weights.items()]
        return torch.stack(terms).sum(0).float()

    @property
    def table(self) -> pd.DataFrame:
        """One row per item: `item`, `label`, `probability` (of its own label, out of fold) and `chosen`."""
        check_fitted(self, "vectors_")
        return pd.DataFrame(
            {
                "item": self.item_ids_,
                "label": self.item_labels_,
                "probability": self.item_probability_.numpy(),
                "selected": self.selected_mask_.numpy(),
            }
        )

    def fit(self, acts: Activations) -> CONFST:
        """Judge every item by classifiers that have not seen it, and average those that are confidently of a class."""
        self._check()
        items = gather(acts, self.site, self.label, self.side, self.positions)
        _weights(self.target, items.classes)
        probability = cross_fitted(items, self.folds, self.C, self.seed)
        codes = torch.tensor([items.classes.index(name) for name in items.labels])
        self.item_ids_ = tuple(example_id if self.side else f"{example_id}:{side}" for example_id, side in items.names)
        self.item_labels_ = items.labels
        self.item_probability_ = probability.gather(1, codes[:, None])[:, 0]
        self.accuracy_ = float((probability.argmax(1) == codes).double().mean())
        self._average(items, codes)
        self.info_ = provenance(acts)
        return self

    def _average(self, items: History, codes: Tensor) -> None:
        """Choose the items of each class and make its vector of them."""
        self.selected_mask_ = torch.zeros(len(codes), dtype=torch.bool)
        self.vectors_, self.n_selected_, self.cosine_to_mean_ = {}, {}, {}
        short, grand = [], items.states.double().mean(0)
        for code, name in enumerate(items.classes):
            mine = codes == code
            own = self.item_probability_[mine]
            self.selected_mask_[mine] = confident(own, self.threshold, self.least)
            taken, above = int((self.selected_mask_ & mine).sum()), int((own > self.threshold).sum())
            if self.threshold > 0 and taken > above:
                short.append(f"{above} of {len(own)} of {name!r} (the {taken} surest are taken)")
            vector = items.states[self.selected_mask_ & mine].double().mean(0)
            if self.center is not None:
                vector = vector - (grand if self.center == "grand" else items.states[~mine].double().mean(0))
            if self.normalize:
                vector = vector / vector.norm().clamp_min(1e-30)
            self.vectors_[name], self.n_selected_[name] = vector.float().unflatten(0, (self.span, -1)), taken
            self.cosine_to_mean_[name] = float(torch.cosine_similarity(vector, grand, dim=0))
        if short:
            warn(
                f"few items have a probability above {self.threshold:g}: {'; '.join(short)}. Lower the threshold, or "
                "give more items",
                stacklevel=3,
            )

    def combine(self, target: str | Mapping[str, float]) -> CONFST:
        """The same fit for another preference, or for several at once.

        Example:
            >>> confst.combine({"sports": 1.0, "world": -0.5})

        Raises:
            DataError: an unknown preference, or weights that are not finite.
        """
        check_fitted(self, "vectors_")
        _weights(target, list(self.vectors_))
        other = copy(self)
        other.target = dict(target) if isinstance(target, Mapping) else target
        return other

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The same vector for every input, of a span of one token."""
        if self.span != 1:
            raise SteeringError(
                f"a span of {self.span} tokens has a vector for each of them, not one: ask for shifts(context), or for "
                "steering_vectors"
            )
        return repeat_vector(self.steering_vectors[0], context.example_ids)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """One vector where the request says, or one for each token of the span, there."""
        if self.span == 1 and self.start is None:
            return (Intervention(self.site, self.vectors(context)),)
        return tuple(
            Intervention(self.site, repeat_vector(vector, context.example_ids), positions=place)
            for vector, place in zip(self.steering_vectors, self.positions, strict=True)
        )

    def _check(self) -> None:
        """Refuse settings that make no sense, each with what would."""
        wrong = {
            f"threshold={self.threshold}: give a probability": not math.isfinite(self.threshold),
            f"span={self.span}: give a number of tokens, 1 or more": self.span < 1,
            f"start={self.start}: give a token's place, 0 or more, or None": self.start is not None and self.start < 0,
            f"folds={self.folds}: give 2 or more": self.folds < 2,
            f"least={self.least}: give 1 or more": self.least < 1,
            f"C={self.C}: give a positive number": not (self.C > 0 and math.isfinite(self.C)),
            f"center={self.center!r}: give 'grand', 'others' or None": self.center not in ("grand", "others", None),
            f"position={self.position!r} has no meaning for a span ({self.positions}): leave it out": (
                self.position != "last" and (self.span != 1 or self.start is not None)
            ),
        }
        for told, is_so in wrong.items():
            if is_so:
                raise DataError(told)


def _weights(target: str | Mapping[str, float], classes: list[str]) -> dict[str, float]:
    """The weight of each preference wanted."""
    weights = {name: float(w) for name, w in target.items()} if isinstance(target, Mapping) else {target: 1.0}
    unknown = [name for name in weights if name not in classes]
    if unknown or not weights:
        raise DataError(f"target={target!r} names {unknown or 'no preference'}; the preferences are {classes}")
    if not all(map(math.isfinite, weights.values())) or not any(weights.values()):
        raise DataError(f"target={target!r}: give finite weights, not all of them 0")
    return weights
