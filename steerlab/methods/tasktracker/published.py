"""Published TaskTracker probes: the contents of their file, and the sites that its layer numbers mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from steerlab._support.files import reading
from steerlab.errors import DataError, LoadError, MismatchError
from steerlab.models.sites import Site

_KEY = re.compile(r"layer(\d+)\.(coef|intercept)")


def read_probes(path: str | Path, layers: Sequence[int] | None = None) -> dict[int, tuple[Tensor, Tensor]]:
    """Weights `(hidden,)` and intercept `()` of each probe, float64, by ascending layer number of the file.

    Example:
        >>> list(read_probes("tasktracker_phi3_linear_probes.safetensors"))
        [0, 7, 15, 23, 31]

    Args:
        path: a safetensors file with `layer<n>.coef` and `layer<n>.intercept`, exported from the released
            scikit-learn probes of arXiv 2406.00799.
        layers: which numbers to keep; None: all.

    Raises:
        LoadError: there is no such file, or it is of another kind.
        MismatchError: the file holds something else, or not the layers named.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".safetensors":
        raise LoadError(
            f"{str(path)!r} is not an existing safetensors file. Pickles are not opened, as that could run code: "
            "export coef_ and intercept_ of each probe as layer<n>.coef and layer<n>.intercept"
        )
    with reading(file, "Export the probes again"):
        tensors = load_file(file)
    keys = [_KEY.fullmatch(key) for key in tensors]
    if not tensors or None in keys:
        raise MismatchError(f"{file.name} holds {sorted(tensors)[:6]}, expected layer<n>.coef and layer<n>.intercept")
    found = sorted({int(key[1]) for key in keys if key})
    missing = [f"layer{n}.{part}" for n in found for part in ("coef", "intercept") if f"layer{n}.{part}" not in tensors]
    shapes = {key: tuple(value.shape) for key, value in tensors.items() if key.endswith("coef")}
    if missing or len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise MismatchError(f"{file.name} lacks {missing} or has weights of different shapes {shapes}")
    if absent := [number for number in layers or () if number not in found]:
        raise MismatchError(f"{file.name} has no probes of layers {absent}; it has {found}")
    chosen = found if layers is None else sorted(set(layers))
    return {
        n: (tensors[f"layer{n}.coef"].double(), tensors[f"layer{n}.intercept"].double().reshape(())) for n in chosen
    }


def probe_site(number: int, n_layers: int, convention: str) -> Site:
    """The site that a file's layer number means in a model of `n_layers` blocks.

    Example:
        >>> [str(probe_site(7, 32, "block")), str(probe_site(7, 32, "hidden_states"))]
        ['7', '6']

    Raises:
        DataError: unknown convention.
        MismatchError: the model has no such layer; both are named.

    Source: the released code of arXiv 2406.00799 trains on hidden_states[n + 1] for number n.
    """
    if convention not in ("block", "hidden_states"):
        raise DataError(f"unknown convention {convention!r}; expected 'block' or 'hidden_states'")
    top = n_layers - 1 if convention == "block" else n_layers
    if not 0 <= number <= top:
        hint = ". Does it count hidden_states? convention='hidden_states'" if number == n_layers == top + 1 else ""
        raise MismatchError(
            f"the file has a probe of layer {number} (counted as {convention!r}), a model of {n_layers} blocks has "
            f"0 to {top}: it belongs to another model or another layer convention{hint}"
        )
    if convention == "block":
        return Site(number)
    return Site(number - 1) if number else Site(0, "block_in")
