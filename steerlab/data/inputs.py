"""What the verbs take as data: texts, messages, Examples, tables; and pairs of texts as examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import pandas as pd

from steerlab._support.checks import as_text, as_texts, show
from steerlab.data.example import Contrast, Example, check_examples
from steerlab.errors import DataError

Data = Iterable[Any]  # texts, lists of messages, Examples, or the rows of a data frame or a Hugging Face data set


def as_examples(data: Data) -> list[Example]:
    """The data as examples; the id of a plain prompt is its number and a fingerprint of it.

    Example:
        >>> [example.prompt for example in as_examples(["Hello there", "How are you?"])]
        ['Hello there', 'How are you?']

    Raises:
        DataError: what is no list of prompts or table with a column "prompt", an empty list, or an id that occurs
            twice.
    """
    if _columns(data) is not None:
        return examples(data)
    if _is_unordered(data):
        what = f"one string, {data[:40]!r}" if isinstance(data, str) else show(data)
        raise DataError(f"the data are {what}: give a list of prompts or Examples, [prompt] for one")
    return check_examples(_as_example(item, number) for number, item in enumerate(data))


def examples(
    table: Any, *, prompt: str | int | None = None, positive: str | int | None = None, negative: str | int | None = None
) -> list[Example]:
    """The rows of a pandas data frame or a Hugging Face data set as examples.

    Columns called "id", "behavior", "system", "split" and "images" (one or a list; none, nan or "" for none) are used
    where there are any. Without "id", the id of a row is a fingerprint of its contents; equal rows get a number too.

    Example:
        >>> frame = pd.DataFrame({"ask": ["Is it late?"], "pirate": ["Arr, it be late!"], "plain": ["Yes, it is."]})
        >>> examples(frame, prompt="ask", positive="pirate", negative="plain")[0].contrast.positive
        'Arr, it be late!'

    Args:
        table: a `pandas.DataFrame` or a `datasets.Dataset`.
        prompt: the column of the prompts, texts or messages; by default "prompt". Without such a column, each row is a
            pair of whole texts, as in `pairs`.
        positive, negative: the columns of the wanted and the unwanted answers; by default the columns of these names.

    Raises:
        DataError: no table, a column that it does not have, one answer without the other, or a missing cell.
    """
    columns = _columns(table)
    if columns is None:
        raise DataError(f"the table is {show(table)}: expected a pandas DataFrame or a Hugging Face Dataset")
    given = {"prompt": prompt, "positive": positive, "negative": negative}
    named = {
        field: field if column is None else str(column)
        for field, column in given.items() if column is not None or field in columns
    }  # fmt: skip
    missing = sorted({str(column) for column in named.values()} - set(columns))
    if missing or not named or ("positive" in named) != ("negative" in named):
        lacking = f", and not {missing}" if missing else ""
        raise DataError(
            f"the {type(table).__name__} has the columns {columns}{lacking}: name those of the prompts and answers, "
            "steerlab.examples(table, prompt=..., positive=..., negative=...)"
        )
    frame = isinstance(table, pd.DataFrame)
    records = table.rename(columns=str).to_dict("records") if frame else [dict(row) for row in table]
    return _with_ids(_as_row(record, named, columns) for record in records)


def pairs(data: Iterable[Any], *, prompts: Iterable[Any] | None = None, behavior: str = "") -> list[Example]:
    """Pairs of texts, `(wanted, unwanted)`, as examples with a contrast.

    Example:
        >>> pairs([("I love this.", "I hate this.")])[0].contrast.positive
        'I love this.'
        >>> pairs([("Arr, it be late!", "Yes, it is.")], prompts=["Is it late?"])[0].prompt
        'Is it late?'

    Args:
        data: the pairs. Without `prompts` they are whole texts: no chat template is applied, and each is read at its
            last token.
        prompts: the prompt, a text or messages, that each pair answers. The answers are then read over all their tokens
            (`capture` averages them).
        behavior: the behavior that the first text of each pair shows.

    Raises:
        DataError: something that is no pair of two different texts, or not one prompt for each pair.
    """
    if _is_unordered(data) or _columns(data) is not None:
        raise DataError(
            f"the pairs are {show(data)}: give a list, [('wanted text', 'unwanted text'), ...]; of a table, "
            "steerlab.examples(table, positive=..., negative=...)"
        )
    both = [_as_pair(item, number) for number, item in enumerate(data)]
    if prompts is not None and (_is_unordered(prompts) or _columns(prompts) is not None):
        raise DataError(f"prompts={show(prompts)}: give a list of prompts in the order of the pairs")
    if prompts is None:
        return _with_ids(Example("", Contrast(*pair, whole_texts=True), behavior=behavior) for pair in both)
    prompts = list(prompts)
    given = [_as_example(item, number) for number, item in enumerate(prompts)]
    if len(given) != len(both):
        raise DataError(f"there are {len(both)} pairs and {len(given)} prompts: give one prompt for each pair")
    return _with_ids(
        example.replace(
            contrast=Contrast(*pair), behavior=example.behavior or behavior,
            id=example.id if isinstance(item, Example) and not _made_its_id(item) else "",
        )
        for item, example, pair in zip(prompts, given, both, strict=True)
    )  # fmt: skip


def _is_unordered(data: object) -> bool:
    """Whether something is no series of items in an order."""
    return isinstance(data, str | bytes | Mapping | Set | Example) or not isinstance(data, Iterable)


def _columns(data: object) -> list[str] | None:
    """The names of a table's columns; None for what is no table."""
    found = getattr(data, "column_names", None) or (list(data.columns) if isinstance(data, pd.DataFrame) else None)
    if isinstance(found, Mapping) or (found is None and hasattr(data, "columns")):
        raise DataError(
            f"the data are a {type(data).__name__}: give one of its parts, such as data['train'], a pandas DataFrame "
            "(.to_pandas()) or a list of prompts"
        )
    names = None if found is None else list(map(str, found))
    if names and (repeated := [name for name, times in Counter(names).items() if times > 1]):
        raise DataError(f"the table has several columns {repeated}: give each a name of its own")
    return names


def _with_ids(rows: Iterable[Example]) -> list[Example]:
    """The examples; ids made from equal texts get a number."""
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        seen[row.id] += 1
        repeated = seen[row.id] > 1 and _made_its_id(row)
        numbered.append(row.replace(id=f"{row.id}/{seen[row.id]}") if repeated else row)
    return check_examples(numbered)


def _made_its_id(example: Example) -> bool:
    return example.id == example.replace(id="").id


def _as_example(item: object, number: int) -> Example:
    if isinstance(item, Example):
        return item
    if isinstance(item, str) or _is_chat(item):
        own = Example(item)  # type: ignore[arg-type]
        return own.replace(id=f"{number}:{own.id[:8]}")  # the number alone could be that of another text
    wanted = "a text, a list of messages or an Example"
    if isinstance(item, Mapping) and "role" in item:
        wanted = "a list of messages for one conversation: [[{'role': 'user', 'content': 'Hi'}], ...]"
    elif isinstance(item, Mapping):
        wanted = "Example(prompt, ...), or a data frame, pd.DataFrame(records)"
    elif isinstance(item, list | tuple):
        wanted = "pairs of texts from steerlab.pairs([(wanted, unwanted), ...])"
    raise DataError(f"item {number} of the data is {show(item)}: expected {wanted}")


def _as_pair(item: object, number: int) -> tuple[str, str]:
    if isinstance(item, list | tuple) and len(item) == 2:
        positive, negative = as_texts(f"pair {number}", item)
        return positive, negative
    hint = ""
    if isinstance(item, list | tuple) and len(item) == 3:
        hint = "; for a prompt with two answers, pairs([(wanted, unwanted), ...], prompts=[prompt, ...])"
    raise DataError(f"pair {number} is {show(item)}: expected two texts, (wanted, unwanted){hint}")


def _as_row(record: Mapping[Any, Any], named: Mapping[str, str], columns: Sequence[str]) -> Example:
    def text(column: str) -> str:
        return as_text(record[column], f"the column {column!r}: one")

    fields: dict[str, Any] = {name: text(name) for name in ("behavior", "split") if name in columns}
    if "id" in columns:
        fields["id"] = str(record["id"]) if isinstance(record["id"], Integral) else text("id")
    if "system" in columns and pd.isna(record["system"]) is not True:  # a missing one is the template's default
        fields["system"] = text("system")
    if "images" in columns:
        fields["images"] = images_of(record["images"])
    prompt: Any = ""
    if "prompt" in named:
        prompt = record[named["prompt"]]
        prompt = getattr(prompt, "tolist", lambda: prompt)()  # messages that passed through Arrow are an array
        prompt = prompt if _is_chat(prompt) else text(named["prompt"])
    if "positive" not in named:
        return Example(prompt, **fields)
    whole = "prompt" not in named
    return Example(prompt, Contrast(text(named["positive"]), text(named["negative"]), whole_texts=whole), **fields)


def images_of(given: Any) -> tuple[Any, ...]:
    """The images in a cell of a table: one, a list, or none, which is None, nan or an empty text there."""
    given = getattr(given, "tolist", lambda: given)()  # a list that passed through Arrow is an array
    listed = given if isinstance(given, list | tuple) else [given]
    return tuple(one for one in listed if not (one is None or one == "" or one != one))


def _is_chat(item: object) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(m, Mapping) and "role" in m for m in item)
