"""`Model`: a language model with its tokenizer, its layout and an engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.checks import as_whole
from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput
from steerlab.errors import EncodingError, LayoutError, LoadError, SteerlabError
from steerlab.models.check import find_row_format
from steerlab.models.encoding import Batch, EncodedPrompt, PaddingSide, by_length, collate, encode
from steerlab.models.engine import LOCKS, Engine, Inputs, block_path, point_path
from steerlab.models.families import has_rope_index
from steerlab.models.fingerprint import config_fingerprint, weights_fingerprint
from steerlab.models.kv_prefix import Prefix, local_windows, long_rotation_from, prefill_cost
from steerlab.models.layout import Layout, blocks, heads_width, module_at, normalized_width
from steerlab.models.row_format import RowFormat
from steerlab.models.shortcuts import Shortcuts, known_shortcuts
from steerlab.models.sites import Site
from steerlab.models.template import Messages
from steerlab.models.versions import forward_parameters
from steerlab.models.vision import Vision

FIRST_TRIED_LENGTH = 64  # tokens; windows up to this length are left by the rows of the first comparison


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
        row_format: how rows are given to the model; the check of `load` finds out.
        tried_length: rows up to this length were compared with plain Hugging Face, beyond all windows that they leave.
        breaking_norm_ratio: the norm ratio from which on texts broke, where `find_breaking_norm_ratio` measured it.
        lock: held during a forward, since hooks are shared by all threads.
    """

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, *, id: str,
        revision: str | None = None, backend: str = "nnsight", chat: bool | None = None, processor: Any = None,
        engine: Engine | None = None, prefix_caching: bool = True,
    ) -> None:  # fmt: skip
        if engine is None and backend not in ("nnsight", "hooks"):
            raise LoadError(f"unknown backend {backend!r}; expected 'nnsight' or 'hooks'")
        self._remote_engine, self.prefix_caching = engine, prefix_caching
        self.hf, self.tokenizer, self.layout = hf, tokenizer, layout
        self.id, self.revision, self.backend = id, revision, backend
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.vision = None if processor is None else Vision(processor, hf.config)
        self.lock = LOCKS.setdefault(hf, threading.RLock())
        self.accepted_inputs = set(forward_parameters(hf))
        if self.vision is not None and has_rope_index(hf):
            self.accepted_inputs -= {"position_ids"}
        self.row_format, self.tried_length = RowFormat(), FIRST_TRIED_LENGTH
        self._shortcuts: dict[tuple[str, ...], Shortcuts] = {}
        self.breaking_norm_ratio: float | None = None

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
    def nnsight(self) -> Any:
        """The nnsight model around the same weights: `with model.nnsight.trace(...)`.

        Raises:
            SteerlabError: the model is not run by nnsight in this process.
        """
        if not hasattr(self.engine, "root"):
            raise SteerlabError(
                f"{self.id} is run by {type(self.engine).__name__}: load it in this process, without backend="
            )
        return self.engine.root

    def set_layout(self, layout: Layout) -> None:
        """Use another layout; the engine is made anew."""
        self.layout = layout
        self.__dict__.pop("engine", None)

    @property
    def is_remote(self) -> bool:
        """Whether the weights are in another process or on a server."""
        return self._remote_engine is not None

    @property
    def shortcuts(self) -> Shortcuts:
        """The ways to compute less that gave the numbers of whole rows on this model; tried when first asked for."""
        if not self.engine.supports_forward_state:
            return Shortcuts.without("the model is remote")
        if not self.prefix_caching:
            return Shortcuts.without("prefix_caching=False was given, or rows are too long for it")
        if self.vision is not None:
            return Shortcuts.without("the model has images")
        attention = self.hf.config.get_text_config()._attn_implementation
        key = (str(attention), str(self.dtype), str(self.device), type(self.hf).__name__)
        with self.lock:
            if key not in self._shortcuts:
                self._shortcuts[key] = known_shortcuts(self)
        return self._shortcuts[key]

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether forwards can start from the keys and values of an earlier prompt."""
        return self.shortcuts.prefix is not None

    @property
    def supports_layer_restart(self) -> bool:
        """Whether forwards can start at the known output of a block."""
        return self.shortcuts.layer_restart

    def prefill(self, inputs: Inputs) -> Prefix:
        """Keys and values of some left-padded rows, computed as `shortcuts` allows."""
        with self.lock:  # or an open `with steer(...)` would take it for a call of the user's
            return self.engine.prefill(inputs, self.shortcuts.shared_beginning, self.shortcuts.prefix == "joined")

    def prefill_cost(self, ids: Tensor, mask: Tensor) -> int:
        """Row-columns that `prefill` runs for a batch of prompts."""
        return prefill_cost(ids, mask, self.hf.config.get_text_config(), self.shortcuts.shared_beginning)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(blocks(self.hf, self.layout))

    @property
    def n_heads(self) -> int | None:
        """Number of attention heads of a block, or None where the configuration gives no one number."""
        found = getattr(self.hf.config.get_text_config(), "num_attention_heads", None)
        return found if isinstance(found, int) else None

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
            LayoutError: the model has no such layer, point, vision tower or projector.
        """
        layer = as_whole("layer", getattr(site, "layer", site), None, error=LayoutError)  # NumPy's, in a data frame
        site = replace(site, layer=layer) if isinstance(site, Site) else Site(layer)
        if site.part == "text":
            point_path(site, self.layout)  # refuses a point that the blocks do not have
            return site.resolve(self.n_layers)
        path = self.layout.vision_path if site.part == "vision" else self.layout.projector_path
        if path is None or self.vision is None:
            what = f"{site.part} part (site {site})"
            raise LayoutError(f"{self.id} has no {what}: that takes an image-text model, loaded with its processor")
        return site.resolve(1 if site.part == "projector" else len(list(module_at(self.hf, path).children())))

    def width(self, site: Site) -> int | None:
        """The width of the states at a site, or None where it is not known before a forward."""
        if site.part == "vision":
            return normalized_width(module_at(self.hf, block_path(self.site(site), self.layout)))
        return heads_width(self.hf, self.layout, self.site(site).layer) if site.point == "heads" else self.hidden_size

    def info(self) -> dict[str, Any]:
        """Provenance for results and artifacts."""
        return (self.vision.info() if self.vision else {}) | {
            "model": self.id,
            "revision": self.revision,
            "weights": weights_fingerprint(self.hf),
            "config": config_fingerprint(self.hf.config.to_dict()),
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
            options: `answer`, `other_answer`, `end_turn`, `system`, `example_id` and `chat` (by default the model's)
                of `steerlab.models.encoding.encode`.
        """
        options = {"chat": self.chat} | options | {"limit": self.context_length, "vision": self.vision}
        row = encode(self.tokenizer, prompt, images=images, **options)
        known = len(self.hf.get_input_embeddings().weight)  # type: ignore[arg-type]
        if self.vision is None and max(row.ids, default=0) >= known:
            text = self.tokenizer.decode([max(row.ids)])
            raise EncodingError(
                f"the token {text!r} has the id {max(row.ids)}, and the vocabulary of the model holds {known}: it "
                "comes from another model's tokenizer, or was not learned"
            )
        return row

    def show_positions(self, prompt: str | Messages, positions: Any = None, **options: Any) -> None:
        """Print `positions.describe_positions`; in a terminal and in notebooks the tokens are colored by their span."""
        from steerlab.models.positions import print_positions  # which knows `Model`

        print_positions(self, prompt, positions, **options)

    def batches(
        self, rows: Sequence[EncodedPrompt], batch_size: int, side: PaddingSide, *variants: Sequence[EncodedPrompt],
        unpadded: bool = False,
    ) -> list[list[int]]:  # fmt: skip
        """Row numbers in batches, longest rows first; of equal length where the model takes no padding on that side.

        Args:
            rows: one row per input.
            batch_size: rows per batch.
            side: where the rows will be padded.
            variants: further rows of the same inputs, which share their batch.
            unpadded: whether only rows of equal length share a batch, also where the model takes padding.
        """
        self.try_length(max((len(row) for group in (rows, *variants) for row in group), default=0))
        groups = zip(rows, *variants, strict=True)
        shapes = [tuple(map(len, group)) if unpadded else self.row_format.shape(group, side) for group in groups]
        return list(by_length(rows, batch_size, shapes))

    def try_length(self, length: int) -> None:
        """Compare again with plain Hugging Face if rows of this length leave a window that no row has left so far."""
        tried, before = self.tried_length, self.row_format
        self.tried_length = max(tried, length)
        windows = local_windows(self.hf.config.get_text_config())
        if self.engine.supports_forward_state and any(tried < window <= length for window in windows):
            with self.lock:
                try:
                    find_row_format(self)
                except BaseException:  # out of memory, Ctrl-C: what was not compared to its end is compared again
                    self.row_format, self.tried_length = before, tried
                    raise
                self._shortcuts.clear()
        rotated_from = long_rotation_from(self.hf.config.get_text_config())
        if rotated_from and rotated_from < self.tried_length:  # rows of one length are as alone, whatever was found
            self.row_format, self.prefix_caching = replace(self.row_format, neutral_sides=()), False

    def batch(self, rows: Sequence[EncodedPrompt], side: PaddingSide = "left") -> Batch:
        """Rows padded to one width.

        Raises:
            EncodingError: padding on that side would change the states of the rows.
        """
        if len({self.row_format.shape([row], side) for row in rows}) > 1:
            raise EncodingError(
                f"{self.id} can't take rows of {sorted({len(row) for row in rows})} tokens in one batch: padding "
                "changes their states. Give answers of equal length, or batch_size=1"
            )
        pad, first = int(self.tokenizer.pad_token_id), self.row_format.first_position
        return collate(rows, pad, side, self.vision, first or 0)

    def inputs(self, batch: Batch, *, positions: bool = True) -> Inputs:
        """The keyword arguments of a forward, on the model's device; inputs that the model does not take are left out.

        Args:
            batch: padded rows.
            positions: whether to give position ids; `generate` counts them itself.
        """
        first = self.row_format.first_position
        positions = first is not None and (positions or first > 0)  # `generate` counts from 0
        optional = batch.extra | ({"position_ids": batch.position_ids} if positions else {})
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        given |= {name: tensor for name, tensor in optional.items() if name in self.accepted_inputs}
        return {  # scenes of object vectors are read in float32 whatever the decoder's dtype
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() and name != "vectors" else None)
            for name, tensor in given.items()
        }
