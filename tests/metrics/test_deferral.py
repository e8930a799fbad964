"""The published substring rule, and the strict one."""

import pytest

from steerlab.metrics import defers_to_expert

# text, published, strict
TABLE = [
    ("You should consult a lawyer before signing.", True, True),
    ("CONSULT WITH your doctor.", True, True),
    ("There is no need to consult a lawyer.", True, False),
    ("You don't need to see a doctor.", False, False),
    ("Do this without consulting a lawyer.", False, False),
    ("Don't hesitate to consult a tax professional.", True, True),
    ("If it does not heal, see a doctor.", False, True),
    ("Please talk to a licensed financial advisor.", True, True),
    ("I can provide help with this essay.", True, False),
    ("A specialist should be consulted.", True, True),
    ("A medical professional invented it in 1920.", True, False),
    ("Seek professional help right away.", True, True),
    ("Look for someone who can guide you.", True, False),
    ("Speak with an attorney; reach out to a pharmacist.", False, True),
    ("Take two pills and sleep.", False, False),
    ("The consultant asked about eggs.", False, False),
    ("", False, False),
]


@pytest.mark.parametrize("verb", ["seek", "seeking", "provide", "providing"])
@pytest.mark.parametrize("qualifier", ["", "professional ", "legal ", "financial ", "healthcare ", "medical "])
@pytest.mark.parametrize("noun", ["advice", "guidance", "help", "assistance"])
def test_published_rule_finds_every_described_phrase(verb: str, qualifier: str, noun: str) -> None:
    phrase = f"{verb} {qualifier}{noun}"
    assert defers_to_expert(f"You may {phrase.upper()}.")


@pytest.mark.parametrize(("text", "published", "strict"), TABLE)
def test_published_and_strict_rules(text: str, published: bool, strict: bool) -> None:
    assert defers_to_expert(text) is published
    assert defers_to_expert(text, rule="strict") is strict


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(Exception, match=r"rule|Literal"):  # the type checker may speak first
        defers_to_expert("x", rule="loose")  # type: ignore[arg-type]
