"""The engine for a model on an NDIF server: the same blocks as here, sent as source and run there.

One engine call is one request: a session whose body is the block of `traces.py` with its plan. What comes back is what
was selected, the tallies of what was written, and nothing else.
"""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nnsight
import nnsight.modeling.huggingface
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight import traces
from steerlab.models._nnsight.client import ServerClient
from steerlab.models._nnsight.traces import Leaf, lay_out
from steerlab.models._nnsight.wire import NdifBackend
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, StateSelector, identity
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout
from steerlab.models.layout import blocks as find_blocks
from steerlab.models.sites import Site


class RemoteEngine:
    """Carries out plans on a server; the model here is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        tokenizer: its tokenizer.
        layout: where its blocks are.
        client: the server.
        place: what the server calls the model: a hub id, or a folder that it can read.
        revision: of the weights on the hub.
        ship_packages: names of packages of the user's own whose code goes along.
        options: for nnsight's reading of the model: whether its own code is trusted, say.
    """

    supports_forward_state = False

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, client: ServerClient, place: str,
        revision: str | None = None, ship_packages: Sequence[str] = (), options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        for package in ("steerlab", *ship_packages):
            nnsight.register(package)  # installed packages do not travel by themselves
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = nnsight.TransformersModel(  # its own skeleton: it would move one that it is given
                place, revision=revision, task="text-generation", tokenizer=copy.deepcopy(tokenizer),
                envoys={type(find_blocks(hf, layout)[0]): Leaf}, config=hf.config, **(options or {}),
            )  # fmt: skip
        self._root, self._layout, self._hf, self.client = root, layout, hf, client
        self._counts = "position_ids" in inspect.signature(type(hf).forward).parameters
        self.in_process: bool | None = None  # unknown before `check`
        key = json.dumps({"repo_id": place, "revision": revision, "task": "text-generation"})
        self._key = f"nnsight.modeling.transformers.TransformersModel:{key}"

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        """See `Engine.capture_states`: the selection is made on the server."""
        _check_whole(forward_state)
        visits = lay_out(self._root, self._layout, plan, sites)
        order = [visit.site for visit in visits if visit.wanted]
        found = self._run(plan, traces.read, inputs, visits, select, inputs["attention_mask"].shape[-1])
        return torch.stack([found[order.index(site)] for site in sites], 1)

    def generate(self, inputs: Inputs, plan: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits = lay_out(self._root, self._layout, plan, ())
        if options.get("do_sample"):
            if self.in_process is False:
                warnings.warn(
                    f"{self.client.host} runs what is sent apart from the model: sampling can't be seeded there, "
                    "and will not repeat. do_sample=False gives the same text every time",
                    stacklevel=5,
                )
            ids, steps, state = self._run(plan, traces.sampled, inputs, visits, options, torch.get_rng_state())
            torch.set_rng_state(state)
        else:
            ids, steps = self._run(plan, traces.generate, inputs, visits, options)
        made = ids.shape[1] - inputs["input_ids"].shape[1]
        if visits and steps < made:
            raise SteeringError(
                f"the server made {made} new tokens but only {steps} steps were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not visited in order"
            )
        return torch.as_tensor(ids)

    def logits(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        """See `Engine.logits`: `reduce` is asked on the server."""
        _check_whole(forward_state)
        visits = lay_out(self._root, self._layout, plan, ())
        return self._run(plan, traces.told_logits, inputs, visits, keep, inputs["attention_mask"].shape[-1], reduce)

    def prefill(self, inputs: Inputs) -> Prefix:
        """Refused: keys and values stay on the server."""
        raise RemoteError("keys and values of a prompt can't be kept from one request to the next", "refused")

    def check(self, ids: Tensor) -> None:
        """Compare the blocks' states with the model's own `hidden_states` on the server; all but the last, which
        comes after the final norm.

        Raises:
            LayoutError: a block's state differs.
            RemoteError: whatever is wrong with the server.
        """
        sites = [Site(k) for k in range(len(find_blocks(self._hf, self._layout)) - 1)]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        visits = lay_out(self._root, self._layout, {}, sites)
        far, self.in_process = self._run({}, traces.apart, inputs, visits)
        bad = [k for k, distance in enumerate(far) if not distance <= 1e-5]
        if bad:
            raise LayoutError(
                f"block {bad[0]} at {self._layout.blocks_path!r} does not give the residual stream: it is "
                f"{far[bad[0]]:.3g} off hidden_states[{bad[0] + 1}]. Give load(..., blocks='dotted.path')"
            )

    def _run(self, plan: SiteEdits, block: Callable[..., Any], inputs: Inputs, *arguments: Any) -> Any:
        """One block on the server, with what it wrote noted in the plan's own tallies."""
        _check_no_training(plan)
        edits = [edit for at in plan.values() for edit in at]
        wire = NdifBackend(self.client, self._key, {})
        given, sourced = self._before(inputs, plan)
        found, tallies = _sent(self._root, wire, block, (inputs, *arguments), edits, given, sourced)
        for edit, reduce in zip(edits, tallies, strict=True):
            edit.stats.writes, edit.stats.ratio = reduce
        return found

    def _before(self, inputs: Inputs, plan: SiteEdits) -> tuple[tuple[Any, ...], list[Edit]]:
        """What has to be read of the unsteered prompts before a run, and the edits that wait for it."""
        edits = [e for at in plan.values() for e in at if isinstance(e, Edit) and e.read_site is not None]
        sites = sorted({e.read_site for e in edits if e.read_site is not None})
        wanted = lay_out(self._root, self._layout, {}, sites)
        mask = inputs["attention_mask"]
        if self._counts and "position_ids" not in inputs:  # `generate` counts its own
            inputs = inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        return (inputs, wanted), edits


def _sent(
    root: Any, wire: NdifBackend, block: Callable[..., Any], arguments: Any, edits: Any, given: Any, sourced: Any
) -> Any:
    resolve_vectors = traces.resolve_vectors
    with root.session(backend=wire):
        if sourced:
            resolve_vectors(root, given[0], given[1], sourced)
        found = block(root, *arguments)
        answer = nnsight.save([found, [(e.stats.writes, e.stats.ratio) for e in edits]])
    return answer


def _check_whole(forward_state: ForwardState) -> None:
    if forward_state.prefix is not None or forward_state.state is not None:
        raise RemoteError("a forward on a server begins at the embeddings: nothing is kept there", "refused")


def _check_no_training(plan: SiteEdits) -> None:
    """A sandboxed worker trains nothing and says nothing: refuse beforehand."""
    for site, edits in plan.items():
        for edit in edits:
            learning = [t for t in (edit.vectors,) if isinstance(t, Tensor) and t.requires_grad]
            if learning:
                raise RemoteError(
                    f"the vector for {site} requires gradients, and a server gives none (its sandboxed worker trains "
                    "nothing, without an error). Fit on activations from steerlab.capture, or train with the model "
                    "loaded here; vector.detach() steers with it as it is",
                    "refused",
                )


def no_forward(hf: nn.Module) -> None:
    """Make a skeleton say that it is one when it is called directly."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RemoteError(
            "the weights of this model are on a server: a forward here would give shapes and no numbers. Use "
            "steerlab's verbs (capture, generate, score, sweep), or load the model here for training and gradients",
            "refused",
        )

    hf.register_forward_pre_hook(refuse)
