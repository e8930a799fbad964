"""States put into another prompt, against a plain hook and one row at a time."""

import plain
import pytest
import torch

from steerlab import Site
from steerlab.analysis.patchscope import patchscope
from steerlab.errors import DataError, LayoutError
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_lm

PROMPTS = ["Tell me of the Nile.", "Hi"]
TARGET = "cat cat; ? says"


@torch.no_grad()
def by_hand(model: Model, prompt: str, source: int, column: int, into: int, steps: int) -> str:
    state = plain.hidden(model, model.encode(prompt).ids)[source][column]
    target = list(model.tokenizer(TARGET).input_ids)
    place = max(i for i, token in enumerate(target) if model.tokenizer.decode([token]).strip() == "?")
    for _ in range(steps):
        with plain.hooked(model, into, lambda h: h.index_copy(1, torch.tensor([place]), state[None, None])):
            target.append(int(plain.logits(model, target)[-1].argmax()))
        if target[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(target[-steps:], skip_special_tokens=True).rstrip()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("into", [None, 2])
def test_continuations_equal_a_plain_hook(family: str, into: int | None) -> None:
    model = tiny_lm(family)
    frame = patchscope(
        model, PROMPTS, [0, 2], ["last", "prompt[3]"], prompt=TARGET, into=into, max_new_tokens=3, batch_size=3
    )  # fmt: skip
    assert len(frame) == 2 * 2 * 2 and frame["layer"].tolist() == [0, 2] * 4
    for row in frame.itertuples():
        prompt = PROMPTS[int(row.example_id.split(":")[0])]
        target = row.layer if into is None else into
        assert row.text == by_hand(model, prompt, row.layer, row.column, target, 3), (row.layer, row.column)
        assert row.input_token == model.tokenizer.decode([model.encode(prompt).ids[row.column]])


def test_patchscope_refuses_what_it_cannot_do() -> None:
    model = tiny_lm("llama")
    with pytest.raises(DataError, match=r"the placeholder 'y' .*is not in the prompt 'x'"):
        patchscope(model, PROMPTS, [0], prompt="x", placeholder="y")
    with pytest.raises(LayoutError, match=r"residual stream of the text, and 1.attn_out is not there"):
        patchscope(model, PROMPTS, [Site(1, "attn_out")])
    with pytest.raises(LayoutError, match=r"1\.mlp_out is not there"):
        patchscope(model, PROMPTS, [1], into=Site(1, "mlp_out"))
