"""A decoder with an encoder of objects in front: a model of transformers, so that everything works on it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel

from steerlab.errors import EncodingError
from steerlab.models.vectors.encoder import ObjectKind, VectorEncoder

MODEL_TYPE = "steerlab_vectors"


class VectorLMConfig(PretrainedConfig):
    """What a `VectorLM` is made of.

    Args:
        text_config: of the decoder.
        kinds: the fields of each `ObjectKind`, in the order in which the encoder reads them.
        ego: name and width of the vector of the reader itself, such as the car's speed.
        encoder: options of `VectorEncoder`.
        image_token_id: the token that stands for one embedding.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self, text_config: Any = None, kinds: Any = (), ego: Any = ("ego", 1), encoder: Any = None,
        image_token_id: int = 0, **more: Any,
    ) -> None:  # fmt: skip
        if isinstance(text_config, dict):
            text_config = transformers.CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = transformers.CONFIG_MAPPING["llama"]() if text_config is None else text_config
        self.kinds, self.ego, self.encoder = list(kinds), list(ego), dict(encoder or {})
        self.image_token_id = image_token_id
        super().__init__(**more)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of a scene, in the order in which they are packed into one row of `vectors`."""
        kinds = {kind["name"]: (int(kind["slots"]), int(kind["width"])) for kind in self.kinds}
        return {**kinds, self.ego[0]: (int(self.ego[1]),)}


def pack(tensors: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The tensors of a scene as one row of numbers.

    Raises:
        EncodingError: a tensor is missing, or has another shape.
    """
    arrays = {name: np.asarray(tensors[name], dtype=np.float32) for name in sizes if name in tensors}
    for name, shape in sizes.items():
        given = arrays[name].shape if name in arrays else None
        if given != shape:
            raise EncodingError(f"the scene's {name!r} has shape {given}, and the model reads {shape}")
    return torch.cat([torch.from_numpy(arrays[name].flatten()) for name in sizes])


def unpack(vectors: Tensor, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of each scene by name."""
    parts = vectors.split([prod(shape) for shape in sizes.values()], -1)
    return {name: part.unflatten(-1, shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}


class VectorLM(PreTrainedModel, GenerationMixin):
    """A decoder that reads objects: an encoder turns them into embeddings, which take the place of marked tokens.

    One splice serves training and decoding, with a cache and without.

    Example:
        >>> hf = VectorLM(config)
        >>> hf(input_ids=ids, attention_mask=mask, vectors=pack(scene.tensors, config.sizes)[None]).logits
    """

    config_class = VectorLMConfig
    base_model_prefix = ""
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    # half precision would round distances to a few centimeters before they are read
    _keep_in_fp32_modules_strict = ["encoder", "projector"]  # noqa: RUF012

    def __init__(self, config: VectorLMConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)  # first: its dtype is the model's
        self.encoder = VectorEncoder([ObjectKind(**kind) for kind in config.kinds], config.ego[1], **config.encoder)
        self.projector = nn.Linear(self.encoder.queries.shape[1], config.text_config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the parts initialize themselves."""

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's."""
        return self.language_model.get_output_embeddings()

    def splice(self, input_ids: Tensor, vectors: Tensor | None) -> Tensor:
        """Token embeddings, in which the encoder's take the place of the marked tokens.

        Raises:
            EncodingError: the batch has more or fewer marked tokens than embeddings.
        """
        embeddings: Tensor = self.get_input_embeddings()(input_ids)
        marked = input_ids == self.config.image_token_id
        if vectors is None or not marked.any():
            return embeddings
        n_numbers = sum(map(prod, self.config.sizes.values()))
        if vectors.shape[-1] != n_numbers:
            raise EncodingError(f"a scene is a row of {vectors.shape[-1]} numbers, and the model reads {n_numbers}")
        tensors = unpack(vectors.to(self.projector.weight), self.config.sizes)
        ego = tensors.pop(self.config.ego[0])
        found = self.projector(self.encoder(tensors, ego)[0]).flatten(0, 1)
        if int(marked.sum()) != len(found):
            raise EncodingError(
                f"{int(marked.sum())} marked tokens for the {len(found)} embeddings of {len(vectors)} scenes"
            )
        return embeddings.masked_scatter(marked[..., None], found.to(embeddings.dtype))

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The scenes belong to the prompt: once it is in the cache they are not given again."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        if prepared.get("input_ids") is not None and prepared["input_ids"].shape[1] < input_ids.shape[1]:
            prepared.pop("vectors", None)
        return prepared

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Any = None, inputs_embeds: Tensor | None = None, vectors: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, **more: Any,
    ) -> Any:  # fmt: skip
        """As the decoder's, with `vectors`, a row of numbers for each scene (`pack`)."""
        if inputs_embeds is None:
            if input_ids is None:
                raise EncodingError("a forward needs input_ids, in which scenes are marked, or inputs_embeds")
            inputs_embeds = self.splice(input_ids, vectors)
            if more.get("labels") is not None:
                more["labels"] = more["labels"].masked_fill(input_ids == self.config.image_token_id, -100)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep, **more,
        )  # fmt: skip


AutoConfig.register(MODEL_TYPE, VectorLMConfig)
transformers.AutoModelForImageTextToText.register(VectorLMConfig, VectorLM)
