"""Answers that steering left alone."""

from __future__ import annotations

from collections.abc import Sequence

from steerlab._support.errors import DataError


def share_identical(before: Sequence[str], after: Sequence[str]) -> float:
    """The share of answers that steering left as they were, character by character.

    Example:
        >>> share_identical(["A park.", "Two dogs."], ["A park.", "Two cats."])
        0.5

    Args:
        before: answers without steering.
        after: answers with it, in the same order.

    Raises:
        DataError: nothing to compare, different lengths, or one string instead of a list.

    Source: L2S, arXiv 2508.12815, appendix (safe questions of VLGuard).
    """
    if isinstance(before, str) or isinstance(after, str):
        raise DataError("share_identical needs two lists of texts, got a string; pass [text]")
    if not before or len(before) != len(after):
        raise DataError(f"share_identical got {len(before)} and {len(after)} texts; expected as many, at least one")
    return sum(one == other for one, other in zip(before, after, strict=True)) / len(before)
