"""Text generation for a whole batch, steered or not."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase

from steerlab._support.checks import as_number, as_seed, as_whole, check_names, check_type
from steerlab._support.display import notebook_html
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, EncodingError, SteeringError, SteerlabError
from steerlab.models.beam_images import check_beam_images
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.engine import Inputs
from steerlab.models.interventions import SiteEdits
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.template import last_text
from steerlab.models.versions import CACHE_NAMES
from steerlab.steering.batches import Steer, apply_prompt_transforms, as_requests, encode_examples, run_batches
from steerlab.steering.counts import Totals, ratio_frame, summed_ratios, text_totals, token_ratios, totals
from steerlab.steering.finite import FiniteLogits, NotFinite, not_finite
from steerlab.steering.padding import option_in_use, reads_padding, with_recorded_ends
from steerlab.steering.requests import Alpha, Scale, resolve_interventions

_OTHER_FORWARDS = {  # with the value that changes nothing
    "assistant_model": None, "guidance_scale": 1, "prompt_lookup_num_tokens": None, "token_healing": False,
    "assistant_early_exit": None,
}  # fmt: skip
_RESERVED = {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "return_dict_in_generate"}
NEW_TOKENS = 60  # the default limit of a text


@dataclass(frozen=True)
class Generations(Sequence[str]):
    """Generated texts in the order of the prompts; behaves as a sequence of strings.

    In a notebook it shows a table of prompts and texts.

    Example:
        >>> before = steerlab.generate(model, prompts)
        >>> after = steerlab.generate(model, prompts, steer=vector)
        >>> after.compare(before)                                     # a frame: prompt, before, after

    Attributes:
        texts: the new text of each row, without special tokens and the whitespace at its end. It may begin with a space
            that is part of its first token: `score` and `perplexity` need it.
        ids: the new token ids of each row, end of turn included, padding removed.
        example_ids: the input each row belongs to (repeated when `num_return_sequences` > 1).
        prompts: the prompt of each row; of messages, the last.
        steered_tokens: token states behind these texts that a vector was added to, summed over sites and steerers. Each
            text counts with its own copy of the prompt; states after a row's end of turn and those of dropped beams do
            not count.
        norm_ratio: mean of ‖h' - h‖/‖h‖ over all states h that became h', those not counted included; nan
            where nothing was steered.
        norm_ratios: the same for each site and token: a frame with `layer`, `token` (0: the last prompt token, -1 the
            one before it, 1 the first new token), `norm_ratio` and `states`, how many there are. Of several steerers at
            one site, each counts by itself. States that images hold have no token.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    example_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    steered_tokens: int
    norm_ratio: float
    norm_ratios: pd.DataFrame = field(compare=False, repr=False, default_factory=lambda: ratio_frame([]))

    def __repr__(self) -> str:
        ratio = f", norm ratio {self.norm_ratio:.2f}" if self.steered_tokens else ""
        first = f", the first {self.texts[0][:60]!r}" if self.texts else ""
        return f"Generations({len(self)} texts{first}; {self.steered_tokens} states steered{ratio})"

    def _repr_html_(self) -> str:
        return notebook_html(self, pd.DataFrame({"prompt": self.prompts, "text": self.texts}))

    def compare(self, before: Generations) -> pd.DataFrame:
        """The texts beside those of another call for the same inputs: `example_id, prompt, before, after`.

        Raises:
            DataError: the other texts are of other inputs.
        """
        check_type("the texts to compare with", before, Generations, "what steerlab.generate returned")
        if self.example_ids != before.example_ids or self.prompts != before.prompts:
            raise DataError("these texts are of other inputs: compare two calls with the same prompts")
        columns = {"prompt": self.prompts, "before": before.texts, "after": self.texts}
        return pd.DataFrame({"example_id": self.example_ids, **columns})

    def __getitem__(self, i: Any) -> Any:
        return self.texts[i]

    def __len__(self) -> int:
        return len(self.texts)


@background
def generate(
    model: Model,
    data: Data,
    *,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    max_new_tokens: int = NEW_TOKENS,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    blocking: bool = True,  # handled by `background`
    **options: Any,
) -> Generations:
    """Generate text for a whole batch; each row has a vector of its own.

    Example:
        >>> steerlab.generate(model, ["Hi"], steer=l2s, alpha=1.0, max_new_tokens=20)[0]

    Args:
        model: from `steerlab.load`.
        data: prompts: texts, messages, Examples, or a table with a column "prompt".
        steer: steerers, or vectors by layer (`{15: tensor}`, or a tensor with a row for each layer). None takes the
            steering of the enclosing `with steerlab.steer(...)` (none outside one), and `()` none at all.
        alpha, positions, scale: as in `steer`.
        max_new_tokens, batch_size: limits of each text and each forward.
        seed: of sampling; the caller's random state is restored. With `do_sample=True` the rows of a batch draw from
            one random state: the same call gives the same texts, but another `batch_size`, or other prompts beside a
            prompt, give other texts.
        progress: show a progress bar, after a second.
        blocking: False returns a `Job` at once, whose `result()` are the texts; for a model on a server.
        options: anything Hugging Face's `generate` takes (`do_sample`, `num_beams`, `num_return_sequences`,
            `temperature`, ...). A `generation_config` decides what it sets, but not `max_new_tokens`. Under a
            repetition penalty or `min_length`, which would count padding, and with processors and criteria that do not
            have `ignores_padding = True`, only rows of equal length share a batch. `prefix_allowed_tokens_fn` is called
            with the number of an input.

    Returns:
        Generations, a sequence of texts in the order of the prompts.

    Raises:
        As `steer`; EncodingError: prompt and new tokens exceed the model's context; RemoteError: the server that holds
            the weights failed; ActivationError: logits are NaN or infinite, with the first such layer.
    """
    requests = as_requests(model, steer, alpha, positions, scale)
    as_whole("max_new_tokens", max_new_tokens)
    as_seed(seed)
    if caches := [name for name in CACHE_NAMES if options.get(name) is not None]:
        raise SteeringError(f"{caches[0]} can't be given: all tokens of the prompts are run here, and steered")
    given = as_examples(data)
    examples = apply_prompt_transforms(given, requests)
    rows = encode_examples(model, examples)
    check_lengths(model, rows, max_new_tokens)
    check_beam_images(model, rows, options)
    settings = resolve_interventions(model, requests, examples, batch_size, rows)
    ratios: list[pd.DataFrame] = []
    moved, whole = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def forward(batch: Batch, edits: SiteEdits) -> tuple[list[list[tuple[int, ...]]], Totals]:
        own = options | {"max_new_tokens": max_new_tokens}
        if allowed := options.get("prefix_allowed_tokens_fn"):
            numbers = {id(row): i for i, row in enumerate(rows)}  # a batch has the rows in another order
            own["prefix_allowed_tokens_fn"] = by_input(model, allowed, [numbers[id(row)] for row in batch.rows], own)
        new = new_ids(model, model.inputs(batch, positions=False), edits, own)
        copies = len(new) // len(batch.rows)
        ratios.extend(token_ratios(edits, batch.width))
        moved.add_(summed_ratios(edits))
        whole.add_(torch.tensor(totals(edits), dtype=torch.float64))
        return [new[i : i + copies] for i in range(0, len(new), copies)], text_totals(edits, new)

    with model.lock, seeded(model, seed):  # locked throughout: threads would draw from one random state
        rows_ids, steered, _ = run_batches(
            model, settings, rows, forward, batch_size=batch_size, label="generate", progress=progress,
            in_block=steer is None, unpadded=reads_padding(model, options),
            hint="'generated' starts after the last prompt token, so it cannot change the first new token. "
            "Use 'last+generated', or more new tokens.",
        )  # fmt: skip
    ids = tuple(new for per_row in rows_ids for new in per_row)
    texts = tuple(decode(model, ids))
    repeated = [e for e, per_row in zip(given, rows_ids, strict=True) for _ in per_row]
    example_ids, shown = tuple(e.id for e in repeated), tuple(last_text(e.prompt) for e in repeated)
    _warn_of_norm_ratio(model, float(moved[1] / moved[0]))
    return Generations(texts, ids, example_ids, shown, steered, float(whole[1] / whole[0]), ratio_frame(ratios))


@cache
def _known_options() -> list[str]:
    """The names of our options and of Hugging Face's."""
    functions = (generate, GenerationMixin.generate)
    return [*vars(GenerationConfig()), *(name for one in functions for name in inspect.signature(one).parameters)]


def by_input(
    model: Model, allowed: Callable[[int, Tensor], list[int]], numbers: list[int], options: dict[str, Any]
) -> Callable[[int, Tensor], list[int]]:
    """A `prefix_allowed_tokens_fn` that is called with the row in a batch; `allowed` gets the number of the input."""
    beams, copies = (option_in_use(model, options, name) or 1 for name in ("num_beams", "num_return_sequences"))
    return lambda row, ids: allowed(numbers[row // (copies if beams == 1 else 1)], ids)


def new_ids(model: Model, inputs: Inputs, edits: SiteEdits, options: dict[str, Any]) -> list[tuple[int, ...]]:
    """The new ids of every row of a left-padded batch, end of turn included."""
    if model.row_format.no_generation:
        raise SteeringError(
            f"{model.id} does not generate what its whole rows say ({model.row_format.no_generation}): capture it, or "
            "score given answers"
        )
    in_use = partial(option_in_use, model, options)
    if others := [name for name, unused in _OTHER_FORWARDS.items() if in_use(name) not in (None, unused)]:
        raise SteeringError(f"{others}: these run forwards of their own, which would not be steered: leave them out")
    if reserved := _RESERVED & options.keys():
        raise SteeringError(f"{sorted(reserved)} can't be given: steerlab sets the inputs, and reads the ids")
    for name in ("num_beams", "num_return_sequences"):
        as_whole(name, options.get(name, 1))
    as_number("top_p", options.get("top_p", 1.0), 0.0, 1.0)
    check_names("generate", options, _known_options(), SteeringError)
    given = options.get("generation_config")
    if getattr(given, "max_new_tokens", None) is not None:
        raise SteeringError("generation_config sets max_new_tokens: give it to the call instead, max_new_tokens=...")
    greedy = {"do_sample": False} if getattr(given, "do_sample", None) is None else {}
    merged = greedy | {"return_dict_in_generate": False, "pad_token_id": model.tokenizer.pad_token_id} | options
    ends: dict[int, int] = {}
    if not model.is_remote:  # code that `generate` compiles by itself would skip the hooks
        merged = with_recorded_ends(model, merged, ends)
        processors = [*(options.get("logits_processor") or ()), FiniteLogits()]
        merged = {"disable_compile": True} | merged | {"logits_processor": processors}
    if not model.row_format.use_cache:
        merged |= {"use_cache": False}
    try:
        out = model.engine.generate(inputs, edits, **merged)
    except NotFinite:
        raise not_finite(model, inputs, edits) from None
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        if isinstance(error, SteerlabError):
            raise
        raise SteeringError(f"`generate` of Hugging Face fails with the options {options}: {error}") from error
    eos = in_use("eos_token_id")
    stop = set() if eos is None else set(torch.as_tensor(eos).flatten().tolist())
    width = inputs["input_ids"].shape[1]
    rows = [row[width : ends.get(i)] for i, row in enumerate(out.tolist())]
    if (in_use("num_beams") or 1) > 1 and (pad := merged["pad_token_id"]) not in stop:  # where beams end isn't recorded
        rows = [row[: max((i + 1 for i, token in enumerate(row) if token != pad), default=0)] for row in rows]
    cuts = [next((i + 1 for i, token in enumerate(row) if token in stop), len(row)) for row in rows]
    return [tuple(row[:end]) for row, end in zip(rows, cuts, strict=True)]


def decode(model: Model, ids: Sequence[Sequence[int]]) -> list[str]:
    """The texts of new ids, without special tokens and the whitespace at the end.

    What they begin with stays: without its space a text would be scored as another first token than the one generated.
    """
    tok, found = model.tokenizer, []
    special = {*tok.all_special_ids}
    for row in ids:
        text = str(tok.decode(list(row), skip_special_tokens=True)).rstrip()
        first = next((i for i in row if i not in special), None) if text else None
        found.append(text if first is None else " " * _lost_spaces(tok, first) + text)
    return found


def _lost_spaces(tok: PreTrainedTokenizerBase, first: int) -> int:
    """How many of the spaces in a text's first token its decoder drops; SentencePiece's drops one."""
    token, shown = str(tok.convert_ids_to_tokens(first)), str(tok.decode([first]))
    return len(token) - len(token.lstrip("▁")) - (len(shown) - len(shown.lstrip(" ")))


def _warn_of_norm_ratio(model: Model, norm_ratio: float) -> None:
    # the same ratio, summed in another order, may come out a rounding smaller
    if model.breaking_norm_ratio is not None and norm_ratio >= model.breaking_norm_ratio * (1 - 1e-5):
        warnings.warn(
            f"the norm ratio is {norm_ratio:.2f}, and from {model.breaking_norm_ratio:.2f} on texts of {model.id} "
            "broke: read them, or give a smaller alpha",
            UserWarning,
            stacklevel=4,
        )


def check_lengths(model: Model, rows: Sequence[EncodedPrompt], max_new_tokens: int) -> None:
    """Refuse rows that exceed the context (EncodingError), and compare with plain Hugging Face at a new length."""
    limit, longest = model.context_length, max(rows, key=len)
    if limit is not None and len(longest) + max_new_tokens > limit:
        raise EncodingError(
            f"the prompt {longest.example_id!r} has {len(longest)} tokens; with {max_new_tokens} new ones it exceeds "
            f"the model's context of {limit}. Lower max_new_tokens or shorten it."
        )
    model.try_length(len(longest) + max_new_tokens)


@contextmanager
def seeded(model: Model, seed: int = 0) -> Iterator[None]:
    """Sampling from a seed; the caller's random state is restored."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
