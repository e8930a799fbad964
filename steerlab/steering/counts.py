"""What was steered: how many states, and how far they moved, in a call, behind its texts and at each token."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from steerlab.models.interventions import Edit, ImageEdit, SiteEdits

Totals = tuple[int, float]  # states steered, and the sum of ‖h' - h‖/‖h‖ over them


def totals(edits: SiteEdits) -> Totals:
    """States steered, and the sum of their norm ratios, over all edits."""
    found = [edit.stats.totals() for at_site in edits.values() for edit in at_site]
    return sum(n for n, _ in found), sum((ratio for _, ratio in found), 0.0)


def text_totals(edits: SiteEdits, new: list[tuple[int, ...]]) -> Totals:
    """States steered behind the rows returned, and the sum of their norm ratios.

    The last new token of a row is never fed back, so a row of n new tokens has n - 1 decoded states. The edits' stats
    also hold the steps of rows that had already ended and of dropped beams. These cannot be separated: they keep their
    share in the mean ratio and lose it in the count, in which a row has at most its own states.
    """
    steered, ratios = 0, 0.0
    for edit in (e for at_site in edits.values() for e in at_site):
        writes, total = edit.stats.totals()
        counted = writes
        if writes and not isinstance(edit, ImageEdit):
            copies = len(new) // len(edit.prompt)
            most = edit.prompt.sum(1).cpu() * copies + _decoded(edit, new, copies)
            counted = int(edit.stats.rows()[0].cpu().reshape(len(most), -1).sum(1).minimum(most).sum())
        steered, ratios = steered + counted, ratios + (total * counted / writes if writes else 0.0)
    return steered, ratios


def summed_ratios(edits: SiteEdits) -> Tensor:
    """States written and the sum of their norm ratios; what several steerers do to one state adds up, as if they all
    pushed the same way.
    """
    found = torch.zeros(2)
    for at_site in edits.values():
        totals = [edit.stats.totals() for edit in at_site]
        found += torch.tensor([max(n for n, _ in totals), sum(ratio for _, ratio in totals)])
    return found


def token_ratios(edits: SiteEdits, width: int) -> list[pd.DataFrame]:
    """For each edit, the states written and the sum of their norm ratios by token, counted from the last prompt token.

    Rows are padded on the left: all prompts end at the same column.
    """
    found = []
    for site, edit in ((site, edit) for site, at_site in edits.items() for edit in at_site):
        if edit.stats.columns is not None:
            states, total = edit.stats.columns.cpu().numpy()
            tokens = range(1 - width, len(states) + 1 - width)
            found.append(
                pd.DataFrame({"site": [site] * len(states), "token": tokens, "states": states, "total": total})
            )
    return found


def ratio_frame(found: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean norm ratio of each site and token, from those of many batches."""
    if not found:
        return pd.DataFrame(columns=["layer", "token", "norm_ratio", "states"])
    summed = pd.concat(found).groupby(["site", "token"])[["states", "total"]].sum().query("states > 0").reset_index()
    return pd.DataFrame(
        {
            "layer": [site.label for site in summed["site"]], "token": summed["token"],
            "norm_ratio": summed["total"] / summed["states"], "states": summed["states"].astype(int),
        }
    )  # fmt: skip


def _decoded(edit: Edit, new: list[tuple[int, ...]], copies: int) -> Tensor:
    """Decoded states of each input, 0 where an edit does not steer it."""
    limit = edit.rule.first if edit.generated else 0
    counts = torch.tensor([max(len(ids) - 1, 0) for ids in new])
    counts = counts if limit is None else counts.clamp(max=limit)
    found = counts.reshape(-1, copies).sum(1)
    return found if edit.row_mask is None else found * edit.row_mask.cpu()
