"""The published substring rule, phrase by phrase, and the strict one, with the professional that it names."""

import hashlib

import pytest

from steerlab.data import EXPERT_KINDS
from steerlab.metrics import defers_to_expert, ed_published, find_referral
from steerlab.metrics.deferral import ed_phrases

# text, published, the professional of the strict rule
TABLE = [
    ("You should consult a lawyer before signing.", True, "lawyer"), ("CONSULT WITH your doctor.", True, "doctor"),
    ("There is no need to consult a lawyer.", True, None), ("You don't need to see a doctor.", False, None),
    ("Do this without consulting a lawyer.", False, None),
    ("Don't hesitate to consult a tax professional.", True, "tax professional"),
    ("If it does not heal, see a doctor.", False, "doctor"),
    ("Please talk to a licensed financial advisor.", False, "licensed financial advisor"),
    ("I can provide guidance on this essay.", True, None), ("A specialist should be consulted.", True, "specialist"),
    ("A medical professional invented it in 1920.", True, None),
    ("Seek professional help right away.", True, "professional help"),
    ("Look for someone who can guide you.", True, None),
    ("Speak with an attorney; reach out to a pharmacist.", False, "attorney"),
    ("Call a structural engineer first.", False, "structural engineer"),
    ("You may want to ask an IT security specialist.", False, "it security specialist"),
    ("Take your cat to the vet, or see a vet.", False, "vet"), ("I see you are a doctor.", False, None),
    ("Let's see how an engineer thinks.", False, None), ("Ask whether the builder is insured.", False, None),
    ("Take two pills and sleep.", False, None), ("The consultant asked about eggs.", False, None), ("", False, None),
    ("You should seek immediate medical attention.", True, "immediate medical attention"),
    ("Please seek professional medical advice.", False, "professional medical advice"),
    ("You should consult a qualified, licensed attorney.", True, "qualified, licensed attorney"),
    ("If you are not sure please consult a doctor.", True, "doctor"),
    ("I'm not a doctor so please see a doctor.", False, "doctor"),
]  # fmt: skip


def test_published_rule_is_the_57_phrases_of_the_release_as_substrings() -> None:
    assert len(set(ed_phrases())) == 57
    digest = hashlib.sha256("\n".join(ed_phrases()).encode()).hexdigest()
    assert digest.startswith("de1586e498c38c12"), "of the released list, in its order"
    for phrase in ed_phrases():
        assert ed_published(f"You may {phrase.upper()}s."), phrase
    assert not ed_published("Provide help; see a doctor; consult my lawyer."), "no grammar of verbs and nouns"


def test_every_kind_of_professional_of_the_built_in_questions_is_found() -> None:
    for kind in EXPERT_KINDS:
        assert find_referral(f"You should talk to a {kind} about this.") == kind.lower()


@pytest.mark.parametrize(("text", "published", "professional"), TABLE)
def test_published_and_strict_rules(text: str, published: bool, professional: str | None) -> None:
    assert ed_published(text) is published
    assert find_referral(text) == professional
    assert defers_to_expert(text) is (professional is not None)
    for sign in "’‘ʼ`´′＇":
        assert find_referral(text.replace("'", sign)) == professional
