"""What every steerer and detector is: fitted to activations, saved, and shown in a line."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from steerlab._support.checks import show
from steerlab._support.hub import Shareable
from steerlab.capturing.activations import Activations
from steerlab.capturing.capture import capture
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import ActivationError, DataError
from steerlab.models.model import Model
from steerlab.models.sites import Site

Fitted = TypeVar("Fitted", bound="FittedMixin")
_PLAIN = (str, int, float, tuple, list, Site)


@dataclass(frozen=True)
class RequiredActivation:
    """A state of the unsteered input that a method requires.

    Example:
        >>> RequiredActivation(Site(16), position="last")

    Attributes:
        site: where in the model.
        position: at which token, by name or number.
        side: of which prompt: "prompt" for the input itself, or a name in the example's `extra_prompts`.
    """

    site: Site
    position: str | int = "last"
    side: str = "prompt"


class FittedMixin(Shareable, ABC):
    """The fitted state of a steerer or detector, as `save_pretrained` stores it; the defaults suit most methods.

    Attributes:
        info_: the model and template it was fitted on (`provenance`).
    """

    info_: dict[str, Any]
    #: whether `fit` has anything to learn; a vector made by hand has not
    is_fittable: bool = True
    #: the argument of the constructor that says where contrasts are read
    contrast_argument: str | None = None

    @property
    def name(self) -> str:
        """Its name in tables and figures."""
        return type(self).__name__.lower()

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What must be captured of each unsteered input; () for methods that read nothing."""
        return ()

    @property
    def contrasts_read_at(self) -> str | None:
        """The position at which both answers of a contrast are read; None: that of each contrast."""
        return getattr(self, self.contrast_argument) if self.contrast_argument else None

    def fit(self: Fitted, model: Model | Activations, data: Data | None = None, **options: Any) -> Fitted:
        """Fit to what a model computes on data, or to activations that were captured before; returns self.

        Example:
            >>> mean = MeanDifference(15).fit(model, pairs)
            >>> acts = steerlab.capture(model, pairs, layers=[15])
            >>> mean = MeanDifference(15).fit(acts)                   # the same

        Args:
            model: from `steerlab.load`, or `Activations`.
            data: what `capture` takes: Examples with a contrast, for most methods.
            options: of `capture`, such as `batch_size` or `positions`; by default the layers and positions that the
                method reads, and the extra prompts that it requires, not all. With `folder`, finished batches of states
                are kept there, and the same call goes on from them.

        Raises:
            ActivationError: neither a model with data nor activations; or the activations lack what the method reads.
            DataError: the method can't be fitted to these examples.
        """
        if isinstance(model, Model) and data is not None:
            found = capture(model, examples := as_examples(data), **(self.capture_options(examples) | options))
            acts = found if isinstance(found, Activations) else found.load()
        else:
            if data is not None or options or not isinstance(model, Activations):
                given = ", ".join(map(show, (model,) if data is None else (model, data)))
                raise ActivationError(
                    f"fit was given {given}: expected fit(model, data), or fit(activations) with Activations from "
                    "steerlab.capture"
                )
            acts = model
        before = [(vars(one), dict(vars(one))) for one in (self, *parts_of(self))]
        self.__dict__.pop("threshold_", None)  # a detector's, of the scores before
        try:
            self.fit_activations(acts)
        except BaseException:  # what was fitted before goes on to work as it did
            for now, then in before:
                now.clear()
                now.update(then)
            raise
        self.info_ = provenance(acts)
        return self

    def _save_pretrained(self, save_directory: Path) -> None:
        from steerlab.methods.serialization import save  # which knows every method by its class

        save(self, save_directory)

    @classmethod
    def _from_folder(cls: type[Fitted], folder: Path, model: Any, force: bool) -> Fitted:
        from steerlab.methods.serialization import load

        return load(folder, model, force, cls)

    def _card_facts(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        shown = {name: value for name, value in arguments.items() if isinstance(value, str | int | float | tuple)}
        info = getattr(self, "info_", {})
        known = ("model", "revision", "weights", "hidden_size", "template", "data", "versions")
        sites = {"sites": ", ".join(map(str, steering_sites(self)))}
        return sites | shown | {name: info[name] for name in known if name in info}

    @abstractmethod
    def fit_activations(self, acts: Activations) -> None:
        """Fit to activations; `fit` calls it, and records where they come from."""

    def capture_options(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The arguments of `capture` that give what `fit` reads of these examples."""
        required = self.required_activations
        sites = list(dict.fromkeys([*steering_sites(self), *(one.site for one in required)]))
        positions = list(dict.fromkeys(one.position for one in required)) or ["last"]
        if required and any(example.contrast and example.contrast.whole_texts for example in examples):
            raise DataError(
                f"{self.name} reads the prompt of each input, and a pair of whole texts has none: give "
                "steerlab.pairs(..., prompts=[...])"
            )
        held = {name for example in examples for name in example.extra_prompts}  # a fitted part may read others
        sides = sorted({one.side for one in required} & held)
        options: dict[str, Any] = {"layers": sites or "all", "extra_prompts": sides, "progress": False}
        if not any(example.contrast for example in examples):
            return options | {"positions": positions}
        read_at = {} if self.contrasts_read_at is None else {"positions": [self.contrasts_read_at]}
        return options | {"context": positions} | read_at

    def __repr__(self) -> str:
        shown = []
        for name, one in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, None)
            if isinstance(value, (*_PLAIN, FittedMixin)) and value != one.default:  # tensors and tables fit no line
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({'; '.join(filter(None, [', '.join(shown), self._origin]))})"

    @property
    def _origin(self) -> str:
        info = getattr(self, "info_", None)
        if not info:
            return "not fitted"
        return f"fitted on {info['model']}" if "model" in info else "made by hand"

    def state_dict(self) -> dict[str, Any]:
        """The fitted values by name: every attribute that ends in `_`, except `info_` and `history_`."""
        omitted = ("info_", "history_")
        return {k: v for k, v in vars(self).items() if k.endswith("_") and k[0] != "_" and k not in omitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the values that `state_dict` returned; lists have become tuples."""
        for key, value in state.items():
            setattr(self, key, value)


def parts_of(method: object) -> list[FittedMixin]:
    """The fitted methods inside a method, each followed by its own: a wrapped steerer, a detector, those of W2S."""
    held = [x for value in vars(method).values() for x in (value if isinstance(value, list | tuple) else [value])]
    return [part for one in held if isinstance(one, FittedMixin) for part in (one, *parts_of(one))]


def steering_sites(steerer: FittedMixin) -> tuple[Site, ...]:
    """All sites at which a steerer may add vectors; () for instruction baselines."""
    return tuple(getattr(steerer, "sites", ())) or ((steerer.site,) if hasattr(steerer, "site") else ())


def provenance(acts: Activations) -> dict[str, Any]:
    """What a fitted method stores as `info_`: the info of the capture, and the hidden size.

    Example:
        >>> self.info_ = provenance(acts)
    """
    return {**acts.info, "hidden_size": acts.hidden_size}
