"""Examples, their contrasts and splits, and the readers of published data sets.

To add a data set, write one module with a function that returns a list of `Example` (see `nlvr`), and one test.

Example:
    >>> from steerlab.data import demo_set
    >>> train = [example for example in demo_set() if example.split == "train"]
    >>> len(train)
    300
"""

from steerlab.data._mwe_balance import answer_position_counts, balance_options, check_balance, paper_split
from steerlab.data._mwe_variants import DEFAULT_SYSTEM, VARIANTS, persona_prompts, prompt_variant
from steerlab.data.coco import coco_objects, coco_synonyms
from steerlab.data.concept_shifts import ConceptShifts, attribute_pairs, change_labels, concept_shifts
from steerlab.data.contrasts import PUBLISHED_PAIRS, with_contrasts
from steerlab.data.demo import DEMO_FRACTIONS, demo_contrasts, demo_set
from steerlab.data.driving import DrivingRecord, DrivingScene, driving_scenes
from steerlab.data.driving_captions import DrivingFacts, edited_scenes, read_facts, scene_caption
from steerlab.data.easy_vqa import easy_vqa
from steerlab.data.example import Contrast, Example, check_examples, data_hash
from steerlab.data.experts import EXPERT_KINDS, expert_questions
from steerlab.data.injections import injection_examples, trivia_pairs
from steerlab.data.inputs import as_examples, examples, pairs
from steerlab.data.jsonl import read_jsonl
from steerlab.data.languages import LANGUAGE_CLUES, QUESTION_LANGUAGES, language_questions
from steerlab.data.mm_safety_bench import mm_safety_bench
from steerlab.data.mm_safety_images import mm_safety_images
from steerlab.data.mwe import PAPER_SETS, mwe, truthfulqa_mc
from steerlab.data.nlvr import nlvr
from steerlab.data.pope import ONE_WORD, pope_file
from steerlab.data.pope_recipe import pope_questions
from steerlab.data.splits import ED_SLICE_PUBLISHED, published_split, stratified_split, validation_split
from steerlab.data.typography import draw_phrase
from steerlab.data.vlguard import vlguard
from steerlab.data.xstest import xstest, xstest_refusal_labels

__all__ = [
    "DEFAULT_SYSTEM", "DEMO_FRACTIONS", "ED_SLICE_PUBLISHED", "EXPERT_KINDS", "LANGUAGE_CLUES", "ONE_WORD",
    "PAPER_SETS", "PUBLISHED_PAIRS", "QUESTION_LANGUAGES", "VARIANTS", "ConceptShifts", "Contrast", "DrivingFacts",
    "DrivingRecord", "DrivingScene", "Example", "answer_position_counts", "as_examples", "attribute_pairs",
    "balance_options", "change_labels", "check_balance", "check_examples", "coco_objects", "coco_synonyms",
    "concept_shifts", "data_hash", "demo_contrasts", "demo_set", "draw_phrase", "driving_scenes", "easy_vqa",
    "edited_scenes", "examples", "expert_questions", "injection_examples", "language_questions", "mm_safety_bench",
    "mm_safety_images", "mwe", "nlvr", "pairs", "paper_split", "persona_prompts", "pope_file", "pope_questions",
    "prompt_variant", "published_split", "read_facts", "read_jsonl", "scene_caption", "stratified_split",
    "trivia_pairs", "truthfulqa_mc", "validation_split", "vlguard", "with_contrasts", "xstest",
    "xstest_refusal_labels",
]  # fmt: skip
