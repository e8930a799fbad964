"""`Talk`: two conversations with one model, one of them steered; both answers are written in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import steerlab
from steerlab.cli.inputs import nearest
from steerlab.data import Example
from steerlab.errors import SteeringError
from steerlab.methods import Steerer, SteeringVector
from steerlab.models.model import Model
from steerlab.models.positions import Positions, check_positions, resolve
from steerlab.models.sites import Site
from steerlab.steering.batches import encode_examples

Show = Callable[[dict[str, str]], object]
PLAIN = "without"


class Talk:
    """Two conversations, without and with steering; each goes on from its own answers.

    Example:
        >>> talk = Talk(model, {"polite": vector})
        >>> talk.answer("How do I bake bread?")
        {'without': 'Mix flour ...', 'polite, alpha 1': 'Gladly! ...'}
        >>> talk.alpha = 2.0

    Args:
        model: from `steerlab.load`.
        steerers: fitted, by name.
        alpha: the strength.
        max_new_tokens: limit of an answer.
        system: a system message.

    Attributes:
        is_answering, was_stopped: whether an answer is being written; whether the last one was stopped.
        turns: what was said: the prompt and the answers, with strength, layers and positions.
    """

    def __init__(
        self, model: Model, steerers: Mapping[str, Steerer], alpha: float = 1.0, max_new_tokens: int = 200,
        system: str | None = None,
    ) -> None:  # fmt: skip
        if model.is_remote:
            raise SteeringError(
                f"a talk shows answers as they are written, which {model.id} on a server can't: load it here"
            )
        self.model, self._given, self.system = model, dict(steerers), system
        self.steerers, self.alpha, self.max_new_tokens = dict(steerers), alpha, max_new_tokens
        self.positions: Positions | None = None
        self.is_answering = self.was_stopped = False
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.turns: list[dict[str, Any]] = []

    def stop(self) -> None:
        """End the answer that is being written after its next token."""
        self.was_stopped = True

    def set_layer(self, layer: int | Site) -> None:
        """Steer another layer: with the vector fitted there, or with the only one that there is.

        Raises:
            SteeringError: a method that predicts vectors for its own layer, or a layer of several that has none.
        """
        self.steerers = {name: _at_layer(name, steerer, Site.of(layer)) for name, steerer in self._given.items()}

    def set_positions(self, positions: Positions | None) -> None:
        """Steer other tokens; None: each method's own.

        Raises:
            PositionError: an unknown name.
        """
        if positions is not None:
            check_positions([positions], 2)
            resolve(positions, self.model.encode("Hello"))  # refuses positions that no prompt has
        self.positions = positions

    @property
    def layers(self) -> dict[str, str]:
        """Where each method steers."""
        from steerlab.methods.base import steering_sites

        return {name: ", ".join(map(str, steering_sites(one))) for name, one in self.steerers.items()}

    def describe(self) -> str:
        """What is steered now."""
        where = "each method's own positions" if self.positions is None else f"positions {self.positions}"
        steered = "; ".join(f"{name} at layer {layers}" for name, layers in self.layers.items())
        return f"{steered}; alpha {self.alpha:g}; {where}; at most {self.max_new_tokens} tokens"

    @property
    def title(self) -> str:
        """The name of the steered answer."""
        return f"{' + '.join(self.steerers)}, alpha {self.alpha:g}"

    def answer(self, prompt: str, show: Show = lambda texts: None) -> dict[str, str]:
        """Both answers to a prompt, which become part of the talk; those that are stopped as far as they came.

        Args:
            show: called after each token with both texts so far.

        Raises:
            EncodingError: the talk is longer than the model's context: reset it.
        """
        titles, examples = (PLAIN, self.title), [self._example(prompt, steered) for steered in (0, 1)]
        texts = dict.fromkeys(titles, "")
        self.was_stopped, self.is_answering = False, True
        try:
            found = steerlab.generate(
                self.model, examples, steer=list(self.steerers.values()), alpha=[0.0, self.alpha],
                positions=self.positions, max_new_tokens=self.max_new_tokens, batch_size=2, progress=False,
                stopping_criteria=[_Watcher(self, examples, texts, show)],
            )  # fmt: skip
            texts = dict(zip(titles, found.texts, strict=True))
        except SteeringError:
            if not self.was_stopped:  # before the first steered token there is nothing to steer
                raise
        finally:
            self.is_answering = False
        turn = {"prompt": prompt, "alpha": self.alpha, "layers": self.layers, "positions": self.positions}
        self.turns.append(turn | {"texts": list(texts.values())})
        return texts

    def _example(self, prompt: str, steered: int) -> Example:
        """The conversation so far and a prompt; the prompt alone for a model without a chat template."""
        if not self.model.chat:
            return Example(prompt, id=str(steered))
        history = [
            {"role": role, "content": text}
            for turn in self.turns
            for role, text in (("user", turn["prompt"]), ("assistant", turn["texts"][steered]))
        ]
        return Example([*history, {"role": "user", "content": prompt}], id=str(steered), system=self.system)


class _Watcher:
    """Shows the new tokens of each row after every step, and ends all rows when the talk is stopped."""

    ignores_padding = True

    def __init__(self, talk: Talk, examples: list[Example], texts: dict[str, str], show: Show) -> None:
        from steerlab.steering.padding import reads_padding

        self._talk, self._texts, self._show = talk, texts, show
        rows = encode_examples(talk.model, examples)
        unpadded = reads_padding(talk.model, {})
        talk.model.try_length(max(map(len, rows)) + talk.max_new_tokens)
        self._batches = talk.model.batches(rows, 2, "left", unpadded=unpadded)  # as `generate` makes them
        self._widths = [max(len(rows[i]) for i in batch) for batch in self._batches]
        self._number, self._seen = 0, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        from steerlab.steering.generate import decode

        if input_ids.shape[1] <= self._seen:  # the first step of the next batch
            self._number += 1
        self._seen = input_ids.shape[1]
        titles = list(self._texts)
        new = input_ids[:, self._widths[self._number] :].tolist()
        for row, text in zip(self._batches[self._number], decode(self._talk.model, new), strict=True):
            self._texts[titles[row]] = text
        self._show(dict(self._texts))
        return torch.full((len(input_ids),), self._talk.was_stopped, device=input_ids.device)


def _at_layer(name: str, steerer: Steerer, site: Site) -> Steerer:
    if not isinstance(steerer, SteeringVector):
        raise SteeringError(
            f"{name} is a {type(steerer).__name__}, which knows its own layer only: fit it at another with fit"
        )
    found = steerer.directions
    if site in found:
        return steerer.part(site)
    if len(found) > 1:
        raise SteeringError(f"{name} has no vector at layer {site}: {nearest(str(site), [str(one) for one in found])}")
    return steerer.moved_to(site)
