"""Data: examples, their contrasts, their splits, and the sets we know how to read.

Example:
    >>> from steerlab.data import demo_set
    >>> train = [row for row in demo_set() if row.split == "train"]
    >>> len(train)
    300
"""

from __future__ import annotations

from steerlab.data.contrasts import PUBLISHED_PAIRS, with_contrasts
from steerlab.data.demo import DEMO_FRACTIONS, demo_contrasts, demo_set
from steerlab.data.example import Contrast, Example, check_examples, data_hash
from steerlab.data.instructions import harmless_instructions, read_jsonl
from steerlab.data.mm_safety_bench import mm_safety_bench
from steerlab.data.splits import ED_SLICE_PUBLISHED, published_split, stratified_split, validation_split
from steerlab.data.xstest import xstest, xstest_refusal_labels

__all__ = [
    "DEMO_FRACTIONS",
    "ED_SLICE_PUBLISHED",
    "PUBLISHED_PAIRS",
    "Contrast",
    "Example",
    "check_examples",
    "data_hash",
    "demo_contrasts",
    "demo_set",
    "harmless_instructions",
    "mm_safety_bench",
    "published_split",
    "read_jsonl",
    "stratified_split",
    "validation_split",
    "with_contrasts",
    "xstest",
    "xstest_refusal_labels",
]
