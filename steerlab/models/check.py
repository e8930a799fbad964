"""Does the back end see the real residual stream? Asked once, when a model is loaded."""

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


def _text_only(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an image-text model wants to know of tokens: none holds a picture, all are prompt."""
    return {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids")}


def _check_picture(model: Model) -> None:
    """Compare the tokens and tensors of a prompt with a picture with what the processor makes of the whole."""
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
    theirs, ours = whole["input_ids"][0].tolist(), model.inputs(model.batch([row]))
    lost = sorted((set(whole) & model.accepted_inputs) - set(ours) - {"labels"})
    if theirs != list(row.ids) or lost or not row.kind("image"):
        raise LoadError(
            f"steerlab can't follow {type(vision.processor).__name__}: a picture becomes {len(theirs)} tokens there, "
            f"{len(row)} here with {len(row.kind('image'))} image tokens; left out: {', '.join(lost) or 'none'}. "
            "Give load(..., task='text') to use the model without pictures"
        )


def self_check(model: Model) -> None:
    """Compare what the back end reads at every block with the model's own `hidden_states`.

    Block k must give `hidden_states[k + 1]` to within 1e-5, relative and absolute: these are two forwards, which not
    every device computes alike to the last bit. The last entry of `hidden_states` comes after the final norm, so the
    last block is compared through that norm.

    Example:
        >>> self_check(steerlab.load("smollm2", check=False))

    Raises:
        LayoutError: a block's state differs, naming the block and by how much.
        LoadError: a picture does not become the tokens that the model's processor makes of it.
    """
    _check_picture(model)
    ids = torch.tensor([[t % model.hf.config.get_text_config().vocab_size for t in (3, 5, 7, 11, 13)]])
    inputs = model.inputs(Batch(ids, torch.ones_like(ids), torch.arange(5)[None], (), (0,), _text_only(ids)))
    sites = [Site(layer) for layer in range(model.n_layers)]
    with model.lock:
        ours = model.engine.capture_states(inputs, {}, sites, lambda h: h[0])
        with torch.no_grad():
            theirs = model.hf(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    if theirs is None or len(theirs) != model.n_layers + 1:
        count = 0 if theirs is None else len(theirs)
        raise LayoutError(
            f"the blocks at {model.layout.blocks_path!r} are {model.n_layers}, but the model reports {count} hidden "
            "states instead of one more: these are not all its decoder blocks. Give load(..., blocks='dotted.path')."
        )
    for layer, expected in enumerate(theirs[1:]):
        seen = ours[:, layer].to(expected.device)
        if layer == model.n_layers - 1 and model.layout.final_norm_path is not None:
            with torch.no_grad():
                seen = module_at(model.hf, model.layout.final_norm_path)(seen)
        if not torch.allclose(seen, expected[0], rtol=1e-5, atol=1e-5):
            off = float((seen - expected[0]).abs().max())
            raise LayoutError(
                f"block {layer} at {model.layout.blocks_path!r} does not give the residual stream: it is {off:.3g} off "
                f"hidden_states[{layer + 1}]. Give load(..., blocks='dotted.path') or load(..., check=False)."
            )
