"""What the verbs take as data: texts, messages, tables and pairs; and what they refuse."""

from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image

import steerlab
from steerlab import Contrast, Example
from steerlab.data import as_examples, examples, pairs
from steerlab.errors import DataError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it late?"}]
FRAME = pd.DataFrame({"ask": ["Is it late?", "Who are you?"], "good": ["Arr!", "Aye!"], "bad": ["Yes.", "I am."]})


def test_texts_messages_and_examples_go_in_together() -> None:
    found = as_examples(["Is it late?", CHAT, Example("Who are you?", id="mine")])
    assert [one.prompt for one in found] == ["Is it late?", CHAT, "Who are you?"]
    assert [one.id.split(":")[0] for one in found] == ["0", "1", "mine"]
    assert found[0].id != as_examples(["Is it early?"])[0].id, "a table of vectors by id can't steer another text"
    assert [one.prompt for one in as_examples(FRAME["ask"])] == list(FRAME["ask"])


def test_an_example_makes_an_id_from_its_texts_and_keeps_it() -> None:
    one = Example("Is it late?", Contrast("Arr!", "Yes."))
    assert one.id == Example("Is it late?", Contrast("Arr!", "Yes.")).id != Example("Is it late?").id
    assert one.replace(prompt="Is it early?").id == one.id


@pytest.mark.parametrize("as_table", [lambda frame: frame, datasets.Dataset.from_pandas], ids=["pandas", "datasets"])
def test_tables_go_in_by_the_names_of_their_columns(as_table: Any) -> None:
    found = examples(as_table(FRAME), prompt="ask", positive="good", negative="bad")
    assert [(one.prompt, one.contrast) for one in found] == [
        ("Is it late?", Contrast("Arr!", "Yes.")), ("Who are you?", Contrast("Aye!", "I am."))
    ]  # fmt: skip
    named = FRAME.rename(columns={"ask": "prompt"}).assign(id=["a", "b"], behavior="pirate", system="Be brief.")
    assert as_examples(as_table(named)) == [
        Example(ask, id=name, behavior="pirate", system="Be brief.")
        for ask, name in zip(FRAME["ask"], "ab", strict=True)
    ]
    whole = examples(as_table(FRAME), positive="good", negative="bad")
    assert [one.contrast for one in whole] == [one.contrast for one in pairs([("Arr!", "Yes."), ("Aye!", "I am.")])]
    (chat,) = examples(as_table(pd.DataFrame({"messages": [CHAT]})), prompt="messages")
    assert [dict(turn) for turn in chat.prompt] == CHAT  # type: ignore[arg-type]


def test_images_of_a_table_go_in_with_its_prompts() -> None:
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    found = steerlab.examples(pd.DataFrame({"prompt": ["What is it?"] * 4, "images": [red, blue, [red, blue], None]}))
    assert [one.images for one in found] == [(red,), (blue,), (red, blue), ()]
    assert len({one.id for one in found}) == 4, "ids are those of texts and images"


def test_equal_pairs_and_rows_get_ids_of_their_own() -> None:
    twice = pairs([("Arr!", "Yes."), ("Arr!", "Yes.")], prompts=["Is it late?", "Is it late?"])
    assert len({one.id for one in twice}) == 2
    assert len({one.id for one in examples(FRAME.iloc[[0, 0]], prompt="ask")}) == 2
    other = pairs([("Aye!", "I am.")], prompts=["Who are you?"])
    assert {one.id for one in other}.isdisjoint(one.id for one in twice), "the same number is no shared input"
    assert pairs([("a", "b")], prompts=[Example("c", id="mine", behavior="d")])[0].id == "mine"
    one = Example("c")
    assert len({row.id for row in pairs([("a", "b"), ("b", "a")], prompts=[one, one])}) == 2
    assert [row.prompt for row in pairs([("a", "b")] * 2, prompts=(text for text in "cd"))] == ["c", "d"]


def test_numbered_columns_whole_number_ids_and_missing_systems_are_read() -> None:
    frame = pd.DataFrame([["Is it late?", "Arr!", "Yes."]])
    assert examples(frame, prompt=0, positive=1, negative=2)[0].prompt == "Is it late?"
    found = examples(pd.DataFrame({"prompt": ["a", "b"], "id": [7, 8], "system": [None, "Be brief."]}))
    assert [(one.id, one.system) for one in found] == [("7", None), ("8", "Be brief.")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_examples("Hi"), "one string, 'Hi'"),
        (lambda: as_examples({"prompt": "Hi"}), r"\(dict\): give a list of prompts"),
        (lambda: as_examples([{"prompt": "Hi"}]), r"Example\(prompt, ...\), or a data frame"),
        (lambda: as_examples(CHAT), "a list of messages for one conversation"),
        (lambda: as_examples([("a", "b")]), r"steerlab.pairs\(\[\(wanted, unwanted\)"),
        (lambda: as_examples([3]), "item 0 of the data is 3"),
        (lambda: as_examples(FRAME), r"columns \['ask', 'good', 'bad'\]: name those"),
        (lambda: as_examples(datasets.DatasetDict({"train": datasets.Dataset.from_pandas(FRAME)})), r"data\['train'\]"),
        (lambda: examples(FRAME, prompt="text"), r"and not \['text'\]"),
        (lambda: examples(FRAME, prompt="ask", positive="good"), "name those of the prompts and answers"),
        (lambda: examples(pd.DataFrame([["q", "p"]], columns=["prompt", "prompt"])), r"several columns \['prompt'\]"),
        (lambda: examples(pd.DataFrame({"prompt": ["a"], "system": [3]})), "the column 'system': one is 3"),
        (lambda: examples([1, 2]), "expected a pandas DataFrame"),
        (lambda: examples(FRAME.assign(ask=[None, "Hi"]), prompt="ask"), "the column 'ask': one is"),
        (lambda: examples(FRAME.assign(ask=[3, 4]), prompt="ask"), "the column 'ask': one is 3"),
        (lambda: pairs({"good": "bad"}), "give a list"), (lambda: pairs("ab"), "give a list"),
        (lambda: pairs(FRAME), r"steerlab.examples\(table, positive"),
        (lambda: pairs([("a", "b", "c")]), r"for a prompt with two answers, pairs\(.*prompts="),
        (lambda: pairs(["ab"]), "pair 0 is 'ab'"), (lambda: pairs([("a", 3)]), "a text of pair 0 is 3"),
        (lambda: pairs([("a", "a")]), "zero vector"), (lambda: pairs([]), "empty"),
        (lambda: pairs([("a", "b")], prompts=[]), "1 pairs and 0 prompts"),
        (lambda: pairs([("a", "b")], prompts="Q?"), "a list of prompts in the order"),
        (lambda: pairs([("a", "b")], prompts={"c"}), "a list of prompts in the order"),
        (lambda: pairs([("a", "b")], prompts=FRAME), "a list of prompts in the order"),
        (lambda: Contrast("a", "b", suffix="c", whole_texts=True), "whole texts has no answers"),
        (lambda: Contrast("a", "b", end_turn=True, instructions=True), "instructions has no answers"),
        (lambda: Contrast("a", "b", whole_texts=True, instructions=True), "the other kind out"),
        (lambda: Contrast("a", ""), "two non-empty answers"),
        (lambda: Contrast(" ", "", instructions=True), "zero vector"),
        (lambda: Contrast("a", "", instructions=True, position="first_difference"), "have no answers"),
        (lambda: Example("c", Contrast("a", "b", whole_texts=True)), "has no prompt"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused_with_what_would_do(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_readme_names_are_at_the_top() -> None:
    assert steerlab.pairs is pairs and steerlab.examples is examples
