"""Pretraining of the vision tower: predict what every patch shows.

Image-text models start from a pretrained tower such as CLIP's. A tower with random weights that is trained on answers
alone needs tens of thousands of scenes before it separates the kinds of objects. The content of every patch of a scene
is known, so a classifier per patch trains the tower faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from scenes.shapes import COLORS
from scenes.world import Scene, World


def patch_labels(scene: Scene, side: int, patch: int) -> NDArray[np.int64]:
    """`(5, patches)`: kind and color of the topmost object at the center of each patch, the number of its kind, the
    kind of its neighbor, and where in the object the patch is (3 x 3 places; each object's center is in one patch, so
    objects are counted and not patches); 0 is the background, and no neighbor."""
    kinds, colors = scene.world.kinds, list(COLORS)
    centers = np.arange(patch / 2, side, patch)
    found = np.zeros((5, len(centers), len(centers)), dtype=np.int64)
    for thing in scene.things:  # drawn in this order, so later objects cover earlier ones
        down = (centers >= thing.y) & (centers < thing.y + thing.size)
        across = (centers >= thing.x) & (centers < thing.x + thing.size)
        color, near = colors.index(thing.color) + 1 if thing.color else 0, scene.neighbor(thing)[0]
        label = [kinds.index(thing.kind) + 1, color, scene.count(thing.kind), kinds.index(near) + 1 if near else 0]
        inside = down[:, None] & across
        found[:4, inside] = np.array(label)[:, None]
        y, x = (np.clip(np.floor((centers - at - thing.size / 2) / patch + 0.5), -1, 1) for at in (thing.y, thing.x))
        found[4, inside] = (5 + 3 * y[:, None] + x)[inside]
    return found.reshape(5, -1)


def pretrain_vision(
    model: Any, world: World, pixels: Callable[[Image, int], Tensor], steps: int, batch: int, seed: int
) -> dict[str, float]:
    """Train the tower of `model` alone, in place; returns the final accuracies on patches with an object."""
    tower = model.model.vision_tower
    device, width = next(tower.parameters()).device, int(tower.config.hidden_size)
    side, patch = int(tower.config.image_size), int(tower.config.patch_size)
    n = len(world.kinds) + 1
    sizes = (n, len(COLORS) + 1, world.max_things + 1, n, 1 + 3 * 3)
    heads = nn.ModuleList([nn.Linear(width, n) for n in sizes]).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2), pct_start=0.1)
    rng, accuracies = np.random.default_rng([seed, 1]), list[list[float]]()
    for _ in tqdm(range(steps), desc="vision", unit="step"):
        scenes = [world.scene(rng) for _ in range(batch)]
        images = torch.stack([pixels(scene.image(), side) for scene in scenes]).to(device)
        labels = torch.from_numpy(np.stack([patch_labels(scene, side, patch) for scene in scenes])).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            states: Tensor = tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]
            logits = [head(states).float() for head in heads]
            losses = [
                nn.functional.cross_entropy(one.flatten(0, 1), labels[:, i].flatten()) for i, one in enumerate(logits)
            ]
            loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        thing = labels[:, 0] > 0
        right = [(one.argmax(-1) == labels[:, i])[thing].float().mean().item() for i, one in enumerate(logits)]
        accuracies.append(right)
    shares = np.mean(accuracies[-20:], axis=0).round(3).tolist()
    return dict(zip(("kind", "color", "number", "neighbor", "place"), shares, strict=True))
