"""Data: examples, their contrasts, their splits, and the sets we know how to read.

Example:
    >>> from steerlab.data import demo_set
    >>> train = [row for row in demo_set() if row.split == "train"]
    >>> len(train)
    300
"""

from __future__ import annotations

from steerlab.data.coco import coco_captions, coco_objects, coco_synonyms
from steerlab.data.contrasts import PUBLISHED_PAIRS, with_contrasts
from steerlab.data.demo import DEMO_FRACTIONS, demo_contrasts, demo_set
from steerlab.data.easy_vqa import easy_vqa
from steerlab.data.example import Contrast, Example, check_examples, data_hash
from steerlab.data.injections import injected
from steerlab.data.instructions import harmless_instructions, read_jsonl
from steerlab.data.mm_safety_bench import mm_safety_bench
from steerlab.data.mm_safety_images import mm_safety_images
from steerlab.data.mwe import (
    DEFAULT_SYSTEM,
    PAPER_SETS,
    VARIANTS,
    answer_position_counts,
    balance_options,
    check_balance,
    mwe,
    paper_split,
    persona_prompts,
    prompt_variant,
    truthfulqa_mc,
)
from steerlab.data.nlvr import nlvr
from steerlab.data.paragraphs import merge
from steerlab.data.pope import ONE_WORD, pope_file
from steerlab.data.pope_recipe import pope_questions
from steerlab.data.splits import ED_SLICE_PUBLISHED, published_split, stratified_split, validation_split
from steerlab.data.trivia import trivia_pairs
from steerlab.data.typography import typography
from steerlab.data.vlguard import vlguard
from steerlab.data.xstest import xstest, xstest_refusal_labels

__all__ = [
    "DEFAULT_SYSTEM",
    "DEMO_FRACTIONS",
    "ED_SLICE_PUBLISHED",
    "ONE_WORD",
    "PAPER_SETS",
    "PUBLISHED_PAIRS",
    "VARIANTS",
    "Contrast",
    "Example",
    "answer_position_counts",
    "balance_options",
    "check_balance",
    "check_examples",
    "coco_captions",
    "coco_objects",
    "coco_synonyms",
    "data_hash",
    "demo_contrasts",
    "demo_set",
    "easy_vqa",
    "harmless_instructions",
    "injected",
    "merge",
    "mm_safety_bench",
    "mm_safety_images",
    "mwe",
    "nlvr",
    "paper_split",
    "persona_prompts",
    "pope_file",
    "pope_questions",
    "prompt_variant",
    "published_split",
    "read_jsonl",
    "stratified_split",
    "trivia_pairs",
    "truthfulqa_mc",
    "typography",
    "validation_split",
    "vlguard",
    "with_contrasts",
    "xstest",
    "xstest_refusal_labels",
]
