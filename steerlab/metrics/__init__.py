"""Numbers about answers: refusal, deferral, fluency, harm, yes/no accuracy, invented objects, and how sure they are."""

from steerlab.metrics.agreement import Agreement, agreement
from steerlab.metrics.bootstrap import Estimate, bootstrap_ci, paired_bootstrap
from steerlab.metrics.chair import CaptionObjects, ChairScores, chair, mentioned_objects
from steerlab.metrics.classifier import ClassifierJudge
from steerlab.metrics.deferral import deferral_rate, defers_to_expert
from steerlab.metrics.detection import detection_auc, detection_report, rates_at
from steerlab.metrics.fluency import distinct_n, distinct_n_mean, is_fluent, repetition
from steerlab.metrics.guard import LlamaGuardJudge
from steerlab.metrics.identical import share_identical
from steerlab.metrics.judges import Judge, KeywordJudge
from steerlab.metrics.numbers import exact_match, final_number
from steerlab.metrics.perplexity import perplexity
from steerlab.metrics.pope import PopeScores, binary_f1, l2s_accuracy, l2s_f1, parse_yes_no, pope_scores
from steerlab.metrics.refusal import is_refusal, refusal_kind, refusal_rate
from steerlab.metrics.unsafe import expected_unsafe, threshold_grid, unsafe_curve
from steerlab.metrics.yes_no import YesNo, yes_no_ids, yes_no_logits

__all__ = [
    "Agreement",
    "CaptionObjects",
    "ChairScores",
    "ClassifierJudge",
    "Estimate",
    "Judge",
    "KeywordJudge",
    "LlamaGuardJudge",
    "PopeScores",
    "YesNo",
    "agreement",
    "binary_f1",
    "bootstrap_ci",
    "chair",
    "deferral_rate",
    "defers_to_expert",
    "detection_auc",
    "detection_report",
    "distinct_n",
    "distinct_n_mean",
    "exact_match",
    "expected_unsafe",
    "final_number",
    "is_fluent",
    "is_refusal",
    "l2s_accuracy",
    "l2s_f1",
    "mentioned_objects",
    "paired_bootstrap",
    "parse_yes_no",
    "perplexity",
    "pope_scores",
    "rates_at",
    "refusal_kind",
    "refusal_rate",
    "repetition",
    "share_identical",
    "threshold_grid",
    "unsafe_curve",
    "yes_no_ids",
    "yes_no_logits",
]
