"""The engine for a model in vLLM: every row of a batch is one request, and vLLM batches them as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerlab._support.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight import vllm_blocks as blocks
from steerlab.models._nnsight.vllm_blocks import Answer, Row
from steerlab.models._nnsight.vllm_failures import check_same
from steerlab.models._nnsight.vllm_line import Way
from steerlab.models._nnsight.vllm_rows import check_answers, checked, joined, places, put_back, rows_of, tell
from steerlab.models._nnsight.vllm_sampling import sampling, seeds
from steerlab.models.engine import NOTHING, Inputs, RowWise, Select, Told, same
from steerlab.models.layout import Layout, module_at
from steerlab.models.plan import Edit, Plan
from steerlab.models.resume import Prefix, Resume
from steerlab.models.sites import Site

ONE_FORWARD = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}


class VllmEngine:
    """Carries out plans in vLLM; the model here is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        layout: where its blocks are.
        line: the way to vLLM.
        place: what the model was asked for by: hub id or folder.
    """

    resumes = False

    def __init__(self, hf: PreTrainedModel, layout: Layout, line: Way, place: str) -> None:
        self._hf, self._layout, self.line, self._place = hf, layout, line, place
        embedding = hf.get_input_embeddings()
        path = next(name for name, found in hf.named_modules() if found is embedding)
        self._embedding = checked(line.root, path, "the embedding of the tokens")

    def read(
        self, inputs: Inputs, plan: Plan, sites: Sequence[Site], select: Select, resume: Resume = NOTHING
    ) -> Tensor:
        """See `Engine.read`: where it can be made row by row, the selection is made in vLLM's worker."""
        _check_whole(resume)
        rows = self._rows(inputs, plan, blocks.read, sites, select)
        answers = self._run(plan, rows)
        order = [place.site for place in places(self.line.root, self._layout, plan, sites) if place.site in sites]
        found = put_back([answer["found"] for answer in answers], rows, select, inputs["attention_mask"].shape[-1])
        return found[:, [order.index(site) for site in sites]]

    def generate(self, inputs: Inputs, plan: Plan, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        config = self._hf.generation_config
        assert config is not None
        params, copies, pad = sampling(options, config)
        rows = [row for row in self._rows(inputs, plan, blocks.generate) for _ in range(copies)]
        drawn = [{"seed": seed} for seed in seeds(len(rows))] if params["temperature"] else [{}] * len(rows)
        rows = [replace(row, params=params | own) for row, own in zip(rows, drawn, strict=True)]
        answers = self._run(plan, rows, most=params["max_tokens"])
        new = [_ended(answer["tokens"], params) for answer in answers]
        width = max(map(len, new))
        padded = [tokens + [pad] * (width - len(tokens)) for tokens in new]
        prompts = inputs["input_ids"].repeat_interleave(copies, 0)
        return torch.cat([prompts, torch.tensor(padded, dtype=prompts.dtype)], 1)

    def logits(
        self, inputs: Inputs, plan: Plan, keep: int | Tensor, resume: Resume = NOTHING, told: Told = same
    ) -> Any:
        """See `Engine.logits`: columns before a row begins are 0, and what is `RowWise` is asked in vLLM's worker."""
        _check_whole(resume)
        width = inputs["attention_mask"].shape[-1]
        columns = list(range(width))[-keep:] if isinstance(keep, int) else [int(c) % width for c in keep.tolist()]
        rows = []
        for row in self._rows(inputs, plan, blocks.logits):
            own = [c - row.offset for c in columns if 0 <= c - row.offset < len(row.ids)]
            there = [j for j, c in enumerate(columns) if 0 <= c - row.offset < len(row.ids)]
            norm = "" if own == [len(row.ids) - 1] else self._norm()
            asked = told.row(row.number) if isinstance(told, RowWise) else same
            rows.append(replace(row, wanted=own, norm=norm, places=there, width=len(columns), told=asked))
        found = joined([answer["told"] for answer in self._run(plan, rows)])
        return found if isinstance(told, RowWise) else told(found)

    def prefill(self, inputs: Inputs) -> Prefix:
        """Refused: keys and values stay in vLLM."""
        raise RemoteError("keys and values of a prompt can't be kept from one request to the next in vLLM", "refused")

    def check(self, ids: Tensor) -> None:
        """Compare the model there with the configuration here, and the last block's stream, as it is read, with the
        logits that vLLM makes of it.

        Raises:
            RemoteError: it is another model, or nobody answers.
            LayoutError: the stream is not what the logits are made of.
        """
        self.line.up()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        last = len(list(module_at(self._hf, self._layout.blocks_path).children())) - 1
        rows = self._rows(inputs, {}, blocks.about, [Site(last)])
        (told,) = self._run({}, [replace(row, norm=self._norm()) for row in rows])
        check_same(self._hf.config, self._place, told["config"], told["name"], self.line.where)
        if not told["alike"]:
            raise LayoutError(
                f"block {last} at {self._layout.blocks_path!r} does not give the residual stream in vLLM: its logits "
                f"are {told['apart']:.3g} off those that vLLM samples from. Load the model here, without engine= and "
                "serve=; load(..., check=False) tries all the same"
            )

    def _rows(
        self, inputs: Inputs, plan: Plan, do: Callable[..., None], sites: Sequence[Site] = (), select: Select = same
    ) -> list[Row]:
        _check_no_training(plan)
        self._meet(inputs, plan)
        found = places(self.line.root, self._layout, plan, sites)
        rows = rows_of(inputs, found, plan, sites, select, do, self._embedding)
        return [replace(row, params=ONE_FORWARD) for row in rows]

    def _run(self, plan: Plan, rows: Sequence[Row], most: int = 1) -> list[Answer]:
        """The answers, each proved to be of its own row, with what was written noted in the plan's own tallies."""
        answers = self.line.ask(rows)
        check_answers(answers, rows)
        tell(plan, answers, most)
        return answers

    def _meet(self, inputs: Inputs, plan: Plan) -> None:
        """Give edits that have a source their vectors, from one unsteered forward of the prompts."""
        edits = [e for at in plan.values() for e in at if isinstance(e, Edit) and e.source is not None]
        sites = sorted({e.source for e in edits if e.source is not None})
        if not sites:
            return
        lasts = edits[0].last  # of the batch: the same for all
        assert lasts is not None
        states = self.read(inputs, {}, sites, _Last(lasts)).float()
        for edit in edits:
            assert edit.in_flight is not None and edit.source is not None
            edit.vectors = edit.in_flight(states[:, sites.index(edit.source)])

    def _norm(self) -> str:
        if self._layout.final_norm_path is None:
            raise LayoutError("the norm before the head was not found: there are logits of the last token alone")
        return checked(self.line.root, self._layout.final_norm_path, "the norm before the head")


@dataclass(frozen=True)
class _Last:
    """The state at one column of each row."""

    columns: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h[torch.arange(len(h), device=h.device), self.columns.to(h.device)]

    def row(self, number: int, start: int) -> tuple[Select, Tensor]:
        return _Last(self.columns[number : number + 1] - start), torch.tensor([number])


def _ended(tokens: list[int], params: dict[str, Any]) -> list[int]:
    """New ids up to the end: vLLM may have begun a step more before it saw that one was the last.

    Raises:
        SteeringError: the row was cut off.
    """
    ends = set(params["stop_token_ids"])
    kept = tokens[: params["max_tokens"]]
    end = next((i + 1 for i, t in enumerate(kept) if t in ends and i + 1 >= params.get("min_tokens", 0)), None)
    if end is None and len(kept) < params["max_tokens"]:
        raise SteeringError(
            f"vLLM ended a row after {len(kept)} of {params['max_tokens']} new tokens: prompt and new tokens outgrow "
            "its context. Load with a larger max_model_len, or ask for fewer"
        )
    return kept[:end]


def _check_whole(resume: Resume) -> None:
    if resume.prefix is not None or resume.state is not None:
        raise RemoteError("a forward in vLLM begins at the embeddings: nothing of an earlier one is kept", "refused")


def _check_no_training(plan: Plan) -> None:
    for site, edits in plan.items():
        if any(edit.vectors is not None and edit.vectors.requires_grad for edit in edits):
            raise RemoteError(
                f"the vector for {site} requires gradients, and vLLM gives none. Fit on activations from "
                "steerlab.capture, or train with the model loaded here; vector.detach() steers with it as it is",
                "refused",
            )
