"""The engine for a model on an NDIF server: the same blocks as here, sent as source and run there.

One engine call is one request: a session whose body is the block of `blocks.py` with its plan. What comes back is what
was selected, the tallies of what was written, and nothing else.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nnsight
import nnsight.modeling.huggingface
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import RemoteError, SteeringError
from steerlab.models._nnsight import blocks
from steerlab.models._nnsight.blocks import Leaf, lay_out
from steerlab.models._nnsight.wire import Line, Wire
from steerlab.models.engine import NOTHING, Inputs, Select, Told, same
from steerlab.models.layout import Layout
from steerlab.models.layout import blocks as find_blocks
from steerlab.models.plan import Plan
from steerlab.models.resume import Prefix, Resume
from steerlab.models.sites import Site
from steerlab.models.tally import Tally


class RemoteEngine:
    """Carries out plans on a server; the model here is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        tokenizer: its tokenizer.
        layout: where its blocks are.
        line: the server.
        place: what the server calls the model: a hub id, or a folder that it can read.
        revision: of the weights on the hub.
        travels: names of packages of the user's own whose code goes along.
    """

    resumes = False

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, line: Line, place: str,
        revision: str | None = None, travels: Sequence[str] = (),
    ) -> None:  # fmt: skip
        for package in ("steerlab", *travels):
            nnsight.register(package)  # installed packages do not travel by themselves
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = nnsight.TransformersModel(  # its own skeleton: it would move one that it is given
                place, revision=revision, task="text-generation", tokenizer=copy.deepcopy(tokenizer),
                envoys={type(find_blocks(hf, layout)[0]): Leaf},
            )  # fmt: skip
        self._root, self._layout, self.line = root, layout, line
        key = json.dumps({"repo_id": place, "revision": revision, "task": "text-generation"})
        self._key = f"nnsight.modeling.transformers.TransformersModel:{key}"

    def read(
        self, inputs: Inputs, plan: Plan, sites: Sequence[Site], select: Select, resume: Resume = NOTHING
    ) -> Tensor:
        """See `Engine.read`: the selection is made on the server."""
        _check_whole(resume)
        visits = lay_out(self._root, self._layout, plan, sites)
        order = [visit.site for visit in visits if visit.wanted]
        found = self._run(plan, blocks.read, inputs, visits, select, inputs["attention_mask"].shape[-1])
        return torch.stack([found[order.index(site)] for site in sites], 1)

    def generate(self, inputs: Inputs, plan: Plan, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits = lay_out(self._root, self._layout, plan, ())
        ids, steps = self._run(plan, blocks.generate, inputs, visits, options)
        made = ids.shape[1] - inputs["input_ids"].shape[1]
        if visits and steps < made:
            raise SteeringError(
                f"the server made {made} new tokens but only {steps} steps were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not visited in order"
            )
        return torch.as_tensor(ids)

    def logits(
        self, inputs: Inputs, plan: Plan, keep: int | Tensor, resume: Resume = NOTHING, told: Told = same
    ) -> Any:
        """See `Engine.logits`: `told` is asked on the server."""
        _check_whole(resume)
        visits = lay_out(self._root, self._layout, plan, ())
        return self._run(plan, blocks.told_logits, inputs, visits, keep, inputs["attention_mask"].shape[-1], told)

    def prefill(self, inputs: Inputs) -> Prefix:
        """Refused: keys and values stay on the server."""
        raise RemoteError("keys and values of a prompt can't be kept from one request to the next", "refused")

    def _run(self, plan: Plan, block: Callable[..., Any], *arguments: Any) -> Any:
        """One block on the server, with what it wrote noted in the plan's own tallies."""
        _check_no_training(plan)
        edits = [edit for at in plan.values() for edit in at]
        wire = Wire(self.line, self._key, {})
        found, tallies = _sent(self._root, wire, block, arguments, edits)
        for edit, told in zip(edits, tallies, strict=True):
            edit.tally = Tally(*told)
        return found


def _sent(root: Any, wire: Wire, block: Callable[..., Any], arguments: Any, edits: Any) -> Any:
    with root.session(backend=wire):
        found = block(root, *arguments)
        answer = nnsight.save([found, [(e.tally.forwards, e.tally.writes, e.tally.ratio) for e in edits]])
    return answer


def _check_whole(resume: Resume) -> None:
    if resume.prefix is not None or resume.state is not None:
        raise RemoteError("a forward on a server begins at the embeddings: nothing is kept there", "refused")


def _check_no_training(plan: Plan) -> None:
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
