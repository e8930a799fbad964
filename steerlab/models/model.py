"""A language model you can look into."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from operator import index
from typing import Any, Literal, SupportsIndex

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import LayoutError, LoadError
from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput
from steerlab.models.encoded_prompt import EncodedPrompt
from steerlab.models.encoding import Batch, PaddingSide, collate, encode
from steerlab.models.engine import Engine, Inputs, block_path
from steerlab.models.kv_prefix import can_prefill
from steerlab.models.layout import Layout, blocks, module_at
from steerlab.models.positions import NAMES, Positions, describe, resolve
from steerlab.models.sites import Site
from steerlab.models.template import Messages
from steerlab.models.vision import Vision
from steerlab.models.vision_layout import normalized_width

Backend = Literal["nnsight", "hooks"]


class Model:
    """A Hugging Face language or image-text model with its tokenizer, the places to look into, and an engine.

    Example:
        >>> model = steerlab.load("smollm2")
        >>> model.n_layers, model.hidden_size
        (30, 576)

    Args:
        hf: the model, in eval mode.
        tokenizer: a fast tokenizer with a pad token.
        layout: where blocks, norm and head are.
        id: what to call the model in results.
        revision: commit of the weights, where known.
        backend: "nnsight", or "hooks" for plain torch hooks.
        chat: whether prompts go through the chat template; None: whenever there is one.
        processor: that of an image-text model.
        engine: one that runs the model elsewhere; `hf` is then a skeleton without weights, and `backend` its name.
        prefix_caching: whether what rows have in common is run once; else every row is run whole, which takes longer
            and
            gives the same to the last bit as a server.

    Attributes:
        vision: how pictures become tokens and tensors; None for a text-only model.
        accepted_inputs: the names of what a forward takes from us.
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
        self._engine, self._shares = engine, prefix_caching
        self.hf, self.tokenizer, self.layout = hf, tokenizer, layout
        self.id, self.revision, self.backend = id, revision, backend
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.vision = None if processor is None else Vision(processor, hf.config)
        self.lock = threading.RLock()
        self.accepted_inputs = set(inspect.signature(type(hf).forward).parameters)
        if getattr(hf.config.get_text_config(), "rope_parameters", None) and "mrope_section" in str(
            hf.config.get_text_config().rope_parameters
        ):
            self.accepted_inputs -= {"position_ids"}  # three to a token there, which the model counts itself

    def __repr__(self) -> str:
        return f"Model({self.id!r}, {self.n_layers} layers x {self.hidden_size}, {self.dtype}, {self.device})"

    @cached_property
    def engine(self) -> Engine:
        """The back end that carries out plans; nnsight is imported when first used."""
        if self._engine is not None:
            return self._engine
        if self.backend == "hooks":
            from steerlab.models._hooks import HooksEngine

            return HooksEngine(self.hf, self.layout)
        from steerlab.models._nnsight.local import NnsightEngine

        return NnsightEngine(self.hf, self.tokenizer, self.layout, self.vision and self.vision.processor)

    @property
    def is_remote(self) -> bool:
        """Whether the weights are in another process or on a server, and a skeleton stands here."""
        return self._engine is not None

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether forwards can take up keys and values of a prompt that was run before; else rows are run whole."""
        return self._shares and self.engine.supports_forward_state and self.vision is None and can_prefill(self.hf)

    @property
    def supports_layer_restart(self) -> bool:
        """Whether forwards can begin at the output of a block that is known."""
        return self._shares and self.engine.supports_forward_state and self.vision is None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(blocks(self.hf, self.layout))

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    def site(self, site: Site | SupportsIndex) -> Site:
        """A site of this model with its layer counted from 0; a whole number means that block's output.

        Raises:
            LayoutError: the model has no such layer, or no vision tower or projector.
        """
        site = site if isinstance(site, Site) else Site(index(site))  # layers out of a frame are NumPy's numbers
        if site.part == "text":
            return site.resolve(self.n_layers)
        path = {"vision": self.layout.vision_path, "projector": self.layout.projector_path}[site.part]
        if path is None or self.vision is None:
            raise LayoutError(
                f"{self.id} has no {site.part} to look into (site {site}): that takes an image-text model, loaded with "
                "its processor"
            )
        return site.resolve(1 if site.part == "projector" else len(list(module_at(self.hf, path).children())))

    def width(self, site: Site) -> int | None:
        """How wide the states at a site are, or None where that can't be told beforehand."""
        if site.part != "vision":
            return self.hidden_size
        return normalized_width(module_at(self.hf, block_path(self.site(site), self.layout)))

    @property
    def context_length(self) -> int | None:
        """The most tokens a row may have, or None if the configuration doesn't say."""
        limit = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding, or this machine's memory if the weights are elsewhere."""
        if self.is_remote:
            return torch.device("cpu")
        return self.hf.get_input_embeddings().weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.hf.dtype

    def info(self) -> dict[str, Any]:
        """Provenance for results and artifacts."""
        seen = {} if self.vision is None else {"image_processor": type(self.vision.processor.image_processor).__name__}
        return seen | {
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

    def encode(
        self,
        prompt: str | Messages,
        *,
        answer: str | None = None,
        other_answer: str | None = None,
        end_turn: bool = False,
        system: str | None = None,
        example_id: str = "",
        images: Sequence[ImageInput] = (),
    ) -> EncodedPrompt:
        """One prompt as tokens with known spans; see `steerlab.models.encoding.encode`."""
        return encode(
            self.tokenizer,
            prompt,
            answer=answer,
            other_answer=other_answer,
            end_turn=end_turn,
            system=system,
            chat=self.chat,
            example_id=example_id,
            limit=self.context_length,
            images=images,
            vision=self.vision,
        )

    def batch(self, rows: Sequence[EncodedPrompt], side: PaddingSide = "left") -> Batch:
        """Rows padded to one width."""
        return collate(rows, int(self.tokenizer.pad_token_id), side, self.vision)

    def inputs(self, batch: Batch, *, positions: bool = True) -> Inputs:
        """The keyword arguments of a forward on the model's device: of what is optional, what this model takes.

        Args:
            batch: padded rows.
            positions: whether to give position ids; `generate` counts its own.
        """
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        optional = batch.extra | ({"position_ids": batch.position_ids} if positions else {})
        given |= {name: tensor for name, tensor in optional.items() if name in self.accepted_inputs}
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in given.items()
        }

    def positions_table(
        self, prompt: str | Messages, *, answer: str | None = None, images: Sequence[ImageInput] = ()
    ) -> pd.DataFrame:
        """One row per token: its id, its string, its span, and a column per position name."""
        row = self.encode(prompt, answer=answer, images=images)
        kinds = {i: span.kind for span in row.spans for i in range(span.start, span.end)}
        table = pd.DataFrame(
            {
                "token": range(len(row)),
                "id": row.ids,
                "string": [row.text[a:b] for a, b in row.offsets],
                "span": [kinds[i] for i in range(len(row))],
            }
        )
        for name in NAMES:
            table[name] = table["token"].isin(resolve(name, row))
        return table

    def show_positions(
        self,
        prompt: str | Messages,
        positions: Positions | None = None,
        *,
        answer: str | None = None,
        images: Sequence[ImageInput] = (),
    ) -> None:
        """Write to standard output which tokens a position means (all names if none is given).

        Example:
            >>> model.show_positions("How do I bake bread?", "last")
            last             1 token    41 'Ċ'
        """
        row = self.encode(prompt, answer=answer, images=images)
        lines = [f"{len(row)} tokens: " + ", ".join(f"{s.kind} {s.start}:{s.end}" for s in row.spans)]
        for position in NAMES if positions is None else (positions,):
            tokens = resolve(position, row)
            text = " ".join(f"{i} {row.text[slice(*row.offsets[i])]!r}" for i in tokens[:12])
            more = f" ... and {len(tokens) - 12} more" if len(tokens) > 12 else ""
            note = "" if tokens else "(none in this row)"
            lines.append(
                f"{describe(position):<12} {len(tokens):>4} token{'s'[: len(tokens) != 1]:<2} {text}{more}{note}"
            )
        sys.stdout.write("\n".join(lines) + "\n")
