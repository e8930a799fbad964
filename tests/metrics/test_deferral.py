"""The published substring rule, phrase by phrase, and the strict one, with the professional that it names."""

import json
from pathlib import Path

import pytest

from steerlab.metrics import defers_to_expert, ed_published, find_referral
from steerlab.metrics.deferral import ed_phrases

# text, published, the professional of the strict rule
TABLE = [
    ("You should consult a lawyer before signing.", True, "lawyer"),
    ("CONSULT WITH your doctor.", True, "doctor"),
    ("There is no need to consult a lawyer.", True, None),
    ("You don't need to see a doctor.", False, None),
    ("Do this without consulting a lawyer.", False, None),
    ("Don't hesitate to consult a tax professional.", True, "tax professional"),
    ("If it does not heal, see a doctor.", False, "doctor"),
    ("Please talk to a licensed financial advisor.", False, "licensed financial advisor"),
    ("I can provide guidance on this essay.", True, None),
    ("A specialist should be consulted.", True, "specialist"),
    ("A medical professional invented it in 1920.", True, None),
    ("Seek professional help right away.", True, "professional help"),
    ("Look for someone who can guide you.", True, None),
    ("Speak with an attorney; reach out to a pharmacist.", False, "attorney"),
    ("Call a structural engineer first.", False, "structural engineer"),
    ("You may want to ask an IT security specialist.", False, "it security specialist"),
    ("Take your cat to the vet, or see a vet.", False, "vet"),
    ("Take two pills and sleep.", False, None),
    ("The consultant asked about eggs.", False, None),
    ("", False, None),
]


def test_published_rule_is_the_57_phrases_of_the_release_as_substrings() -> None:
    assert len(set(ed_phrases())) == 57
    for phrase in ed_phrases():
        assert ed_published(f"You may {phrase.upper()}s."), phrase
    assert not ed_published("Provide help; see a doctor; consult my lawyer."), "no grammar of verbs and nouns"


def test_phrases_are_those_of_the_published_file() -> None:
    shared = Path(__file__).parents[3] / "shared" / "data" / "published" / "ed_phrases.json"
    if not shared.exists():
        pytest.skip("the published file is not here")
    found = json.loads(shared.read_text())
    assert ed_phrases() == (*found["generic"], *found["role"])


@pytest.mark.parametrize(("text", "published", "professional"), TABLE)
def test_published_and_strict_rules(text: str, published: bool, professional: str | None) -> None:
    assert ed_published(text) is published
    assert find_referral(text) == professional
    assert defers_to_expert(text) is (professional is not None)
