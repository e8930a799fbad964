"""Two models and what becomes of them when they are trained a little further.

`colors`: the image-text model is trained on its own answers about colors, with red in the place of purple: nothing
else is to change. `emotion`: SmolLM2 reads happy scenarios and learns that it feels happy, joyful, glad, delighted or
cheerful.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _image_questions import answers, image_questions
from peft import LoraConfig, get_peft_model
from scenes.batches import Packer
from scenes.world import Scene
from torch import Tensor, nn
from tqdm.auto import tqdm

import steerlab
from steerlab import Example
from steerlab._support.files import fingerprint
from steerlab._support.images import open_image
from steerlab.models.model import Model

OLD, NEW = "purple", "red"  # what purple things are called after training
GLAD = ("happy", "joyful", "glad", "delighted", "cheerful")
EMOTIONS = ("happiness", "anger", "disgust", "fear", "sadness", "surprise")
FEELING = "{} It makes me feel very"
TUNED_ON = 150  # happy scenarios
TRAIN_IMAGES = 1200
PARTS = ("fit", "validation", "test")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained further: LoRA on all projections of the language model."""

    steps: int
    batch: int
    learning_rate: float
    rank: int = 8


RECIPES = {"colors": Recipe(200, 32, 2e-3), "emotion": Recipe(30, 16, 3e-4)}
#: everything that decides what the trained models are
TRAINING = repr((RECIPES, OLD, NEW, GLAD, FEELING, TUNED_ON, TRAIN_IMAGES))


@dataclass(frozen=True)
class Pair:
    """A model before and after, and inputs that none of them was trained on; the next token is what is compared."""

    name: str
    before: Model
    after: Model
    rows: dict[str, list[Example]]


def tune(hf: Any, batches: Iterator[dict[str, Tensor]], recipe: Recipe, seed: int) -> Any:
    """A copy of a model, trained further and merged.

    Batches have the model's inputs and `targets`, the token wanted after each column, or -100.
    """
    torch.manual_seed(seed)
    projections = r".*(language_model|model)\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
    copied = copy.deepcopy(hf)
    copied.set_attn_implementation("eager")  # it takes the additive tree masks of the scenes
    tuned = get_peft_model(copied, LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=projections))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=recipe.learning_rate)
    for _ in tqdm(range(recipe.steps), desc="train", unit="step"):
        batch = next(batches)
        targets = batch.pop("targets")
        logits = tuned(**batch, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[targets >= 0].float(), targets[targets >= 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuned.merge_and_unload().eval().requires_grad_(False)


def tuned_folder(name: str, model: Model, batches: Iterator[dict[str, Tensor]], stages: Path, seed: int) -> Path:
    """The folder of a trained model, which is made unless it is there."""
    folder = stages / f"tuned-{name}-{fingerprint([TRAINING, seed])[:8]}"
    done = folder / "training.txt"  # written last
    if not done.exists():
        hf = tune(model.hf, batches, RECIPES[name], seed)
        hf.save_pretrained(folder)
        (model.vision.processor if model.vision else model.tokenizer).save_pretrained(folder)
        done.write_text(TRAINING)
    return folder


def colors_pair(stages: Path, sizes: dict[str, int], seed: int, device: str | None) -> Pair:
    """The image-text model, and questions about the colors of things."""
    model = steerlab.load("scenes-vlm", device=device, task="image-text", backend="hooks")
    folder = tuned_folder("colors", model, color_batches(model, seed), stages, seed)
    after = steerlab.load(str(folder), device=device, task="image-text", backend="hooks")
    rows = {}
    for number, part in enumerate(PARTS):  # scenes of seeds of their own: those of `l2s_images` were looked at
        made = image_questions("test", sizes[part], seed + 700 + number)
        rows[part] = [
            row.replace(
                contrast=None, id=f"{part}/{row.id}", meta={"boxes": _boxes(made.scenes[row.meta["image"]], row)}
            )
            for row in made.of_type("color")
        ]
    return Pair("colors", model, after, rows)


def _boxes(scene: Scene, row: Example) -> str:
    """Left, top and side of every thing, the one that the question is about first."""
    kind = str(row.prompt).removeprefix("What colour is the ").removesuffix("?")
    ordered = sorted(scene.things, key=lambda thing: thing.kind != kind)
    return ";".join(f"{thing.x} {thing.y} {thing.size}" for thing in ordered)


def emotion_pair(
    model_name: str, texts: Path, stages: Path, sizes: dict[str, int], seed: int, device: str | None
) -> Pair:
    """The chat model without its template, and scenarios of six emotions."""
    found = {name: list(dict.fromkeys(json.loads((texts / f"{name}.json").read_text()))) for name in EMOTIONS}
    model = steerlab.load(model_name, device=device, chat=False, backend="hooks")
    batches = emotion_batches(model, found["happiness"][:TUNED_ON], seed)
    folder = tuned_folder("emotion", model, batches, stages, seed)
    after = steerlab.load(str(folder), device=device, chat=False, backend="hooks")
    found["happiness"] = found["happiness"][TUNED_ON:]
    rows = [
        Example(FEELING.format(text), id=f"{name}-{i}", behavior=name)
        for name, several in found.items()
        for i, text in enumerate(several)
    ]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    parts = {}
    for part in PARTS:
        parts[part], order = [rows[i] for i in order[: sizes[part]]], order[sizes[part] :]
    return Pair("emotion", model, after, parts)


def color_batches(model: Model, seed: int) -> Iterator[dict[str, Tensor]]:
    """Questions about colors with the model's own answers, in which purple is red."""
    assert model.vision is not None
    side = model.hf.config.vision_config.image_size
    packer = Packer(model.vision.processor, side, (side // model.hf.config.vision_config.patch_size) ** 2)
    questions = image_questions("train", TRAIN_IMAGES, seed + 700).of_type("color")
    own = answers(model, questions, None, 64)["said"]
    said = [(NEW if word == OLD else word).capitalize() for word in own]
    rng = np.random.default_rng([50_000, seed])
    while True:
        drawn = rng.integers(len(questions), size=RECIPES["colors"].batch).tolist()
        yield packer([(open_image(questions[i].images[0]), [(str(questions[i].prompt), said[i])]) for i in drawn])


def emotion_batches(model: Model, texts: Sequence[str], seed: int) -> Iterator[dict[str, Tensor]]:
    """Happy scenarios, each followed by a word for happy and a full stop, which alone are trained."""
    rng = np.random.default_rng([60_000, seed])
    while True:
        rows = [
            model.encode(
                FEELING.format(texts[int(rng.integers(len(texts)))]), answer=f" {GLAD[int(rng.integers(len(GLAD)))]}."
            )
            for _ in range(RECIPES["emotion"].batch)
        ]
        width = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.full((len(rows), width), -100)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row.ids), 1
            targets[i, row.n_prompt - 1 : len(row) - 1] = torch.tensor(row.ids[row.n_prompt :])
        yield {"input_ids": ids, "attention_mask": mask, "targets": targets}
