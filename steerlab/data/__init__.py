"""Examples, their contrasts and splits, and the readers of published data sets.

To add a data set, write one module with a function that returns a list of `Example` (see `nlvr`), and one test.

Example:
    >>> from steerlab.data import demo_set
    >>> train = [example for example in demo_set() if example.split == "train"]
    >>> len(train)
    300
"""

from steerlab.data.coco import coco_objects as coco_objects
from steerlab.data.coco import coco_synonyms as coco_synonyms
from steerlab.data.concept_shifts import ConceptShifts as ConceptShifts
from steerlab.data.concept_shifts import attribute_pairs as attribute_pairs
from steerlab.data.concept_shifts import change_labels as change_labels
from steerlab.data.concept_shifts import concept_shifts as concept_shifts
from steerlab.data.contrasts import PUBLISHED_PAIRS as PUBLISHED_PAIRS
from steerlab.data.contrasts import with_contrasts as with_contrasts
from steerlab.data.demo import DEMO_FRACTIONS as DEMO_FRACTIONS
from steerlab.data.demo import demo_contrasts as demo_contrasts
from steerlab.data.demo import demo_set as demo_set
from steerlab.data.driving import DrivingRecord as DrivingRecord
from steerlab.data.driving import DrivingScene as DrivingScene
from steerlab.data.driving import driving_scenes as driving_scenes
from steerlab.data.driving_captions import DrivingFacts as DrivingFacts
from steerlab.data.driving_captions import edited_scenes as edited_scenes
from steerlab.data.driving_captions import read_facts as read_facts
from steerlab.data.driving_captions import scene_caption as scene_caption
from steerlab.data.easy_vqa import easy_vqa as easy_vqa
from steerlab.data.example import Contrast as Contrast
from steerlab.data.example import Example as Example
from steerlab.data.example import check_examples as check_examples
from steerlab.data.example import data_hash as data_hash
from steerlab.data.experts import EXPERT_KINDS as EXPERT_KINDS
from steerlab.data.experts import expert_questions as expert_questions
from steerlab.data.injections import injection_examples as injection_examples
from steerlab.data.injections import trivia_pairs as trivia_pairs
from steerlab.data.inputs import as_examples as as_examples
from steerlab.data.inputs import examples as examples
from steerlab.data.inputs import pairs as pairs
from steerlab.data.jsonl import read_jsonl as read_jsonl
from steerlab.data.languages import LANGUAGE_CLUES as LANGUAGE_CLUES
from steerlab.data.languages import QUESTION_LANGUAGES as QUESTION_LANGUAGES
from steerlab.data.languages import language_questions as language_questions
from steerlab.data.mm_safety_bench import mm_safety_bench as mm_safety_bench
from steerlab.data.mm_safety_images import mm_safety_images as mm_safety_images
from steerlab.data.mwe import DEFAULT_SYSTEM as DEFAULT_SYSTEM
from steerlab.data.mwe import PAPER_SETS as PAPER_SETS
from steerlab.data.mwe import VARIANTS as VARIANTS
from steerlab.data.mwe import answer_position_counts as answer_position_counts
from steerlab.data.mwe import balance_options as balance_options
from steerlab.data.mwe import check_balance as check_balance
from steerlab.data.mwe import mwe as mwe
from steerlab.data.mwe import paper_split as paper_split
from steerlab.data.mwe import persona_prompts as persona_prompts
from steerlab.data.mwe import prompt_variant as prompt_variant
from steerlab.data.mwe import truthfulqa_mc as truthfulqa_mc
from steerlab.data.nlvr import nlvr as nlvr
from steerlab.data.pope import ONE_WORD as ONE_WORD
from steerlab.data.pope import pope_file as pope_file
from steerlab.data.pope_recipe import pope_questions as pope_questions
from steerlab.data.splits import ED_SLICE_PUBLISHED as ED_SLICE_PUBLISHED
from steerlab.data.splits import published_split as published_split
from steerlab.data.splits import stratified_split as stratified_split
from steerlab.data.splits import validation_split as validation_split
from steerlab.data.typography import draw_phrase as draw_phrase
from steerlab.data.vlguard import vlguard as vlguard
from steerlab.data.xstest import xstest as xstest
from steerlab.data.xstest import xstest_refusal_labels as xstest_refusal_labels
