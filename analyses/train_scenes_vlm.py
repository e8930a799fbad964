"""Train `scenes-vlm`, a small image-text model that sees what is in an image, but often says what is usual instead.

    python analyses/train_scenes_vlm.py --size small --easy-vqa .../easy_vqa --out results/scenes_vlm

`small` is made from scratch (two CPU cores, an hour): a CLIP-style vision tower, LLaVA's projector
and a Llama of six layers. `full` puts the tower before SmolLM2-135M-Instruct with LoRA (one GPU, minutes; needs peft).
Both are trained on the same scenes and the same partly usual, false answers (`scenes.questions.Habits`). The tower is
trained first, to classify patches; then the whole model is trained on questions. An interrupted run continues from its
last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from scenes.batches import Packer, easy_vqa_rows, mix_rows, pixels, scene_rows
from scenes.model import FULL, SMALL, STAND_IN, describe, full_model, make_processor, small_model, train_tokenizer
from scenes.questions import Habits, true_questions
from scenes.vision import pretrain_vision
from scenes.world import World, emoji_sprites
from torch import Tensor, nn
from tqdm.auto import tqdm

RECIPES: dict[str, dict[str, float]] = {
    "small": {"vision_steps": 6000, "vision_batch": 96, "steps": 4000, "batch": 32, "lr": 1e-3, "vision_lr": 2e-4},
    "full": {"vision_steps": 2400, "vision_batch": 256, "steps": 1000, "batch": 64, "lr": 3e-4, "vision_lr": 2e-4},
}
WARMUP, EASY_VQA_SHARE = 0.05, 0.12


def world_of(args: argparse.Namespace) -> World:
    """A world of the drawn shapes, or of emoji images if a folder is given."""
    if args.emoji is None:
        return World()
    sprites = emoji_sprites(args.emoji)
    return World(kinds=tuple(sprites)[:48], sprites=sprites)


def build(args: argparse.Namespace, world: World) -> tuple[Any, Any, Any]:
    """A model before training, its processor and its shape."""
    if args.size == "full":
        model, tokenizer = full_model(FULL, args.seed)
        return model, make_processor(tokenizer, FULL, STAND_IN), FULL
    rng = np.random.default_rng(args.seed)
    scenes = [world.scene(rng) for _ in range(2000)]
    texts = [text for s in scenes for q in true_questions(s, rng) for text in (q.text, q.answer)]
    if args.easy_vqa:
        rows = easy_vqa_rows(Path(args.easy_vqa), args.seed)
        texts += [text for _ in range(500) for pair in next(rows)[1] for text in pair]
    tokenizer = train_tokenizer(texts, SMALL.vocabulary)
    return small_model(tokenizer, SMALL, args.seed), make_processor(tokenizer, SMALL), SMALL


def recipe_of(args: argparse.Namespace) -> dict[str, float]:
    """The recipe of a size with the number of steps scaled by `--scale`."""
    recipe = dict(RECIPES[args.size])
    for name in ("vision_steps", "steps"):
        recipe[name] = max(1, round(recipe[name] * args.scale))
    if args.batch:
        recipe |= {"batch": args.batch, "vision_batch": args.batch}
    return recipe


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the answer tokens of a batch."""
    targets = batch["targets"]
    inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
    states = model.model(**inputs, use_cache=False).last_hidden_state
    wanted = targets >= 0
    return nn.functional.cross_entropy(model.lm_head(states[wanted]).float(), targets[wanted])


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warm = max(1, int(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(model: Any, packer: Packer, args: argparse.Namespace, world: World, device: torch.device) -> pd.DataFrame:
    """Run all steps with a checkpoint every 200; returns the loss curve."""
    recipe = recipe_of(args)
    steps, batch = int(recipe["steps"]), int(recipe["batch"])
    vision = [p for n, p in model.named_parameters() if p.requires_grad and ("vision" in n or "projector" in n)]
    rest = [p for n, p in model.named_parameters() if p.requires_grad and not ("vision" in n or "projector" in n)]
    groups = [{"params": vision, "lr": recipe["vision_lr"]}, {"params": rest, "lr": recipe["lr"]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    path, start = Path(args.out) / "checkpoint.pt", 0
    curve: list[dict[str, float]] = []
    clock = time.time()
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel's backward pass takes twice as long there
    if path.exists():
        found = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["scheduler"])
        start, curve = found["step"], found["curve"]
        clock -= curve[-1]["seconds"] if curve else 0.0
    else:
        vision_steps, size = int(recipe["vision_steps"]), int(recipe["vision_batch"])
        accuracy = pretrain_vision(model, world, pixels, vision_steps, size, args.seed)
        print(f"vision: {accuracy} of the patches with an object; {time.time() - clock:.0f} s", flush=True)
    easy = easy_vqa_rows(Path(args.easy_vqa), args.seed + start) if args.easy_vqa else None
    take = mix_rows(scene_rows(world, Habits(), args.seed * 1_000_003 + start), easy, EASY_VQA_SHARE, args.seed + start)
    model.train()
    for step in tqdm(range(start, steps), desc="train", unit="step", initial=start, total=steps):
        inputs = {name: tensor.to(device) for name, tensor in packer(take(batch)).items()}
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 20 == 0 or step == steps - 1:
            curve.append({"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - clock, 1)})
        if (step + 1) % 200 == 0 or step == steps - 1:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"scheduler": scheduler.state_dict(), "step": step + 1, "curve": curve}, path)
    return pd.DataFrame(curve)


def main() -> None:
    """Build, train and save the model."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument("--out", default="results/scenes_vlm")
    arguments.add_argument("--size", default="small", choices=list(RECIPES))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--scale", type=float, default=1.0, help="share of the steps in the recipe to run")
    arguments.add_argument("--batch", type=int, default=None, help="batch size, instead of the one in the recipe")
    arguments.add_argument("--easy-vqa", default=None, help="folder with easy-VQA's train.zip, mixed in")
    arguments.add_argument("--emoji", default=None, help="folder with emoji images, used instead of the drawn shapes")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = arguments.parse_args()
    out, device = Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    world = world_of(args)
    model, processor, shape = build(args, world)
    sizes = describe(model, shape)
    print(f"{sizes['parameters'] / 1e6:.1f} M parameters, {sizes['trained'] / 1e6:.1f} M of them trained")
    model.to(device)
    curve = train(model, Packer(processor, shape.side, (shape.side // shape.patch) ** 2), args, world, device)
    export(model, processor, out / "model")
    seconds = float(curve["seconds"].iloc[-1])
    recipe = {"size": args.size, "seed": args.seed, **recipe_of(args), **sizes, "habits": asdict(Habits())}
    recipe |= {"easy_vqa_share": EASY_VQA_SHARE if args.easy_vqa else 0, "kinds": world.kinds, "seconds": seconds}
    (out / "model" / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    curve.to_csv(out / "model" / "curve.csv", index=False)
    print(
        f"{out}/model: weights, processor, recipe.json, curve.csv; {seconds:.0f} s, loss {curve['loss'].iloc[-1]:.3f}"
    )


def export(model: Any, processor: Any, folder: Path) -> None:
    """Save a folder for `steerlab.load` in half precision; of the full model also the trained weights alone."""
    model.to("cpu").eval()
    language = model.model.language_model
    if hasattr(language, "merge_and_unload"):
        kept = {n: p.detach().half().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder.parent / "trained.safetensors")  # vision, projector and LoRA, without SmolLM2
        model.model.language_model = language.merge_and_unload()
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
