"""`capture_words`: the states that predict chosen words in answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from steerlab._support.checks import show
from steerlab._support.files import fingerprint
from steerlab._support.progress import bar as progress_bar
from steerlab.capturing.activations import Activations, CapturedBatch
from steerlab.capturing.capture import BatchRunner
from steerlab.capturing.rows import CaptureRow, Layers, as_sites, encode_example, index_labels
from steerlab.data.example import Example, data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, LayoutError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.ready import check_ready

Words = Sequence[str] | Mapping[str, Sequence[str]]


def capture_words(
    model: Model, data: Data, answers: Sequence[str], words: Words, *, layers: Layers = "all", batch_size: int = 16,
    dtype: torch.dtype = torch.float32, progress: bool = True,
) -> Activations:  # fmt: skip
    """Capture the states that predict a word: those of the token before the one in which the word begins.

    A word is found in the answer's text, whole and in any case, not among tokens. So a tokenizer that writes a space as
    a token of its own, or a word in several tokens, makes no difference. Prompt and answer run together, in the tokens
    of their texts; a model may have generated the same text in others.

    Example:
        >>> captions = steerlab.generate(model, images)
        >>> acts = capture_words(model, images, captions, {"dog": ["dog", "dogs", "puppy"]}, layers=[15])
        >>> acts.index[["example_id", "behavior", "token"]], acts.info["words"]

    Args:
        model: from `steerlab.load`.
        data: prompts, as in `capture`; a contrast is ignored.
        answers: a text for each prompt, such as those of `generate`; without a chat template, with the space that
            separates it from its prompt.
        words: words, or several words under each name.
        layers: "all", a layer, or layers and Sites of the text.
        batch_size, dtype, progress: as in `capture`.

    Returns:
        Activations with a row for each answer and each name, of the first of its words in the answer; none where the
        answer has none. `side` is "answer", `behavior` the name, `column` and `token` say which state it is.
        `info["words"]` counts the rows of each name.

    Raises:
        DataError: not one answer for each prompt, no words, a name whose word is empty, no word in any answer, or an
            answer that goes on with the last word of its prompt.
        LayoutError: a site of images.

    Source: arXiv 2501.03012, section 3, and arXiv 2406.08074 (tokens of interest).
    """
    check_ready(model)
    examples, sites = as_examples(data), as_sites(layers, model)
    if sites[0].part != "text":
        raise LayoutError(f"{sites[0]} has no tokens, and so no words: give layers of the text")
    if isinstance(answers, str) or len(answers) != len(examples):
        raise DataError(f"{len(examples)} prompts, and {len(answers)} answers: give a text for each prompt")
    patterns = {name: _pattern(name, several) for name, several in _by_name(words).items()}
    planned = [
        _plan_row(model, example, number, answer, patterns)
        for number, (example, answer) in enumerate(zip(examples, answers, strict=True))
        if answer.strip()
    ]
    rows = [row for row in planned if row.groups]
    if not rows:
        raise DataError(f"none of {len(answers)} answers has one of the words of {list(patterns)}")
    run, captured = BatchRunner(model, sites, dtype, "right", "none"), list[CapturedBatch]()
    with progress_bar(len(rows), "capture", "row", progress) as bar:
        for numbers in model.batches([row.prompt for row in rows], batch_size, "right"):
            captured += run([rows[i] for i in numbers])
            bar.update(len(numbers))
    counts = Counter(label["behavior"] for row in rows for label in row.labels)
    info = model.info() | {"data": data_hash(examples), "tokens": fingerprint([row.prompt.ids for row in rows])}
    info |= {"words": {name: counts[name] for name in patterns}, "sites": [str(site) for site in sites]}
    return Activations.join(captured, sites, info)


def _plan_row(
    model: Model, example: Example, number: int, answer: str, patterns: Mapping[str, re.Pattern[str]]
) -> CaptureRow:
    """The row of an answer, with a group for each name that has a word in it."""
    row = encode_example(model, example, example.prompt, answer=answer)
    start = row.offsets[row.n_prompt][0]
    if start and (row.text[start - 1] + row.text[start]).isalnum():
        raise DataError(
            f"{example.id!r}: answer {show(answer)} goes on with the prompt's last word: begin it with a space"
        )
    found = {name: _token_before(row, pattern) for name, pattern in patterns.items()}
    tokens = {name: token for name, token in found.items() if token is not None}
    labels = [
        index_labels(example, number, "answer", f"before {name}")
        | {"behavior": name, "column": token, "token": row.ids[token], "n_tokens": 1}
        for name, token in tokens.items()
    ]
    return CaptureRow(row, tuple((token,) for token in tokens.values()), tuple(labels))


def _by_name(words: Words) -> dict[str, tuple[str, ...]]:
    named = dict(words) if isinstance(words, Mapping) else {word: (word,) for word in words}
    if isinstance(words, str) or not named or any(isinstance(v, str) for v in named.values()):
        raise DataError(f"words={words!r}: give a list of words, or {{name: [words]}}")
    return {str(name): tuple(several) for name, several in named.items()}


def _pattern(name: str, words: Sequence[str]) -> re.Pattern[str]:
    if not words or not all(word.strip() for word in words):
        raise DataError(f"the words of {name!r} are {list(words)}: give at least one, and none empty")
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word.strip()) for word in words)})(?!\w)", re.IGNORECASE)


def _token_before(row: EncodedPrompt, pattern: re.Pattern[str]) -> int | None:
    """The token before the one with the first letter of the first match in the answer; None without a match."""
    match = pattern.search(row.text, row.offsets[row.n_prompt][0])
    if match is None:
        return None
    return next(i for i, (a, b) in enumerate(row.offsets) if i >= row.n_prompt and a <= match.start() < b) - 1
