"""The oracle of the checks: plain Hugging Face on one row of token ids alone, with no padding, mask or cache.

Nothing here is shared with the engines: states are read, and vectors added, by hooks of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerlab.errors import is_out_of_memory
from steerlab.models.encoding import EncodedPrompt, Span
from steerlab.models.engine import Inputs, site_path
from steerlab.models.forwards import main_output, with_main_output, with_rows
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import local_windows
from steerlab.models.layout import module_at
from steerlab.models.sites import INPUTS, Site
from steerlab.models.versions import forward_options

if TYPE_CHECKING:
    from steerlab.models.model import Model

Additions = Mapping[Site, tuple[Tensor, Sequence[int]]]  # a vector at each site, and the columns that it is added at


@dataclass(frozen=True)
class PlainRun:
    """What one row alone gives.

    Attributes:
        states: by site, `(token, hidden)`.
        logits: `(token, vocabulary)`.
        hidden_states: what the model itself reports, `(token, hidden)` each; None if it does not.
    """

    states: dict[Site, Tensor]
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


def probe_rows(model: Model, lengths: Sequence[int], common: int = 0) -> list[EncodedPrompt]:
    """Rows of ordinary tokens, the same at every call; all begin with the same `common` tokens.

    Rows are longer than given by as much as it takes to leave each local window below `model.tried_length`.
    """
    windows = [n for n in local_windows(model.hf.config.get_text_config()) if n <= model.tried_length]
    beyond, limit = max(windows, default=0), (model.context_length or 2**20) - 8
    lengths = [min(n + beyond, limit - (max(lengths) - n)) for n in lengths]
    embeddings: Any = model.hf.get_input_embeddings()
    vocabulary = min(len(model.tokenizer), len(embeddings.weight))
    special = set(model.tokenizer.all_special_ids) | _named_ids(model.hf.config.to_dict())
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special] or list(range(vocabulary)))
    drawn = torch.randint(len(ordinary), (common + sum(lengths),), generator=torch.Generator().manual_seed(0))
    ids, rows, at = ordinary[drawn].tolist(), [], common
    for length in lengths:
        rows.append(as_row([*ids[:common], *ids[at : at + length - common]]))
        at += length - common
    return rows


def as_row(ids: Sequence[int], n_answer: int = 0) -> EncodedPrompt:
    """A prompt of given token ids, without a text; the last `n_answer` tokens are an answer."""
    n_prompt = len(ids) - n_answer
    spans = (Span("user", 0, n_prompt), *([Span("answer", n_prompt, len(ids))] if n_answer else []))
    return EncodedPrompt(tuple(ids), spans, n_prompt, "", ((0, 0),) * len(ids))


@torch.no_grad()
def run_alone(
    model: Model, row: EncodedPrompt, sites: Sequence[Site] = (), add: Additions | None = None, **options: Any
) -> PlainRun:
    """States at some sites and logits of one row, with vectors added where `add` says."""
    states: dict[Site, Tensor] = {}

    def visit(site: Site, given: Tensor) -> Tensor:
        h = given.reshape(1, -1, given.shape[-1]) if given.ndim != 3 else given
        if add and site in add:
            vector, columns = add[site]
            h = h.clone()
            h[:, list(columns)] += vector.to(h)
        if site in sites:
            states[site] = h[0].clone()
        return h.reshape(given.shape)

    with ExitStack() as stack:
        for site in {*sites, *(add or ())}:
            stack.callback(_attach(model, site, visit).remove)
        out = model.hf(**{**_inputs(model, row), **forward_options(model.hf, use_cache=False), **options})
    hidden = getattr(out, "hidden_states", None)
    return PlainRun(states, out.logits[0], hidden and tuple(h[0] for h in hidden))


def decoding_error(
    model: Model, rows: Sequence[EncodedPrompt], vectors: Mapping[Site, Tensor] | None = None, **options: Any
) -> float:
    """How far the states of two decoding steps of `generate` are off those of whole rows, each run alone.

    The vectors are added at the last prompt token and at all generated ones. Infinite where steps are missing.

    Args:
        model: whose engine generates.
        rows: prompts of one batch.
        vectors: one per site.
        options: for `generate`.
    """
    vectors = vectors or {}
    batch, last, steps = model.batch(rows, "left"), Site(model.n_layers - 1), 2
    prompt = batch.columns([[len(row) - 1] for row in rows]).to(model.device)
    edits = {site: [Edit(vector.expand(len(rows), -1), prompt, True)] for site, vector in vectors.items()}
    seen: list[Tensor] = []

    def keep(_: Site, h: Tensor) -> Tensor:
        seen.append(with_rows(h, len(rows))[:, -1].clone())
        return h

    fixed = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
    fixed |= {"max_new_tokens": steps + 1, "min_new_tokens": steps + 1, "pad_token_id": model.tokenizer.pad_token_id}
    with _attach(model, last, keep):
        ids = model.engine.generate(model.inputs(batch, positions=False), edits, **fixed | options)
    new = ids[:, batch.width :].tolist()
    if len(seen) <= steps or any(len(tokens) <= steps for tokens in new):
        return float("inf")
    known: dict[tuple[int, ...], Tensor] = {}
    for row, tokens in zip(rows, new, strict=True):
        whole = as_row([*row.ids, *tokens[:steps]], steps)
        if whole.ids not in known:
            columns = range(len(row) - 1, len(whole))
            run = run_alone(model, whole, [last], {site: (vector, columns) for site, vector in vectors.items()})
            known[whole.ids] = run.states[last][len(row) - 1 :]
    states = torch.stack(seen[: steps + 1], 1)
    expected = [known[(*row.ids, *tokens[:steps])] for row, tokens in zip(rows, new, strict=True)]
    return max(difference(one, other) for one, other in zip(states, expected, strict=True))


def _inputs(model: Model, row: EncodedPrompt) -> Inputs:
    """Token ids, and what an image-text model cannot be without."""
    if model.vision is None:
        return {"input_ids": torch.tensor([row.ids], device=model.device)}
    given = model.inputs(model.batch([row]))
    return {name: tensor for name, tensor in given.items() if name not in ("attention_mask", "position_ids")}


def _attach(model: Model, site: Site, visit: Any) -> Any:
    module = module_at(model.hf, site_path(site, model.layout))

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (visit(site, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": visit(site, kwargs["hidden_states"])}

    def after(_: Any, args: tuple[Any, ...], output: Any) -> Any:
        return with_main_output(output, visit(site, main_output(output)))

    if site.point in INPUTS:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _named_ids(config: Mapping[Any, Any]) -> set[int]:
    """The token ids that a configuration gives a meaning, such as those of images, however deep they are."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _named_ids(value)
        elif str(name).endswith(("token_id", "token_index")):
            found |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)}
    return found


def problem_of(run: Callable[[], float], tolerance: float) -> str:
    """What is wrong with a way to run the model: how far off it is, or the error that it raised; "" if it is right."""
    try:
        off = run()
    except Exception as error:  # whatever a model raises for an input that it was not written for
        if is_out_of_memory(error):
            raise
        return first_line(error)
    return "" if off <= tolerance else f"off by {off:.2g} of the norm"


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest ‖found - expected‖/‖expected‖ of any token; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.float(), expected.float().to(found.device)
    off = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
    return float(off.max()) if bool(torch.isfinite(off).all()) else float("inf")
