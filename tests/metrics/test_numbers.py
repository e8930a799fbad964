"""The last number of an answer, and exact match."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.metrics.numbers import exact_match, final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("They raise $2,280.", "2280"), ("3 + 4 = 7", "7"), ("It is 12.50 dollars", "12.5"), ("-3", "-3"),
        ("the answer is −3.", "-3"), ("50%", "50"), ("$-4", "-4"), ("none at all", None), ("", None), ("-$5.00!", "-5"),
        ("**Answer: 18**", "18"), ("5 apples, then 6.", "6"), ("model2 and v1.5b", None), ("12,345,678", "12345678"),
        ("It weighs 12.5kg", "12.5"), ("5 bags of 20kg", "20"), ("3 times, covers 20km.", "20"), ("of 3, $.75", ".75"),
        ("3 hours, so 1.5e3", "1500"), ("Numbers 1,2,3", "3"), ("12 on the 3rd day", "12"), ("5, or $20k", None),
        ("3 in version 1.2.3", None), ("a $5m loss of 3", "3"), ("3 a share, $5m in all", None), ("5m of rope", "5"),
        (r"\boxed{1{,}000}", "1000"), (r"\boxed{12\text{ ft}^2}", "12"), (r"3{,}005", "3005"), (r"1\,000", "1000"),
        ("12 cm^3", "12"), ("so 2^10", None), ("2^{10}", None), ("x^2 = 4", "4"),
        ("5/2", None), ("open 24/7!", None), ("12 thousand", None), ("2 million, so 3", "3"), ("1\u202f000", "1000"),
        (r"\boxed{\frac{5}{2}}", None), (r"3\sqrt{2}", None), ("5 / 2.", None), ("is 1 000.", None), ("10³", None),
        (r"\boxed{1\ 000}", None), ("2½", None), (r"\frac{10}{5} = 2", "2"), ("6 / 3 = 2", "2"), ("25m²", "25"),
        ("12 \n300", "300"), ("12,34,567 rupees", None), ("10, 20,300", "20300"), ("5,000,6,000", "6000"),
        ("1,-2,000", "-2000"), ("is –5.", "-5"), ("3–5", "5"), ("12,5 Euro", None),
        ("ends at 12:30", None), ("Q1:42", "42"),
    ],
)  # fmt: skip
def test_final_number_in_common_notations(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "so {}.", "= ${:,}", "{}%", "**{}**", "1, 2, then {}"]))
def test_final_number_of_formatted_integers(n: int, dress: str) -> None:
    assert final_number(dress.format(n)) == n


def test_exact_match_of_texts_and_answers() -> None:
    assert exact_match(["It is 7.0", "no", "8"], ["7", "1", "9"]) == [1.0, 0.0, 0.0]
