"""Commands that read states and make vectors: `capture`, `fit`, `similarity`, `export`, `push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import steerlab
from steerlab.cli import inputs
from steerlab.cli.app import command
from steerlab.cli.inputs import ALL, DATA, LAYERS, VECTORS, Choice, make_method, read_data, read_steerers
from steerlab.cli.job import Job, Result, write_csv
from steerlab.errors import ActivationError, DataError, SteeringError

if TYPE_CHECKING:
    from steerlab.data.example import Example
    from steerlab.methods import Steerer

BatchSize = Annotated[int, "rows of a forward"]
Options = Annotated[tuple[str, ...], "an option of the method, NAME=VALUE; repeatable", "--set"]


@command()
def capture(
    job: Job, data: Annotated[str, DATA], *,
    out: Annotated[str, "the folder of the states; finished batches are kept"] = "",
    layers: Annotated[str, LAYERS] = "all",
    positions: Annotated[str, "where to read: last, prompt[3], match:TEXT, ...; by default that of each contrast"] = "",
    context: Annotated[str, "where to read the prompt without an answer, for inputs that have two answers"] = "last",
    choice: Choice = ALL, batch_size: BatchSize = 16,
) -> Result:  # fmt: skip
    """Read hidden states of prompts and answers into a folder, which fit --activations takes."""
    examples, sites = read_data(data, choice), inputs.parse_layers(layers, job.model.n_layers)
    what = f"read the states of {len(examples)} inputs at {len(sites)} of {job.model.n_layers} layers into {out}"
    job.begin(what, job.seconds_to_read(examples))
    store = steerlab.capture(
        job.model, examples, layers=sites, positions=inputs.parse_positions(positions) or None,
        context=inputs.parse_positions(context), batch_size=batch_size, folder=out,
    )  # fmt: skip
    acts = store.load(layers=[store.sites[0]])
    found = {"rows": len(acts), "sites": [str(site) for site in store.sites], "hidden_size": acts.hidden_size}
    text = f"{out}: {len(acts)} rows x {len(store.sites)} sites, {acts.hidden_size} wide"
    return Result(text, data={"folder": out, **found})


@command()
def fit(
    job: Job, data: Annotated[str, DATA] = "", *, out: Annotated[str, "the folder of the vector"],
    method: Annotated[str, "mean, pca, logistic, l2s, ...: a class of steerlab.methods, or its beginning"] = "mean",
    layers: Annotated[str, f"{LAYERS}; by default the block in the middle"] = "", options: Options = (),
    activations: Annotated[str, "a folder of capture, in place of data"] = "",
    choice: Choice = ALL, batch_size: BatchSize = 16,
) -> Result:  # fmt: skip
    """Fit a steering vector, or a method that predicts one, to inputs with a contrast, and save it in a folder."""
    if bool(data) == bool(activations):
        raise DataError("fit needs data, or --activations FOLDER of capture; one of the two")
    if activations:
        steerer = _fit_activations(job, activations, method, layers, options, choice)
    else:
        examples = training_examples(read_data(data, choice))
        steerer = make_method(method, layers, job.model.n_layers, options)
        splits = {one.split for one in examples if one.split}
        what = f"fit {_shown(steerer)} to {len(examples)} inputs" + f" of the split {'+'.join(splits)}" * bool(splits)
        job.begin(f"{what} and save it in {out}", job.seconds_to_read(examples))
        try:
            steerer.fit(job.model, examples, batch_size=batch_size, folder=job.parts, progress=True)
        except ActivationError as error:
            if any(one.contrast for one in examples):
                raise
            job.drop_parts()
            job.take_back()
            message = f"{data} has no answers to compare: {method} needs the columns positive and negative"
            raise DataError(message) from error
    steerer.save_pretrained(out)
    job.drop_parts()
    return Result(f"{out}: {steerer!r}", data={"folder": out, "method": steerer.name, "repr": repr(steerer)})


def _fit_activations(
    job: Job, folder: str, method: str, layers: str, options: tuple[str, ...], choice: Choice
) -> Steerer:
    """A method fitted to a folder of states, of the split "train" where there is one; no model is loaded."""
    from steerlab.capturing.store import Store

    if choice.limit is not None or choice.columns:
        raise DataError("--limit and --columns choose among data, and --activations has states: give them to capture")
    store = Store.open(folder)
    steerer, acts = make_method(method, layers, int(store.info["layers"]), options), store.load()
    known = set(acts.index["split"])
    splits = choice.splits(folder, known) if choice.split else [one for one in ("train",) if one in known]
    part = f" of the split {'+'.join(splits)}" * bool(splits)
    job.begin(f"fit {_shown(steerer)} to the states{part} in {folder} and save it in {job.options['out']}")
    return steerer.fit(acts.select(split=splits) if splits else acts)


def _shown(steerer: Steerer) -> str:
    return repr(steerer).replace("; not fitted", "")


def training_examples(examples: list[Example]) -> list[Example]:
    """The examples of the split "train" where there is one, else all."""
    return [one for one in examples if one.split == "train"] or examples


@command(model=False)
def similarity(
    job: Job, vectors: Annotated[tuple[str, ...], VECTORS], *,
    out: Annotated[str, "the folder of results.csv"] = "",
) -> Result:  # fmt: skip
    """Compare vectors by their cosines: of several folders at each layer, of one folder between its layers."""
    from steerlab.analysis.similarity import cosine_table

    found = {(name, site): vector for name, steerer in read_steerers(vectors).items()
             for site, vector in _directions(name, steerer).items()}  # fmt: skip
    job.begin(f"compare {len(found)} vectors", 1.0)
    table = cosine_table(found)
    if len({name for name, _ in found}) > 1:
        table = table[[a[1] == b[1] for a, b in zip(table["a"], table["b"], strict=True)]]
    if table.empty:
        raise DataError("there is nothing to compare: give at least two vectors that have a layer in common")
    table = table.assign(**{side: [f"{name} at {site}" for name, site in table[side]] for side in ("a", "b")})
    path = write_csv(table, Path(out) / "results.csv")
    return Result(str(path), table, ["cosine"], {"rows": table, "file": path})


def _directions(name: str, steerer: Any) -> dict[Any, Any]:
    if not isinstance(steerer, steerlab.SteeringVector):
        raise SteeringError(f"{name} ({type(steerer).__name__}) has a vector for each input: give others")
    return steerer.directions


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
    from steerlab._support.files import write_json

    formats = {
        "vllm-lens": lambda one: methods.to_vllm_lens(one, alpha=alpha),
        "easysteer": lambda one: methods.to_easysteer(one, alpha=alpha),
        "hotwire": lambda one: json.loads(methods.to_hotwire(one, Path(file).stem, alpha=alpha)),
    }
    if to not in (*formats, "gguf"):
        raise SteeringError(f"--to {to}: expected one of gguf, {', '.join(formats)}")
    (steerer,) = read_steerers([vector], job.model if to == "gguf" else None).values()
    found = steerlab.SteeringVector(methods.added_vectors(steerer))
    found = found.unit() if unit else found
    job.begin(f"write {steerer!r} to {file} for {to}", 1.0)
    if to == "gguf":
        methods.to_gguf(job.model, found, file, alpha=alpha)
    else:
        write_json(Path(file), formats[to](found))
    return Result(file, data={"file": file, "to": to})


@command(model=False)
def push(
    job: Job, vector: Annotated[str, "a folder of fit"],
    repository: Annotated[str, "user/name on the Hugging Face hub"], *,
    private: Annotated[bool, "make the repository private"] = False,
) -> Result:  # fmt: skip
    """Upload a vector to the Hugging Face hub, with a card that says what it was fitted on."""
    steerer = steerlab.load_steerer(vector)
    job.begin(f"upload {steerer!r} to {repository}")
    address = steerer.push_to_hub(repository, private=private)
    return Result(address, data={"address": address})
