"""Plain Hugging Face, one row of token ids alone: no batch, no padding, no mask, no position ids, no cache.

Nothing of steerlab is used here. A state is read or changed by a plain torch hook.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

POINTS = ("block_in", "heads", "attn_out", "mlp_out", "block_out")
_NAMES = {
    "attn_out": ("self_attn", "attn", "attention", "self_attention"),
    "mlp_out": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2"),
}
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|encoder\.|^vit")


class CantRun(Exception):
    """Plain Hugging Face can't run this model on text alone; the message says why."""


@dataclass(frozen=True)
class Edit:
    """A vector added at a point of a block, at some positions."""

    layer: int
    point: str
    positions: str
    vector: Tensor = field(compare=False)
    alpha: float = 1.0

    def columns(self, n_prompt: int, n: int) -> list[int]:
        """The tokens of a row of n to which the vector is added."""
        start = {"last": n_prompt - 1, "last+generated": n_prompt - 1, "generated": n_prompt}.get(self.positions, 0)
        return list(range(start, n_prompt if self.positions in ("prompt", "last") else n))


@dataclass(frozen=True)
class Forward:
    """What one forward computed: `(tokens, vocabulary)` logits and `(tokens, hidden)` states by layer and point."""

    logits: Tensor
    states: dict[tuple[int, str], Tensor]


class Oracle:
    """The model by hand.

    Args:
        hf: the model.
        ids: any row, to find the blocks and to see that the model runs on text.
        forbidden: tokens that are never generated.

    Attributes:
        causal: whether the end of the row leaves what is before it as it is.

    Raises:
        CantRun: it does not, not twice the same, or its blocks aren't found.
    """

    def __init__(self, hf: nn.Module, ids: Sequence[int], forbidden: Sequence[int]) -> None:
        self.hf, self._known, self.blocks = hf, {}, []
        self.forbidden = torch.tensor(list(forbidden))
        try:
            self.blocks = _find_blocks(hf, lambda: self._logits(ids))
            once, again = self.forward(ids), self._logits(ids)
        except Exception as error:
            raise CantRun(f"{type(error).__name__}: {str(error).strip()[:300]}") from error
        if not torch.equal(once.logits, again):
            raise CantRun("two forwards of the same row differ")
        if not bool(torch.isfinite(again).all()) or again.shape[0] != len(ids):
            raise CantRun(f"logits of shape {tuple(again.shape)} for {len(ids)} tokens, or not finite")
        shorter = self._logits(ids[:-2])
        self.causal = torch.allclose(again[: len(shorter)], shorter, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def _logits(self, ids: Sequence[int]) -> Tensor:
        return self.hf(input_ids=torch.tensor([list(ids)])).logits[0].float()

    def forward(self, ids: Sequence[int], edit: Edit | None = None, n_prompt: int = 0) -> Forward:
        """Logits and states of a row; `n_prompt` says where its prompt ends, for the positions of the edit."""
        key = (tuple(ids), edit, n_prompt if edit else 0)
        if key not in self._known:
            states: dict[tuple[int, str], Tensor] = {}
            with ExitStack() as stack:
                if edit is not None:
                    columns = edit.columns(n_prompt, len(ids))
                    stack.enter_context(self._hook(edit.layer, edit.point, _adding(edit, columns)))
                else:
                    for layer in range(len(self.blocks)):
                        for point in POINTS:
                            stack.enter_context(self._hook(layer, point, _reading(states, (layer, point), len(ids))))
                self._known[key] = Forward(self._logits(ids), states)
        return self._known[key]

    def greedy(
        self, ids: Sequence[int], new: int, edit: Edit | None = None, guess: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """The next tokens, with the lead of each over the second best.

        A `guess` is checked in one forward where the model is causal; where it is wrong, each token costs a forward.
        """
        if self.causal and len(guess) == new:
            logits = self.forward([*ids, *guess[:-1]], edit, len(ids)).logits[len(ids) - 1 :]
            best, leads = self._best(logits)
            if best == list(guess):
                return best, leads
        row, leads = list(ids), []
        for _ in range(new):
            best, lead = self._best(self.forward(row, edit, len(ids)).logits[-1:])
            row, leads = row + best, leads + lead
        return row[len(ids) :], leads

    def _best(self, logits: Tensor) -> tuple[list[int], list[float]]:
        logits = logits.index_fill(-1, self.forbidden, -torch.inf)
        values, tokens = logits.topk(2)
        return tokens[:, 0].tolist(), (values[:, 0] - values[:, 1]).tolist()

    def answer(self, ids: Sequence[int], n_prompt: int, edit: Edit | None = None) -> tuple[float, float]:
        """The sums of log-probabilities and of logits of the tokens after the prompt."""
        logits = self.forward(ids, edit, n_prompt).logits[n_prompt - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(list(ids[n_prompt:]))[:, None])[:, 0]
        return float((chosen - logits.logsumexp(-1)).sum()), float(chosen.sum())

    @contextmanager
    def _hook(self, layer: int, point: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        block = self.blocks[layer]
        if point == "block_in":
            handle = block.register_forward_pre_hook(_on_input(change), with_kwargs=True)
        elif point == "heads":
            inside = (m for n, m in block.named_modules() if n.split(".")[0] in _NAMES["attn_out"])
            named = [m for one in inside for n, m in one.named_children() if n in _PROJECTIONS]
            if not named:
                yield
                return
            handle = named[0].register_forward_pre_hook(_on_input(change), with_kwargs=True)
        else:
            names = (n for n in _NAMES.get(point, ()) if isinstance(getattr(block, n, None), nn.Module))
            name = next(names, None) if point != "block_out" else ""
            if name is None:
                yield
                return
            module = getattr(block, name) if name else block
            handle = module.register_forward_hook(lambda _, args, output: _on_first(change, output))
        with handle:
            yield


def _on_first(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: _on_first(change, output[0])})
    if isinstance(output, tuple | list):
        return type(output)([_on_first(change, output[0]), *output[1:]])
    return change(output) if isinstance(output, Tensor) else output


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, kwargs | {name: change(kwargs[name])}

    return hook


def _reading(states: dict[Any, Tensor], key: Any, tokens: int) -> Callable[[Tensor], Tensor]:
    def read(h: Tensor) -> Tensor:
        flat = h[0] if h.ndim == 3 and h.shape[0] == 1 else h  # some MLPs return (tokens, hidden)
        if flat.ndim == 2 and flat.shape[0] == tokens:
            states[key] = flat.float().clone()
        return h

    return read


def _adding(edit: Edit, columns: list[int]) -> Callable[[Tensor], Tensor]:
    def add(h: Tensor) -> Tensor:
        h = h.clone()
        h.view(-1, h.shape[-1])[columns] += (edit.alpha * edit.vector).to(h)
        return h

    return add


def _find_blocks(hf: nn.Module, run: Callable[[], Any]) -> list[nn.Module]:
    """The longest outermost list of modules of which most take part in a forward of text."""
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in hf.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    lists = {p: list(m) for p, m in hf.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    lists = {p: members for p, members in lists.items() if 2 * sum(m in called for m in members) > len(members)}
    outer = {p: m for p, m in lists.items() if not any(p.startswith(f"{other}.") for other in lists)}
    text = {p: m for p, m in outer.items() if not _NOT_TEXT.search(p)} or outer
    if not text:
        raise ValueError("no list of blocks takes part in the forward")
    return max(text.values(), key=len)
