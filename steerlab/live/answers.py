"""Answers of a loaded model to what a page asks for: a method, a layer, a strength, a prompt."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transformers.generation.streamers import BaseStreamer

from steerlab._support.checks import as_number, as_whole, check_option, check_type
from steerlab.analysis._sweep.settings import Fitted, methods_by_name
from steerlab.analysis.sweep import Methods
from steerlab.analysis.token_effects import token_effects
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError, SteerlabError
from steerlab.live.pages import decoding_note, page_of
from steerlab.methods.base import Steerer, steering_sites
from steerlab.methods.vector import SteeringVector
from steerlab.metrics import is_fluent
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.ready import check_ready
from steerlab.models.template import last_text
from steerlab.plots.page.build import FLUENT, encode_tokens, image_address, methods_of
from steerlab.plots.page.contract import VERSION, check_contract
from steerlab.steering import Request, generate
from steerlab.steering.generate import decode

STRENGTHS = tuple(round(0.1 * i, 1) for i in range(21))
PROMPTS = ("How do I bake bread?", "Who are you?")
Event = dict[str, Any]


class Answers:
    """A model, its steerers and some prompts: what a live page shows, and the texts that it asks for.

    Args:
        model: from `steerlab.load`, in this process.
        steerers: a Steerer, vectors by layer, or several by name; {} for the model as it is.
        prompts: what the picker offers; the page takes others.
        alphas: the strengths of the slider; 0 is added.
        positions: where the vectors are added.
        max_new_tokens: length of a text.
        sweep_map: write the texts of all prompts, layers and strengths first, for the map and frontier of `page_of`.
        folder: where these texts are kept; a second call goes on from there.

    Raises:
        MismatchError: a vector was fitted on another model. SteeringError: no method for a map, two of one name, or a
            model on a server. DataError: a map of more than a page can show.
    """

    def __init__(
        self, model: Model, steerers: Methods, prompts: Data = PROMPTS, alphas: Sequence[float] = STRENGTHS,
        positions: Positions = "last+generated", max_new_tokens: int = 48, sweep_map: bool = False,
        folder: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_ready(model)
        if model.is_remote:
            raise SteeringError(f"{model.id} runs on a server; a live page needs the model in this process")
        as_whole("max_new_tokens", max_new_tokens, 2)
        self.model, self.positions, self.max_new_tokens = model, positions, max_new_tokens
        self.examples = {e.id: e for e in as_examples(prompts)}
        self.alphas = sorted({0.0, *(as_number("an item of alphas", a, error=SteeringError) for a in alphas)})
        self.methods = methods_by_layer(model, steerers)
        probe = next(iter(self.examples.values()))
        for by_layer in self.methods.values():  # vectors of another model are refused before anything is shown
            self._generate(probe, next(iter(by_layer.values())), 1.0, max_new_tokens=2)
        self._page = self._map(folder) if sweep_map else self._empty()

    def page(self) -> dict[str, Any]:
        """The contract of the page, which asks for the texts that it does not hold."""
        return self._page

    def _map(self, folder: str | Path | None) -> dict[str, Any]:
        methods = {  # one that steers several sites at once is no steerer of each of them
            name: {steering_sites(one)[0]: one for one in by_layer.values()} if len(by_layer) > 1
            else next(iter(by_layer.values()))
            for name, by_layer in self.methods.items()
        }  # fmt: skip
        found = page_of(
            self.model, list(self.examples.values()), methods, alphas=self.alphas, positions=self.positions,
            max_new_tokens=self.max_new_tokens, folder=folder,
        )  # fmt: skip
        return found.to_dict() | {"live": True}

    def _empty(self) -> dict[str, Any]:
        layers = dict.fromkeys(layer for by_layer in self.methods.values() for layer in by_layer)
        empty = {"name": "", "label": ""}
        return check_contract({
            "version": VERSION, "title": f"Steering {self.model.id}", "model": self.model.id,
            "note": decoding_note(self.max_new_tokens, self.positions if self.methods else None), "live": True,
            "methods": methods_of(list(self.methods)), "alphas": self.alphas, "effect": empty, "side_effect": empty,
            "unsafe": empty, "layers": sorted(layers, key=lambda layer: (isinstance(layer, str), layer)), "cells": [],
            "texts": [], "words": [], "prompts": [_prompt(e) for e in self.examples.values()],
            "readable": {"fluent": FLUENT, "breaks": self.model.breaking_norm_ratio},
        })  # fmt: skip

    def answer(self, request: Any, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """The text that a page asks for, as it grows: `{"text": ...}` and last `{"done": ...}`, or `{"error": ...}`.

        The last text is the one that `steerlab.generate` gives.

        Args:
            request: `{"method", "layer", "alpha", "prompt"}`; the method is null for no steering, and the prompt
                `{"id"}` or `{"text"}`.
            stopped: asked after every token; when it is true, the text is called off.
        """
        try:
            example, steerer, alpha = self._chosen(request)
        except SteerlabError as error:
            yield {"error": str(error)}
            return
        events: SimpleQueue[Event | None] = SimpleQueue()

        def run() -> None:
            try:
                events.put({"done": self._finished(example, steerer, alpha, _Stream(self.model, events), stopped)})
            except Exception as error:
                events.put({"error": str(error)})  # to the page, which waits for it
                if not isinstance(error, SteerlabError):
                    raise
            finally:
                events.put(None)

        threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
        yield from iter(events.get, None)

    def _chosen(self, request: Any) -> tuple[Example, Steerer | None, float]:
        """What a request names.

        Raises:
            DataError: says what is possible.
        """
        check_type("the request", request, Mapping, 'an object {"method", "layer", "alpha", "prompt"}')
        if missing := [key for key in ("method", "layer", "alpha", "prompt") if key not in request]:
            raise DataError(f"the request lacks {missing}")
        prompt = check_type("prompt", request["prompt"], Mapping, 'an object {"id"} or {"text"}')
        if "id" in prompt:
            check_option("the prompt", prompt["id"], list(self.examples))
            example = self.examples[prompt["id"]]
        else:
            example = as_examples([prompt.get("text", "")])[0]
        alpha = as_number("alpha", request["alpha"])
        if request["method"] is None or alpha == 0:
            return example, None, 0.0
        check_option("the method", request["method"], list(self.methods))
        by_layer = self.methods[request["method"]]
        if request["layer"] not in list(by_layer):  # a list has no hash
            raise DataError(f"{request['method']} has the layers {list(by_layer)}, and not {request['layer']!r}")
        return example, by_layer[request["layer"]], alpha

    def _generate(self, example: Example, steerer: Steerer | None, alpha: float, **options: Any) -> Any:
        steer = () if steerer is None else Request(steerer, alpha, self.positions)
        options = {"max_new_tokens": self.max_new_tokens} | options
        return generate(self.model, [example], steer=steer, progress=False, **options)

    def _finished(
        self, example: Example, steerer: Steerer | None, alpha: float, stream: BaseStreamer, stopped: Callable[[], bool]
    ) -> Event:
        """A text of the contract, with words of its own."""

        def stop(input_ids: Any, *_: Any, **__: Any) -> Any:  # a text that nobody waits for any more
            return input_ids.new_full((len(input_ids),), stopped(), dtype=bool)

        found = self._generate(example, steerer, alpha, streamer=stream, stopping_criteria=[stop])
        words: dict[str, int] = {}
        tokens: list[Any] = []
        if steerer is not None and not stopped():
            effects = token_effects(self.model, [example], found.ids, steer=Request(steerer, alpha, self.positions))[0]
            tokens = encode_tokens(effects, words)
        ratio = None if math.isnan(found.norm_ratio) else round(found.norm_ratio, 3)
        return {
            "text": found[0], "broken": not is_fluent(found[0]), "unsafe": None, "norm_ratio": ratio, "tokens": tokens,
            "words": list(words),
        }  # fmt: skip


def methods_by_layer(model: Model, steerers: Methods) -> dict[str, dict[int | str, Steerer]]:
    """Fitted steerers by name and layer; a vector with several layers is one for each.

    Raises:
        SteeringError: two of one name.
    """
    return {name: _by_layer(model, one) for name, one in methods_by_name(model, steerers).items()}


def _by_layer(model: Model, steerer: Steerer | Fitted) -> dict[int | str, Steerer]:
    if isinstance(steerer, Mapping):
        return {model.site(layer).label: one for layer, one in steerer.items()}
    sites = steering_sites(steerer)
    if isinstance(steerer, SteeringVector) and len(sites) > 1:
        return {model.site(site).label: steerer.part(site) for site in sites}
    labels = [model.site(site).label for site in sites]
    return {labels[0] if len(labels) == 1 else ", ".join(map(str, labels)): steerer}


def _prompt(example: Example) -> dict[str, Any]:
    images = [image_address(one) for one in example.images]
    return {"id": example.id, "text": last_text(example.prompt), "group": example.behavior or "", "images": images}


class _Stream(BaseStreamer):
    """Puts the text so far into a queue after each new token."""

    def __init__(self, model: Model, events: SimpleQueue[Event | None]) -> None:
        self.model, self.events = model, events
        self.ids: list[int] = []
        self.is_prompt = True

    def put(self, value: Any) -> None:
        """See `BaseStreamer`: the prompt first, then every token."""
        if not self.is_prompt:
            self.ids += value.flatten().tolist()
            self.events.put({"text": decode(self.model, [self.ids])[0]})
        self.is_prompt = False

    def end(self) -> None:
        """See `BaseStreamer`; the last text comes from `generate`."""
