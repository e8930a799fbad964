"""The same settings with steering-vectors and nnterp; run by sweep.py in the Python that has them.

PYTHON tests/benchmarks/sweep_peers.py MODEL FIRST_COLUMN ANSWER_IDS ALPHAS EVERY
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

Setting = tuple[int, float]
Way = Callable[[Setting], float]


def main() -> None:
    """Print one line of JSON: seconds for all settings and the values of some, by library."""
    folder, first, ids, alphas, every = sys.argv[1], int(sys.argv[2]), *map(json.loads, sys.argv[3:6])
    given = load_file(f"{folder}/given.safetensors")
    settings = [(layer, alpha) for layer in range(len(given["vectors"])) for alpha in alphas]
    sample = [setting for setting in settings[::every] if setting[1] != 0]
    found: dict[str, Any] = {}
    for name, make in (("steering-vectors", by_steering_vectors), ("nnterp", by_nnterp)):
        try:
            way = make(folder, given["ids"], given["vectors"], first, ids)
            way(sample[0])
            start = time.perf_counter()
            values = [(*setting, way(setting)) for setting in sample]
            seconds = (time.perf_counter() - start) / len(sample) * len(settings)
            found[name] = {"seconds": seconds, "values": values, "version": version(name)}
        except Exception as error:  # a library that can't run is reported beside those that can
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(found))


def by_steering_vectors(folder: str, ids: Tensor, vectors: Tensor, first: int, answers: list[int]) -> Way:
    """One `apply` a setting."""
    from steering_vectors import SteeringVector

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def way(setting: Setting) -> float:
        layer, alpha = setting
        vector = SteeringVector(layer_activations={layer: vectors[layer]}, layer_type="decoder_block")
        with torch.no_grad(), vector.apply(model, multiplier=alpha, min_token_index=first):
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        return float(logits[answers[0]] - logits[answers[1]])

    return way


def by_nnterp(folder: str, ids: Tensor, vectors: Tensor, first: int, answers: list[int]) -> Way:
    """One trace a setting."""
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(folder, dtype=torch.float32)
    where = (torch.arange(ids.shape[1]) >= first)[None, :, None]

    def way(setting: Setting) -> float:
        layer, alpha = setting
        shift = alpha * vectors[layer] * where
        with torch.no_grad(), model.trace(ids):
            model.layers_output[layer] = model.layers_output[layer] + shift
            logits = model.logits[0, -1].save()
        return float(logits[answers[0]] - logits[answers[1]])

    return way


if __name__ == "__main__":
    main()
