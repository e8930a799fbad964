"""Commands that read states and make vectors: `capture`, `fit`, `similarity`, `export`, `push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlab.cli.app import command
from steerlab.cli.inputs import DATA, make_method, parse_layers, parse_positions, read_data, read_steerers
from steerlab.cli.job import Job, Result
from steerlab.errors import DataError, SteeringError

if TYPE_CHECKING:
    from steerlab.data.example import Example

Columns = Annotated[str, "which columns of a table hold what, such as prompt=ask,positive=pirate,negative=plain"]
Limit = Annotated[int | None, "at most so many inputs of each behavior and split"]
Split = Annotated[str, "only inputs of this split, or of several joined by a comma"]
BatchSize = Annotated[int, "rows of a forward"]
VECTOR = "a folder of fit, a hub repository or a gguf file; repeatable"
VECTORS = "folders of fit, hub repositories or gguf files"
LAYERS = "all, or numbers, ranges and sites such as 3,8-10,-1 or 16.attn_out"


@command()
def capture(
    job: Job, data: Annotated[str, DATA], *,
    out: Annotated[str, "the folder of the states; finished batches are kept"] = "",
    layers: Annotated[str, LAYERS] = "all",
    positions: Annotated[str, "where to read: last, prompt[3], match:TEXT, ...; by default that of each contrast"] = "",
    context: Annotated[str, "where to read the plain prompt of inputs with a contrast"] = "last",
    split: Split = "", limit: Limit = None, columns: Columns = "", batch_size: BatchSize = 16,
) -> Result:  # fmt: skip
    """Read hidden states of prompts and answers into a folder, which fit --activations takes."""
    import steerlab

    examples, sites = (
        read_data(data, split=split, limit=limit, columns=columns),
        parse_layers(layers, job.model.n_layers),
    )
    job.begin(
        f"read {_count(len(sites), 'site')} of {_count(len(examples), 'input')} into {out}",
        job.seconds_to_read(examples),
    )
    store = steerlab.capture(
        job.model, examples, layers=sites, positions=parse_positions(positions) or None,
        context=parse_positions(context), batch_size=batch_size, folder=out,
    )  # fmt: skip
    acts = store.load(layers=[store.sites[0]])
    found = {
        "folder": out,
        "rows": len(acts),
        "sites": [str(site) for site in store.sites],
        "hidden_size": acts.hidden_size,
    }
    return Result(f"{out}: {len(acts)} rows x {len(store.sites)} sites, {acts.hidden_size} wide", data=found)


@command()
def fit(
    job: Job, data: Annotated[str, DATA] = "", *, out: Annotated[str, "the folder of the vector"],
    method: Annotated[str, "mean, pca, logistic, l2s, ...: a class of steerlab.methods, or its beginning"] = "mean",
    layers: Annotated[str, f"{LAYERS}; by default the block in the middle"] = "",
    options: Annotated[tuple[str, ...], "an option of the method, NAME=VALUE; repeatable", "--set"] = (),
    activations: Annotated[str, "a folder of capture, in place of data"] = "",
    split: Split = "", limit: Limit = None, columns: Columns = "", batch_size: BatchSize = 16,
) -> Result:  # fmt: skip
    """Fit a steering vector, or a method that predicts one, to inputs with a contrast, and save it in a folder."""
    if bool(data) == bool(activations):
        raise DataError("fit needs data, or --activations FOLDER of capture; one of the two")
    if activations:
        steerer = _fit_activations(job, activations, method, layers, options)
    else:
        examples = training_examples(read_data(data, split=split, limit=limit, columns=columns))
        steerer = make_method(method, layers, job.model.n_layers, options)
        what = f"fit {steerer!r} to {_count(len(examples), 'input')}{_of_split(examples)} and save it in {out}"
        job.begin(what.replace("; not fitted", ""), job.seconds_to_read(examples))
        steerer.fit(job.model, examples, batch_size=batch_size)
    steerer.save_pretrained(out)
    return Result(f"{out}: {steerer!r}", data={"folder": out, "method": steerer.name, "repr": repr(steerer)})


def _fit_activations(job: Job, folder: str, method: str, layers: str, options: tuple[str, ...]) -> Any:
    """A method fitted to a folder of states; no model is loaded."""
    from steerlab.capturing.store import Store

    store = Store.open(folder)
    steerer = make_method(method, layers, int(store.info["layers"]), options)
    job.begin(f"fit {steerer!r} to the states in {folder} and save it in {job.options['out']}")
    return steerer.fit(store.load())


def training_examples(examples: list[Example]) -> list[Example]:
    """The examples of the split "train" where there is one, else all."""
    return [one for one in examples if one.split == "train"] or examples


def _of_split(examples: list[Example]) -> str:
    return (
        f" of the split {examples[0].split}" if examples[0].split and len({one.split for one in examples}) == 1 else ""
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


@command()
def similarity(
    job: Job, vectors: Annotated[tuple[str, ...], VECTORS] = (), *,
    data: Annotated[str, f"{DATA}: compare the mean vectors of its behaviors as well"] = "",
    layers: Annotated[str, f"of the behaviors: {LAYERS}; by default the block in the middle"] = "",
    split: Split = "", limit: Limit = None, columns: Columns = "",
    out: Annotated[str, "the folder of results.csv"] = "",
) -> Result:  # fmt: skip
    """Compare vectors by their cosines: of several folders at each layer, of one folder between its layers."""
    from steerlab.analysis.similarity import cosine_table

    found = {(name, layer): vector for name, steerer in read_steerers(vectors, job.model).items()
             for layer, vector in _directions(name, steerer).items()}  # fmt: skip
    examples = read_data(data, split=split, limit=limit, columns=columns) if data else []
    job.begin(
        f"compare {_count(len(found), 'vector')}"
        + (f" and the behaviors of {_count(len(examples), 'input')}" if data else ""),
        job.seconds_to_read(examples) if data else 1.0,
    )
    if data:
        found |= _by_behavior(job, examples, layers)
    table = cosine_table(found)
    if len({name for name, _ in found}) > 1:  # of several vectors, those at the same layer
        table = table[[a[1] == b[1] for a, b in zip(table["a"], table["b"], strict=True)]]
    if table.empty:
        raise DataError("there is nothing to compare: give at least two vectors that have a layer in common")
    for column in ("a", "b"):
        table[column] = [f"{name} at {layer}" for name, layer in table[column]]
    path = write_csv(table, Path(out) / "results.csv")
    return Result(str(path), table, ["cosine"], {"rows": table, "file": path})


def _directions(name: str, steerer: Any) -> dict[str, Any]:
    if not hasattr(steerer, "directions"):
        raise SteeringError(f"{name} is a {type(steerer).__name__}, which has a vector for each input: compare others")
    return {str(site): vector for site, vector in steerer.directions.items()}


def _by_behavior(job: Job, examples: list[Example], layers: str) -> dict[tuple[str, str], Any]:
    import steerlab
    from steerlab.analysis.similarity import vectors_by_layer

    sites = parse_layers(layers or str(job.model.n_layers // 2), job.model.n_layers)
    acts = steerlab.capture(job.model, [one for one in examples if one.contrast], layers=sites)
    return {(name or "all", str(layer)): vector for (name, layer), vector in vectors_by_layer(acts).items()}


def write_csv(frame: Any, path: Path) -> Path:
    """Write a frame to a file, atomically."""
    from steerlab._support.files import storing, write_atomically

    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: frame.to_csv(partial, index=False))
    return path


@command()
def export(
    job: Job, vector: Annotated[str, "a folder of fit or a hub repository"], *,
    to: Annotated[str, "gguf (llama.cpp, repeng), vllm-lens, easysteer or hotwire"] = "gguf",
    file: Annotated[str, "the file", "--out"],
    alpha: Annotated[float, "multiplied into the vector, or written beside it"] = 1.0,
    unit: Annotated[bool, "scale each layer's vector to length 1"] = False,
) -> Result:  # fmt: skip
    """Write a vector for another tool."""
    from steerlab import methods

    formats = {
        "vllm-lens": lambda one: methods.to_vllm_lens(one, alpha=alpha),
        "easysteer": lambda one: methods.to_easysteer(one, alpha=alpha),
        "hotwire": lambda one: json.loads(methods.to_hotwire(one, Path(file).stem, alpha=alpha)),
    }
    if to not in (*formats, "gguf"):
        raise SteeringError(f"--to {to}: expected one of gguf, {', '.join(formats)}")
    (steerer,) = read_steerers([vector], job.model if to == "gguf" else None).values()
    _directions(vector, steerer)
    steerer = steerer.unit() if unit else steerer  # type: ignore[attr-defined]  # `_directions` has refused others
    job.begin(f"write {steerer!r} to {file} for {to}", 1.0)
    if to == "gguf":
        methods.to_gguf(job.model, steerer, file, alpha=alpha)  # type: ignore[arg-type]
    else:
        from steerlab._support.files import write_json

        write_json(Path(file), formats[to](steerer))
    return Result(file, data={"file": file, "to": to})


@command(model=False)
def push(
    job: Job, vector: Annotated[str, "a folder of fit"],
    repository: Annotated[str, "user/name on the Hugging Face hub"], *,
    private: Annotated[bool, "whether others can't see it"] = False,
) -> Result:  # fmt: skip
    """Upload a vector to the Hugging Face hub, with a card that says what it was fitted on."""
    from steerlab.methods import load_steerer

    steerer = load_steerer(vector)
    job.begin(f"upload {steerer!r} to {repository}")
    address = steerer.push_to_hub(repository, private=private)
    return Result(address, data={"address": address})
