"""Train a small model that reads a driving scene as vectors and says what there is to see.

    python analyses/train_driving.py --data DATA/driving --out results/driving_model

A decoder of three layers is made from scratch, with an encoder of objects in front (`steerlab.models.vectors`), and
trained to give the first lines of the published caption: how many moving cars and pedestrians are in view, and the
traffic light. Half an hour of one CPU core. Scenes for training are mixed anew from the objects of the published ones,
with captions of their own. The published scenes are frames of drives, one after the other, so the parts are stretches
of frames with a gap between them. Errors are measured on texts that the model generates, on test scenes once. An
interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import estimate
from scenes.model import END, IMAGE, train_tokenizer
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import steerlab
from steerlab import Example
from steerlab._support.files import write_atomically, write_json
from steerlab.data import DrivingScene, driving_scenes, edited_scenes, read_facts, scene_caption
from steerlab.models.model import Model
from steerlab.models.vectors import DRIVING_KINDS, with_vectors
from steerlab.models.vectors.model import pack

PARTS = {"train": (0, 690), "validation": (700, 790), "test": (800, 990)}
QUESTION = "What do you see?"
DECODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ENCODER: dict[str, Any] = {"width": 128, "latents": 32, "depth": 2, "heads": 4, "queries": 16}
MOST = {"vehicles": 14, "pedestrians": 12}  # objects of a mixed scene
REAL = 0.3  # share of training rows that are published scenes as they are


def short_caption(scene: DrivingScene) -> str:
    """The first line of the published caption, and the one about the traffic light."""
    lines = scene_caption(scene).split("\n")
    return "\n".join([lines[0], *(line for line in lines[1:] if "traffic light" in line)])


class Mixer:
    """Scenes mixed from the objects of others: the road of one, cars and pedestrians of any, moved a little.

    Args:
        scenes: those that are mixed.
        seed: of all that is drawn; a step draws from its own number.
    """

    def __init__(self, scenes: list[DrivingScene], seed: int) -> None:
        self.scenes, self.seed = scenes, seed
        self.pools = {
            kind: np.concatenate([getattr(one, kind)[getattr(one, kind)[:, 0] > 0] for one in scenes]) for kind in MOST
        }

    def batch(self, step: int, size: int) -> list[DrivingScene]:
        """The scenes of a step."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.integers(len(self.scenes), size=size)
        return [self.scenes[i] if rng.random() < REAL else self.mixed(self.scenes[i], rng) for i in chosen]

    def mixed(self, base: DrivingScene, rng: np.random.Generator) -> DrivingScene:
        """A scene on the road of another, with objects of any."""
        rows = {kind: self._objects(kind, rng) for kind in MOST}
        scene = replace(base, **rows)
        edited = edited_scenes(scene)
        return edited["light turned"] if "light turned" in edited and rng.random() < 0.5 else scene

    def _objects(self, kind: str, rng: np.random.Generator) -> np.ndarray:
        pool, rows = self.pools[kind], np.zeros_like(getattr(self.scenes[0], kind))
        n = int(rng.integers(MOST[kind] + 1))
        drawn = pool[rng.integers(len(pool), size=n)].copy()
        first, corners = (3, 18) if kind == "vehicles" else (2, None)
        moved = rng.normal(0, 0.3, (n, 2)).astype(np.float32)  # three meters
        drawn[:, first : first + 2] += moved
        if corners is not None:
            drawn[:, corners : corners + 8] += np.tile(moved, 4)
        rows[:n] = drawn[np.linalg.norm(drawn[:, first : first + 2], axis=1).argsort()]
        return rows


def build(texts: list[str], seed: int) -> Model:
    """The model before training."""
    tokenizer = train_tokenizer([*texts, QUESTION] * 3, 400)
    ids: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        **DECODER, **ids,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        decoder = LlamaForCausalLM(config)
    plain = steerlab.load(decoder, tokenizer=tokenizer, backend="hooks")
    return with_vectors(plain, DRIVING_KINDS, ("ego", 31), token=IMAGE, seed=seed, **ENCODER)


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up over a twentieth of the steps, then down along a cosine."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Batches:
    """Rows of a prompt with its scene and the answer, of which the answer alone is trained."""

    def __init__(self, model: Model) -> None:
        self.tokenizer, self.sizes = model.tokenizer, model.hf.config.sizes
        tokenizer: Any = self.tokenizer
        self.pad, self.end = int(tokenizer.pad_token_id), int(tokenizer.convert_tokens_to_ids(END))
        blank = DrivingScene(**{name: np.zeros(shape) for name, shape in self.sizes.items()})
        self.prompt = list(model.encode(QUESTION, images=[blank]).ids)

    def __call__(self, scenes: list[DrivingScene]) -> dict[str, Tensor]:
        """Ids, mask, scenes and labels, padded on the right."""
        answers = [[*self.tokenizer(short_caption(s))["input_ids"], self.end] for s in scenes]
        width = len(self.prompt) + max(map(len, answers))
        ids = torch.full((len(scenes), width), self.pad)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, answer in enumerate(answers):
            whole = torch.tensor([*self.prompt, *answer])
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
            labels[row, len(self.prompt) : len(whole)] = whole[len(self.prompt) :]
        vectors = torch.stack([pack(scene.tensors, self.sizes) for scene in scenes])
        return {"input_ids": ids, "attention_mask": mask, "vectors": vectors, "labels": labels}


def train(model: Model, mixer: Mixer, args: argparse.Namespace) -> pd.DataFrame:
    """All steps, with a checkpoint every 250; returns the loss curve."""
    hf: Any = model.hf
    hf.requires_grad_(True)
    batches, path, start = Batches(model), Path(args.out) / "checkpoint.pt", 0
    optimizer = torch.optim.AdamW(hf.parameters(), lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, args.steps))
    curve: list[dict[str, float]] = []
    clock = time.time()
    if path.exists():
        found = torch.load(path, weights_only=True)
        for name, part in (("model", hf), ("optimizer", optimizer), ("schedule", schedule)):
            part.load_state_dict(found[name])
        start, curve = found["step"], found["curve"]
    for step in tqdm(range(start, args.steps), initial=start, total=args.steps, desc="train", unit="step"):
        loss = hf(**batches(mixer.batch(step, args.batch_size))).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            curve.append(
                {"step": step, "loss": round(float(loss.detach()), 4), "seconds": round(time.time() - clock, 1)}
            )
        if (step + 1) % 250 == 0 or step == args.steps - 1:
            states = {"model": hf.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            write_atomically(
                path,
                lambda partial: torch.save(states | {"step": step + 1, "curve": curve}, partial),  # noqa: B023
            )
    hf.requires_grad_(False)
    return pd.DataFrame(curve)


def evaluate(model: Model, scenes: list[DrivingScene], batch_size: int) -> pd.DataFrame:
    """What the model says of each scene: errors of the counts, and whether the light is right."""
    examples = [Example(QUESTION, id=str(i), images=(scene,)) for i, scene in enumerate(scenes)]
    texts = steerlab.generate(model, examples, max_new_tokens=60, batch_size=batch_size, progress=False).texts
    rows = []
    for scene, text in zip(scenes, texts, strict=True):
        said, true = read_facts(text), read_facts(short_caption(scene))
        rows.append({
            "cars_error": abs((said.cars or 0) - (true.cars or 0)),  # a missing number counts as 0, as published
            "pedestrians_error": abs((said.pedestrians or 0) - (true.pedestrians or 0)),
            "light_right": float(said.light == true.light), "light": true.light, "text": text,
        })  # fmt: skip
    return pd.DataFrame(rows)


def constant_rival(train_scenes: list[DrivingScene], scenes: list[DrivingScene]) -> dict[str, float]:
    """The best that a model can do without looking: medians of the counts, and the most frequent light."""
    known, true = ([read_facts(short_caption(one)) for one in some] for some in (train_scenes, scenes))
    found = {}
    for name in ("cars", "pedestrians"):
        middle = np.median([getattr(one, name) for one in known])
        found[f"{name}_error"] = float(np.mean([abs(getattr(one, name) - middle) for one in true]))
    most = pd.Series([one.light for one in known]).mode()[0]
    return found | {"light_right": float(np.mean([one.light == most for one in true]))}


def main() -> None:
    """Build, train, save and measure the model."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument("--data", required=True, help="folder with scenes.safetensors and scenes.jsonl.gz")
    arguments.add_argument("--out", default="results/driving_model")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=3000)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--learning-rate", type=float, default=1.5e-3)
    args = arguments.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    records = driving_scenes(args.data)
    scenes = {part: [record.scene for record in records[slice(*bounds)]] for part, bounds in PARTS.items()}
    mixer = Mixer(scenes["train"], args.seed)
    model = build([short_caption(scene) for scene in (*scenes["train"], *mixer.batch(-1 % 2**31, 2000))], args.seed)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.hf.named_children()}
    print(f"parameters: {parameters}", flush=True)
    curve = train(model, mixer, args)
    model.hf.save_pretrained(out / "model")
    assert model.vision is not None
    model.vision.processor.save_pretrained(out / "model")
    summary: dict[str, Any] = {
        "parameters": parameters,
        "steps": args.steps,
        "seconds": float(curve["seconds"].iloc[-1]),
    }
    for part in ("validation", "test"):
        found = evaluate(model, scenes[part], args.batch_size)
        names = ("cars_error", "pedestrians_error", "light_right")
        summary |= {f"{part}.{name}": estimate(found[name].tolist(), args.seed) for name in names}
        lit = found[found["light"] != "none"]["light_right"].tolist()
        summary[f"{part}.light_right_where_there_is_one"] = estimate(lit, args.seed) if lit else None
        summary[f"{part}.without_looking"] = constant_rival(scenes["train"], scenes[part])
        write_atomically(out / f"{part}.csv", lambda partial: found.to_csv(partial, index=False))  # noqa: B023
    write_json(out / "summary.json", summary)
    curve.to_csv(out / "curve.csv", index=False)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
