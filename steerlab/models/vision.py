"""What a processor makes of pictures: the tokens that stand for them, and the tensors the model takes.

Processors differ in everything but this: they replace a placeholder in the text by a run of tokens. So the processor
is asked about pictures alone, between two marks of ours, and the row's text is put together here, with every token's
place known; that is done once for a picture, however many questions are asked about it.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from steerlab._support.errors import EncodingError
from steerlab._support.images import ImageInput, ZippedImage, image_hash, open_image
from steerlab.models.patches import count_units

_MARK = "steerlab-mark"
_CACHE_BYTES = 512 * 2**20
_KEYS = 256
_TOKEN_ALIGNED = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")


@dataclass(frozen=True)
class Expansion:
    """What the pictures of one row become.

    Attributes:
        texts: what replaces each placeholder.
        tail: what the processor puts after the prompt.
        tensors: the model's inputs for these pictures.
        units: how many tiles (Qwen: patches) they are cut into.
    """

    texts: tuple[str, ...]
    tail: str
    tensors: dict[str, Tensor]
    units: int


class _Recorder:
    """A tokenizer that remembers the text it was given, and whether it was told to cut it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.text = ""
        self.cut = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.text = text if isinstance(text, str) else text[0]
        if kwargs.get("truncation"):
            self.cut = (
                f" It truncates texts (truncation={kwargs['truncation']}, max_length={kwargs.get('max_length')}), and "
                "the tokens of pictures with them: switch its tokenizer's truncation off."
            )
        return self._tokenizer(text, *args, **kwargs)


class Vision:
    """A processor, asked about pictures only.

    Example:
        >>> model.vision.expand((image,)).texts
        ('<image><image><image><image><image><image><image><image><image>',)

    Args:
        processor: a Hugging Face processor with a tokenizer and an image processor.
        config: the model's configuration.

    Attributes:
        placeholder: what stands for a picture in a prompt's text.
        token_id: the token whose embedding one feature of a picture replaces.

    Source: own.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.placeholder: str = getattr(processor, "boi_token", None) or processor.image_token
        token = getattr(config, "image_token_id", None)
        self.token_id = int(config.image_token_index if token is None else token)
        self.token: str = processor.tokenizer.convert_ids_to_tokens(self.token_id)
        self.prefix_lm = config.model_type == "paligemma"  # a prompt there sees itself both ways
        self.first_position = int(self.prefix_lm)  # and is counted from 1
        self._config = config
        self._cache: OrderedDict[tuple[str, ...], Expansion] = OrderedDict()
        self._keys: dict[int, tuple[ImageInput, str]] = {}

    def expand(self, images: Sequence[ImageInput]) -> Expansion:
        """What some pictures, in this order, become; remembered, up to half a gigabyte.

        Raises:
            DataError: a picture can't be read.
            EncodingError: the processor refuses the pictures.
        """
        if not images:
            return Expansion((), "", {}, 0)
        key = tuple(self._key(image) for image in images)
        if key not in self._cache:
            self._cache[key] = self._ask(images)
            while len(self._cache) > 1 and sum(map(_bytes, self._cache.values())) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _key(self, image: ImageInput) -> str:
        """The picture's content; a file's is known by its path, size and time of change."""
        if not isinstance(image, Image | ZippedImage):
            found = os.stat(image) if os.path.exists(image) else None
            return f"{os.path.abspath(image)} {found and (found.st_size, found.st_mtime_ns)}"
        known = self._keys.get(id(image))
        if known is None or known[0] is not image:
            if len(self._keys) >= _KEYS:
                self._keys.clear()  # it keeps the pictures alive
            known = self._keys[id(image)] = (image, image_hash(image))
        return known[1]

    def _ask(self, images: Sequence[ImageInput]) -> Expansion:
        asked = copy.copy(self.processor)
        recorder = asked.tokenizer = _Recorder(self.processor.tokenizer)
        text = _MARK + "".join(self.placeholder + _MARK for _ in images)
        opened = [[open_image(image) for image in images]]
        try:
            found = asked(text=[text], images=opened, return_tensors="pt")
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            why = str(error).rstrip(".") + "." + recorder.cut
            raise EncodingError(f"{type(self.processor).__name__} refuses {len(images)} pictures: {why}") from error
        before, *texts = recorder.text.split(_MARK)
        if before or len(texts) != len(images) + 1:
            raise EncodingError(
                f"{type(self.processor).__name__} rewrote {text!r} to {recorder.text[:80]!r}...; steerlab can't tell "
                "its picture tokens apart"
            )
        tensors = {k: v for k, v in found.items() if k not in _TOKEN_ALIGNED and isinstance(v, Tensor)}
        return Expansion(tuple(texts[:-1]), texts[-1], tensors, count_units(tensors, self._config))

    def tokens(self, images: Sequence[ImageInput]) -> int:
        """How many tokens some pictures take up: one for each of their features."""
        return sum(text.count(self.token) for text in self.expand(images).texts)

    def fill(
        self, text: str, bounds: list[tuple[str, int]], images: Sequence[ImageInput], example_id: str = ""
    ) -> tuple[str, list[tuple[str, int]]]:
        """A rendered prompt with its placeholders replaced, and where each of its parts begins now.

        Raises:
            EncodingError: not one placeholder for each picture.
        """
        parts = text.split(self.placeholder)
        if len(parts) - 1 != len(images):
            raise EncodingError(
                f"the prompt {example_id or text[:60]!r} has {len(parts) - 1} image tokens ({self.placeholder}) but "
                f"{len(images)} pictures: give one picture for each"
            )
        if self.prefix_lm and not images:
            raise EncodingError(
                f"the prompt {example_id or text[:60]!r} has no picture: PaliGemma's prompts begin with one; "
                f"give images=, "
                "or load the model with task='text'"
            )
        expansion = self.expand(images)
        filled, begun, moved = parts[0], len(parts[0]), list(bounds)
        for run, part in zip(expansion.texts, parts[1:], strict=True):
            grown = len(run) - len(self.placeholder)
            moved = [(k, at + grown if old > begun else at) for (k, at), (_, old) in zip(moved, bounds, strict=True)]
            filled += run + part
            begun += len(self.placeholder) + len(part)
        return filled + expansion.tail, moved

    def inputs(self, rows: Sequence[Expansion], images: Tensor, answers: Tensor) -> dict[str, Tensor]:
        """What the model takes of a batch besides ids: its pictures, and which tokens are what.

        Features go to their tokens by order, so rows may have none.

        Args:
            rows: what each row's pictures become.
            images: `(batch, tokens)`, 1 where a token holds a feature.
            answers: `(batch, tokens)`, 1 where a token is part of a teacher-forced answer.
        """
        found = [row.tensors for row in rows if row.tensors]
        names = dict.fromkeys(name for tensors in found for name in tensors)
        joined = {name: _joined([tensors[name] for tensors in found if name in tensors]) for name in names}
        # the same name means two things: in PaliGemma what a token may see, in Gemma 3 where pictures are
        return joined | {"token_type_ids": answers if self.prefix_lm else images, "mm_token_type_ids": images}


def _bytes(expansion: Expansion) -> int:
    return sum(tensor.nbytes for tensor in expansion.tensors.values())


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One after the other along the first axis, the others padded with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    parts = []
    for tensor in tensors:
        short = [(0, want - have) for want, have in zip(shape, tensor.shape[1:], strict=True)]
        parts.append(torch.nn.functional.pad(tensor, [n for pair in reversed(short) for n in pair]))
    return torch.cat(parts)
