"""Tampering with artifacts on disk: every change must be refused by an error that names the file.

`python tests/reliability/tampering.py` prints the cases. An artifact is read again after each change; "accepted" counts
the changes that went unnoticed and gave something else than before, or an error that is not ours or names no file.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from steerlab import MeanDifference, SteeringVector, capture, load_steerer, sweep
from steerlab.analysis.study import Study
from steerlab.capturing import Store
from steerlab.data import demo_set
from steerlab.errors import SteerlabError
from steerlab.methods import LinearProbe, load_detector
from steerlab.methods.serialization import save, serialize
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

PAIRS = demo_set()[:5] + demo_set()[-5:]
Change = Callable[[Path, Path], None]  # of a folder, with that of another artifact of the same kind


@cache
def model(number: int = 0) -> Model:
    """Two models of one name and one shape, with other weights."""
    return tiny_lm(backend="hooks", seed=number)


@cache
def _acts(number: int) -> Any:
    return capture(model(number), PAIRS, layers=[1], progress=False)


def _capture(folder: Path, number: int) -> Store:
    return capture(model(number), PAIRS, layers=[0, 2], batch_size=4, folder=folder, progress=False)


def _read_store(folder: Path, number: int) -> object:
    acts, again = Store.open(folder).load(), _capture(folder, number).load()
    return acts.values.tolist(), acts.index.astype(str).values.tolist(), str(acts.sites), again.values.tolist()


def _read_method(load: Callable[..., Any], folder: Path, number: int) -> object:
    tensors: dict[str, torch.Tensor] = {}
    return serialize(load(folder, model(number)), tensors, "method"), {k: t.tolist() for k, t in tensors.items()}


def _sweep(folder: Path, number: int) -> str:
    vectors = {"v": {1: SteeringVector({1: torch.linspace(-3, 3, 32)})}}
    frame = sweep(
        model(number), PAIRS[:5], vectors, [1], (0.0, 1.0), folder=folder, batch_size=4, progress=False,
        metric=["propensity", _length], generation={"max_new_tokens": 2},
    )  # fmt: skip
    return frame.to_csv()


def _length(examples: Any, texts: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def _study(folder: Path, number: int) -> object:
    def table(first: float) -> pd.DataFrame:
        return pd.DataFrame({"example_id": ["a", "b", "c"], "value": [first + number, 1 / 3, 2.5]})

    study = Study(folder, {"study": "demo", "model": "tiny", "weights": model(number).info()["weights"], "seed": 0})
    frames = [study.stage(name, partial(table, i)) for i, name in enumerate(("first", "second"))]
    study.finish(frames[0], {}, "", {})
    seconds = json.loads((folder / "summary.json").read_text())["provenance"]["seconds"]
    return [frame.to_csv() for frame in frames], seconds > 1000


@dataclass(frozen=True)
class Artifact:
    """An artifact: how it is written, from one of the models, and read again.

    Attributes:
        name: of its kind.
        write: into a folder.
        read: all that is in the folder.
        manifest: the path of its JSON manifest.
        parts: patterns of its other files; two of the first kind are exchanged.
        may_lack: whether a missing part is computed again.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path, int], object]
    manifest: str
    parts: tuple[str, ...]
    may_lack: bool = False


ARTIFACTS = (
    Artifact("store", _capture, _read_store, "manifest.json", ("shard-*.safetensors",)),
    Artifact(
        "steerer", lambda folder, n: save(MeanDifference(1).fit(_acts(n)), folder), partial(_read_method, load_steerer),
        "manifest.json", ("*.safetensors",),
    ),
    Artifact(
        "detector", lambda folder, n: save(LinearProbe(1, positive=["refuse"]).fit(_acts(n)), folder),
        partial(_read_method, load_detector), "manifest.json", ("*.safetensors",),
    ),
    Artifact("sweep", _sweep, _sweep, "stages/study.json", ("stages/*.csv",), may_lack=True),
    Artifact("study", _study, _study, "stages/study.json", ("stages/*.csv", "stages/seconds.json"), may_lack=True),
)  # fmt: skip


def _rewrite(change: Callable[[bytes], bytes], path: Path, other: Path) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(place: float, content: bytes) -> bytes:
    """The content with the lowest bit of one byte flipped; `place` goes from 0, the first byte, to 1."""
    n = round(place * (len(content) - 1))
    return content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]


def _as_directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


FILE_CHANGES: dict[str, Change] = {
    "first bit flipped": partial(_rewrite, partial(flip, 0)),
    "bit in the middle flipped": partial(_rewrite, partial(flip, 0.5)),
    "last bit flipped": partial(_rewrite, partial(flip, 0.99)),
    "cut in half": partial(_rewrite, lambda content: content[: len(content) // 2]),
    "emptied": partial(_rewrite, lambda content: b""),
    "bytes appended": partial(_rewrite, lambda content: content + b"\n1,2\n"),
    "in another encoding": partial(_rewrite, lambda content: b"\xff\xfe" + content),
    "replaced by that of another model": lambda path, other: path.write_bytes(other.read_bytes()) and None,
    "replaced by a link to that of another model": _as_link,
    "replaced by a directory": _as_directory,
}  # fmt: skip


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all plain values in a JSON value."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from fields_of(item, (*path, key))
    else:
        yield path


def _set_field(path: tuple[Any, ...], file: Path, other: Path) -> None:
    manifest = json.loads(file.read_text())
    *parents, last = path
    holder = manifest
    for key in parents:
        holder = holder[key]
    old = holder[last]
    holder[last] = old + 1 if isinstance(old, int) and not isinstance(old, bool) else f"{old}x"
    file.write_text(json.dumps(manifest))


def _swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _reordered(content: bytes) -> bytes:
    *rows, last = content.splitlines(keepends=True)
    return b"".join([*rows[:-1], last, rows[-1]])


def cases(artifact: Artifact, folder: Path, other: Path) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """The changed file, the change in words, and the change itself, of a copy of `folder`."""

    def on(name: str, change: Change) -> Callable[[Path], None]:
        return lambda copy: change(copy / name, other / name)

    parts = [sorted(str(p.relative_to(folder)) for p in folder.glob(pattern)) for pattern in artifact.parts]
    for name in [artifact.manifest, *(names[0] for names in parts)]:
        replaced = (other / name).exists()  # the name of a steerer's tensors has their checksum
        for words, change in FILE_CHANGES.items():
            if replaced or "another model" not in words:
                yield name, words, on(name, change)
    fields = list(fields_of(json.loads((folder / artifact.manifest).read_text())))
    for path in fields[:: max(1, len(fields) // 8)]:
        yield (
            artifact.manifest,
            f"field {'.'.join(map(str, path))} edited",
            on(artifact.manifest, partial(_set_field, path)),
        )
    if len(parts[0]) > 1:
        first, second = parts[0][:2]
        yield first, f"swapped with {second}", lambda copy: _swap(copy / first, copy / second)
        yield second, f"overwritten with {first}", lambda copy: shutil.copy(copy / first, copy / second)
        yield second, f"a link to {first}", lambda copy: _as_link(copy / second, copy / first)
    if not artifact.may_lack:
        yield parts[0][0], "deleted", lambda copy: (copy / parts[0][0]).unlink()
        yield artifact.manifest, "deleted", lambda copy: (copy / artifact.manifest).unlink()
    else:
        yield parts[0][0], "rows reordered", on(parts[0][0], partial(_rewrite, _reordered))
    if artifact.name == "store":
        extra = "shard-00099.safetensors"
        yield extra, f"a copy of {parts[0][0]}", lambda copy: shutil.copy(copy / parts[0][0], copy / extra)


def outcome(artifact: Artifact, folder: Path, expected: object, names: set[str], number: int = 0) -> str:
    """What reading gives: "refused: ...", "identical", or what went wrong."""
    try:
        found = artifact.read(folder, number)
    except SteerlabError as error:
        named = any(name in str(error) for name in names)
        return f"refused: {error}" if named else f"unclear: {error}"
    except Exception as error:
        return f"foreign: {type(error).__name__}: {error}"
    return "identical" if found == expected else "accepted"


def prepare(artifact: Artifact, root: Path) -> tuple[Path, Path, object, set[str]]:
    """The folders of an artifact and of the other model's, what is read from the first, and what errors may name."""
    folders = [root / artifact.name / str(number) for number in (0, 1)]
    for number, folder in enumerate(folders):
        artifact.write(folder, number)
    names = {path.name for folder in folders for path in folder.rglob("*.*")}
    return folders[0], folders[1], artifact.read(folders[0], 0), names | {"weights"}


def tamper(artifact: Artifact, root: Path) -> Iterator[dict[str, str]]:
    """Every case of an artifact, each on a fresh copy."""
    folder, other, expected, names = prepare(artifact, root)
    copy = root / "copy"
    for name, words, change in cases(artifact, folder, other):
        shutil.copytree(folder, copy)
        change(copy)
        found = outcome(artifact, copy, expected, names | {Path(name).name})
        yield {"artifact": artifact.name, "change": f"{name}: {words}", "outcome": found.replace(f"{root}{os.sep}", "")}
        shutil.rmtree(copy)
    found = outcome(artifact, other, expected, {"weights"}).replace(f"{root}{os.sep}", "")
    yield {"artifact": artifact.name, "change": "that of another model of the same name", "outcome": found}


def run() -> dict[str, Any]:
    """All cases: how many were tried, how many were accepted, and each with its outcome."""
    with tempfile.TemporaryDirectory() as root:
        found = [case for artifact in ARTIFACTS for case in tamper(artifact, Path(root))]
    accepted = sum(not case["outcome"].startswith("refused") for case in found)
    return {"tried": len(found), "accepted": accepted, "cases": found}


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
