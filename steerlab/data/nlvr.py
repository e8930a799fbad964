"""NLVR: sentences about drawings of blocks, each true or false."""

from __future__ import annotations

import json
from pathlib import Path

from steerlab.data._files import Record, check_option, read_records
from steerlab.data._images import add_images
from steerlab.data.example import Example
from steerlab.errors import DataError, LoadError


def nlvr(path: str | Path, split: str = "dev", *, prompt: str = "{sentence}") -> list[Example]:
    r"""Sentences that are true or false of an image with three boxes; the gold label is the behavior.

    Example:
        >>> examples = nlvr("nlvr", "dev", prompt="Is this true of the image? {sentence}")      # doctest: +SKIP
        >>> examples[0].id, examples[0].behavior                                                # doctest: +SKIP
        ('nlvr/dev/1572-0', 'true')

    Args:
        path: a folder with `<split>.jsonl` and its images in `<split>_images.zip`, `<split>_images/` or `images/`.
        split: "dev" or "test".
        prompt: the question to the model; `{sentence}` stands for the sentence, typing errors included.

    Returns:
        One example per sentence, in file order. `meta` has image, sentence and structured_rep: JSON text, for each box
        the list of its objects with type, color, size and place.

    Raises:
        LoadError: a file or a field is missing.
        DataError: a label is neither true nor false, an image is missing, or the prompt has no `{sentence}`.

    Source: Suhr et al., A Corpus of Natural Language for Visual Reasoning, ACL 2017; CC BY 4.0.
    """
    if "{sentence}" not in prompt:
        raise DataError(f"the prompt {prompt!r} has no place for the sentence; write {{sentence}} where it belongs")
    folder = Path(path)
    examples = [_example(record, split, prompt) for record in read_records(folder / f"{split}.jsonl")]
    candidates = (folder / f"{split}_images.zip", folder / f"{split}_images", folder / "images")
    images = next((place for place in candidates if place.exists()), None)
    if images is None:
        raise LoadError(f"there are no images: expected one of {', '.join(map(str, candidates))}.")
    return add_images(examples, images)


def _example(record: Record, split: str, prompt: str) -> Example:
    label, sentence = str(record["label"]).lower(), record.text("sentence")
    check_option(f"{record.where}: label", label, ("true", "false"))
    return Example(
        id=f"nlvr/{split}/{record.key('identifier')}",
        prompt=prompt.replace("{sentence}", sentence),
        behavior=label,
        split="validation" if split == "dev" else split,
        meta={
            "image": str(record["image"]),
            "sentence": sentence,
            "structured_rep": json.dumps(record["structured_rep"]),
        },
    )
