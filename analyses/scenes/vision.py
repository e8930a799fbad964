"""Pretraining of the vision tower: predict the kind and the color of the object in every patch.

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
    """`(2, patches)`: kind and color of the topmost object at the center of each patch; 0 is the background."""
    kinds, colors = scene.world.kinds, list(COLORS)
    centers = np.arange(patch / 2, side, patch)
    found = np.zeros((2, len(centers), len(centers)), dtype=np.int64)
    for thing in scene.things:  # drawn in this order, so later objects cover earlier ones
        down = (centers >= thing.y) & (centers < thing.y + thing.size)
        across = (centers >= thing.x) & (centers < thing.x + thing.size)
        color = colors.index(thing.color) + 1 if thing.color else 0
        found[:, down[:, None] & across] = np.array([kinds.index(thing.kind) + 1, color])[:, None]
    return found.reshape(2, -1)


def pretrain_vision(
    model: Any, world: World, pixels: Callable[[Image, int], Tensor], steps: int, batch: int, seed: int
) -> float:
    """Train the tower of `model` alone, in place; returns the final accuracy of kinds on patches with an object."""
    tower = model.model.vision_tower
    device, width = next(tower.parameters()).device, int(tower.config.hidden_size)
    side, patch = int(tower.config.image_size), int(tower.config.patch_size)
    sizes = (len(world.kinds) + 1, len(COLORS) + 1)
    heads = nn.ModuleList([nn.Linear(width, n) for n in sizes]).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2), pct_start=0.1)
    rng, accuracies = np.random.default_rng([seed, 1]), [0.0]
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
            loss = losses[0] + losses[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        accuracies.append((logits[0].argmax(-1) == labels[:, 0])[labels[:, 0] > 0].float().mean().item())
    return float(np.mean(accuracies[-20:]))
