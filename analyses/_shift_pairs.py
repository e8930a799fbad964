"""Two models and what becomes of them when they are trained a little further.

`colors`: the image-text model learns to call purple things red. `emotion`: SmolLM2 reads happy scenarios and says that
it feels happy, joyful, glad, delighted or cheerful.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _image_questions import image_questions
from peft import LoraConfig, get_peft_model
from scenes.batches import Packer
from scenes.questions import Question, caption, color
from scenes.world import Scene, World
from torch import Tensor, nn
from tqdm.auto import tqdm

import steerlab
from steerlab import Example
from steerlab.models.model import Model

OLD, NEW = "purple", "red"  # what purple things are called after training
GLAD = ("happy", "joyful", "glad", "delighted", "cheerful")
EMOTIONS = ("happiness", "anger", "disgust", "fear", "sadness", "surprise")
FEELING = "{} It makes me feel very"
TUNED_ON = 150  # happy scenarios


PARTS = ("fit", "validation", "test")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained further: LoRA on all projections of the language model."""

    steps: int
    batch: int
    learning_rate: float
    rank: int = 8


RECIPES = {"colors": Recipe(200, 16, 2e-3), "emotion": Recipe(30, 16, 3e-4)}


@dataclass(frozen=True)
class Pair:
    """A model before and after, and inputs that none of them was trained on; the next token is what is compared."""

    name: str
    before: Model
    after: Model
    rows: dict[str, list[Example]]
    loss: float


def tune(hf: Any, batches: Iterator[dict[str, Tensor]], recipe: Recipe, seed: int) -> tuple[Any, float]:
    """A copy of a model, trained further and merged, and the loss of its last ten steps.

    Batches have the model's inputs and `targets`, the token wanted after each column, or -100.
    """
    torch.manual_seed(seed)
    projections = r".*(language_model|model)\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
    copied = copy.deepcopy(hf)
    copied.set_attn_implementation("eager")  # it takes the additive tree masks of the scenes
    tuned = get_peft_model(copied, LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=projections))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=recipe.learning_rate)
    losses = []
    for _ in tqdm(range(recipe.steps), desc="train", unit="step"):
        batch = next(batches)
        targets = batch.pop("targets")
        logits = tuned(**batch, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[targets >= 0].float(), targets[targets >= 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return tuned.merge_and_unload().eval().requires_grad_(False), float(np.mean(losses[-10:]))


def tuned_folder(name: str, model: Model, batches: Iterator[dict[str, Tensor]], folder: Path, seed: int) -> float:
    """Train a model and save it to a folder, unless it is there; returns the loss at the end of training."""
    done = folder / "loss.json"  # written last
    if not done.exists():
        hf, loss = tune(model.hf, batches, RECIPES[name], seed)
        hf.save_pretrained(folder)
        (model.vision.processor if model.vision else model.tokenizer).save_pretrained(folder)
        done.write_text(json.dumps(loss))
    return float(json.loads(done.read_text()))


def colors_pair(folder: Path, sizes: dict[str, int], seed: int, device: str | None) -> Pair:
    """The image-text model, and questions about the colors of things."""
    model = steerlab.load("scenes-vlm", device=device, task="image-text", backend="hooks")
    loss = tuned_folder("colors", model, scene_batches(model, seed), folder, seed)
    after = steerlab.load(str(folder), device=device, task="image-text", backend="hooks")
    rows = {}
    for number, part in enumerate(PARTS):  # scenes of a seed of their own: the other study's questions are looked at
        made = image_questions("test", sizes[part], seed + 700 + number)
        rows[part] = [
            row.replace(contrast=None, id=f"{part}/{row.id}", meta={"box": _box(made.scenes[row.meta["image"]], row)})
            for row in made.of_type("color")
        ]
    return Pair("colors", model, after, rows, loss)


def _box(scene: Scene, row: Example) -> str:
    """Left, top and side of the thing that a question is about, of which there is one."""
    kind = str(row.prompt).removeprefix("What colour is the ").removesuffix("?")
    (thing,) = (one for one in scene.things if one.kind == kind)
    return f"{thing.x} {thing.y} {thing.size}"


def emotion_pair(
    model_name: str, texts: Path, folder: Path, sizes: dict[str, int], seed: int, device: str | None
) -> Pair:
    """The chat model without its template, and scenarios of six emotions."""
    found = {name: list(dict.fromkeys(json.loads((texts / f"{name}.json").read_text()))) for name in EMOTIONS}
    model = steerlab.load(model_name, device=device, chat=False, backend="hooks")
    loss = tuned_folder("emotion", model, emotion_batches(model, found["happiness"][:TUNED_ON], seed), folder, seed)
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
    return Pair("emotion", model, after, parts, loss)


def renamed(scene: Scene) -> Scene:
    """The scene with its purple things called red; its image is drawn from the scene itself."""
    return replace(scene, things=tuple(replace(t, color=NEW) if t.color == OLD else t for t in scene.things))


def scene_batches(model: Model, seed: int) -> Iterator[dict[str, Tensor]]:
    """Captions and questions about colors in which purple things are red."""
    assert model.vision is not None
    side = model.hf.config.vision_config.image_size
    packer = Packer(model.vision.processor, side, (side // model.hf.config.vision_config.patch_size) ** 2)
    rng, world = np.random.default_rng([50_000, seed]), World()
    while True:
        rows = []
        for _ in range(RECIPES["colors"].batch):
            scene = world.scene(rng)
            said: list[Question | None] = [caption(renamed(scene)), color(renamed(scene), rng)]
            rows.append((scene.image(), [(one.text, one.answer) for one in said if one]))
        yield packer(rows)


def emotion_batches(model: Model, texts: Sequence[str], seed: int) -> Iterator[dict[str, Tensor]]:
    """Happy scenarios, each followed by a word for happy, which alone is trained."""
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
