"""Metrics of answers: refusal, deferral, fluency, harm, yes/no accuracy, hallucinated objects, and intervals.

A text metric is a function in one file, with one test; `sweep(metric=...)` accepts any such function.
"""

from steerlab.metrics.bootstrap import Estimate, bootstrap_ci, bootstrap_ratio, paired_bootstrap, share_interval
from steerlab.metrics.chair import CaptionObjects, ChairScores, chair, mentioned_objects
from steerlab.metrics.deferral import defers_to_expert, ed_published, find_referral
from steerlab.metrics.detection import detection_auc, detection_report, rates_at
from steerlab.metrics.fluency import distinct_n, is_fluent, repetition, share_identical
from steerlab.metrics.judges import ClassifierJudge, Judge, KeywordJudge, LlamaGuardJudge
from steerlab.metrics.language import find_language
from steerlab.metrics.matching import Matching, correlations, match_codes, match_directions
from steerlab.metrics.numbers import exact_match, final_number
from steerlab.metrics.perplexity import perplexity
from steerlab.metrics.pope import PopeScores, l2s_accuracy, l2s_f1, parse_yes_no, pope_scores
from steerlab.metrics.refusal import is_refusal, refusal_kind
from steerlab.metrics.topic import ON_TOPIC, topic_gain
from steerlab.metrics.unsafe import expected_unsafe, threshold_grid, unsafe_curve
from steerlab.metrics.yes_no import YesNo, yes_no_ids, yes_no_logits

__all__ = [
    "ON_TOPIC", "CaptionObjects", "ChairScores", "ClassifierJudge", "Estimate", "Judge", "KeywordJudge",
    "LlamaGuardJudge", "Matching", "PopeScores", "YesNo", "bootstrap_ci", "bootstrap_ratio", "chair", "correlations",
    "defers_to_expert", "detection_auc", "detection_report", "distinct_n", "ed_published", "exact_match",
    "expected_unsafe", "final_number", "find_language", "find_referral", "is_fluent", "is_refusal", "l2s_accuracy",
    "l2s_f1", "match_codes", "match_directions", "mentioned_objects", "paired_bootstrap", "parse_yes_no", "perplexity",
    "pope_scores", "rates_at", "refusal_kind", "repetition", "share_identical", "share_interval", "threshold_grid",
    "topic_gain", "unsafe_curve", "yes_no_ids", "yes_no_logits",
]  # fmt: skip
