"""What users write on the command line, as what the verbs take: data, methods, vectors, layers and strengths."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml

from steerlab._support.files import reading
from steerlab._support.yaml_text import load_yaml
from steerlab.errors import DataError, LoadError, SteeringError

if TYPE_CHECKING:
    from steerlab.data.example import Example
    from steerlab.methods import Steerer
    from steerlab.models.model import Model
    from steerlab.models.sites import Site

DATA = (
    "a file (.jsonl, .json, .csv, .tsv, .yaml, .txt) with columns prompt, positive, negative, or pairs of texts; or a "
    "built-in set such as demo or xstest; or a reader with a folder and a name, such as mwe:FOLDER:openness"
)
VECTORS = "folders of fit, hub repositories or gguf files"
LAYERS = "all, or a list: 3 (a block), -1 (the last), 8-10, 20- (to the last), 16.attn_out (a site)"
_COLUMNS = ("prompt", "positive", "negative")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Choice:
    """Which inputs of some data are used; options of every command that takes data."""

    split: Annotated[str, "only inputs of this split, or of several joined by a comma"] = ""
    limit: Annotated[int | None, "at most so many inputs of each behavior and split"] = None
    columns: Annotated[str, "what the columns of a table hold: prompt=ask,positive=pirate,negative=plain"] = ""

    def splits(self, place: str, known: Iterable[str]) -> list[str]:
        """The splits named, which the data at a place must have."""
        wanted, there = self.split.split(","), sorted(set(known))
        if missing := sorted(set(wanted) - set(there)):
            raise DataError(f"{place} has no split {missing[0]!r}; it has {', '.join(map(repr, there))}")
        return wanted


ALL = Choice()


def read_data(given: str, choice: Choice = ALL) -> list[Example]:
    """Examples from a file, a built-in set or a reader.

    Example:
        >>> read_data("pairs.csv", Choice(columns="prompt=ask,positive=pirate,negative=plain"))
        >>> read_data("demo", Choice(split="train", limit=60))

    Args:
        given: see `DATA`.
        choice: which of them.

    Raises:
        LoadError: no such file or set, with the nearest name. DataError: a file that holds something else.
    """
    names = _names(choice.columns)
    if unknown := sorted(set(names) - set(_COLUMNS)):
        raise DataError(
            f"--columns {choice.columns}: {unknown[0]!r} is unknown; expected some of {', '.join(_COLUMNS)}"
        )
    is_file = Path(given).suffix.lower() in _SUFFIXES or Path(given).is_file()
    if names and not is_file:
        raise DataError(f"--columns {choice.columns} names the columns of a file, and {given} is none: leave it out")
    found = _of_file(Path(given), names) if is_file else _of_reader(given)
    if choice.split:
        wanted = choice.splits(given, (one.split for one in found))
        found = [one for one in found if one.split in wanted]
    numbers: Counter[tuple[str, str]] = Counter()
    kept = []
    for one in found:
        numbers[one.behavior, one.split] += 1
        kept += [one] * (choice.limit is None or numbers[one.behavior, one.split] <= choice.limit)
    return kept


def _of_file(path: Path, columns: Mapping[str, Any]) -> list[Example]:
    """The examples in a file: a table, a list of records, of prompts, or of pairs."""
    import pandas as pd

    import steerlab
    from steerlab.data.inputs import as_examples, images_of

    suffix = path.suffix.lower()
    if path.is_file() and suffix not in (*_SUFFIXES, ""):
        raise DataError(f"{path} ends in {path.suffix}: expected one of {', '.join(_SUFFIXES)}")
    with reading(path, "Expected a record in each line (.jsonl), a list (.json, .yaml), a table (.csv, .tsv) or lines"):
        if suffix in _DELIMITERS:
            records: Any = pd.read_csv(path, sep=_DELIMITERS[suffix], keep_default_na=False, dtype=str)
            if not isinstance(records.index, pd.RangeIndex):  # pandas takes the first field of each row for its name
                raise DataError('its rows have more fields than its first line: put texts with commas in quotes, "..."')
            if "system" in records:  # an empty cell is the template's default, not an empty system message
                records["system"] = records["system"].where(records["system"] != "", None)
        else:
            records = _PARSERS[suffix](path.read_text(encoding="utf-8-sig"))
        if isinstance(records, list) and records and all(isinstance(one, Mapping) for one in records):
            records = pd.DataFrame(records)
        if isinstance(records, pd.DataFrame):
            prompt, *answers = (columns.get(one, one) for one in _COLUMNS)
            if prompt not in records and ("prompt" in columns or not {*answers} <= {*records}):
                raise DataError(
                    f"there is no column {prompt!r}, but {', '.join(map(repr, records))} (commas divide a .csv, tabs a "
                    ".tsv). Say which is which: --columns prompt=ask,positive=pirate,negative=plain"
                )
            if "images" in records:
                records["images"] = [[path.parent / name for name in images_of(cell)] for cell in records["images"]]
            return steerlab.examples(records, **columns)
        if isinstance(records, list) and records and all(isinstance(one, list) and len(one) == 2 for one in records):
            return steerlab.pairs(records)
        if not isinstance(records, list):
            raise DataError(f"it holds a {type(records).__name__}, not a list of prompts, pairs or records")
        return as_examples(one for one in records if not isinstance(one, str) or one.strip())


def _lines(text: str) -> list[str]:
    return text.split("\n")  # a line may hold what `splitlines` takes for its end


def _json_lines(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(_lines(text), start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise DataError(f"line {number} is no JSON ({error})") from error
    return found


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": json.loads, ".yaml": load_yaml, ".yml": load_yaml,
    ".txt": _lines, "": _lines,
}  # fmt: skip
_SUFFIXES = tuple(suffix for suffix in (*_PARSERS, *_DELIMITERS) if suffix)


def readers() -> dict[str, Callable[..., list[Example]]]:
    """The readers of data sets that need nothing but texts, such as paths; by name, `demo` for `demo_set`."""
    from steerlab import data

    found: dict[str, Callable[..., list[Example]]] = {}
    for name, function in vars(data).items():
        if inspect.isfunction(function) and inspect.signature(function).return_annotation == "list[Example]":
            needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            if all(p.annotation in ("str | Path", "str") for p in needed) and name != "read_jsonl":  # a file is read
                found[name.removesuffix("_set")] = function
    return found


def _of_reader(given: str) -> list[Example]:
    name, *arguments = given.split(":")
    known = readers()
    if name not in known:
        raise LoadError(f"there is no file and no data set {given!r}: {nearest(name, list(known))}")
    needed = [one.name for one in inspect.signature(known[name]).parameters.values() if one.default is one.empty]
    if not len(needed) <= len(arguments) <= max(len(needed), 1):
        raise LoadError(f"the data set {given!r}: expected {':'.join([name, *map(str.upper, needed)])}")
    return known[name](*arguments)


def nearest(name: str, known: Sequence[str]) -> str:
    """What was probably meant, and what there is."""
    beginnings = {one[: len(name)]: one for one in known}  # of long names, users write the beginning
    near = get_close_matches(name, [*known, *beginnings], 1)
    meant = f"did you mean {beginnings.get(near[0], near[0])}? " if near else ""
    return f"{meant}There are {', '.join(sorted(known))}"


def make_method(name: str, layers: str, n_layers: int, options: Sequence[str] = ()) -> Steerer:
    """An unfitted steerer by the name of its method.

    Example:
        >>> make_method("mean", "16", 30), make_method("l2s", "16", 30, ["zero_behaviors=[answer]"])

    Args:
        name: a class of `steerlab.methods`, in any case; its beginning is enough.
        layers: see `parse_layers`; "" for the block in the middle.
        n_layers: of the model.
        options: of the class, each `name=value` with a value in YAML.

    Raises:
        SteeringError: an unknown method, with the nearest name; several layers for a method of one.
    """
    from steerlab.methods import steerer_classes

    known = {one.lower(): cls for one, cls in steerer_classes().items()}
    meant = [one for one in known if one == name.lower()] or [one for one in known if one.startswith(name.lower())]
    if len(meant) != 1:
        raise SteeringError(f"the method {name!r} is unknown: {nearest(name.lower(), list(known))}")
    cls = known[meant[0]]
    parameters = inspect.signature(cls).parameters
    found = parse_layers(layers or str(n_layers // 2), n_layers)
    given: dict[str, Any] = {}
    for one, value in _names(options).items():
        if one in ("layer", "layers"):
            raise SteeringError(f"--set {one}={value}: give it as --layers {value}")
        try:
            given[one] = load_yaml(value)
        except yaml.YAMLError as error:
            raise SteeringError(f"--set {one}={value}: the value is no YAML") from error
    if "layers" in parameters:
        given["layers"] = found[0] if len(found) == 1 else found
    elif "layer" in parameters:
        if len(found) > 1:
            raise SteeringError(f"{cls.__name__} steers one layer: give one with --layers, not {layers!r}")
        given["layer"] = found[0]
    if missing := [one.name for one in parameters.values() if one.default is one.empty and one.name not in given]:
        raise SteeringError(f"{cls.__name__} needs {' and '.join(missing)}: give each with --set NAME=VALUE")
    return cls(**given)


def read_steerers(places: Sequence[str], model: Model | None = None) -> dict[str, Steerer]:
    """Fitted steerers by the name of their folder, hub repository or gguf file.

    Raises:
        LoadError: there is none. MismatchError: one of another model. SteeringError: one is given twice.
    """
    from steerlab.methods import from_gguf, load_steerer

    found: dict[str, Steerer] = {}
    names = [Path(place).stem if place.endswith(".gguf") else Path(place).name for place in places]
    for place, name in zip(places, names, strict=True):
        if not (Path(place).exists() or "/" in place):
            made = "a folder that steerlab fit wrote, a repository of the hub (user/name), or a .gguf file"
            raise LoadError(f"there is no vector {place!r}: give {made}")
        steerer = from_gguf(place) if place.endswith(".gguf") else load_steerer(place, model)
        if (key := place if names.count(name) > 1 else name) in found:
            raise SteeringError(f"the vector {place!r} is given twice: give it once, with a larger strength if need be")
        found[key] = steerer
    return found


def parse_layers(text: str, n_layers: int) -> list[Any]:
    """Layers and sites.

    Example:
        >>> parse_layers("3,8-10,-1", 30), parse_layers("all", 4), parse_layers("16.attn_out", 30)
        ([3, 8, 9, 10, 29], [0, 1, 2, 3], [Site(layer=16, point='attn_out', part='text')])

    Raises:
        SteeringError: what is no layer.
    """
    from steerlab.models.sites import Site

    if text == "all":
        return list(range(n_layers))
    found: list[int | Site] = []
    for part in text.split(","):
        whole = re.fullmatch(r"\s*(-?\d+)(?:-(\d*)|\.(\w+))?\s*", part)
        if whole is None:
            raise SteeringError(f"the layers {text!r}: expected {LAYERS}")
        first = int(whole[1]) + n_layers * whole[1].startswith("-")
        if first < 0:
            raise SteeringError(f"the layers {text!r}: there is no layer {whole[1]}; the model has {n_layers}")
        last = first if whole[2] is None else int(whole[2] or n_layers - 1)
        if last < first:
            raise SteeringError(f"the layers {text!r}: {part.strip()!r} goes down, from {first} to {last}")
        found += [Site(first, whole[3])] if whole[3] else range(first, last + 1)
    for one in found:
        Site.of(one).resolve(n_layers)
    return found


def parse_positions(text: str) -> list[Any]:
    """Positions: names, places in the row, and `match:TEXT`, joined by commas.

    Example:
        >>> parse_positions("last,-2,match:Python")
        ['last', -2, Match(text='Python')]
    """
    from steerlab.models.positions import Match

    def parse(part: str) -> Any:
        return int(part) if re.fullmatch(r"-?\d+", part) else Match(part[6:]) if part.startswith("match:") else part

    return [parse(part.strip()) for part in text.split(",") if part.strip()]


def parse_numbers(text: str, name: str = "alphas") -> list[float]:
    """Strengths: numbers, and ranges with their step.

    Example:
        >>> parse_numbers("0,0.5,2"), parse_numbers("-1:1:0.5")
        ([0.0, 0.5, 2.0], [-1.0, -0.5, 0.0, 0.5, 1.0])

    Raises:
        SteeringError: what is no number.
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            first, *rest = map(float, part.split(":"))
            last, step = rest or (first, 1.0)
            n_steps = int((last - first) / step + 1e-9) + 1
            if n_steps < 1:
                raise ValueError("the range goes away from its end")
            found += [float(f"{first + k * step:.12g}") for k in range(n_steps)] if rest else [first]
        except (ValueError, ZeroDivisionError, OverflowError):
            example = "numbers such as 0,0.5,2 or a range with its step, -1:1:0.5"
            raise SteeringError(f"{name}: {text!r} has the part {part!r}: expected {example}") from None
    return found


def parse_metrics(text: str) -> dict[str, Any]:
    """Metrics of a sweep by name: of answers' logits, or functions of `steerlab.metrics` of one text.

    Raises:
        DataError: an unknown metric, with the nearest name.
    """
    from steerlab import metrics
    from steerlab.metrics.answers import ANSWER_METRICS

    of_text = {
        name: function
        for name, function in vars(metrics).items()
        if inspect.isfunction(function) and inspect.signature(function).return_annotation in ("bool", "float")
        and next(iter(inspect.signature(function).parameters)) == "text"
    }  # fmt: skip
    known: dict[str, Any] = {name: name for name in ANSWER_METRICS}
    known |= {name: _of_texts(function) for name, function in of_text.items()}
    for name in text.split(","):
        if name not in known:
            raise DataError(f"the metric {name!r} is unknown: {nearest(name, list(known))}")
    return {name: known[name] for name in text.split(",")}


def _of_texts(function: Callable[[str], float]) -> Callable[[Sequence[Example], Sequence[str]], list[float]]:
    return lambda examples, texts: [float(function(text)) for text in texts]


def _names(given: str | Sequence[str]) -> dict[str, Any]:
    """`name=value` by name."""
    listed = [one for one in given.split(",") if one] if isinstance(given, str) else list(given)
    for one in listed:
        if "=" not in one:
            raise DataError(f"{one!r}: expected NAME=VALUE")
    return {name: value for name, _, value in (one.partition("=") for one in listed)}
