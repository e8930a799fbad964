"""Commands that look at a model or a machine: `doctor`, `positions`, `page`, `show`; and `run`, which repeats one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from steerlab.cli import inputs
from steerlab.cli.app import MODEL, command, group
from steerlab.cli.inputs import ALL, DATA, LAYERS, VECTORS, Choice, read_data, read_steerers
from steerlab.cli.job import Job, Result
from steerlab.cli.study import read_study
from steerlab.cli.writing import MaxNewTokens, Steer
from steerlab.errors import SteeringError

if TYPE_CHECKING:
    from steerlab.methods import Steerer

NDIF = "an NDIF server, ndif or http://host:port; repeatable. Default: ndif if NDIF_HOST or NDIF_API_KEY is set"


@command(model=False)
def doctor(
    job: Job, model: Annotated[str, f"{MODEL}; without it, the installation is checked"] = "", *,
    revision: Annotated[str, "of the model"] = "",
    remote: Annotated[tuple[str, ...], NDIF] = (),
    serve: Annotated[tuple[str, ...], "an nnsight-serve; repeatable"] = (),
) -> Result:  # fmt: skip
    """Check a model, or packages, devices, engines and servers, and say how to fix what is wrong."""
    from steerlab.doctor import check_model, report, run_checks

    if model and (remote or serve):
        raise SteeringError("doctor checks a model, or the installation and servers: leave one of them out")
    job.begin(f"check {model or 'this installation and its servers'}", only_looks=True)
    findings = check_model(model, revision or None) if model else run_checks(remote, serve)
    status = int(any(finding.needs_action for finding in findings))
    return Result(report(findings), data={"findings": [asdict(finding) for finding in findings]}, status=status)


@command()
def positions(
    job: Job, prompt: Annotated[str, "a text"], *,
    position: Annotated[str | None, "one name or union; all names by default"] = None,
) -> Result | None:  # fmt: skip
    """Show a prompt's tokens, and which of them each position name selects."""
    from steerlab.models.positions import positions_table, resolve

    job.begin(f"show the tokens of {prompt[:40]!r}", 1.0, only_looks=True)
    if not job.as_json:
        job.model.show_positions(prompt, position)
        return None
    table = positions_table(job.model, prompt)
    if position is not None:
        chosen = set(resolve(position, job.model.encode(prompt)))
        table = table[["token", "id", "string", "span"]].assign(**{position: table["token"].isin(chosen)})
    return Result(data={"rows": table})


@command()
def page(
    job: Job, data: Annotated[str, DATA], *, steer: Steer,
    alphas: Annotated[str, "strengths of the slider: 0,0.5,2 or -1:1:0.5"] = "0:2:0.25",
    layers: Annotated[str, f"of the map, among those that the vectors are fitted at: {LAYERS}"] = "",
    positions: Annotated[str, "which tokens are steered"] = "last+generated",
    choice: Choice = ALL, max_new_tokens: MaxNewTokens = 32,
    file: Annotated[str, "the file", "--out"] = "page.html",
) -> Result:  # fmt: skip
    """Write one page that opens from disk: texts at every strength, what each token owes to the vector, and a map."""
    from steerlab.live import page_of

    examples, steerers = read_data(data, choice), read_steerers(steer, job.model)
    strengths = inputs.parse_numbers(alphas)
    sites = inputs.parse_layers(layers, job.model.n_layers) if layers else None
    _check_fitted_at(job, layers, sites or [], steerers)
    job.begin(
        f"write {file}: {len(examples)} prompts x {' + '.join(steerers)} x {len(strengths)} strengths",
        job.seconds_to_write(examples, max_new_tokens, 16, len(strengths) * len(steerers) * len(sites or [0])),
    )
    made = page_of(
        job.model, examples, steerers, alphas=strengths, layers=sites, positions=positions,
        max_new_tokens=max_new_tokens, folder=job.parts,
    )  # fmt: skip
    made.save(file)
    job.drop_parts()
    return Result(file, data={"file": file})


def _check_fitted_at(job: Job, given: str, sites: Sequence[Any], steerers: Mapping[str, Steerer]) -> None:
    """Refuse layers at which a vector is not fitted."""
    from steerlab.methods.base import steering_sites

    for name, steerer in steerers.items():
        fitted, wanted = ([job.model.site(site).label for site in some] for some in (steering_sites(steerer), sites))
        if fitted and (missing := [label for label in wanted if label not in fitted]):
            raise SteeringError(
                f"--layers {given}: {name} is fitted at layer {', '.join(map(str, fitted))}, not at {missing[0]}"
            )


@command()
def show(
    job: Job, model: Annotated[str, MODEL], vectors: Annotated[tuple[str, ...], VECTORS] = (), *,
    data: Annotated[str, f"prompts to pick from: {DATA}"] = "",
    choice: Choice = ALL,
    port: Annotated[int, "of the local server; 0 takes one that is free", click.IntRange(0, 65535)] = 0,
    sweep_map: Annotated[bool, "first write the texts of every layer and strength: a map", "--map"] = False,
    alphas: Annotated[str, "strengths of the slider: 0,0.5,2 or -1:1:0.5"] = "0:2:0.1",
    max_new_tokens: MaxNewTokens = 48,
    open_browser: Annotated[bool, "open the page in a browser"] = True,
) -> None:  # fmt: skip
    """Serve the page for a model with its vectors, on this machine only, with answers as they are written."""
    from steerlab.data.inputs import as_examples
    from steerlab.live import serve
    from steerlab.live.answers import PROMPTS, methods_by_layer

    steerers = read_steerers(vectors, job.model)
    prompts = read_data(data, choice) if data else as_examples(PROMPTS)
    strengths = inputs.parse_numbers(alphas)
    seconds = None
    if sweep_map:
        if not steerers:
            raise SteeringError("--map needs a vector: steerlab show MODEL VECTOR --map")
        n_vectors = sum(map(len, methods_by_layer(job.model, steerers).values()))
        seconds = job.seconds_to_write(prompts, max_new_tokens, 16, len(strengths) * n_vectors)
    shown = f"serve {model} with {', '.join(steerers) or 'no vector'} until Ctrl-C"
    job.begin("write a map, then " * sweep_map + shown, seconds)
    serve(
        job.model, steerers, prompts=prompts, alphas=strengths, max_new_tokens=max_new_tokens, port=port,
        open_browser=open_browser, sweep_map=sweep_map, folder=job.study_file.with_suffix("") if sweep_map else None,
    )  # fmt: skip


@command(model=False, study=False)
def run(
    job: Job, study_file: Annotated[str, "a YAML file that a command wrote, or a list of such commands"], *,
    plan_only: Annotated[bool, "say what would be done and how long it takes, then stop", "--dry-run"] = False,
) -> None:  # fmt: skip
    """Repeat what a study file says, or go on with it after a stop."""
    flags = ["--json"] * job.as_json + ["--dry-run"] * plan_only
    planned: list[str] = []  # what earlier steps will write
    for name, *arguments in list(read_study(study_file, group.commands)):
        values = [one.partition("=")[2] if one.startswith("--") else one for one in arguments]
        missing = [one for one in planned if one in values and not Path(one).exists()]
        planned += [one.removeprefix("--out=") for one in arguments if one.startswith("--out=")] * plan_only
        if missing:
            job.say(f"then {name}, with {missing[0]} of an earlier step")
            continue
        if status := group.main([name, *flags, *arguments], "steerlab", standalone_mode=False, obj=Path(study_file)):
            raise click.exceptions.Exit(status)
