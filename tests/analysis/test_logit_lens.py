"""What a model would say at each layer, against its own norm and head by hand."""

import plain
import pytest
import torch
from PIL import Image
from torch import Tensor

from steerlab import Example, Site, next_token_logits, steer
from steerlab.analysis.logit_lens import logit_lens
from steerlab.analysis.patching import patch
from steerlab.analysis.sae_features import sae_features
from steerlab.errors import DataError, LayoutError, MismatchError
from steerlab.methods.sae import train_sae
from steerlab.models.layout import find_layout, module_at
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, VLM_FAMILIES, tiny_hf, tiny_lm, tiny_vlm

PROMPTS = ["Tell me of the Nile.", "Hi"]


@torch.no_grad()
def by_hand(model: Model, prompt: str) -> tuple[Tensor, Tensor]:
    """Probabilities at each layer and token, `(layer, token, vocabulary)`, and those of the model itself."""
    ids, _ = plain.chat_ids(model, prompt)
    own = plain.logits(model, ids)
    return torch.stack([said(model, h) for h in plain.hidden(model, ids)]), own.softmax(-1)


@torch.no_grad()
def said(model: Model, states: Tensor) -> Tensor:
    """The probabilities that the model's own norm and head make of states."""
    norm, head = (module_at(model.hf, path) for path in (model.layout.final_norm_path, model.layout.head_path))
    logits = head(norm(states))
    if cap := getattr(model.hf.config.get_text_config(), "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits.softmax(-1)


@pytest.mark.parametrize("family", [*FAMILIES, *(one for one in VLM_FAMILIES if one != "paligemma")])
def test_lens_equals_norm_and_head_by_hand_in_every_family(family: str) -> None:
    model = tiny_lm(family) if family in FAMILIES else tiny_vlm(family)
    frame = logit_lens(model, PROMPTS, positions=["last", "prompt[3]"], top=3)
    assert list(frame["rank"].unique()) == [1, 2, 3] and len(frame) == 2 * 2 * model.n_layers * 3
    for number, prompt in enumerate(PROMPTS):
        layers, own = by_hand(model, prompt)
        for row in frame[frame["example_id"].str.startswith(f"{number}:")].itertuples():
            column = 3 if row.position == "prompt[3]" else len(own) - 1
            assert row.column == column
            expected = layers[row.layer, column]
            best = expected.sort(descending=True).values
            assert row.probability == pytest.approx(float(best[row.rank - 1]), rel=1e-3)
            assert row.token == model.tokenizer.decode([row.token_id])
            end = own[column].double()
            kl = float((end * (end.log() - expected.double().log())).sum())
            assert row.kl == pytest.approx(kl, abs=2e-4), "and 0 at the last layer, whose words are the model's own"


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
def test_lens_of_prompts_with_images_ends_with_what_the_model_says(family: str) -> None:
    model = tiny_vlm(family, backend="hooks")
    image = Image.fromarray(torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8).numpy())
    mark = "<image>" if family == "paligemma" else ""  # which has no chat template
    rows = [Example(mark + prompt, images=(image,)) for prompt in PROMPTS]
    own = next_token_logits(model, rows).softmax(-1).max(-1)
    frame = logit_lens(model, rows, top=1).query(f"layer == {model.n_layers - 1}")
    assert frame["token_id"].tolist() == own.indices.tolist()
    assert frame["probability"].tolist() == pytest.approx(own.values.tolist(), rel=1e-3)


def test_ranks_of_given_tokens_and_every_token_of_a_prompt() -> None:
    model = tiny_lm("llama")
    frame = logit_lens(model, PROMPTS, [1, 3], "prompt", tokens=[model.tokenizer.decode([40])])
    probabilities, _ = by_hand(model, PROMPTS[1])
    rows = frame[frame["example_id"].str.startswith("1:")]
    assert len(rows) == 2 * probabilities.shape[1] and set(rows["token_id"]) == {40}
    for row in rows.itertuples():
        here = probabilities[row.layer, row.column]
        assert row.rank == int((here > here[40]).sum()) + 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("point", ["block_in", "attn_out", "mlp_out"])
def test_lens_inside_a_block_equals_norm_and_head_by_hand(family: str, point: str) -> None:
    model, seen = tiny_lm(family), []
    frame = logit_lens(model, PROMPTS, [Site(1, point)], top=1)
    with plain.hooked(model, Site(1, point), lambda h: seen.append(h.flatten(0, -2)[-1]) or h):
        for prompt in PROMPTS:
            plain.logits(model, plain.chat_ids(model, prompt)[0])
    best = said(model, torch.stack(seen)).max(-1)
    assert frame["layer"].tolist() == [f"1.{point}"] * 2 and frame["token_id"].tolist() == best.indices.tolist()
    assert frame["probability"].tolist() == pytest.approx(best.values.tolist(), rel=1e-3)
    patch(model, ["a cat"], ["a dog"], ("a", "b"), layers=[Site(1, point)])  # without a warning


def test_many_states_are_read_in_parts() -> None:
    model = tiny_lm("llama")
    prompts = [f"Number {i} of a long list of things to see" for i in range(9)]
    whole = logit_lens(model, prompts, [2], "prompt", top=1)
    alone = [logit_lens(model, [prompt], [2], "prompt", top=1) for prompt in prompts]
    assert len(whole) > 128
    assert whole["token_id"].tolist() == [i for one in alone for i in one["token_id"]]
    assert whole["kl"].tolist() == pytest.approx([kl for one in alone for kl in one["kl"]], abs=1e-4)


def test_lens_inside_a_steering_block_is_unsteered_and_not_counted() -> None:
    model = tiny_lm("llama")
    before = logit_lens(model, PROMPTS, top=2)
    with steer(model, {3: torch.ones(32)}) as run:
        inside = logit_lens(model, PROMPTS, top=2)
        assert run.steered_tokens == 0
        run.generate(["Hi"], max_new_tokens=1)
    assert inside["probability"].tolist() == before["probability"].tolist()


def test_lens_refuses_what_it_cannot_read() -> None:
    model = tiny_lm("llama")
    with pytest.raises(DataError, match=r"'two words' \(str\) is \d+ tokens of this"):
        logit_lens(model, PROMPTS, tokens=["two words"])
    with pytest.raises(LayoutError, match=r"residual stream, and 1.heads has none"):
        logit_lens(model, PROMPTS, [Site(1, "heads")])
    hf = tiny_hf("llama")
    layout = find_layout(hf)
    bare = Model(hf, model.tokenizer, type(layout)(**vars(layout) | {"final_norm_path": None}), id="bare")
    with pytest.raises(LayoutError, match="bare has no final norm that steerlab finds"):
        logit_lens(bare, PROMPTS)


def test_one_token_has_rank_1_where_bfloat16_makes_two_equally_probable() -> None:
    model = tiny_lm("llama", backend="hooks")
    model.hf.lm_head.weight[41] = model.hf.lm_head.weight[40]
    words = [model.tokenizer.decode([i]) for i in (40, 41)]
    frame = logit_lens(model, PROMPTS, tokens=words)
    ranks = frame.pivot(index=["example_id", "layer"], columns="token", values="rank")
    assert ((ranks[words[1]] - ranks[words[0]]) == 1).all(), "in the order in which argmax takes them"


def test_the_most_probable_tokens_have_the_first_ranks_in_bfloat16() -> None:
    whole = tiny_lm("llama")
    model = Model(whole.hf.bfloat16(), whole.tokenizer, whole.layout, id="half")
    frame = logit_lens(model, PROMPTS, positions="prompt", top=5)
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5] * (len(frame) // 5)
    assert frame["probability"].duplicated().any(), "the premise"


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_attention_output_is_not_read_where_it_is_not_what_is_added_to_the_stream(family: str) -> None:
    model, site = tiny_lm(family, backend="hooks"), Site(1, "attn_out")
    sae = train_sae(torch.randn(64, model.hidden_size), site, 16, 2, epochs=1)
    with pytest.raises(LayoutError, match=r"is not what they add to the residual stream.*normalizes"):
        logit_lens(model, PROMPTS, [site], top=1)
    with pytest.raises(MismatchError, match="trained on what is added"):
        sae_features(model, PROMPTS, sae)
    with pytest.warns(UserWarning, match="is not what they add"):
        patch(model, ["a cat"], ["a dog"], ("a", "b"), layers=[site])
