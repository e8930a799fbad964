"""The processor of an image-text model: which tokens stand for an image, and which tensors the model takes.

Processors have one thing in common: they replace a placeholder in the text by a run of tokens. `Vision` therefore asks
the processor about images alone, between two marks, and puts the text of the row together itself, so that the place of
every token is known. It does so once per image, however many questions are asked about it.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image, linear_gradient
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoProcessor

from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput, VectorInput, ZippedImage, image_hash, open_image
from steerlab.errors import EncodingError, LoadError
from steerlab.models.families import count_units, family_of, image_token_id

_MARK = "steerlab-mark"
_CACHE_BYTES = 512 * 2**20
_KEYS = 256


@dataclass(frozen=True)
class Expansion:
    """What the processor makes of the images of one row.

    Attributes:
        texts: what replaces each placeholder.
        tail: what the processor puts after the prompt.
        tensors: the model's inputs for these images.
        units: number of tiles (Qwen: patches) they are cut into.
    """

    texts: tuple[str, ...]
    tail: str
    tensors: dict[str, Tensor]
    units: int


class _Recorder:
    """A tokenizer that records the text it receives, and whether it was to be truncated."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.text = self.truncation_note = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.text = text if isinstance(text, str) else text[0]
        if kwargs.get("truncation"):
            cut = f"truncation={kwargs['truncation']}, max_length={kwargs.get('max_length')}"
            self.truncation_note = f" It truncates texts ({cut}), and the tokens of images with them: switch that off."
        return self._tokenizer(text, *args, **kwargs)


class Vision:
    """The image side of a model's processor.

    Example:
        >>> model.vision.expand((image,)).texts
        ('<image><image><image><image><image><image><image><image><image>',)

    Args:
        processor: a Hugging Face processor with a tokenizer and an image processor.
        config: the model's configuration.

    Attributes:
        placeholder: what stands for an image in the text of a prompt.
        token_id, token: the token whose embedding one image feature replaces.
        family: what is special about the family of models.
        refused_between: what stands between two images where they have other tokens than each alone; None if they have
            the same. The check of `load` finds out.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.family = family_of(config)
        self.placeholder: str = processor.image_token
        self.token_id = image_token_id(config)
        self.token: str = processor.tokenizer.convert_ids_to_tokens(self.token_id)
        self.refused_between: str | None = None
        self._config = config
        self._cache: OrderedDict[tuple[str, ...], Expansion] = OrderedDict()
        self._keys: dict[int, tuple[ImageInput, str]] = {}
        begin = getattr(processor, "boi_token", None)  # Gemma 3 replaces this token, and Gemma 4 the other one
        if begin and not self._takes(self.placeholder) and self._takes(begin):
            self.placeholder = begin

    def expand(self, images: Sequence[ImageInput]) -> Expansion:
        """The text and tensors of some images, in this order; cached, up to half a gigabyte.

        Raises:
            DataError: an image can't be read.
            EncodingError: the processor refuses the images.
        """
        if not images:
            return self._no_images
        key = (self.settings, *(self._key(image) for image in images))
        if key not in self._cache:
            self._cache[key] = self._process(images, self.placeholder)
            while len(self._cache) > 1 and sum(map(_nbytes, self._cache.values())) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    @cached_property
    def _no_images(self) -> Expansion:
        """What ends a prompt with images ends one without them, too (Chameleon)."""
        return Expansion((), self.expand((self.probe_image,)).tail, {}, 0)

    @property
    def settings(self) -> str:
        """A fingerprint of how images are scaled and normalized, which may be changed at any time."""
        return fingerprint(getattr(self.processor.image_processor, "to_dict", dict)())

    def info(self) -> dict[str, Any]:
        """The part of `Model.info` about images."""
        return {"image_processor": type(self.processor.image_processor).__name__, "image_settings": self.settings}

    def open(self, image: ImageInput) -> Any:
        """What the processor is given: an image as RGB, a scene as it is.

        Raises:
            EncodingError: a scene for a model that reads images.
        """
        if isinstance(image, VectorInput) and not hasattr(self.processor, "probe_image"):
            raise EncodingError(f"this model reads images, and a {type(image).__name__} is a scene of object vectors")
        return image if isinstance(image, VectorInput) else open_image(image)

    @property
    def probe_image(self) -> ImageInput:
        """An image, or what the model reads instead, for the check of a model."""
        found: ImageInput | None = getattr(self.processor, "probe_image", None)
        return linear_gradient("L").resize((60, 40)) if found is None else found

    def fill(
        self, text: str, bounds: list[tuple[str, int]], images: Sequence[ImageInput], example_id: str = ""
    ) -> tuple[str, list[tuple[str, int]]]:
        """A rendered prompt with its placeholders replaced, and where each of its parts begins now.

        Raises:
            EncodingError: the number of placeholders and images differs.
        """
        parts = text.split(self.placeholder)
        name = example_id or text[:60]
        if len(parts) - 1 != len(images):
            places = f"{len(parts) - 1} image tokens ({self.placeholder})"
            raise EncodingError(f"the prompt {name!r} has {places} but {len(images)} images: give one for each")
        if self.family.prefix_lm and not images:
            raise EncodingError(f"{name!r} has no image, which PaliGemma requires; give one, or load with task='text'")
        if self.refused_between in parts[1:-1]:
            raise EncodingError(
                f"{name!r} has images side by side, which {type(self.processor).__name__} turns into other tokens than "
                "each alone: put a text between them"
            )
        expansion = self.expand(images)
        filled, at, moved = parts[0], len(parts[0]), list(bounds)
        for run, part in zip(expansion.texts, parts[1:], strict=True):
            growth = len(run) - len(self.placeholder)
            moved = [(k, new + growth if old > at else new) for (k, new), (_, old) in zip(moved, bounds, strict=True)]
            filled += run + part
            at += len(self.placeholder) + len(part)
        return filled + expansion.tail, moved

    def check_count(self, ids: Sequence[int], images: Sequence[ImageInput], name: str) -> None:
        """Check that a row has one image token per image feature; otherwise features would go to wrong tokens.

        Raises:
            EncodingError: it has more or fewer.
        """
        found, wanted = ids.count(self.token_id), self.n_tokens(images)
        if found < wanted:
            missing = f"{wanted - found} of the {wanted} image tokens of {name!r}"
            raise EncodingError(f"the tokenizer dropped {missing}: switch its truncation off")
        if found > wanted:
            more = f"{found - wanted} image tokens ({self.token}) besides those of its {len(images)} images"
            raise EncodingError(f"the text of {name!r} holds {more}: take them out")

    def n_tokens(self, images: Sequence[ImageInput]) -> int:
        """How many tokens some images take: one per image feature."""
        return sum(text.count(self.token) for text in self.expand(images).texts)

    def inputs(self, rows: Sequence[Expansion], image_mask: Tensor, answer_mask: Tensor) -> dict[str, Tensor]:
        """The model's inputs for a batch besides ids: image tensors, and the type of each token.

        Features go to image tokens by order, so rows without images are allowed.

        Args:
            rows: the images of each row.
            image_mask: `(batch, tokens)`, 1 where a token holds an image feature.
            answer_mask: `(batch, tokens)`, 1 where a token is part of a teacher-forced answer.
        """
        found = [row.tensors for row in rows if row.tensors]
        names = dict.fromkeys(name for tensors in found for name in tensors)
        joined = {name: _join([tensors[name] for tensors in found if name in tensors]) for name in names}
        # one name with two meanings: in PaliGemma what a token may attend to, in Gemma 3 where images are
        types = answer_mask if self.family.prefix_lm else image_mask
        return joined | {"token_type_ids": types, "mm_token_type_ids": image_mask}

    def _key(self, image: ImageInput) -> str:
        """The content of an image; a file is known by its path, size and time of change, an open one by its pixels."""
        if isinstance(image, Image | VectorInput):
            return image_hash(image)  # each time: it can be drawn on
        if not isinstance(image, ZippedImage):
            found = os.stat(image) if os.path.exists(image) else None
            return f"{os.path.abspath(image)} {found and (found.st_size, found.st_mtime_ns)}"
        known = self._keys.get(id(image))
        if known is None or known[0] is not image:
            if len(self._keys) >= _KEYS:
                self._keys.clear()  # it keeps the images alive
            known = self._keys[id(image)] = (image, image_hash(image))
        return known[1]

    def _takes(self, placeholder: str) -> bool:
        try:
            self._process([self.probe_image], placeholder)
        except EncodingError:
            return False
        return True

    def _process(self, images: Sequence[ImageInput], placeholder: str) -> Expansion:
        name = type(self.processor).__name__
        processor = copy.copy(self.processor)
        recorder = processor.tokenizer = _Recorder(self.processor.tokenizer)
        text = _MARK + "".join(placeholder + _MARK for _ in images)
        opened = [[self.open(image) for image in images]]
        try:
            found = processor(text=[text], images=opened, return_tensors="pt")
        except (ValueError, TypeError, IndexError, RuntimeError, StopIteration) as error:
            reason = (str(error) or type(error).__name__).rstrip(".") + "." + recorder.truncation_note
            raise EncodingError(f"{name} refuses {len(images)} images: {reason}") from error
        before, *texts = recorder.text.split(_MARK)
        if before or len(texts) != len(images) + 1:
            raise EncodingError(f"{name} rewrote {text!r} to {recorder.text[:80]!r}: its image tokens can't be found")
        shape = found["input_ids"].shape  # a tensor with a number for each token belongs to the tokens of these marks
        tensors = {k: v for k, v in found.items() if isinstance(v, Tensor) and v.shape != shape}
        return Expansion(tuple(texts[:-1]), texts[-1], tensors, count_units(tensors, self._config))


def accepts_images(config: Any) -> bool:
    """Whether a configuration is that of an image-text model, and not of the language model inside one."""
    text_only = any(name.endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ())
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not text_only


def find_processor(
    given: Any, config: Any, task: str | None, place: str, options: dict[str, Any], tokenizer: Any = None
) -> Any:
    """The processor of a model, copied with its tokenizer, or None for text alone.

    Example:
        >>> find_processor(None, hf.config, None, "llava-hf/llava-1.5-7b-hf", {})

    Args:
        given: a processor, or where to load one from.
        config: the model's configuration.
        task: "text", "image-text", or None to use images where the model and the files beside it allow it.
        place: where the model came from; "" for an object.
        options: for `from_pretrained`.
        tokenizer: replaces the processor's tokenizer.

    Raises:
        LoadError: images are requested of a text model, or the processor, or a package that it needs, is missing.
    """
    if task not in (None, "text", "image-text"):
        raise LoadError(f"unknown task {task!r}; expected None, 'text' or 'image-text'")
    if task == "text":
        if given is not None:
            raise LoadError("task='text' reads no images, but processor= was given: leave one of them out")
        return None
    required = task is not None or given is not None
    problem, found = "", given
    if not accepts_images(config):
        cause = "a processor was given" if task is None else "task='image-text' was given"
        problem = f"{cause}, but {type(config).__name__} is that of a text-only model: use task='text'"
    elif given is None and not place:
        problem = "a model object comes without a processor; give load(model, processor=...)"
    else:
        if given is None or isinstance(given, str | os.PathLike):
            found = _read_processor(os.fspath(given or place), options, required)
        # a place without an image processor gives its tokenizer, or nothing
        if missing := [name for name in ("image_processor", "tokenizer", "image_token") if not hasattr(found, name)]:
            problem = f"{type(found).__name__} is no processor of an image-text model: it has no {', '.join(missing)}"
    if problem and required:
        raise LoadError(problem)
    if problem:
        return None
    found = copy.copy(found)
    found.tokenizer = copy.deepcopy(tokenizer or found.tokenizer)
    if getattr(found, "chat_template", None):
        found.tokenizer.chat_template = found.chat_template  # the tokenizer's template may not handle images
    return found


def _read_processor(place: str, options: dict[str, Any], required: bool) -> Any:
    """The processor at a place, or None where it has none and none is required."""
    try:
        return AutoProcessor.from_pretrained(place, **options)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        fix = "pip install 'steerlab[vision]', or give task='text' for a model without images"
        raise LoadError(f"the processor of {place!r} needs a missing package ({reason}): {fix}") from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if not required:
            return None
        raise LoadError(f"no processor could be read from {place!r}: {error}. Give load(..., processor=...)") from error


def _nbytes(expansion: Expansion) -> int:
    return sum(tensor.nbytes for tensor in expansion.tensors.values())


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first axis, the other axes padded with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    parts = []
    for tensor in tensors:
        short = [(0, want - have) for want, have in zip(shape, tensor.shape[1:], strict=True)]
        parts.append(torch.nn.functional.pad(tensor, [n for pair in reversed(short) for n in pair]))
    return torch.cat(parts)
