"""The check when a model is loaded: does the engine read the residual stream?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerlab.errors import LayoutError, LoadError, SteerlabError, is_out_of_memory
from steerlab.models import reference
from steerlab.models.encoding import EncodedPrompt, PaddingSide
from steerlab.models.engine import identity, site_path
from steerlab.models.forwards import main_output
from steerlab.models.layout import module_at
from steerlab.models.reference import PlainRun, as_row, decoding_error, difference, first_line, problem_of, run_alone
from steerlab.models.row_format import RowFormat
from steerlab.models.sites import Site
from steerlab.models.template import starts_with_bos
from steerlab.models.versions import forward_options

if TYPE_CHECKING:
    from steerlab.models.model import Model
    from steerlab.models.vision import Vision

TOLERANCE = 1e-4  # of the norm, in float32


def self_check(model: Model) -> None:
    """Compare the engine with plain Hugging Face on rows of token ids alone, and on one with an image, and find out how
    rows must be given.

    The blocks must give the model's `hidden_states`, and a later token must not change earlier states. Then a row by
    itself, padded on either side, read at every point, and decoded under edits must have the states that it has
    alone, to within 1e-4 of their norm (half precision: 8 roundings, and what rounding does to a row that is cut).
    `model.row_format` and `model.layout` are set to what was found to be right; what can't be made right is refused.

    Example:
        >>> self_check(steerlab.load("smollm2", check=False))

    Raises:
        LayoutError: a block, or the order of the blocks, is not what the model reports; the model is not causal; no
            way was found to give it rows.
        LoadError: the model can't run on token ids alone, or an image becomes other tokens than its processor makes,
            or gives other logits.
    """
    image = None if model.vision is None else _check_image(model, model.vision)
    try:
        with model.lock, torch.no_grad():
            rows, runs = _run_alone(model)
            known = len(model.hf.get_input_embeddings().weight)  # type: ignore[arg-type]
            if runs[0].logits.ndim != 2 or 2 * runs[0].logits.shape[1] < known:  # some heads lack a few special tokens
                raise LoadError(f"{type(model.hf).__name__} gives no logits of the next token at every column")
            _check_hidden_states(model, runs[0])
            _check_causal(model, rows[0], runs[0])
            find_row_format(model, rows, runs)
            _check_points(model, rows[0])
            _check_decoding(model, rows)
            if image is not None:
                _check_image_logits(model, *image)
    except SteerlabError:
        raise
    except Exception as error:  # an architecture may fail in any way where it is run otherwise than by itself
        if is_out_of_memory(error):
            raise
        raise LoadError(
            f"{type(model.hf).__name__} could not be compared with plain Hugging Face ({first_line(error)}): steerlab "
            "does not support it"
        ) from error
    module: Any
    for module in model.hf.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None  # those of the check's rows, which a cached step of the caller would use


def _run_alone(model: Model) -> tuple[list[EncodedPrompt], list[PlainRun]]:
    rows, sites = reference.probe_rows(model, (13, 17, 9)), [Site(layer) for layer in range(model.n_layers)]
    try:
        return rows, [run_alone(model, row, sites, output_hidden_states=row is rows[0]) for row in rows]
    except Exception as error:  # a model that wants images, audio or an encoder fails as its authors pleased
        if is_out_of_memory(error):
            raise
        raise LoadError(f"{type(model.hf).__name__} can't run on token ids alone ({first_line(error)})") from error


def _check_hidden_states(model: Model, run: PlainRun) -> None:
    """Each block's output must be the next of the model's hidden states; the last one may be normalized there.

    Most models report the embeddings first, so that block k gives `hidden_states[k + 1]`; Mamba and its relatives do
    not.
    """
    path, n, reported = model.layout.blocks_path, model.n_layers, run.hidden_states or ()
    states = [run.states.get(Site(layer)) for layer in range(n)]
    if any(h is None for h in states):
        raise LayoutError(f"the model never runs the blocks at {path!r}. Give load(..., blocks='dotted.path').")
    if len(reported) != n + 1:
        raise LayoutError(
            f"there are {n} blocks at {path!r}, but the model reports {len(reported)} hidden states, not one more. "
            "Give load(..., blocks='dotted.path')."
        )
    shapes = {tuple(h.shape) for h in (*states, *reported) if h is not None}
    if len(shapes) > 1:
        raise LayoutError(
            f"blocks at {path!r} and hidden states have the shapes {', '.join(map(str, sorted(shapes)))} for one row: "
            "steerlab edits models with one residual stream, one state per token"
        )
    norm = model.layout.final_norm_path
    problems = []
    for first in (1, 0):
        off = [difference(h, reported[first + layer]) for layer, h in enumerate(states)]  # type: ignore[arg-type]
        if norm is not None:
            off[-1] = min(off[-1], difference(module_at(model.hf, norm)(states[-1]), reported[first + n - 1]))
        wrong = next((layer for layer in range(n) if not off[layer] <= TOLERANCE), None)
        if wrong is None:
            return
        problems.append((wrong, off[wrong]))
    layer, distance = problems[0]
    raise LayoutError(
        f"the modules at {path!r} do not give the model's hidden states: number {layer} is {distance:.3g} of the norm "
        f"off hidden_states[{layer + 1}]. If its blocks have another path, give load(..., blocks='dotted.path')."
    )


def _check_causal(model: Model, row: EncodedPrompt, run: PlainRun) -> None:
    """Another last token must leave the states before it as they are: a prompt has the same states with any answer."""
    if model.vision is not None and model.vision.family.prefix_lm:
        return  # its answers are marked: see `Vision.inputs`
    other = next(i for i in reference.probe_rows(model, (50,))[0].ids if i != row.ids[-1])
    changed = run_alone(model, as_row([*row.ids[:-1], other]), list(run.states)).states
    off = max(difference(changed[site][:-1], h[:-1]) for site, h in run.states.items())
    if not off <= TOLERANCE:
        is_encoder = getattr(model.hf.config, "is_decoder", None) is False
        advice = ". Load it as a decoder: its configuration has is_decoder=False" if is_encoder else ""
        raise LayoutError(
            f"{type(model.hf).__name__} is not causal: another last token changes the states before it by {off:.2g} of "
            f"their norm, so those of a prompt would depend on the answer beside it{advice}"
        )


def find_row_format(model: Model, rows: Sequence[EncodedPrompt] = (), runs: Sequence[PlainRun] = ()) -> None:
    """Set the format in which a row by itself is right, and right with padding on as many sides as possible.

    Args:
        model: whose `row_format` is set.
        rows, runs: rows and what each gives alone; without them, new ones are run.

    Raises:
        LayoutError: not even a row by itself is right.
    """
    if not rows:
        rows, runs = _run_alone(model)
    sites = list(runs[0].states)
    firsts: list[int | None] = [None]
    if "position_ids" in model.accepted_inputs:
        padding = getattr(model.hf.config.get_text_config(), "pad_token_id", None)
        firsts = [0, *([padding + 1] if isinstance(padding, int) and padding >= 0 else []), None]
    best, problem, before = None, "", model.row_format
    allowed = _tolerance(model) + 2 * _noise(model, rows, sites)
    for first in firsts:
        model.row_format = RowFormat(first)
        if wrong := problem_of(lambda: _error(model, rows[:1], runs, sites, "left"), _tolerance(model)):
            problem = problem or f"of a row by itself, its states are {wrong}"
            continue
        sides: tuple[PaddingSide, ...] = tuple(
            side for side in ("left", "right")
            if not problem_of(lambda side=side: _error(model, rows, runs, sites, side), allowed)  # type: ignore[misc]
        )  # fmt: skip
        if best is None or len(sides) > len(best.neutral_sides):
            best = RowFormat(first, sides)
        if len(sides) == 2:
            break
    if best is None:
        raise LayoutError(f"no way was found to give {type(model.hf).__name__} a row: {problem}")
    model.row_format = replace(best, use_cache=before.use_cache, no_generation=before.no_generation)


def _noise(model: Model, rows: Sequence[EncodedPrompt], sites: Sequence[Site]) -> float:
    """How far the first tokens of rows are off when the rows are cut after them: rounding, in half precision alone."""
    prefix_lm = model.vision is not None and model.vision.family.prefix_lm
    if model.dtype in (torch.float32, torch.float64) or prefix_lm:
        return 0.0
    n, found = min(map(len, rows)) // 2, []
    for row in rows:
        whole, cut = run_alone(model, row, sites), run_alone(model, as_row(row.ids[:n]), sites)
        found += [difference(cut.states[site], whole.states[site][:n]) for site in sites]
    return max(found)


def _tolerance(model: Model) -> float:
    return TOLERANCE if model.dtype in (torch.float32, torch.float64) else 8 * torch.finfo(model.dtype).eps


def _error(
    model: Model, rows: Sequence[EncodedPrompt], runs: Sequence[PlainRun], sites: Sequence[Site], side: PaddingSide
) -> float:
    """How far the engine's states, and the logits of the last tokens, are off those of the rows alone."""
    batch = model.batch(rows, side)
    inputs = model.inputs(batch)
    states, found = model.engine.capture_states(inputs, {}, sites, identity), []
    for i, (row, offset) in enumerate(zip(rows, batch.offsets, strict=True)):
        own = states[i, :, offset : offset + len(row)]
        found += [difference(h, runs[i].states[site]) for site, h in zip(sites, own, strict=True)]
    if side == "left" and len(rows) > 1:
        logits = model.engine.logits(inputs, {}, torch.tensor([batch.width - 2, batch.width - 1], device=model.device))
        found += [difference(one, run.logits[-2:]) for one, run in zip(logits, runs, strict=True)]
    return max(found)


def _check_points(model: Model, row: EncodedPrompt) -> None:
    """Leave out the points inside a block whose modules do not hold one state per token."""
    names = {"attn_out": "attention_name", "mlp_out": "mlp_name"}
    if model.layout.heads_name is not None and not _heads_fit(model, row):
        model.set_layout(replace(model.layout, heads_name=None))
    points = [point for point in model.layout.points if point not in ("block_out", "heads")]
    if _points_fit(model, row, points):
        return
    for point in [point for point in points if not _points_fit(model, row, [point])]:
        if point not in names:
            raise LayoutError(f"the input of the blocks at {model.layout.blocks_path!r} can't be read")
        without: dict[str, Any] = {names[point]: None}
        model.set_layout(replace(model.layout, **without))


def _points_fit(model: Model, row: EncodedPrompt, points: Sequence[str]) -> bool:
    """Whether the engine's states at some points of every block are those of the row alone, one per token."""
    sites = [Site(layer, point) for layer in range(model.n_layers) for point in points]
    try:
        states = run_alone(model, row, sites).states
        found = model.engine.capture_states(model.inputs(model.batch([row])), {}, sites, identity)[0]
        off = max(difference(h, states[site]) for site, h in zip(sites, found, strict=True))
    except (RuntimeError, AttributeError, TypeError, KeyError, LayoutError):  # no tensor, or one of another shape
        return False
    return off <= _tolerance(model) and found.shape[1:] == (len(row), model.hidden_size)


def _heads_fit(model: Model, row: EncodedPrompt) -> bool:
    """Whether each attention gives what its output projection makes of the heads' results, which the engine reads."""
    sites = [Site(layer, "heads") for layer in range(model.n_layers)]
    results = [Site(layer, "attn_out") for layer in range(model.n_layers)]
    try:
        states = run_alone(model, row, [*sites, *results]).states
        found = model.engine.capture_states(model.inputs(model.batch([row])), {}, sites, identity)[0]
        given = [module_at(model.hf, site_path(site, model.layout)) for site in sites]
        made = [main_output(module(states[site])) for module, site in zip(given, sites, strict=True)]
        off = [difference(h, states[site]) for site, h in zip(sites, found, strict=True)]
        off += [difference(h, states[site]) for site, h in zip(results, made, strict=True)]
        n, widths = model.n_heads or 0, {model.width(site) for site in sites}
    except (RuntimeError, AttributeError, TypeError, KeyError, LayoutError):  # modules that are no such projection
        return False
    return max(off) <= _tolerance(model) and n > 0 and widths == {found.shape[-1]} and found.shape[-1] % n == 0


def _check_decoding(model: Model, rows: Sequence[EncodedPrompt]) -> None:
    """Find out whether decoding under edits, with a cache or without, gives the states of whole rows."""
    sites = [Site(model.n_layers // 2, point) for point in model.layout.points]
    vectors = {site: torch.linspace(-1, 1, model.width(site) or 1).roll(i) for i, site in enumerate(sites)}
    equal = [rows[0], as_row(rows[1].ids[: len(rows[0])])]  # without padding, and more than one (RWKV's cache fails)
    batches = [[rows[i] for i in group] for group in model.batches(rows, len(rows), "left")] + [[rows[0]], equal]
    wide = 4 * (_tolerance(model) + 2 * _noise(model, rows, sites))
    problem, limits = "", {True: wide, False: wide}
    if model.dtype in (torch.float16, torch.bfloat16):  # a wide limit: a wrong cache shows beside no cache only
        with suppress(RuntimeError, TypeError, ValueError):
            model.row_format = replace(model.row_format, use_cache=False)
            plain = _decoding_error(model, batches, vectors)
            limits[True] = min(limits[True], 2 * plain + 8 * torch.finfo(model.dtype).eps)
    for use_cache in (True, False):
        model.row_format = replace(model.row_format, use_cache=use_cache)
        found = problem_of(lambda: _decoding_error(model, batches, vectors), limits[use_cache])
        if not found:
            return
        problem = problem or f"states of new tokens: {found}"
    model.row_format = replace(model.row_format, no_generation=problem)


def _decoding_error(model: Model, batches: Sequence[Sequence[EncodedPrompt]], vectors: dict[Site, Tensor]) -> float:
    return max(decoding_error(model, batch, vectors, use_cache=model.row_format.use_cache) for batch in batches)


def _check_image(model: Model, vision: Vision) -> tuple[EncodedPrompt, Mapping[str, Tensor]]:
    """Compare tokens and inputs of prompts with images with what the processor makes of the whole prompt.

    Returns:
        A row with one image, and what the processor makes of it.
    """
    row, whole, _ = _image_row(model, vision, 1)
    expected, inputs = whole["input_ids"][0].tolist(), model.inputs(model.batch([row]))
    missing = sorted((set(whole) & model.accepted_inputs) - set(inputs) - {"labels"})
    if expected != list(row.ids) or missing or not row.kind("image"):
        raise LoadError(
            f"steerlab does not support {type(vision.processor).__name__}: it makes {len(expected)} tokens of a prompt "
            f"with an image, steerlab {len(row)} with {len(row.kind('image'))} image tokens; inputs left out: "
            f"{', '.join(missing) or 'none'}. Give load(..., task='text') to use the model without images"
        )
    with suppress(Exception):  # a processor that takes one image a prompt may fail in any way
        pair, both, text = _image_row(model, vision, 2)
        if both["input_ids"][0].tolist() != list(pair.ids):
            vision.refused_between = text.split(vision.placeholder)[1]
    return row, whole


def _image_row(model: Model, vision: Vision, n: int) -> tuple[EncodedPrompt, Mapping[str, Any], str]:
    """A row that begins with images, what the processor makes of the whole of it, and its text."""
    images, text = [vision.probe_image] * n, f"{vision.placeholder * n}Hello"
    row = model.encode("Hello" if model.chat else text, images=images)
    if model.chat:
        turn: Any = [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": "Hello"}]}]
        text = str(model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    special = not starts_with_bos(model.tokenizer, text)
    opened = [[vision.open(image) for image in images]]
    return row, vision.processor(text=[text], images=opened, return_tensors="pt", add_special_tokens=special), text


def _check_image_logits(model: Model, row: EncodedPrompt, whole: Mapping[str, Tensor]) -> None:
    """A row with an image must have the logits that the model gives for all that its processor makes of it."""
    batch = model.batch([row])
    plain = model.inputs(replace(batch, extra={name: t for name, t in whole.items() if name != "labels"}))
    plain.pop("position_ids", None)
    keep = 4  # of the text after the image: all logits of a large image would fill the memory
    logits = model.hf(**plain, **forward_options(model.hf, use_cache=False, logits_to_keep=keep)).logits[0, -keep:]
    found = model.engine.logits(model.inputs(batch), {}, keep)[0]
    if not (off := difference(found, logits)) <= _tolerance(model):
        raise LoadError(
            f"{type(model.hf).__name__} gives a row with an image logits that are {off:.2g} of their norm off those of "
            "plain Hugging Face. Give load(..., task='text') to use the model without images"
        )
