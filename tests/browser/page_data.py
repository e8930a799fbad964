"""A small sweep with texts and tokens, made without a model: what the tests of the page draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd
from PIL import Image

ALPHAS = (0.0, 0.3, 0.6, 0.9, 1.2)
LAYERS = (12, 16)
METHODS = ("mean", "l2s")
PLAIN = "Place the egg in boiling water for ten minutes and let it cool."
STEERED = (PLAIN, "Place the egg in the boiling brine for ten minutes.", "Drop yer egg in the boilin' brine, matey!")
BROKEN = "arr arr arr arr arr arr"


def text_of(method: str, layer: int, alpha: float, prompt: int) -> str:
    """The text of a setting; it names the setting, so that a test sees which one is shown."""
    if alpha == 0:
        return f"{PLAIN} ({prompt})"
    if alpha > 1:
        return f"{BROKEN} {method} {layer}"
    return f"{STEERED[1 + (alpha > 0.5)]} {method}, layer {layer}, strength {alpha}, prompt {prompt}"


def tokens_of(text: str, alpha: float) -> list[dict[str, Any]]:
    """Records such as `token_effects` gives, with cosines of both signs."""
    words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split())]
    return [
        {
            "token": word, "cosine": ((i % 7) - 2) / 8, "norm_ratio": alpha * (0.1 + 0.05 * (i % 3)), "kl": 0.2 * i,
            "logprob": -1.0, "top": [(word, 0.6), (" matey", 0.2)], "unsteered": [(" the", 0.5), (" a", 0.3)],
        }
        for i, word in enumerate(words)
    ]  # fmt: skip


def sweep_frames(
    alphas: Sequence[float] = ALPHAS, layers: Sequence[int] = LAYERS, methods: Sequence[str] = METHODS,
    prompts: int = 3, images: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Measurements in long form, and the texts."""
    rows, texts = [], []
    for method, layer, alpha, number in product(methods, layers, alphas, range(prompts)):
        example, text = f"egg-{number}", text_of(method, layer, alpha, number)
        where = {"method": method, "layer": layer, "alpha": alpha, "example_id": example}
        broken, gain = float(alpha > 1), alpha * (1.0 if method == "l2s" else 0.7) * (layer / 16)
        values = {"pirate": min(1.0, gain), "kl": alpha**2 * layer / 16, "broken": broken}
        if number == 0:
            values["unsafe"] = float(alpha < 0.5)
        rows += [
            where | {"metric": m, "value": v, "norm_ratio": 0.3 * alpha, "model": "toy"} for m, v in values.items()
        ]
        picture = [Image.new("RGB", (40, 30), (180, 120, 30))] if images and number == 1 else []
        texts.append(
            where
            | {"prompt": f"How do I boil egg {number}?", "text": text}
            | {"behavior": "refuse" if number == 0 else "answer"}
            | {"images": picture, "tokens": tokens_of(text, alpha) if alpha else []}
        )
    return pd.DataFrame(rows), pd.DataFrame(texts)
