"""Activation patching: which states of one run carry an answer over into another run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole, check_option, check_type, show
from steerlab.analysis._patching.attribution import attributed_values
from steerlab.analysis._patching.cells import patched_values
from steerlab.analysis._patching.run import Alignment, Cell, Metric, PatchRun
from steerlab.analysis._plain import not_added, plain_examples
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.inputs import Data
from steerlab.errors import DataError, LayoutError, SteerlabError
from steerlab.models.encoding import single_token
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.ready import check_ready
from steerlab.models.sites import Site


@background
def patch(
    model: Model,
    clean: Data,
    corrupted: Data,
    answers: Sequence[tuple[str, str]] | tuple[str, str] | None = None,
    *,
    metric: Metric | None = None,
    layers: Layers = "all",
    positions: Positions | Sequence[Positions] = "prompt",
    heads: Sequence[int] | None = None,
    alignment: Alignment | None = None,
    method: Literal["exact", "attribution"] = "exact",
    blocking: bool = True,  # handled by `background`
) -> pd.DataFrame:
    """Put single states of the clean run into the corrupted run, and measure what it says next.

    Each cell, a site and a token, is a run of its own: the corrupted prompt, with the state of the clean prompt at that
    site and token. Cells are packed as rows of few forwards, which start at the patched block and token where that
    gives the numbers of whole rows on this model. A token before the first at which the prompts differ has the same
    state in both and is not run.

    Example:
        >>> frame = patch(model, ["The capital of France is"], ["The capital of Italy is"], (" Paris", " Rome"))
        >>> ax = steerlab.plots.patch_heatmap(frame)

    Args:
        model: from `steerlab.load`.
        clean: prompts whose states are taken.
        corrupted: as many prompts, into which they are put.
        answers: the answer of the clean and of the corrupted prompt, a token each; a pair for all prompts, or one for
            each. The metric is the difference of their logits after the last token.
        metric: instead of answers, a function from logits after the last token `(row, vocabulary)`, float32, to a
            number for each row; it is given one row at a time. With "attribution" it has to be differentiable.
        layers: "all" (outputs of all blocks), layers or Sites, such as `[Site(k, "attn_out") for k in range(30)]`.
        positions: of the corrupted prompt; each token is a cell.
        heads: at sites "heads", these are patched one by one; None: all at once.
        alignment: which tokens of the two prompts belong together, where they have different lengths: counted from the
            "start", from the "end", or the clean prompt's token for tokens of the corrupted one, `{3: 4}`; others are
            left out.
        method: "exact" runs every cell. "attribution" estimates all cells from two forwards and one backward:
            (clean state - corrupted state) · gradient of the metric in the corrupted run.
        blocking: as in `capture`.

    Returns:
        A frame with a row for each cell: `example_id` (of the corrupted prompt), `layer`, `head` (-1: all), `column`
        (of the corrupted prompt, from 0), `token`, `clean_token`, `value` (of the metric), `restored` (0: as
        corrupted, 1: as clean), and the metric of both runs, `clean` and `corrupted`.

    Raises:
        DataError: prompts of different lengths without an alignment, another number of prompts, an answer that is not
            one token; a metric that gives no number for each row, or the same for both prompts.
        LayoutError: a site or head that the model does not have.
        SteerlabError: "attribution" on a model on a server.

    Warns:
        UserWarning: "attn_out" or "mlp_out" where it is not what is added to the residual stream (Gemma 2, BLOOM).

    Source: Meng et al., arXiv 2202.05262; attribution: Nanda 2023, Kramár et al., arXiv 2403.00745, equation 4.
    """
    check_ready(model)
    check_option("method", method, ("exact", "attribution"))
    if method == "attribution" and model.is_remote:
        raise SteerlabError(f"method='attribution' needs gradients, and {model.id} is not in this process")
    heads = None if heads is None else list(dict.fromkeys(as_whole("heads: one", head, None) for head in heads))
    sites, chosen = _sites(model, layers, heads), [None] if heads is None else [*heads]
    if not model.is_remote and (why := not_added(model, sites)):  # a server would be asked once more
        warnings.warn(f"patch puts in what the modules return, and {why}", stacklevel=3)
    places: list[Any] = [*positions] if isinstance(positions, list | tuple) else [positions]
    pairs = [plain_examples(data) for data in (clean, corrupted)]
    if len(pairs[0]) != len(pairs[1]):
        raise DataError(f"{len(pairs[0])} clean prompts and {len(pairs[1])} corrupted ones: they are compared in pairs")
    metrics = _metrics(model, answers, metric, len(pairs[0]))
    frames = []
    for ours, theirs, measure in zip(*pairs, metrics, strict=True):
        run = PatchRun.of(model, ours, theirs, sites, alignment, measure)
        cells = [Cell(site, head, column) for site in sites for head in chosen for column in run.columns(places)]
        values = attributed_values(run, cells) if method == "attribution" else patched_values(run, cells)
        frames.append(_frame(run, cells, values))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token minus that of another: the metric of `patch` where answers are given."""

    wanted: int
    other: int

    def __call__(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        return logits[:, self.wanted] - logits[:, self.other]


def _frame(run: PatchRun, cells: Sequence[Cell], values: Sequence[float]) -> pd.DataFrame:
    words = [[str(run.model.tokenizer.decode([i])) for i in row.ids] for row in (run.corrupted, run.clean)]
    rows = [
        {
            "example_id": run.corrupted.example_id, "layer": cell.site.label,
            "head": -1 if cell.head is None else cell.head, "column": cell.column, "token": words[0][cell.column],
            "clean_token": words[1][run.matched[cell.column]], "value": value,
            "restored": (value - run.base) / (run.goal - run.base), "clean": run.goal, "corrupted": run.base,
        }
        for cell, value in zip(cells, values, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _sites(model: Model, layers: Layers, heads: Sequence[int] | None) -> tuple[Site, ...]:
    sites = as_sites(layers, model)
    if sites[0].part != "text":
        raise LayoutError(f"patch puts states of tokens into a run, and {sites[0]} has patches of images")
    known = range(model.n_heads or 0)
    if heads is not None and (not heads or set(heads) - set(known) or any(site.point != "heads" for site in sites)):
        raise LayoutError(
            f"heads={show(heads)}: give numbers from 0 to {len(known) - 1}, and the sites where they are, "
            'layers=[Site(0, "heads"), ...]'
        )
    return sites


def _metrics(model: Model, answers: Any, metric: Metric | None, n: int) -> list[Metric]:
    """A metric for each pair of prompts."""
    if (answers is None) == (metric is None):
        raise DataError("give the two answers, (' Paris', ' Rome'), or a metric= of your own")
    if metric is not None:
        return [check_type("metric", metric, Callable, "a function of the logits")] * n  # type: ignore[arg-type]
    given = [] if isinstance(answers, str) else list(answers)
    pairs = [tuple(given)] * n if all(isinstance(answer, str) for answer in given) else given
    if len(pairs) != n or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise DataError(f"answers={show(answers)}: expected two texts, or a pair of them for each of {n} prompts")
    return [LogitDifference(*(single_token(model.tokenizer, answer) for answer in pair)) for pair in pairs]
