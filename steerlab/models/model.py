"""`Model`: a language model with its tokenizer, its layout and an engine."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from operator import index
from typing import Any, SupportsIndex

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import LayoutError, LoadError
from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput
from steerlab.models.encoding import Batch, EncodedPrompt, PaddingSide, collate, encode
from steerlab.models.engine import Engine, Inputs, block_path
from steerlab.models.families import family_of
from steerlab.models.kv_prefix import can_prefill
from steerlab.models.layout import Layout, blocks, module_at, normalized_width
from steerlab.models.sites import Site
from steerlab.models.template import Messages
from steerlab.models.vision import Vision


class Model:
    """A Hugging Face language or image-text model with its tokenizer, its layout and an engine.

    Example:
        >>> model = steerlab.load("smollm2")
        >>> model.n_layers, model.hidden_size
        (30, 576)

    Args:
        hf: the model, in eval mode.
        tokenizer: a fast tokenizer with a pad token.
        layout: where blocks, norm and head are.
        id: name of the model in results.
        revision: commit of the weights, where known.
        backend: "nnsight", or "hooks" for plain torch hooks; the name of `engine` where that is given.
        chat: whether prompts go through the chat template; None: if there is one.
        processor: the processor of an image-text model.
        engine: an engine that runs the model in another process or on a server; `hf` then has no weights.
        prefix_caching: whether the common prefix of rows is run once. Without it every row is run whole, which takes
            longer and gives the same bits as a server.

    Attributes:
        vision: the image side of the processor; None for a text-only model.
        accepted_inputs: the inputs that a forward takes from the caller, by name.
        lock: held during a forward, since hooks are shared by all threads.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        *,
        id: str,
        revision: str | None = None,
        backend: str = "nnsight",
        chat: bool | None = None,
        processor: Any = None,
        engine: Engine | None = None,
        prefix_caching: bool = True,
    ) -> None:
        if engine is None and backend not in ("nnsight", "hooks"):
            raise LoadError(f"unknown backend {backend!r}; expected 'nnsight' or 'hooks'")
        self._remote_engine, self._prefix_caching = engine, prefix_caching
        self.hf, self.tokenizer, self.layout = hf, tokenizer, layout
        self.id, self.revision, self.backend = id, revision, backend
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.vision = None if processor is None else Vision(processor, hf.config)
        self.lock = threading.RLock()
        self.accepted_inputs = set(inspect.signature(type(hf).forward).parameters)
        if family_of(hf.config).counts_positions:
            self.accepted_inputs -= {"position_ids"}

    def __repr__(self) -> str:
        return f"Model({self.id!r}, {self.n_layers} layers x {self.hidden_size}, {self.dtype}, {self.device})"

    @cached_property
    def engine(self) -> Engine:
        """What runs the model; nnsight is imported when it is first used."""
        if self._remote_engine is not None:
            return self._remote_engine
        if self.backend == "hooks":
            from steerlab.models._hooks import HooksEngine

            return HooksEngine(self.hf, self.layout)
        from steerlab.models._nnsight.local import NnsightEngine

        return NnsightEngine(self.hf, self.tokenizer, self.layout, self.vision and self.vision.processor)

    @property
    def is_remote(self) -> bool:
        """Whether the weights are in another process or on a server."""
        return self._remote_engine is not None

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether forwards can start from the keys and values of an earlier prompt."""
        return self.supports_layer_restart and can_prefill(self.hf)

    @property
    def supports_layer_restart(self) -> bool:
        """Whether forwards can start at the known output of a block."""
        return self._prefix_caching and self.engine.supports_forward_state and self.vision is None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(blocks(self.hf, self.layout))

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int | None:
        """The most tokens a row may have, or None if the configuration does not say."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """The device of token ids: that of the embedding, or the CPU for a remote model."""
        if self.is_remote:
            return torch.device("cpu")
        return self.hf.get_input_embeddings().weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.hf.dtype

    def site(self, site: Site | SupportsIndex) -> Site:
        """A site of this model with its layer counted from 0; a whole number means the output of that block.

        Raises:
            LayoutError: the model has no such layer, or no vision tower or projector.
        """
        site = site if isinstance(site, Site) else Site(index(site))  # layers in a data frame are NumPy integers
        if site.part == "text":
            return site.resolve(self.n_layers)
        path = self.layout.vision_path if site.part == "vision" else self.layout.projector_path
        if path is None or self.vision is None:
            what = f"{site.part} part (site {site})"
            raise LayoutError(f"{self.id} has no {what}: that takes an image-text model, loaded with its processor")
        return site.resolve(1 if site.part == "projector" else len(list(module_at(self.hf, path).children())))

    def width(self, site: Site) -> int | None:
        """The width of the states at a site, or None where it is not known before a forward."""
        if site.part != "vision":
            return self.hidden_size
        return normalized_width(module_at(self.hf, block_path(self.site(site), self.layout)))

    def info(self) -> dict[str, Any]:
        """Provenance for results and artifacts."""
        vision = self.vision
        images = {"image_processor": type(vision.processor.image_processor).__name__} if vision else {}
        return images | {
            "model": self.id,
            "revision": self.revision,
            "layers": self.n_layers,
            "hidden_size": self.hidden_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "chat": self.chat,
            "template": fingerprint(self.tokenizer.chat_template) if self.chat else None,
            "backend": self.backend,
            "versions": {name: version(name) for name in ("steerlab", "nnsight", "torch", "transformers")},
        }

    def encode(self, prompt: str | Messages, *, images: Sequence[ImageInput] = (), **options: Any) -> EncodedPrompt:
        """One prompt as tokens with known spans.

        Args:
            prompt: a text or messages.
            images: its images.
            options: `answer`, `other_answer`, `end_turn`, `system` and `example_id` of
                `steerlab.models.encoding.encode`.
        """
        options |= {"chat": self.chat, "limit": self.context_length, "vision": self.vision}
        return encode(self.tokenizer, prompt, images=images, **options)

    def batch(self, rows: Sequence[EncodedPrompt], side: PaddingSide = "left") -> Batch:
        """Rows padded to one width."""
        return collate(rows, int(self.tokenizer.pad_token_id), side, self.vision)

    def inputs(self, batch: Batch, *, positions: bool = True) -> Inputs:
        """The keyword arguments of a forward, on the model's device; inputs that the model does not take are left out.

        Args:
            batch: padded rows.
            positions: whether to give position ids; `generate` counts them itself.
        """
        optional = batch.extra | ({"position_ids": batch.position_ids} if positions else {})
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        given |= {name: tensor for name, tensor in optional.items() if name in self.accepted_inputs}
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in given.items()
        }
