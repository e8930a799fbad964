"""Ways to compute less, each used on a model only after it gave the numbers of whole rows on that very model.

Some architectures change keys after they have left the cache, count positions themselves, keep states that are no keys
or values, or read from blocks far below. No list of names tells which. So each shortcut is tried once, on rows of a few
tokens, against plain Hugging Face on one row alone (`models/reference.py`); what differs is not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from steerlab._support.files import cache_folder, fingerprint, read_sealed, seal, write_json
from steerlab.errors import SteerlabError, StorageError, is_out_of_memory
from steerlab.models.attention import supports_prefix_attention
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.engine import Inputs, identity
from steerlab.models.kv_prefix import ForwardState, Prefix, split_at
from steerlab.models.reference import decoding_error, difference, probe_rows, problem_of, run_alone
from steerlab.models.sites import Site
from steerlab.models.versions import cache_name

if TYPE_CHECKING:
    from steerlab.models.model import Model

TOLERANCE = 1e-4  # of the norm, beyond what padding alone costs in the model's dtype
SCHEMA = 2  # of the file in which an earlier process left what it found
WORTH_A_FILE = 0.5  # seconds
_COMMON = 10  # tokens that the rows begin with
_COPIES = 2  # of every row, as in a sweep of two settings


@dataclass(frozen=True)
class Shortcuts:
    """The ways to compute less that are used on a model.

    Example:
        >>> print(steerlab.load("smollm2").shortcuts.describe())

    Attributes:
        prefix: how rows continue from the keys and values of a prompt that ran once: "attention" (`prefix_attention`),
            "joined" (copied in front of each row's own), or None (rows are run whole).
        shared_beginning: whether what all prompts of a batch begin with is run as one row.
        layer_restart: whether a forward may start at the known output of a block.
        generation_prefix: whether `generate` may continue from the keys and values of a prompt.
        numbers_per_token: numbers that the keys and values of one token hold; 0 without a prefix.
        refused: what is not used, and why.
    """

    prefix: Literal["attention", "joined"] | None = None
    shared_beginning: bool = False
    layer_restart: bool = False
    generation_prefix: bool = False
    numbers_per_token: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def without(cls, reason: str) -> Shortcuts:
        """No shortcut at all."""
        return cls(refused={"every shortcut": reason})

    @property
    def used(self) -> str:
        """What is used, in words."""
        used = {
            f"prompts run once ({self.prefix} keys)": self.prefix is not None,
            "a shared beginning runs once": self.shared_beginning,
            "restart at a block": self.layer_restart,
            "texts continue from a prompt": self.generation_prefix,
        }
        return ", ".join(name for name, use in used.items() if use) or "none: rows are run whole"

    def describe(self) -> str:
        """One line for what is used, and one for each shortcut that is not."""
        return "\n".join([f"shortcuts: {self.used}", *(f"not used: {k}: {why}" for k, why in self.refused.items())])


def known_shortcuts(model: Model) -> Shortcuts:
    """The shortcuts of a model: as an earlier process found them with the same weights and versions, or tried now."""
    info = model.info()
    path = None
    if info["weights"] is not None:
        attention = model.hf.config.get_text_config()._attn_implementation
        same = [info[name] for name in ("weights", "config", "dtype", "backend", "versions")]
        same += [attention, str(model.device), model.tried_length, asdict(model.row_format), asdict(model.layout)]
        path = cache_folder() / "shortcuts" / f"{fingerprint(same)}.json"
        with suppress(SteerlabError):  # not tried yet, or the file is damaged: it is written anew
            return Shortcuts(**read_sealed(path, SCHEMA, "Delete it")["shortcuts"])
    begin = time.monotonic()
    try:
        found = find_shortcuts(model)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Shortcuts.without("memory ran out while they were tried")
    if path is not None and time.monotonic() - begin > WORTH_A_FILE:
        with suppress(StorageError, OSError):  # a cache that can't be written to costs time, not numbers
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, seal({"schema": SCHEMA, "shortcuts": asdict(found)}))
    return found


def find_shortcuts(model: Model) -> Shortcuts:
    """Try every shortcut on a model, falling back step by step: prefix attention, joined keys, whole rows.

    Example:
        >>> find_shortcuts(model).prefix
        'attention'
    """
    trial = _Trial.of(model)
    found = Shortcuts()
    if trial.tolerance > 0.1:
        return Shortcuts.without(f"a padded row is {trial.tolerance:.2g} off the row alone")
    ways: list[tuple[Literal["attention", "joined"], bool]] = [("joined", True), ("joined", False)]
    if supports_prefix_attention(model.hf):
        ways = [("attention", True), ("attention", False), *ways]
    refused: dict[str, str] = {}
    for prefix, share in ways:
        problem = problem_of(lambda: trial.prefix(share, prefix == "joined"), trial.tolerance)  # noqa: B023
        if not problem:
            found = replace(found, prefix=prefix, shared_beginning=share, numbers_per_token=trial.numbers_per_token)
            break
        refused[f"{prefix} keys{' with a shared beginning' if share else ''}"] = problem
    used = found.prefix is not None
    way = (found.shared_beginning, found.prefix == "joined")
    tries: dict[str, Callable[[], float]] = {"layer_restart": lambda: trial.restart(used, *way)}
    if used and not model.row_format.use_cache:
        refused["generation prefix"] = "the model decodes right without a cache only"
    elif used:
        tries["generation_prefix"] = lambda: trial.generation(*way)
    for name, run in tries.items():
        if problem := problem_of(run, trial.tolerance):
            refused[name.replace("_", " ")] = problem
        else:
            found = replace(found, **{name: True})  # type: ignore[arg-type]
    return replace(found, refused=refused)


@dataclass
class _Trial:
    """Rows whose logits are known, and the shortcuts run on them.

    Attributes:
        model: whose shortcuts are tried.
        cases: rows with a common beginning, and how many of their last tokens are run after a prefix; unequal rows come
            first, where the model takes padding.
        expected: the logits of each row alone.
        tolerance: the largest difference that counts as none.
        numbers_per_token: numbers that the keys and values of one token hold.
        prefills: what `_prefill` gave, so that no prompt is run twice in the same way.
    """

    model: Model
    cases: list[tuple[list[EncodedPrompt], int]]
    expected: dict[EncodedPrompt, Tensor]
    tolerance: float = TOLERANCE
    numbers_per_token: int = 0
    prefills: dict[Any, tuple[dict[str, Tensor], Prefix | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> _Trial:
        """The rows, run alone; and padded, for the noise of the dtype."""
        first, *others, twin, third = probe_rows(model, (18, 15, 13, 18, 18), _COMMON)
        if model.row_format.may_pad("left"):
            cases = [([first, *others], 1), ([first, twin], 3)]
        else:
            cases = [([first, twin, third], 1)]
        rows = {row: run_alone(model, row).logits for row in {row: None for case, _ in cases for row in case}}
        trial = cls(model, cases, rows)
        case = cases[0][0]
        whole = model.engine.logits(model.inputs(model.batch(case, "left")), {}, min(map(len, case)))
        trial.tolerance += 4 * trial.compare(whole, case)
        return trial

    def prefix(self, share: bool, joined: bool) -> float:
        """The last token of unequal prompts, and several of equal ones, after a prefix."""
        found = []
        for rows, tail in self.cases:
            rest, prefix = self._prefill(rows, tail, share, joined)
            assert prefix is not None
            self.numbers_per_token = sum(t.shape[1] * t.shape[3] for pair in prefix.layers for t in pair)
            found.append(self._continue(rest, rows, tail, ForwardState(prefix, _COPIES)))
        return max(found)

    def restart(self, used: bool, share: bool, joined: bool) -> float:
        """Forwards from a low, a middle and a high block after a prefix, and from a high one of whole rows."""
        deepest, found = self.model.n_layers - 2, []
        if deepest < 0:
            return float("inf")  # the only block is the one that is steered
        rows, tail = self.cases[0]
        width = max(len(row) for row in rows)
        whole: tuple[int, list[int]] = (width, [deepest])
        for given, layers in [(tail, sorted({0, deepest // 2, deepest})), whole] if used else [whole]:
            rest, prefix = self._prefill(rows, given, share, joined)
            sites = [Site(layer) for layer in layers]
            states = self.model.engine.capture_states(rest, {}, sites, identity, ForwardState(prefix))
            for layer, h in zip(layers, states.unbind(1), strict=True):
                begin = ForwardState(prefix, _COPIES, layer, h.repeat(_COPIES, 1, 1))
                found.append(self._continue(rest, rows, tail, begin))
        return max(found)

    def generation(self, share: bool, joined: bool) -> float:
        """Tokens generated after prompts that ran once, and after a generation of another number of rows.

        Some models keep the offsets of positions from batch to batch, and add them to those of a prefix. nnsight gives
        position ids for unequal rows alone, which hides it: equal rows are what shows it.
        """
        unequal, equal = self.cases[0], self.cases[-1]
        other = self.model.batch([*equal[0][:2], equal[0][0]], "left")
        self.model.engine.generate(self.model.inputs(other, positions=False), {}, max_new_tokens=2, do_sample=False)
        found = []
        vectors = {Site(0): torch.ones(self.model.hidden_size)}
        for (rows, tail), edited in ((unequal, vectors), (equal, None)):
            _, prefix = self._prefill(rows, tail, share, joined)
            assert prefix is not None
            cache: dict[str, Any] = {cache_name(self.model.hf): prefix.rows(0, 2).as_generation_cache(_COPIES)}
            found.append(decoding_error(self.model, rows[:2] * _COPIES, edited, **cache))
        return max(found)

    def _prefill(
        self, rows: Sequence[EncodedPrompt], tail: int, share: bool, joined: bool
    ) -> tuple[dict[str, Tensor], Prefix | None]:
        key = (tuple(row.ids for row in rows), tail, share, joined)
        if key not in self.prefills:
            inputs = self.model.inputs(self.model.batch(rows, "left"))
            cut = inputs["input_ids"].shape[1] - tail
            before, rest = split_at(inputs, cut) if cut else ({}, inputs)
            self.prefills[key] = rest, self.model.engine.prefill(before, share, joined) if cut else None
        return self.prefills[key]

    def _continue(self, rest: Inputs, rows: Sequence[EncodedPrompt], tail: int, start: ForwardState) -> float:
        """How far the logits of the last columns are off those of the rows alone."""
        repeated = {name: t.repeat(_COPIES, *[1] * (t.ndim - 1)) for name, t in rest.items()}
        given = repeated["input_ids"].shape[1]
        keep = torch.arange(given - tail, given, device=self.model.device)
        return self.compare(self.model.engine.logits(repeated, {}, keep, start), [*rows] * _COPIES)

    def compare(self, logits: Tensor, rows: Sequence[EncodedPrompt]) -> float:
        """How far logits of the last columns are off those of the rows alone."""
        columns = logits.shape[1]
        return max(difference(one, self.expected[row][-columns:]) for one, row in zip(logits, rows, strict=True))
