"""Training of the scenes model: packed rows match plain rows, and short runs export a loadable model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scenes.world import World

import steerlab
from steerlab import Example, LoadError
from steerlab.models.smollm2 import smollm2_folder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "analyses"))


def _train(out: Path, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "analyses" / "train_scenes_vlm.py"), "--out", str(out), *arguments],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_row_gives_same_log_probabilities_as_plain_rows(attention: str) -> None:
    from scenes.batches import Packer
    from scenes.model import Shape, make_processor, small_model, train_tokenizer

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
    rows = [Example(f"{i}", q, images=(p,)) for i, (p, (q, _)) in enumerate(
        [(images[0], pair) for pair in questions] + [(images[1], questions[0])])]  # fmt: skip
    ends = tokenizer.eos_token
    plain = steerlab.score(model, rows, [a + ends for _, a in [*questions, questions[0]]], steer=())
    whole = [packed[i][targets[i] >= 0].sum().item() for i in range(2)]
    assert whole[0] == pytest.approx(plain["logprob"].iloc[:3].sum(), abs=1e-3)
    assert whole[1] == pytest.approx(plain["logprob"].iloc[3], abs=1e-3)


def _answers_about_a_new_scene(folder: Path) -> list[str]:
    model = steerlab.load(str(folder), task="image-text")
    image = World().scene(np.random.default_rng(5)).image()
    rows = [Example(str(i), q, images=(image,)) for i, q in enumerate(("Is there a ball in the image?", "Describe."))]
    return list(steerlab.generate(model, rows, max_new_tokens=3))


@pytest.mark.nightly
def test_short_training_lowers_loss_resumes_and_exports(tmp_path: Path) -> None:
    arguments = ("--scale", "0.002", "--batch", "16")
    first = _train(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr[-2000:]
    curve = pd.read_csv(tmp_path / "model" / "curve.csv")
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    again = _train(tmp_path, *arguments)
    assert again.returncode == 0 and pd.read_csv(tmp_path / "model" / "curve.csv").equals(curve)
    assert len(_answers_about_a_new_scene(tmp_path / "model")) == 2


@pytest.mark.nightly
def test_tenth_of_training_reaches_low_loss(tmp_path: Path) -> None:
    """Too short to tell things apart: that takes the tower's whole schooling."""
    done = _train(tmp_path, "--scale", "0.1", threads=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pd.read_csv(tmp_path / "model" / "curve.csv")["loss"].iloc[-1] < 1  # 6.3 at first


@pytest.mark.nightly
def test_lora_training_exports_loadable_model(tmp_path: Path, smollm2_cache: Path) -> None:
    pytest.importorskip("peft")
    try:
        smollm2_folder()
    except LoadError as error:
        pytest.skip(f"the weights of SmolLM2 are not here: {error}")
    done = _train(tmp_path, "--size", "full", "--scale", "0.001", "--batch", "2", threads=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "trained.safetensors").stat().st_size < 25 * 2**20
    assert len(_answers_about_a_new_scene(tmp_path / "model")) == 2
