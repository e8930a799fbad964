"""The engine for a model in vLLM: every row of a batch is one request, and vLLM batches them as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerlab._support.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight import vllm_traces as traces
from steerlab.models._nnsight.vllm_client import VllmClient
from steerlab.models._nnsight.vllm_errors import check_same
from steerlab.models._nnsight.vllm_rows import check_answers, checked, joined, places, put_back, rows_of, tell
from steerlab.models._nnsight.vllm_sampling import sampling, seeds
from steerlab.models._nnsight.vllm_traces import Answer, Row
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, PerRowReducer, StateSelector, identity
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout, module_at
from steerlab.models.sites import Site

ONE_FORWARD = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}


class VllmEngine:
    """Carries out plans in vLLM; the model here is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        layout: where its blocks are.
        client: the way to vLLM.
        place: what the model was asked for by: hub id or folder.
    """

    supports_forward_state = False

    def __init__(self, hf: PreTrainedModel, layout: Layout, client: VllmClient, place: str) -> None:
        self._hf, self._layout, self.client, self._place = hf, layout, client, place
        embedding = hf.get_input_embeddings()
        path = next(name for name, found in hf.named_modules() if found is embedding)
        self._embedding = checked(client.root, path, "the embedding of the tokens")

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        """See `Engine.capture_states`: where it can be made row by row, the selection is made in vLLM's worker."""
        _check_whole(forward_state)
        rows = self._rows(inputs, plan, traces.read, sites, select)
        answers = self._run(plan, rows)
        order = [place.site for place in places(self.client.root, self._layout, plan, sites) if place.site in sites]
        found = put_back([answer["found"] for answer in answers], rows, select, inputs["attention_mask"].shape[-1])
        return found[:, [order.index(site) for site in sites]]

    def generate(self, inputs: Inputs, plan: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        config = self._hf.generation_config
        assert config is not None
        params, copies, pad = sampling(options, config)
        rows = [row for row in self._rows(inputs, plan, traces.generate) for _ in range(copies)]
        drawn = [{"seed": seed} for seed in seeds(len(rows))] if params["temperature"] else [{}] * len(rows)
        rows = [replace(row, params=params | own) for row, own in zip(rows, drawn, strict=True)]
        answers = self._run(plan, rows, most=params["max_tokens"])
        new = [_ended(answer["tokens"], params) for answer in answers]
        width = max(map(len, new))
        padded = [tokens + [pad] * (width - len(tokens)) for tokens in new]
        prompts = inputs["input_ids"].repeat_interleave(copies, 0)
        return torch.cat([prompts, torch.tensor(padded, dtype=prompts.dtype)], 1)

    def logits(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        """See `Engine.logits`: columns before a row begins are 0; a `PerRowReducer` runs in vLLM's worker."""
        _check_whole(forward_state)
        width = inputs["attention_mask"].shape[-1]
        columns = list(range(width))[-keep:] if isinstance(keep, int) else [int(c) % width for c in keep.tolist()]
        rows = []
        for row in self._rows(inputs, plan, traces.logits):
            own = [c - row.offset for c in columns if 0 <= c - row.offset < len(row.ids)]
            there = [j for j, c in enumerate(columns) if 0 <= c - row.offset < len(row.ids)]
            norm = "" if own == [len(row.ids) - 1] else self._norm()
            asked = reduce.for_row(row.number) if isinstance(reduce, PerRowReducer) else identity
            rows.append(replace(row, wanted=own, norm=norm, places=there, width=len(columns), reduce=asked))
        found = joined([answer["reduce"] for answer in self._run(plan, rows)])
        return found if isinstance(reduce, PerRowReducer) else reduce(found)

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
        self.client.up()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        last = len(list(module_at(self._hf, self._layout.blocks_path).children())) - 1
        rows = self._rows(inputs, {}, traces.about, [Site(last)])
        (reduce,) = self._run({}, [replace(row, norm=self._norm()) for row in rows])
        check_same(self._hf.config, self._place, reduce["config"], reduce["name"], self.client.where)
        if not reduce["alike"]:
            raise LayoutError(
                f"block {last} at {self._layout.blocks_path!r} does not give the residual stream in vLLM: its logits "
                f"are {reduce['apart']:.3g} off those that vLLM samples from. Load the model here, without engine= and "
                "serve=; load(..., check=False) tries all the same"
            )

    def _rows(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        do: Callable[..., None],
        sites: Sequence[Site] = (),
        select: StateSelector = identity,
    ) -> list[Row]:
        _check_no_training(plan)
        self._meet(inputs, plan)
        found = places(self.client.root, self._layout, plan, sites)
        rows = rows_of(inputs, found, plan, sites, select, do, self._embedding)
        return [replace(row, params=ONE_FORWARD) for row in rows]

    def _run(self, plan: SiteEdits, rows: Sequence[Row], most: int = 1) -> list[Answer]:
        """The answers, each proved to be of its own row, with what was written noted in the plan's own tallies."""
        answers = self.client.ask(rows)
        check_answers(answers, rows)
        tell(plan, answers)
        return answers

    def _meet(self, inputs: Inputs, plan: SiteEdits) -> None:
        """Give edits that have a source their vectors, from one unsteered forward of the prompts."""
        edits = [e for at in plan.values() for e in at if isinstance(e, Edit) and e.read_site is not None]
        sites = sorted({e.read_site for e in edits if e.read_site is not None})
        if not sites:
            return
        last_prompt_columns = edits[0].last  # of the batch: the same for all
        assert last_prompt_columns is not None
        states = self.capture_states(inputs, {}, sites, _Last(last_prompt_columns)).float()
        for edit in edits:
            assert edit.vector_fn is not None and edit.read_site is not None
            edit.vectors = edit.vector_fn(states[:, sites.index(edit.read_site)])

    def _norm(self) -> str:
        if self._layout.final_norm_path is None:
            raise LayoutError("the norm before the head was not found: there are logits of the last token alone")
        return checked(self.client.root, self._layout.final_norm_path, "the norm before the head")


@dataclass(frozen=True)
class _Last:
    """The state at one column of each row."""

    columns: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h[torch.arange(len(h), device=h.device), self.columns.to(h.device)]

    def row(self, number: int, start: int) -> tuple[StateSelector, Tensor]:
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


def _check_whole(forward_state: ForwardState) -> None:
    if forward_state.prefix is not None or forward_state.state is not None:
        raise RemoteError("a forward in vLLM begins at the embeddings: nothing of an earlier one is kept", "refused")


def _check_no_training(plan: SiteEdits) -> None:
    for site, edits in plan.items():
        if any(edit.vectors is not None and edit.vectors.requires_grad for edit in edits):
            raise RemoteError(
                f"the vector for {site} requires gradients, and vLLM gives none. Fit on activations from "
                "steerlab.capture, or train with the model loaded here; vector.detach() steers with it as it is",
                "refused",
            )
