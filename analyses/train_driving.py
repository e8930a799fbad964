"""Train a small model that reads a driving scene as vectors and says what there is to see.

    python analyses/train_driving.py --data DATA/driving --out results/driving_model

A decoder of three layers is made from scratch, with an encoder of objects in front (`steerlab.models.vectors`), and
trained to give some facts of the published caption in whole meters: how many moving cars and pedestrians are in view,
how near the nearest car is, and the traffic light. Half an hour of one CPU core.

The encoder comes first: linear heads, which are thrown away afterwards, read off its states which objects are in view
and what the caption will say; trained on the text alone, it did not learn to count. Then all parts learn the text, with
the heads still in place. Scenes for training are mixed anew from the objects of the published ones, with captions of
their own. The published scenes are frames of drives, one after the other, so the parts are stretches of frames with a
gap between them. Errors are measured on texts that the model generates, on test scenes once. An interrupted run
continues.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import numbers
from numpy.typing import ArrayLike
from scenes.model import END, IMAGE, train_tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import steerlab
from steerlab import Example
from steerlab._support.files import write_atomically, write_json
from steerlab.data import DrivingScene, driving_scenes, read_facts, scene_caption
from steerlab.data.driving import METERS
from steerlab.data.driving_captions import HAS_LIGHT, LIGHT, LIGHTS, visible_cars, visible_pedestrians
from steerlab.metrics.bootstrap import bootstrap_ratio
from steerlab.models.model import Model
from steerlab.models.vectors import DRIVING_KINDS, with_vectors
from steerlab.models.vectors.model import pack, unpack

PARTS = {"train": (0, 690), "validation": (700, 790), "test": (800, 990)}
STRETCH = 20  # frames; numbers of cars correlate by .9, .5 and .3 over 1, 10 and 20 of them
QUESTION = "What do you see?"
DECODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ENCODER: dict[str, Any] = {"width": 128, "latents": 32, "depth": 2, "heads": 4, "queries": 16}
MOST = {"vehicles": 14, "pedestrians": 12}  # objects of a mixed scene
KINDS = ("pedestrians", "vehicles")  # in the order in which the encoder reads them, after the route
STATES = ("none", *LIGHTS)
LIGHT_COLUMNS = slice(HAS_LIGHT, LIGHT + len(LIGHTS))
REAL = 0.3  # share of training rows that are published scenes as they are


def short_caption(scene: DrivingScene) -> str:
    """Of the published caption the counts, the nearest moving car and the traffic light, in whole meters."""
    true = read_facts(scene_caption(scene))
    lines = [f"I'm observing {true.cars} cars and {true.pedestrians} pedestrians."]
    lines += [] if true.car_distance is None else [f"A moving car; Distance: {true.car_distance:.0f}m;"]
    if true.light_distance is None:
        return "\n".join([*lines, "There is no traffic lights."])
    return "\n".join(
        [*lines, f"There is a traffic light and it is {true.light}. It is {true.light_distance:.0f}m ahead."]
    )


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
        """A scene on the road of another, with objects of any and, mostly, another traffic light."""
        rows = {kind: self._objects(kind, rng) for kind in MOST}
        return replace(base, route=self._lit(base.route, rng), **rows)

    def _lit(self, route: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The route as it is, without a light, or with one of any state at any point; some have a second at the end."""
        drawn, route = rng.random(), route.copy()
        if drawn < 0.75:
            route[:, LIGHT_COLUMNS] = 0
        if drawn < 0.5:
            place = int(rng.integers(len(route) if rng.random() < 0.4 else 20))
            route[place, HAS_LIGHT] = route[place, LIGHT + int(rng.integers(len(LIGHTS)))] = 1
            if rng.random() < 0.2:
                route[-1, LIGHT_COLUMNS] = route[place, LIGHT_COLUMNS]
        return route

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
    if step < 0:
        return 0.0
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


class Heads(nn.Module):
    """What the encoder is trained to hold: linear heads on its object tokens and on its queries.

    Args:
        encoder: whose states are read.
        seed: of the heads' first weights.
    """

    def __init__(self, encoder: nn.Module, seed: int) -> None:
        super().__init__()
        queries = encoder.queries
        assert isinstance(queries, Tensor)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.in_view = nn.Linear(queries.shape[1], 1)
            self.numbers = nn.Linear(queries.numel(), 4)  # cars, pedestrians, distances of car and light in 10 m
            self.light = nn.Linear(queries.numel(), len(STATES))
        self._states: dict[str, Tensor] = {}
        blocks: Any = encoder.blocks
        blocks[0].register_forward_hook(lambda _, __, output: self._states.update(objects=output))
        encoder.register_forward_hook(lambda _, __, output: self._states.update(queries=output[0]))

    def loss(self, scenes: list[DrivingScene]) -> Tensor:
        """How wrong the heads are about the scenes of the encoder's last forward."""
        queries, first = self._states["queries"].flatten(1), len(scenes[0].route)
        true = [read_facts(scene_caption(scene)) for scene in scenes]
        seen = np.zeros((len(scenes), len(scenes[0].pedestrians) + len(scenes[0].vehicles)), dtype=np.float32)
        used = np.concatenate([np.stack([getattr(s, kind)[:, 0] for s in scenes]) for kind in KINDS], 1) > 0
        for row, scene in zip(seen, scenes, strict=True):
            row[visible_pedestrians(scene)] = 1
            row[[len(scene.pedestrians) + car for car in visible_cars(scene)]] = 1
        in_view = self.in_view(self._states["objects"])[:, first:, 0][torch.from_numpy(used)]
        numbers = torch.tensor(
            [[one.cars, one.pedestrians, (one.car_distance or nan) / METERS, (one.light_distance or nan) / METERS]
             for one in true]
        )  # fmt: skip
        said, known = self.numbers(queries), ~numbers.isnan()
        light = torch.tensor([STATES.index(one.light or "none") for one in true])
        return (
            cross_entropy(self.light(queries), light)
            + 0.3 * mse_loss(said[known], numbers[known])
            + binary_cross_entropy_with_logits(in_view, torch.from_numpy(seen[used]))
        )


def train(model: Model, mixer: Mixer, args: argparse.Namespace) -> pd.DataFrame:
    """All steps, with a checkpoint every 250; returns the loss curves."""
    hf: Any = model.hf
    hf.requires_grad_(True)
    heads, batches, path = Heads(hf.encoder, args.seed), Batches(model), Path(args.out) / "checkpoint.pt"
    total, first = args.encoder_steps + args.steps, args.encoder_steps
    groups: list[Any] = [
        {"params": [*hf.encoder.parameters(), *heads.parameters()]},
        {"params": [*hf.language_model.parameters(), *hf.projector.parameters()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    factors = [lambda step: warm_cosine(step, total), lambda step: warm_cosine(step - first, args.steps)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    parts = {"model": hf, "heads": heads, "optimizer": optimizer, "schedule": schedule}
    start, curve, clock = 0, [], time.time()
    if path.exists():
        found = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(found[name])
        start, curve = found["step"], found["curve"]
    for step in tqdm(range(start, total), initial=start, total=total, desc="train", unit="step"):
        scenes = mixer.batch(step, args.batch_size)
        batch = batches(scenes)
        if step < first:  # the encoder alone, without a forward of the decoder
            tensors = unpack(batch["vectors"], batches.sizes)
            ego, text = tensors.pop("ego"), torch.zeros(())
            hf.encoder(tensors, ego)
        else:
            text = hf(**batch).loss
        facts = heads.loss(scenes)
        optimizer.zero_grad()
        (text + facts).backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == total - 1:
            losses = {"text": round(float(text.detach()), 4), "facts": round(float(facts.detach()), 4)}
            curve.append({"step": step, **losses, "seconds": round(time.time() - clock, 1)})
        if (step + 1) % 250 == 0 or step == total - 1:
            states = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1, "curve": curve}
            write_atomically(path, lambda partial: torch.save(states, partial))  # noqa: B023
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


def errors(found: pd.DataFrame, part: tuple[int, int], seed: int) -> dict[str, dict[str, float]]:
    """The mean errors of `evaluate` on the scenes of a part, with intervals."""
    names, frames = ("cars_error", "pedestrians_error", "light_right"), np.arange(*part)
    summary = {name: by_stretch(found[name], frames, seed) for name in names}
    lit = (found["light"] != "none").to_numpy()
    return summary | {"light_right_where_there_is_one": by_stretch(found["light_right"][lit], frames[lit], seed)}


def by_stretch(values: ArrayLike, frames: ArrayLike, seed: int) -> dict[str, float]:
    """A mean whose interval resamples stretches of twenty frames: neighboring frames resemble each other."""
    groups = pd.Series(np.asarray(values)).groupby(np.asarray(frames) // STRETCH).agg(["sum", "count"])
    return numbers(bootstrap_ratio(groups["sum"], groups["count"], seed=seed))


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
    arguments.add_argument("--encoder-steps", type=int, default=1500, help="of the encoder, before those of the text")
    arguments.add_argument("--steps", type=int, default=1500, help="of the text")
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
    recipe: dict[str, Any] = {"size": "small", "seed": args.seed, "steps": args.encoder_steps + args.steps}
    recipe |= {name: getattr(args, name) for name in ("encoder_steps", "batch_size", "learning_rate")}
    recipe |= {
        "parameters": parameters,
        "decoder": DECODER,
        "encoder": ENCODER,
        "seconds": float(curve["seconds"].iloc[-1]),
    }
    write_json(out / "model/recipe.json", recipe)
    curve.to_csv(out / "model/curve.csv", index=False)
    summary: dict[str, Any] = {
        "parameters": parameters,
        "steps": [args.encoder_steps, args.steps],
        "seconds": float(curve["seconds"].iloc[-1]),
    }
    for part in ("validation", "test"):
        found = evaluate(model, scenes[part], args.batch_size)
        summary |= {f"{part}.{name}": value for name, value in errors(found, PARTS[part], args.seed).items()}
        summary[f"{part}.without_looking"] = constant_rival(scenes["train"], scenes[part])
        write_atomically(out / f"{part}.csv", lambda partial: found.to_csv(partial, index=False))  # noqa: B023
    write_json(out / "summary.json", summary)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
