"""One architecture through steerlab's front door, compared row by row with plain Hugging Face."""

import copy
import os
import random
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers
from build import FORBIDDEN, Unbuildable, build, reads_images
from oracle import POINTS, CantRun, Edit, Oracle
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, Site, SteeringVector
from steerlab.data.inputs import as_examples
from steerlab.errors import SteerlabError
from steerlab.models.model import Model
from steerlab.testing import tiny_tokenizer

PROMPTS = (
    "Is it cold?", "Do herons sleep in the reeds by night, or do they stand there?",
    "Do herons sleep in the reeds by day, and why?", "Why?",
    "Where do the herons of the north go when all the lakes are frozen over, and when do they come back to us?",
    "Say QJK",
)  # fmt: skip
UNEQUAL, EQUAL, SINGLE = PROMPTS[:4], ("Say QJK", "Say WYZ", "Say XVQ"), PROMPTS[1:2]
SHORT, LONG = ("A", "B"), ("(A) yes, it is", "(B) not at all")
NEW = 6
CLOSE = 3e-4  # of a norm: chunked linear attention in float32 costs 1e-4 where padding moves its chunks
TIE = 1e-3  # the lead over the second token below which either may win
_MUST = ("load", "capture", "generate")  # a model that refuses one of these is refused


class Differs(Exception):
    """A number of steerlab that plain Hugging Face doesn't give."""


@dataclass
class Verdict:
    """What came of one architecture: `kind` is right, refused, foreign error, silently wrong, unbuildable or can't run.

    Attributes:
        reason: of the first finding that decided the kind.
        findings: by verb, what was refused, failed or differed.
        fast: the shortcuts that the model uses.
    """

    name: str
    kind: str = "right"
    reason: str = ""
    seconds: float = 0.0
    fast: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)

    def find(self, verb: str, kind: str, reason: str) -> None:
        """Record a finding; the worst one decides."""
        self.findings[verb] = [kind, reason]
        if kind == "refused" and verb not in _MUST:
            return
        order = ("right", "refused", "foreign error", "silently wrong", "can't run", "unbuildable")
        if order.index(kind) > order.index(self.kind):
            self.kind, self.reason = kind, f"{verb}: {reason}" if verb else reason


def check(name: str, seed: int | None = None) -> Verdict:
    """Build, load and compare one architecture; with a seed only on a few cases of each comparison."""
    start, verdict = time.perf_counter(), Verdict(name)
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as cache:
        warnings.simplefilter("ignore")
        try:
            with mock.patch.dict(os.environ, STEERLAB_CACHE=cache):  # what earlier code found of a model doesn't count
                _check(name, verdict, seed)
        except Unbuildable as error:
            verdict.find("", "unbuildable", str(error))
        except CantRun as error:
            verdict.find("", "can't run", str(error))
    verdict.seconds = round(time.perf_counter() - start, 1)
    return verdict


def _check(name: str, verdict: Verdict, seed: int | None) -> None:
    hf, tokenizer = build(name), tiny_tokenizer()
    zoo = Comparison(Oracle(copy.deepcopy(hf), _ids(tokenizer, PROMPTS[0]), FORBIDDEN), tokenizer, seed)
    options = {"task": "text"} if reads_images(name) else {}
    model = _attempt(verdict, "load", lambda: steerlab.load(hf, tokenizer=tokenizer, **options))
    if model is None:
        return
    zoo.model = model
    points = [point for point in POINTS if not zoo.refuses(verdict, point)]
    for verb, run in (
        ("capture", lambda: zoo.capture(points)), ("contrast", zoo.contrasts),
        ("generate", lambda: zoo.generate(points)), ("score", zoo.score), ("next_token_logits", zoo.next_token_logits),
        ("sweep", zoo.sweep), ("text sweep", zoo.text_sweep),
    ):  # fmt: skip
        _attempt(verdict, verb, run)
    fast = _attempt(verdict, "shortcuts", lambda: asdict(model.shortcuts) | {"used": model.shortcuts.used})
    verdict.fast = fast or {}


def _attempt(verdict: Verdict, verb: str, run: Callable[[], Any]) -> Any:
    """What `run` returns; an error becomes a finding."""
    try:
        return run()
    except (CantRun, Unbuildable):
        raise
    except Differs as error:
        verdict.find(verb, "silently wrong", str(error))
    except SteerlabError as error:
        verdict.find(verb, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # any exception that isn't steerlab's own is what is looked for
        verdict.find(verb, "foreign error", f"{type(error).__name__}: {str(error)[:300]}")
    return None


def _ids(tokenizer: Any, prompt: str, answer: str = "") -> list[int]:
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return [i for part in (text, answer) if part for i in tokenizer(part, add_special_tokens=False).input_ids]


def _close(what: str, found: Tensor, wanted: Tensor) -> None:
    """Compare states or logits row by row, relative to their norm."""
    if found.shape != wanted.shape:
        raise Differs(f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    found, wanted = found.float().clamp(min=-1e9), wanted.clamp(min=-1e9)  # some models forbid tokens with -1e38
    off = (found - wanted).norm(dim=-1) / (1 + wanted.norm(dim=-1))
    if not bool((off <= CLOSE).all()):
        raise Differs(f"{what}: {float(off.max()):.2g} off, relative to its norm")


def _near(what: str, found: float, wanted: float) -> None:
    if not abs(found - wanted) <= TIE + CLOSE * abs(wanted):
        raise Differs(f"{what}: {found:.5g}, not {wanted:.5g}")


@dataclass
class Comparison:
    """The six comparisons; each raises `Differs` at its first difference."""

    oracle: Oracle
    tokenizer: Any
    seed: int | None
    model: Model = field(init=False)
    known: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def ids(self, prompt: str, answer: str = "") -> list[int]:
        """The tokens of a prompt and an answer, by the tokenizer alone."""
        if (prompt, answer) not in self.known:
            self.known[prompt, answer] = _ids(self.tokenizer, prompt, answer)
        return self.known[prompt, answer]

    def refuses(self, verdict: Verdict, point: str) -> bool:
        """Whether a point can't be read in this model, which is then noted."""
        if point not in self.model.layout.points:
            site = Site(0, point)
            _attempt(verdict, point, lambda: steerlab.capture(self.model, ["Why?"], layers=[site], progress=False))
        return point in verdict.findings

    def edit(self, layer: int, point: str, positions: str, alpha: float = 1.0) -> Edit:
        """A fixed vector about as long as the states it is added to."""
        state = self.oracle.forward(self.ids(PROMPTS[0])).states[layer, point]
        vector = torch.randn(state.shape[-1], generator=torch.Generator().manual_seed(layer))
        return Edit(layer, point, positions, vector / vector.norm() * state.norm(dim=-1).mean(), alpha)

    def steering(self, edit: Edit | None) -> dict[str, Any]:
        """The same edit as arguments of steerlab."""
        if edit is None:
            return {"steer": ()}
        steerer = SteeringVector({Site(edit.layer, edit.point): edit.vector})
        return {"steer": steerer, "alpha": edit.alpha, "positions": edit.positions}

    def some(self, cases: Sequence[Any], n: int) -> Sequence[Any]:
        """All cases, or n of them that the seed draws."""
        return cases if self.seed is None else random.Random(self.seed).sample(list(cases), n)

    @property
    def middle(self) -> int:
        """The layer that is steered."""
        return len(self.oracle.blocks) // 2

    def capture(self, points: Sequence[str]) -> None:
        """States of prompts, whatever the batch and the padding."""
        if self.model.n_layers != len(self.oracle.blocks):
            raise Differs(f"{self.model.n_layers} layers, not {len(self.oracle.blocks)}")
        positions = ["last", "prompt[3]", "prompt"]
        for group in (["heads"] if "heads" in points else [], [point for point in points if point != "heads"]):
            if group:
                self._capture([Site(k, p) for k in range(self.model.n_layers) for p in group], positions)

    def _capture(self, sites: Sequence[Site], positions: Sequence[str]) -> None:
        for padding, size in self.some((("right", 4), ("left", 4), ("right", 1)), 1):
            acts = steerlab.capture(
                self.model, PROMPTS, layers=sites, positions=positions, batch_size=size, padding=padding, progress=False
            )
            for site in sites:
                for number, prompt in enumerate(PROMPTS):
                    h = self.oracle.forward(self.ids(prompt)).states.get((site.layer, site.point))
                    if h is None:
                        raise Differs(f"{site} was read, but no such state was seen by hand")
                    at = acts.index["example_id"] == as_examples(PROMPTS)[number].id
                    what = f"{site} of prompt {number} ({padding}, batch {size})"
                    _close(what, acts.at(site)[at.to_numpy()], torch.stack([h[-1], h[3], h.mean(0)]))

    def contrasts(self) -> None:
        """Both answers and the plain prompt, which an answer must not change."""
        for answers in self.some((SHORT, LONG), 1):
            rows = [Example(p, id=p, contrast=Contrast(*answers)) for p in UNEQUAL]
            acts = steerlab.capture(self.model, rows, positions="answer", context="last", progress=False)
            for side, answer in zip(("prompt", "positive", "negative"), ("", *answers), strict=True):
                for layer in range(self.model.n_layers):
                    ids, found = acts.by_example(layer, side=side)
                    for prompt, row in zip(ids, found, strict=True):
                        n = len(self.ids(prompt))
                        h = self.oracle.forward(self.ids(prompt, answer)).states[layer, "block_out"]
                        wanted = h[n:].mean(0) if answer else h[-1]
                        _close(f"layer {layer} of {side}, answers {answers}", row, wanted)

    def generate(self, points: Sequence[str]) -> None:
        """Greedy texts, unsteered and steered at every point."""
        edits: list[Edit | None] = [None]
        for point in ("block_out", *(p for p in points if p != "block_out")):
            for positions in ("last+generated", "all", "generated", "prompt")[: 4 if point == "block_out" else 2]:
                edits.append(self.edit(self.middle, point, positions))
        changed, plain = False, {}
        for edit in self.some(edits, 2):
            for prompts in self.some((SINGLE, UNEQUAL, EQUAL), 1):
                found = steerlab.generate(self.model, prompts, **self.steering(edit), max_new_tokens=NEW)
                for prompt, new in zip(prompts, found.ids, strict=True):
                    self._compare_text(f"{self._name(edit)}, batch of {len(prompts)}", prompt, list(new), edit)
                    changed |= edit is not None and list(new) != plain.get(prompt)
                    plain.setdefault(prompt, list(new))
        if not changed and self.seed is None:
            raise Unbuildable("steering changes no greedy text")

    def _compare_text(self, what: str, prompt: str, new: list[int], edit: Edit | None) -> None:
        wanted, leads = self.oracle.greedy(self.ids(prompt), NEW, edit, new)
        if new != wanted:
            at = next(i for i, (a, b) in enumerate(zip([*new, -1], [*wanted, -2], strict=False)) if a != b)
            if at >= len(leads) or leads[at] > TIE:
                raise Differs(f"{what}: new token {at} of {prompt[:12]!r} is {new[at:]}, not {wanted[at:]}")

    def score(self) -> None:
        """Log-probabilities of answers."""
        for edit in self.some(self._edits(), 1):
            for prompts in self.some((UNEQUAL, EQUAL), 1):
                answers = [LONG[i % 2] if prompts is UNEQUAL else SHORT[i % 2] for i in range(len(prompts))]
                frame = steerlab.score(self.model, prompts, answers, **self.steering(edit))
                for prompt, answer, found in zip(prompts, answers, frame["logprob"], strict=True):
                    wanted, _ = self.oracle.answer(self.ids(prompt, answer), len(self.ids(prompt)), edit)
                    _near(f"{self._name(edit)}, logprob of {answer!r}", found, wanted)

    def next_token_logits(self) -> None:
        """Logits of the first new token."""
        for edit in self.some(self._edits(), 1):
            for prompts in self.some((UNEQUAL, EQUAL, SINGLE), 1):
                found = steerlab.next_token_logits(self.model, prompts, **self.steering(edit))
                rows = [self.ids(prompt) for prompt in prompts]
                wanted = torch.stack([self.oracle.forward(row, edit, len(row)).logits[-1] for row in rows])
                _close(f"{self._name(edit)}, batch of {len(prompts)}", found, wanted)

    def sweep(self) -> None:
        """Answers under many settings: first difference and whole answers, tails of one token and of several."""
        every = ["last+generated", "generated", "all"]
        cases = (
            (SINGLE, LONG, ["logprob"], every),
            (EQUAL[:2], LONG, ["propensity"], every),
            (UNEQUAL[:3], LONG, ["propensity", "logprob", "logit_sum_difference"], every),
            (EQUAL[:2], SHORT, ["logprob_difference"], ["last+generated", "all"]),
            (UNEQUAL[:3], SHORT, ["propensity"], ["last+generated", "all"]),
        )
        for prompts, answers, metrics, positions in self.some(cases, 1):
            rows = [Example(p, id=p, contrast=Contrast(*answers)) for p in prompts]
            frame = self._sweep(rows, positions, metrics, (-1.0, 0.0, 0.7))
            for edit, group in self._settings(frame):
                for record in group:
                    wanted = self._answer_metric(record["metric"], record["example_id"], answers, edit)
                    what = f"{self._name(edit)}, {record['metric']} of {answers}, {len(prompts)} prompts"
                    _near(what, record["value"], wanted)

    def text_sweep(self) -> None:
        """Texts under many settings, which continue each other's prompts.

        The first batch is smaller than the last that `generate` ran: some models keep state from batch to batch.
        """

        def number(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
            return [float(zlib.crc32(text.encode()) % 10**6) for text in texts]

        for prompts in self.some((EQUAL[:2], UNEQUAL[:3]), 1):
            rows = [Example(p, id=p) for p in prompts]
            frame = self._sweep(rows, ["last+generated", "all"], number, (0.0, 1.0), {"max_new_tokens": NEW})
            for edit, group in self._settings(frame):
                for record in group:
                    new, leads = self.oracle.greedy(self.ids(record["example_id"]), NEW, edit)
                    text = self.tokenizer.decode(new, skip_special_tokens=True).rstrip()
                    if record["value"] != number([], [text])[0] and min(leads) > TIE:
                        raise Differs(f"{self._name(edit)}, text of {record['example_id'][:12]!r}, {len(rows)} prompts")

    def _sweep(
        self, rows: list[Example], positions: list[str], metric: Any, alphas: Sequence[float], generation: Any = None
    ) -> Any:
        layers, positions = (self.middle - 1, self.middle), list(self.some(positions, len(positions) - 1))
        vectors = {k: SteeringVector({k: self.edit(k, "block_out", "all").vector}) for k in layers}
        return steerlab.sweep(
            self.model, rows, {"fixed": vectors}, layers=list(layers), alphas=alphas, positions=positions,
            metric=metric, generation=generation, progress=False,
        )  # fmt: skip

    def _settings(self, frame: Any) -> Iterator[tuple[Edit | None, Iterable[dict[str, Any]]]]:
        for (layer, alpha, positions), group in frame.groupby(["layer", "alpha", "positions"], dropna=False):
            edit = self.edit(int(layer), "block_out", positions, alpha) if alpha else None
            yield edit, group.to_dict("records")

    def _answer_metric(self, metric: str, prompt: str, answers: tuple[str, str], edit: Edit | None) -> float:
        n = len(self.ids(prompt))
        rows = [self.ids(prompt, answer) for answer in answers]
        if metric == "propensity":
            first = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
            row = rows[0] if self.oracle.causal else rows[0][:first]
            logits = self.oracle.forward(row, edit, n).logits[first - 1]
            return float(logits[rows[0][first]] - logits[rows[1][first]])
        (plus, plus_raw), (minus, minus_raw) = (self.oracle.answer(row, n, edit) for row in rows)
        found = {"logprob": plus, "logprob_difference": plus - minus, "logit_sum_difference": plus_raw - minus_raw}
        return found[metric]

    def _edits(self) -> list[Edit | None]:
        return [None, *(self.edit(self.middle, "block_out", where) for where in ("last+generated", "all"))]

    def _name(self, edit: Edit | None) -> str:
        return "unsteered" if edit is None else f"{edit.positions} at {edit.layer}.{edit.point} x {edit.alpha}"
