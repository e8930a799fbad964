"""The check when a model is loaded: does the engine read the residual stream?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from steerlab._support.errors import LayoutError, LoadError
from steerlab._support.images import open_image
from steerlab.models.encoding import Batch
from steerlab.models.layout import module_at
from steerlab.models.sites import Site
from steerlab.models.template import starts_with_bos

if TYPE_CHECKING:
    from steerlab.models.model import Model


def self_check(model: Model) -> None:
    """Compare what the engine reads at every block with the model's `hidden_states`.

    Block k must give `hidden_states[k + 1]` to within 1e-5, relative and absolute: these are two forwards, which not
    every device computes to the same bits. The last entry of `hidden_states` comes after the final norm, so the last
    block is compared through that norm.

    Example:
        >>> self_check(steerlab.load("smollm2", check=False))

    Raises:
        LayoutError: the state of a block differs, naming the block and the difference.
        LoadError: an image becomes other tokens than the model's processor makes of it.
    """
    _check_image(model)
    ids = torch.tensor([[t % model.hf.config.get_text_config().vocab_size for t in (3, 5, 7, 11, 13)]])
    # for an image-text model: no token holds an image, all are prompt
    types = {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids")}
    inputs = model.inputs(Batch(ids, torch.ones_like(ids), torch.arange(5)[None], (), (0,), types))
    sites = [Site(layer) for layer in range(model.n_layers)]
    with model.lock, torch.no_grad():
        captured = model.engine.capture_states(inputs, {}, sites, lambda h: h[0])
        reference = model.hf(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    path = model.layout.blocks_path
    if reference is None or len(reference) != model.n_layers + 1:
        count = len(reference or ())
        raise LayoutError(
            f"there are {model.n_layers} blocks at {path!r}, but the model reports {count} hidden states, not one "
            "more. Give load(..., blocks='dotted.path')."
        )
    for layer, expected in enumerate(reference[1:]):
        found = captured[:, layer].to(expected.device)
        if layer == model.n_layers - 1 and model.layout.final_norm_path is not None:
            with torch.no_grad():
                found = module_at(model.hf, model.layout.final_norm_path)(found)
        if not torch.allclose(found, expected[0], rtol=1e-5, atol=1e-5):
            difference = float((found - expected[0]).abs().max())
            off = f"{difference:.3g} off hidden_states[{layer + 1}]"
            raise LayoutError(
                f"block {layer} at {path!r} is {off}. Give load(..., blocks='dotted.path') or check=False."
            )


def _check_image(model: Model) -> None:
    """Compare tokens and inputs of a prompt with an image with what the processor makes of the whole prompt."""
    if model.vision is None:
        return
    image, vision = Image.linear_gradient("L").resize((60, 40)), model.vision
    text = f"{vision.placeholder}Hello"
    row = model.encode("Hello" if model.chat else text, images=[image])
    if model.chat:
        turn: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hello"}]}]
        text = str(model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    special = not model.chat and not starts_with_bos(model.tokenizer, text)
    whole = vision.processor(text=[text], images=[[open_image(image)]], return_tensors="pt", add_special_tokens=special)
    expected, inputs = whole["input_ids"][0].tolist(), model.inputs(model.batch([row]))
    missing = sorted((set(whole) & model.accepted_inputs) - set(inputs) - {"labels"})
    if expected != list(row.ids) or missing or not row.kind("image"):
        raise LoadError(
            f"steerlab does not support {type(vision.processor).__name__}: it makes {len(expected)} tokens of a prompt "
            f"with an image, steerlab {len(row)} with {len(row.kind('image'))} image tokens; inputs left out: "
            f"{', '.join(missing) or 'none'}. Give load(..., task='text') to use the model without images"
        )
