"""Synthetic activations whose right answers are known, and a check that saving changes no method fitted to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from steerlab import Activations, Site
from steerlab.methods import Context, Detector, RequiredActivation, Steerer, load_detector, load_steerer
from steerlab.methods.serialization import save, serialize


def activations(values: Tensor, layers: Sequence[int], info: dict[str, Any], **columns: Any) -> Activations:
    """Activations of `(row, layer, hidden)` values; by default every row was read at the last prompt token."""
    last = {"side": "prompt", "position": "last", "behavior": "", "split": "", "column": -1, "token": -1, "n_tokens": 1}
    return Activations(values, pd.DataFrame(last | columns), tuple(map(Site, layers)), info)


def make_acts(
    contexts: Tensor | None, targets: Tensor | None, *, behaviors: Sequence[str] = (), ids: Sequence[str] = (),
    layer: int = 3, bare: Sequence[str] = (), seed: int = 0, **info: object,
) -> Activations:  # fmt: skip
    """A prompt row per context and, unless `bare`, a contrast per target: a random negative, and the target more."""
    size = next(t for t in (contexts, targets) if t is not None)
    n, generator = len(size), torch.Generator().manual_seed(seed)
    ids = list(ids) or [f"s{i:04d}" for i in range(n)]
    rows, values = [], []
    for i, row in enumerate(zip(ids, list(behaviors) or ["b"] * n, strict=True)):
        if contexts is not None:
            rows.append((*row, "prompt", "last"))
            values.append(contexts[i])
        if targets is not None and ids[i] not in bare:
            negative = torch.randn(size.shape[1], generator=generator)
            rows += [(*row, "positive", "answer"), (*row, "negative", "answer")]
            values += [negative + targets[i], negative]
    columns = pd.DataFrame(rows, columns=["example_id", "behavior", "side", "position"])
    return activations(torch.stack(values)[:, None], [layer], info, **columns)


def shuffled(acts: Activations, seed: int = 0) -> Activations:
    """The same rows in another order."""
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))
    index = acts.index.iloc[order.tolist()].reset_index(drop=True)
    return Activations(acts.values[order], index, acts.sites, acts.info)


def clusters(n: int, hidden: int, k: int, *, seed: int, noise: float = 0.3, world: int = 0) -> tuple[Tensor, ...]:
    """Contexts around `k` centers, orthogonal unit targets by center, and the center of each row."""
    fixed = torch.Generator().manual_seed(world)
    centers = torch.randn(k, hidden, generator=fixed)
    directions = torch.linalg.qr(torch.randn(hidden, k, generator=fixed)).Q.T
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, k, (n,), generator=generator)
    return centers[which] + noise * torch.randn(n, hidden, generator=generator), directions[which], which


def normal(*size: int, seed: int = 0) -> Tensor:
    """Standard normal numbers from a generator of their own."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def two_prompts(
    primary: Tensor, full: Tensor, injected: Sequence[bool], *, splits: Sequence[str] = (), task: str = "task",
    layers: Sequence[int] | None = None, **info: object,
) -> Activations:  # fmt: skip
    """Rows of the task alone and of task and text, from two tensors `(input, layer, hidden)`."""
    n, behaviors = len(primary), ["injected" if flag else "clean" for flag in injected]
    columns = {"example_id": [f"s{i:04d}" for i in range(n)] * 2, "side": [task] * n + ["prompt"] * n}
    columns |= {"behavior": behaviors * 2, "split": (list(splits) or [""] * n) * 2}
    return activations(torch.cat([primary, full]), layers or range(primary.shape[1]), info, **columns)


def drifting(
    n: int = 1000, hidden: int = 64, layers: int = 1, *, offset: float = 5.0, strength: float = 3.0, seed: int = 0,
    tasks: int | None = None,
) -> tuple[Tensor, Tensor, list[bool]]:  # fmt: skip
    """States after the task alone and after task and text, and whether the text holds a foreign task (every other one).

    Each task has a large offset. A text adds a common shift, noise, and with a foreign task a direction; shift and
    direction are the same for every seed. With `tasks`, the inputs share that many tasks.
    """
    shift, direction = normal(2, layers, hidden, seed=99)
    direction = strength * direction / direction.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(n) if tasks is None else torch.arange(n) // 2 % tasks  # not in step with the foreign tasks
    primary = offset * torch.randn(int(of.max()) + 1, layers, hidden, generator=generator)[of]
    flags = torch.arange(n) % 2 == 1
    noise = torch.randn(n, layers, hidden, generator=generator)
    return primary, primary + shift + flags[:, None, None] * direction + noise, flags.tolist()


def check_saved(method: Steerer | Detector, folder: Path, context: Context, model: Any = None) -> Any:
    """Save and load a method and return it; its settings, fitted values and outputs must be equal bit for bit."""
    load = load_detector if isinstance(method, Detector) else load_steerer
    loaded, compared = load(save(method, folder), model), []
    assert loaded.required_activations == method.required_activations
    assert vars(loaded).keys() == vars(method).keys() - {"history_"}, "only the history of the training is not saved"
    for one in (loaded, method):
        tensors: dict[str, Tensor] = {}
        compared.append((serialize([one, _outputs(one, context)], tensors, "method"), tensors))
    (found, found_tensors), (expected, expected_tensors) = compared
    assert found == expected
    torch.testing.assert_close(found_tensors, expected_tensors, rtol=0, atol=0)
    return loaded


def _outputs(method: Steerer | Detector, context: Context) -> list[Any]:
    """A detector's scores; the site, positions, gate and vectors of each of a steerer's interventions."""
    if isinstance(method, Detector):
        return [method.score(context)]
    outputs = []
    for one in method.interventions(context):
        of_states = None if one.vector_fn is None else one.vector_fn(context.get_states(RequiredActivation(one.site)))
        outputs.append((one.site, one.positions, one.gate, one.vectors, of_states))
    return outputs
