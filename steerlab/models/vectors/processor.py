"""The processor of a `VectorLM`: which tokens stand for a scene, and its numbers; and a vector model from a decoder."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

import numpy as np
import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoProcessor, BatchFeature, ProcessorMixin

from steerlab._support.images import VectorInput
from steerlab.errors import DataError, SteeringError
from steerlab.models.changed import check_changeable
from steerlab.models.loading import load
from steerlab.models.model import Model
from steerlab.models.vectors.encoder import ObjectKind, VectorEncoder
from steerlab.models.vectors.model import VectorLM, VectorLMConfig, pack

TOKEN = "<|vectors|>"
# before any template: contents that are lists of parts become texts, with the token that marks a scene
_FLATTEN = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set one = namespace(text='') -%}
{%- if message.content is string -%}{%- set one.text = message.content -%}{%- else -%}
{%- for part in message.content -%}
{%- set one.text = one.text + ('TOKEN\\n' if part.type == 'image' else part.text) -%}
{%- endfor -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message.role, 'content': one.text}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}"""


class EmptyScene(VectorInput):
    """A scene without objects, for the check of a model."""

    def __init__(self, sizes: Mapping[str, Sequence[int]]) -> None:
        self._tensors = {name: np.zeros(tuple(shape), dtype=np.float32) for name, shape in sizes.items()}

    @property
    def tensors(self) -> dict[str, Any]:
        """Zeros."""
        return self._tensors


class VectorProcessor(ProcessorMixin):
    """Repeats the token that marks a scene as often as it has embeddings, and packs its numbers.

    Args:
        tokenizer: which knows that token.
        sizes: names and shapes of the tensors of a scene, in the order of the model: pairs, since a file of JSON does
            not keep the order of names.
        n_embeddings: of each scene.
        image_token: the token that marks a scene, and that its embeddings replace.
    """

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"
    sizes: list[tuple[str, list[int]]]
    n_embeddings: int
    image_token: str

    @no_type_check  # transformers reads the names of its arguments from its code, which a check at run time wraps
    def __init__(
        self, tokenizer: Any = None, sizes: Sequence[tuple[str, Sequence[int]]] = (), n_embeddings: int = 1,
        image_token: str = TOKEN, chat_template: Any = None, **more: Any,
    ) -> None:  # fmt: skip
        self.sizes = [(name, list(shape)) for name, shape in sizes]
        self.n_embeddings, self.image_token = n_embeddings, image_token
        super().__init__(tokenizer, chat_template=chat_template, **more)

    @property
    def image_processor(self) -> VectorProcessor:
        """Itself: what is packed needs no other."""
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """`sizes` by name."""
        return {name: tuple(shape) for name, shape in self.sizes}

    @property
    def probe_image(self) -> VectorInput:
        """A scene that can always be read."""
        return EmptyScene(self.shapes)

    def __call__(self, text: Any = None, images: Any = None, return_tensors: str = "pt", **more: Any) -> BatchFeature:
        """Tokens, in which every marked scene has become a run of them, and `vectors`, a row for each scene.

        Raises:
            ValueError: what is no scene.
        """
        texts = [text] if isinstance(text, str) else list(text)
        scenes = [scene for row in images or [] for scene in row]
        for scene in scenes:
            if not isinstance(scene, VectorInput):
                raise ValueError(f"a {type(scene).__name__} is no scene of object vectors")
        runs = [one.replace(self.image_token, self.image_token * self.n_embeddings) for one in texts]
        found = self.tokenizer(runs, return_tensors=return_tensors, **more)
        rows = [pack(scene.tensors, self.shapes) for scene in scenes]
        return BatchFeature({**found, **({"vectors": torch.stack(rows)} if rows else {})})


def with_vectors(
    model: Model, kinds: Sequence[ObjectKind], ego: tuple[str, int], *, token: str = TOKEN, seed: int = 0,
    **encoder: Any,
) -> Model:  # fmt: skip
    """A decoder with a new, untrained encoder of objects in front; the decoder's weights are copied.

    Example:
        >>> model = with_vectors(load("smollm2"), DRIVING_KINDS, ("ego", 31), queries=16)
        >>> row = model.encode("What do you see?", images=[scene])
        >>> len(row.kind("image"))
        16

    Args:
        model: a text model from `steerlab.load`, with its weights in this process.
        kinds: the kinds of objects, in the order in which they are read.
        ego: name and width of the numbers that describe the reader itself, such as a car's speed.
        token: what marks a scene in a prompt; added to the vocabulary where it is not in it.
        seed: of all new weights.
        encoder: options of `VectorEncoder`: `width`, `latents`, `depth`, `heads`, `queries`. It stays in float32.

    Raises:
        SteeringError: a model that reads images or vectors, is on a server, or is quantized.
        DataError: a token that means something else, or options that fit no encoder.
    """
    check_changeable(model)
    if model.vision is not None or type(model.hf.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SteeringError(f"{model.id} reads images or vectors already, or is no decoder: give a text model")
    tokenizer, decoder = copy.deepcopy(model.tokenizer), copy.deepcopy(model.hf)
    if token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token):
        raise DataError(f"token={token!r} ends, begins or pads texts of this model: choose another")
    known = inspect.signature(VectorEncoder).parameters.keys() - {"kinds", "ego_width"}
    if unknown := sorted(encoder.keys() - known):
        raise DataError(f"unknown options {unknown}: the encoder has {sorted(known)}")
    if not (model.tokenizer.chat_template is None or isinstance(model.tokenizer.chat_template, str)):
        raise DataError(f"{model.id} has several chat templates: set tokenizer.chat_template to one of them")
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    token_id = int(tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]
    attention = decoder.config._attn_implementation
    config = VectorLMConfig(
        decoder.config, [vars(kind) for kind in kinds], ego, encoder, token_id, attn_implementation=attention
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if len(tokenizer) > len(decoder.get_input_embeddings().weight):  # type: ignore[arg-type]
            decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        new = VectorEncoder(kinds, ego[1], **encoder)
        projector = nn.Linear(new.queries.shape[1], model.hidden_size)
    with torch.device("meta"):
        hf = VectorLM(config)
    hf.language_model, hf.encoder, hf.projector = decoder, new.to(decoder.device), projector.to(decoder.device)
    hf.generation_config = copy.deepcopy(decoder.generation_config)
    hf.generation_config.suppress_tokens = [*(hf.generation_config.suppress_tokens or []), token_id]  # none is a scene
    template = _FLATTEN.replace("TOKEN", token) + str(tokenizer.chat_template) if model.chat else None
    tokenizer.chat_template = template
    processor = VectorProcessor(tokenizer, list(config.sizes.items()), len(new.queries), token, chat_template=template)
    found = load(hf, processor=processor, chat=model.chat, backend=model.backend, prefix_caching=model.prefix_caching)
    found.id = f"{model.id}+vectors"
    return found


AutoProcessor.register(VectorLMConfig, VectorProcessor)
