"""The engine for a model in vLLM: every row of a batch is one request, and vLLM forms batches of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerlab.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight import errors, vllm_requests
from steerlab.models._nnsight import vllm_traces as traces
from steerlab.models._nnsight.traces import Visit, unresolved
from steerlab.models._nnsight.vllm_client import VllmClient
from steerlab.models._nnsight.vllm_traces import Answer, RowRequest
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, PerRowReducer, StateSelector, identity
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout, module_at
from steerlab.models.sites import Site

ONE_FORWARD = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}


class VllmEngine:
    """Runs a model in vLLM; the model in this process is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        layout: the paths of its blocks.
        client: sends the requests.
        name: the user's name of the model: hub id or folder.
    """

    supports_forward_state = False

    def __init__(self, hf: PreTrainedModel, layout: Layout, client: VllmClient, name: str) -> None:
        self._hf, self._layout, self.client, self._name = hf, layout, client, name
        embedding = hf.get_input_embeddings()
        path = next(name for name, module in hf.named_modules() if module is embedding)
        self._embedding = vllm_requests.check_path(client.root, path, "the token embedding")

    def capture_states(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site], select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:  # fmt: skip
        """See `Engine.capture_states`: `select` runs in vLLM's worker if it can select from single rows."""
        visits = self._visits(inputs, edits, sites, select, forward_state)
        rows = self._requests(inputs, visits, traces.capture_states)
        answers = self._run(visits, rows)
        width = inputs["attention_mask"].shape[-1]
        found = vllm_requests.join_states([answer["states"] for answer in answers], rows, select, width)
        order = [visit.site for visit in visits if visit.select]
        return found[:, [order.index(site) for site in sites]]

    def generate(self, inputs: Inputs, edits: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        config = self._hf.generation_config
        assert config is not None
        params, copies, pad = vllm_requests.sampling_params(options, config)
        visits = self._visits(inputs, edits)
        rows = [row for row in self._requests(inputs, visits, traces.generate, params) for _ in range(copies)]
        if params["temperature"]:
            rows = [
                replace(r, params=params | {"seed": s})
                for r, s in zip(rows, vllm_requests.draw_seeds(len(rows)), strict=True)
            ]
        new = [_up_to_end(answer["tokens"], params) for answer in self._run(visits, rows)]
        width = max(map(len, new))
        padded = [tokens + [pad] * (width - len(tokens)) for tokens in new]
        prompts = inputs["input_ids"].repeat_interleave(copies, 0)
        return torch.cat([prompts, torch.tensor(padded, dtype=prompts.dtype)], 1)

    def logits(
        self, inputs: Inputs, edits: SiteEdits, keep: int | Tensor, forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:  # fmt: skip
        """See `Engine.logits`: logits of padding are 0, and a `PerRowReducer` runs in vLLM's worker."""
        width = inputs["attention_mask"].shape[-1]
        kept = list(range(width))[-keep:] if isinstance(keep, int) else [int(c) % width for c in keep.tolist()]
        visits = self._visits(inputs, edits, forward_state=forward_state)
        rows = []
        for row in self._requests(inputs, visits, traces.logits):
            columns = {i: c - row.offset for i, c in enumerate(kept) if 0 <= c - row.offset < len(row.ids)}
            wanted = list(columns.values())
            norm = None if wanted == [len(row.ids) - 1] else self._final_norm()
            run = partial(
                traces.logits, columns=wanted, places=list(columns), width=len(kept), norm=norm,
                reduce=reduce.for_row(row.number) if isinstance(reduce, PerRowReducer) else identity,
            )  # fmt: skip
            rows.append(replace(row, run=run))
        reduced = vllm_requests.join_reduced([answer["reduced"] for answer in self._run(visits, rows)])
        return reduced if isinstance(reduce, PerRowReducer) else reduce(reduced)

    def prefill(self, inputs: Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
        """Refused: keys and values stay in vLLM."""
        raise RemoteError("keys and values of a prompt cannot be kept between requests in vLLM", "unsupported")

    def check(self, ids: Tensor) -> None:
        """Compare the served model with the configuration here, and the last block's state, as it is read, with the
        logits that vLLM computes from it.

        Raises:
            RemoteError: another model is served, or no server answers.
            LayoutError: the state is not what the logits are computed from.
        """
        self.client.check_running()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        last = len(list(module_at(self._hf, self._layout.blocks_path).children())) - 1
        visits = self._visits(inputs, {}, [Site(last)])
        run = partial(traces.check_model, norm=self._final_norm())
        (answer,) = self._run(visits, self._requests(inputs, visits, run))
        errors.check_same_model(self._hf.config, self._name, answer["config"], answer["name"], self.client.name)
        if not answer["same_logits"]:
            raise LayoutError(
                f"block {last} at {self._layout.blocks_path!r} does not output the residual stream in vLLM: its logits "
                f"differ by {answer['difference']:.3g} from those that vLLM samples from. Load the model without "
                "engine= and serve="
            )

    def _visits(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site] = (), select: StateSelector = identity,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> list[Visit]:  # fmt: skip
        """The visits of a forward, with all vectors of its edits resolved."""
        errors.check_supported(edits, "vLLM", forward_state)
        self._resolve_vectors(inputs, edits)
        return vllm_requests.vllm_visits(self.client.root, self._layout, edits, sites, select)

    def _requests(
        self, inputs: Inputs, visits: Sequence[Visit], run: Callable[..., None], params: dict[str, Any] = ONE_FORWARD
    ) -> list[RowRequest]:
        return vllm_requests.make_requests(inputs, visits, run, self._embedding, params)

    def _run(self, visits: Sequence[Visit], rows: Sequence[RowRequest]) -> list[Answer]:
        """The answers, each compared with its request; copies the statistics of the edits back."""
        answers = self.client.run(rows)
        vllm_requests.check_answers(answers, rows)
        vllm_requests.copy_stats(visits, answers, rows)
        return answers

    def _resolve_vectors(self, inputs: Inputs, edits: SiteEdits) -> None:
        """Compute the vectors of edits with a `read_site`, from one unsteered forward of the prompts."""
        pending, sites = unresolved(edits)
        if not pending:
            return
        last = pending[0].last  # the same for all edits of a batch
        assert last is not None
        states = self.capture_states(inputs, {}, sites, _LastToken(last)).float()
        for edit in pending:
            assert edit.vector_fn and edit.read_site
            edit.vectors = edit.vector_fn(states[:, sites.index(edit.read_site)])

    def _final_norm(self) -> str:
        if self._layout.final_norm_path is None:
            raise LayoutError("the final norm was not found: vLLM gives logits of the last token only")
        return vllm_requests.check_path(self.client.root, self._layout.final_norm_path, "the final norm")


@dataclass(frozen=True)
class _LastToken:
    """Selects the state at one column of each row."""

    columns: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h[torch.arange(len(h), device=h.device), self.columns.to(h.device)]

    def row(self, number: int, start: int) -> tuple[StateSelector, Tensor]:
        return _LastToken(self.columns[number : number + 1] - start), torch.tensor([number])


def _up_to_end(tokens: list[int], params: dict[str, Any]) -> list[int]:
    """New token ids up to the end of the text: vLLM may have begun one more step before it noticed the end.

    Raises:
        SteeringError: the text was cut off.
    """
    eos = set(params["stop_token_ids"])
    kept = tokens[: params["max_tokens"]]
    end = next((i + 1 for i, t in enumerate(kept) if t in eos and i + 1 >= params.get("min_tokens", 0)), None)
    if end is None and len(kept) < params["max_tokens"]:
        raise SteeringError(
            f"vLLM ended a row after {len(kept)} of {params['max_tokens']} new tokens: prompt and new tokens exceed "
            "its context. Load with a larger max_model_len, or generate fewer tokens"
        )
    return kept[:end]
