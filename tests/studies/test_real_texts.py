"""Paragraphs of human-written texts, merged from short ones."""

import pytest
from _real_texts import merge_texts
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError

words = st.text("abcxyz", min_size=1, max_size=6)
sentence = st.lists(words, min_size=1, max_size=12).map(lambda some: " ".join(some).capitalize() + ".")


@given(st.lists(sentence, max_size=40), st.integers(1, 20), st.integers(0, 20))
def test_merged_texts_have_the_wanted_length_and_keep_their_order(parts, min_words, more):
    paragraphs = merge_texts(parts, min_words=min_words, max_words=min_words + more)
    assert all(min_words <= len(paragraph.split()) <= min_words + more for paragraph in paragraphs)
    rest = " ".join(parts)
    for paragraph in paragraphs:
        assert paragraph in rest
        rest = rest[rest.index(paragraph) + len(paragraph) :]


def test_merge_texts_adds_full_stops_and_bad_lengths_raise():
    assert merge_texts(["one two", 'three "four."'], min_words=4, max_words=9) == ['one two. three "four."']
    with pytest.raises(DataError, match="min_words=5 and max_words=4"):
        merge_texts(["a b"], min_words=5, max_words=4)
