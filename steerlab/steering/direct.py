"""Steering of what is run on the model itself: `model.hf(...)`, `model.hf.generate(...)`, a pipeline, a Trainer.

Inside `with steer(model, ...)`, hooks on the modules of `model.hf` make the edits of every such call from the token ids
and the mask that it is given. Runs of steerlab's own verbs have their edits already. Calls of another thread are left
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from steerlab.capturing.activations import Activations
from steerlab.capturing.rows import TokenSelector, index_frame, plan_rows
from steerlab.data.example import Example
from steerlab.errors import SteeringError
from steerlab.methods.base import RequiredActivation, Steerer, parts_of, steering_sites
from steerlab.models._hooks import HooksEngine
from steerlab.models.edit_stats import EditStats
from steerlab.models.encoding import Batch, EncodedPrompt, Span
from steerlab.models.forwards import cached_columns, given_tokens, last_column, with_rows
from steerlab.models.interventions import Edit, SiteEdits, apply_edits
from steerlab.models.model import Model
from steerlab.models.positions import NAMES, Match, Positions, check_positions
from steerlab.models.ready import check_ready
from steerlab.models.sites import Site
from steerlab.models.versions import CACHE_NAMES, forward_parameters, given_cache
from steerlab.steering.batches import active_steering
from steerlab.steering.context import MixedContext, context_of, group_by_kind
from steerlab.steering.counts import totals
from steerlab.steering.interventions import build_edits, writes_anything
from steerlab.steering.requests import Request, resolve_interventions

if TYPE_CHECKING:
    from steerlab.steering.steer import Run

# of a call's arguments, those that the unsteered forward is not given; it needs all others, such as encoded images
OMITTED = {*CACHE_NAMES, "labels", "logits_to_keep", "use_cache", "cache_position", "return_dict"}
INSTEAD = "use run.generate or steerlab.generate instead"


class DirectSteering:
    """The hooks of one `with steer(...)` block.

    Attributes:
        run: of the block; it counts what is steered.
        requests: of the block and those around it, without those of alpha 0.
    """

    def __init__(self, run: Run, requests: Sequence[Request]) -> None:
        self.run, self.model = run, run.model
        self.requests = requests
        self._plain = HooksEngine(self.model.hf, self.model.layout)
        self._names = list(forward_parameters(self.model.hf))[1:]
        self._edits: SiteEdits = {}
        # by the cache that a forward filled: the edits, and whether they do the same at all tokens
        self._edits_of: WeakKeyDictionary[Any, tuple[SiteEdits, bool]] = WeakKeyDictionary()
        self._same_everywhere = False
        self._prompts: tuple[int, int] | None = None  # rows and columns of the `generate` in progress
        self._holds_lock = self._reads = False  # for a call that is steered here; while its prompts are read
        self._stop = self._rows = 0  # of its forward: the column after the last, and the rows
        self._needs_any = False  # whether the call has anything to write

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model for as long as the context lasts."""
        hf = self.model.hf
        sites = {self.model.site(s) for request in self.requests for s in steering_sites(request.steerer)}
        handles = [
            hf.register_forward_pre_hook(self._begin, with_kwargs=True),
            hf.register_forward_hook(self._end, always_call=True),
        ]
        handles += [self._plain.attach(site, self._visit) for site in sites if site.part == "text"]
        with _wrapped_generate(self):
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                if self._holds_lock:  # an interrupt ended the forward: torch calls `_end` after other exceptions only
                    self._release()

    @property
    def applies(self) -> bool:
        """Whether this block steers a call: it is the innermost of the thread, and no verb of steerlab is running."""
        blocks = active_steering(self.model)
        verb = self.model.lock._is_owned() and not self._holds_lock  # type: ignore[attr-defined]
        return bool(blocks) and blocks[-1][0] is self.run and not verb and not self._reads

    def generate(self, original: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Hugging Face's `generate`, steered: its first forward is of the prompts, the others of new tokens."""
        named = (options.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
        tokens = next((x for x in (*args, *named) if isinstance(x, Tensor) and x.ndim >= 2), None)
        if tokens is None:
            raise SteeringError(f"`generate` of a steered model needs token ids or embeddings; {INSTEAD}")
        with self.model.lock:
            self._holds_lock, self._stop, self._prompts = True, 0, (len(tokens), tokens.shape[1])
            try:
                return original(*args, **options)
            finally:
                self._holds_lock, self._prompts = False, None
                self._count()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None or not self.applies:  # without: another thread runs the model while the hook is attached
            return
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if self._prompts is None:
            self.model.lock.acquire()  # until `_end`
            self._holds_lock, self._stop = True, 0
        if self._stop == 0:
            self._edits = self._start(given)
        stop = last_column(given, self._stop)
        if self._prompts is not None and self._stop > 0 and stop <= self._stop:
            raise SteeringError(
                f"a forward of `generate` does not go on after the last (does guidance_scale= run another?); {INSTEAD}"
            )
        self._stop, self._rows = stop, len(given_tokens(given))

    def _end(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (self.applies and self._holds_lock and self._prompts is None):
            return
        self._release()
        cache = given_cache(output) if isinstance(output, Mapping) else None
        if hasattr(cache, "get_seq_length"):
            self._edits_of[cache] = self._edits, self._same_everywhere
        self._count()

    def _release(self) -> None:
        self._holds_lock = False
        self.model.lock.release()

    def _start(self, given: Mapping[str, Any]) -> SiteEdits:
        """The edits of a call, at its first forward."""
        cache = given_cache(given)
        held = 0 if cache is None else cached_columns(cache)  # a cache that `generate` made may not count
        if self._prompts is None:
            if held == 0:
                return self._build(given, len(given_tokens(given)))
            if hasattr(cache, "get_seq_length") and cache in self._edits_of:
                edits, self._same_everywhere = self._edits_of[cache]
                if given_tokens(given).shape[1] > 1 and not self._same_everywhere:
                    raise SteeringError(
                        "several tokens go on from a cache, and it matters which are the prompt: give the whole prompt "
                        "in one call, and what follows one token at a time"
                    )
                return edits
            raise SteeringError(
                "this forward continues from a cache that this block did not fill: run the prompt in it"
            )
        rows, width = self._prompts
        if held or given_tokens(given).shape[1] != width:
            raise SteeringError(
                f"the first forward of `generate` is not one of the {width} columns of the prompts (a cache, chunks or "
                f"an assistant model are given); {INSTEAD}"
            )
        return self._build(given, rows)

    def _visit(self, site: Site, given: Tensor) -> Tensor:
        if not self.applies:
            return given
        if not self._holds_lock:
            raise SteeringError("a part of the model was called, which is not steered: call model.hf itself")
        if site not in self._edits:
            return given
        return apply_edits(self._edits[site], with_rows(given, self._rows), self._stop).reshape(given.shape)

    def _count(self) -> None:
        steered, ratios = totals(self._edits)
        for edit in (edit for at_site in self._edits.values() for edit in at_site):
            edit.stats = EditStats()
        for run, _ in active_steering(self.model):
            run.count(steered, ratios, self._needs_any)

    def _build(self, given: Mapping[str, Any], n_inputs: int) -> SiteEdits:
        """The edits of a call from its prompts, after an unsteered forward for what the steerers read."""
        model = self.model
        check_ready(model, inside=True)
        for request in self.requests:
            _check_steerer(request.steerer)
        batch = _as_batch(model, given, any(isinstance(request.positions, Match) for request in self.requests))
        copies = len(batch.rows) // n_inputs  # beams and return sequences repeat each row
        examples = [Example(id=row.example_id, prompt="-") for row in batch.rows]
        chosen = slice(None, None, copies)

        def read(steerers: Sequence[Steerer], extra: Sequence[RequiredActivation]) -> list[MixedContext]:
            kinds = group_by_kind(steerers, extra)
            acts = {kind: self._capture(given, batch, examples, required) for kind, required in kinds.items()}
            ids = tuple(example.id for example in examples[chosen])
            return [context_of(steerer, ids, acts) for steerer in steerers]

        self._reads = True
        try:
            settings = resolve_interventions(model, self.requests, examples[chosen], n_inputs, read=read)
            for setting in settings:
                for intervention in setting.interventions:
                    _check_positions(model, intervention.positions_or(setting.positions), n_inputs)
            self._needs_any = writes_anything(settings)
            reads = any(request.steerer.required_activations for request in self.requests)
            self._same_everywhere = not reads and all(
                one.positions_or(setting.positions) == "all" and one.vector_fn is None
                and one.rule.first is None and one.rule.decay == 1
                for setting in settings for one in setting.interventions
            )  # fmt: skip
            edits = build_edits(model, settings, batch.select(range(0, len(batch.rows), copies)), range(n_inputs))
            for edit in (one for at_site in edits.values() for one in at_site if isinstance(one, Edit)):
                edit.whole_prompts = True
            return edits
        finally:
            self._reads = False

    def _capture(
        self, given: Mapping[str, Any], batch: Batch, examples: Sequence[Example], required: list[RequiredActivation]
    ) -> Activations:
        """The activations of the unsteered prompts, from a forward of what the call is given."""
        sites = tuple(sorted({self.model.site(one.site) for one in required}))
        positions = sorted({one.position for one in required}, key=str)
        encoded = {row.example_id: row for row in batch.rows}
        rows = plan_rows(self.model, examples, positions, [], "mean", [], encoded)
        select = TokenSelector.of(rows, batch, torch.float32, self.model.device)
        inputs = {name: value for name, value in given.items() if name not in OMITTED}
        values = self._plain.capture_states(inputs, {}, sites, select).cpu()
        return Activations(values, index_frame(rows, [], "mean").drop(columns="order"), sites, self.model.info())


def _check_positions(model: Model, positions: Positions, n_inputs: int) -> None:
    """Refuse masks of other inputs, and names of parts that token ids do not show, such as the user's text."""
    check_positions([positions], n_inputs)
    shown = {"last", "prompt", "generated", "answer", "all", *(["text"] if model.vision is None else [])}
    names = positions.split("+") if isinstance(positions, str) else ()
    if unknown := [name for name in names if name.partition("[")[0] in set(NAMES) - shown]:
        raise SteeringError(f"{unknown[0]!r} is not known of the token ids of a call: {INSTEAD}")


def _check_steerer(steerer: Steerer) -> None:
    """Refuse a steerer that needs more than the token ids of a call."""
    required = [*steerer.required_activations]
    beyond = {one.side for one in required} - {"prompt"}
    parts = {site.part for site in (*steering_sites(steerer), *(one.site for one in required))} - {"text"}
    problem = (
        "its vectors belong to examples, by id" if steerer.oracle or any(
            getattr(one, "per_example", False) for one in (steerer, *parts_of(steerer))
        )
        else f"it reads the extra prompts {sorted(beyond)}" if beyond
        else f"it reads or steers the {sorted(parts)[0]}" if parts
        else "it changes the prompt's text" if steerer.changes_prompt
        else ""
    )  # fmt: skip
    if problem:
        raise SteeringError(f"{steerer.name} can't steer what is run on model.hf: {problem}; {INSTEAD}")


def _as_batch(model: Model, given: Mapping[str, Any], with_text: bool) -> Batch:
    """The rows of a call as prompts whose only known span is the whole."""
    tokens, mask = given_tokens(given), given.get("attention_mask")
    mask = torch.ones(tokens.shape[:2], dtype=torch.long) if mask is None else mask
    if not (isinstance(mask, Tensor) and mask.shape == tokens.shape[:2]):
        raise SteeringError(f"the attention mask is not one of rows and tokens: which tokens are padding? {INSTEAD}")
    ids = tokens.cpu() if tokens.ndim == 2 else torch.zeros(tokens.shape[:2], dtype=torch.long)
    rows, offsets = [], []
    for number, (row, real) in enumerate(zip(ids, mask.cpu().bool(), strict=True)):
        columns = real.nonzero().flatten()
        if not len(columns) or len(columns) != int(columns[-1] - columns[0]) + 1:
            raise SteeringError(f"row {number} has no tokens, or padding between its tokens: {INSTEAD}")
        offsets.append(int(columns[0]))
        rows.append(_as_row(model, f"row {number}", row[columns].tolist(), with_text))
    position_ids = (mask.cpu().long().cumsum(1) - 1).clamp_min(0)
    return Batch(ids, mask.cpu().long(), position_ids, tuple(rows), tuple(offsets))


def _as_row(model: Model, name: str, ids: list[int], with_text: bool) -> EncodedPrompt:
    spans = (Span("prompt", 0, len(ids)),)
    if not with_text:
        return EncodedPrompt(tuple(ids), spans, len(ids), "", ((0, 0),) * len(ids), name)
    decode = partial(model.tokenizer.decode, clean_up_tokenization_spaces=False)
    # the beginning is decoded for each token: one alone may lose its space, or be a part of a character
    ends = [len(str(decode(ids[:n])).rstrip("\ufffd")) for n in range(len(ids) + 1)]
    offsets, end = [], ends[-1]
    for start, own in zip(reversed(ends[:-1]), reversed(ends[1:]), strict=True):
        end = own if own > start else end
        offsets.append((start, end))
    return EncodedPrompt(tuple(ids), spans, len(ids), str(decode(ids)), tuple(reversed(offsets)), name)


_wrapping: dict[int, list[DirectSteering]] = {}  # by model: the blocks of all threads
_changing = Lock()


@contextmanager
def _wrapped_generate(direct: DirectSteering) -> Iterator[None]:
    """`generate` of the model goes through the innermost block of the thread that calls it."""
    hf = direct.model.hf
    with _changing:
        blocks = _wrapping.setdefault(id(hf), [])
        blocks.append(direct)
        if len(blocks) == 1 and hasattr(hf, "generate"):
            original: Any = hf.generate

            def generate(*args: Any, **options: Any) -> Any:
                mine = [one for one in [*blocks] if one.applies]
                return mine[0].generate(original, args, options) if mine else original(*args, **options)

            vars(generate)["own"] = vars(hf).get("generate")  # the user's, on the object
            hf.generate = generate  # type: ignore[assignment]
    try:
        yield
    finally:
        with _changing:
            blocks.remove(direct)
            if not blocks:
                del _wrapping[id(hf)]
                if own := getattr(vars(hf).pop("generate", None), "own", None):
                    hf.generate = own
