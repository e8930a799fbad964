"""Training of the scenes model: packed rows match plain rows, and short runs export a loadable model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import succeed
from scenes.batches import Packer
from scenes.model import Shape, make_processor, small_model, train_tokenizer
from scenes.world import World

import steerlab
from steerlab import Example
from steerlab.errors import LoadError
from steerlab.models.smollm2 import smollm2_folder

SCRIPT = "analyses/train_scenes_vlm.py"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_row_gives_same_log_probabilities_as_plain_rows(attention: str) -> None:
    shape = Shape(vision_layers=1, vision_width=32, layers=2, width=32, heads=2, vocabulary=300)
    questions = [("Is there a ball?", "Yes"), ("How many?", "Two"), ("Describe it.", "A red ball and a key.")]
    tokenizer = train_tokenizer([text for pair in questions for text in pair] * 3, shape.vocabulary)
    processor = make_processor(tokenizer, shape)
    hf = small_model(tokenizer, shape, seed=0).eval()
    model = steerlab.load(hf, processor=processor, backend="hooks")
    rng = np.random.default_rng(0)
    images = [World().scene(rng).image() for _ in range(2)]
    batch = Packer(processor, shape.side, 64)([(images[0], questions), (images[1], questions[:1])])
    targets = batch.pop("targets")
    hf.set_attn_implementation(attention)  # eager attention adds the mask, so one of booleans would hide nothing
    with torch.no_grad():
        logits = hf(**batch).logits
    packed = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    inputs = [(images[0], *pair) for pair in questions] + [(images[1], *questions[0])]
    rows = [Example(question, id=str(i), images=(image,)) for i, (image, question, _) in enumerate(inputs)]
    plain = steerlab.score(model, rows, [answer + tokenizer.eos_token for _, _, answer in inputs], steer=())
    whole = [packed[i][targets[i] >= 0].sum().item() for i in range(2)]
    assert whole[0] == pytest.approx(plain["logprob"].iloc[:3].sum(), abs=1e-3)
    assert whole[1] == pytest.approx(plain["logprob"].iloc[3], abs=1e-3)


def _answers_about_a_new_scene(folder: Path) -> list[str]:
    model = steerlab.load(str(folder), task="image-text")
    image = World().scene(np.random.default_rng(5)).image()
    rows = [
        Example(q, id=str(i), images=(image,)) for i, q in enumerate(("Is there a ball in the image?", "Describe."))
    ]
    return list(steerlab.generate(model, rows, max_new_tokens=3))


@pytest.mark.nightly
def test_short_training_lowers_loss_resumes_and_exports(tmp_path: Path) -> None:
    arguments = (SCRIPT, "--out", str(tmp_path), "--scale", "0.002", "--batch", "16")
    succeed(*arguments)
    curve = pd.read_csv(tmp_path / "model" / "curve.csv")
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    succeed(*arguments)
    assert pd.read_csv(tmp_path / "model" / "curve.csv").equals(curve)
    assert len(_answers_about_a_new_scene(tmp_path / "model")) == 2


@pytest.mark.nightly
def test_tenth_of_training_reaches_low_loss(tmp_path: Path) -> None:
    """Too short to tell things apart: that takes the tower's whole schooling."""
    succeed(SCRIPT, "--out", str(tmp_path), "--scale", "0.1", threads=2)
    assert pd.read_csv(tmp_path / "model" / "curve.csv")["loss"].iloc[-1] < 1  # 6.3 at first


@pytest.mark.nightly
def test_lora_training_exports_loadable_model(tmp_path: Path, smollm2_cache: Path) -> None:
    pytest.importorskip("peft")
    try:
        smollm2_folder()
    except LoadError as error:
        pytest.skip(f"the weights of SmolLM2 are not here: {error}")
    succeed(SCRIPT, "--out", str(tmp_path), "--size", "full", "--scale", "0.001", "--batch", "2", threads=2)
    assert (tmp_path / "trained.safetensors").stat().st_size < 25 * 2**20
    assert len(_answers_about_a_new_scene(tmp_path / "model")) == 2
