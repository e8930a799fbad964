"""POPE: yes/no questions about what an image shows, read from its published files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from steerlab._support.checks import check_type
from steerlab.data._files import Record, check_option, read_records
from steerlab.data._images import Missing, add_images
from steerlab.data.example import Example

# what is appended to a question, for an answer of one token
ONE_WORD = "Answer yes or no, in one word."

_OBJECT = re.compile(r"^is there an? (.+?) in the image", re.IGNORECASE)
_SUBSET = re.compile(r"random|popular|adversarial")


def pope_file(
    path: str | Path, *, images: str | Path | None = None, missing: Missing = "raise", instruction: str | None = None
) -> list[Example]:
    r"""The questions of a POPE file, each with its image; the gold answer is the behavior.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}'
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "coco_pope_popular.json"
        ...     _ = file.write_text(line + "\n")
        ...     example = pope_file(file, instruction=ONE_WORD)[0]
        >>> example.id, example.behavior, example.prompt
        ('coco_pope_popular/1', 'no', 'Is there a dog in the image? Answer yes or no, in one word.')

    Args:
        path: JSON lines with question_id, image, text and label. A field `image_file` overrides `image`; a field
            `subset` tells the parts of a joined file apart.
        images: the folder or zip file with the images, under the name in the file or, for COCO's names of 2014,
            under its number alone (`000000310196.jpg`); None reads the questions without images.
        missing: "raise" an error if an image is not there, or "skip" its questions and log how many.
        instruction: None keeps the question as it is in the file, "" cuts what follows its question mark, any other
            text (such as `ONE_WORD`) replaces what follows. L2S cuts it, so that answers can be sentences.

    Returns:
        One example per question, in file order, with image, subset ("random", "popular", "adversarial") and object
        in `meta`. With `missing="skip"` the answers may no longer be balanced.

    Raises:
        LoadError: the file, a field or the folder is missing, or a line is not JSON.
        DataError: a label is neither yes nor no, an id occurs twice, or images are missing (five are named,
            all of them are in the error's `missing`).

    Source: Li et al., POPE, arXiv 2305.10355.
    """
    check_type("instruction", instruction, (str, type(None)), "a text, or None to keep that of the file")
    examples = (_example(Path(path).stem, record, instruction) for record in read_records(path))
    return add_images(examples, images, missing, coco_number)


def replace_instruction(question: str, instruction: str | None) -> str:
    """The question with the text after its question mark replaced, cut off ("") or kept (None)."""
    if instruction is None:
        return question
    bare = question[: question.rfind("?") + 1] or question.strip()
    return f"{bare} {instruction}" if instruction and not instruction[0].isspace() else bare + instruction


def coco_number(name: str) -> Iterator[str]:
    """COCO's newer name of an image of 2014: its number alone."""
    if name.startswith("COCO_"):
        yield name.rsplit("_", 1)[1]


def _example(stem: str, record: Record, instruction: str | None) -> Example:
    question, label = record.text("text"), str(record["label"]).strip().lower()
    check_option(f"{record.where}: label", label, ("yes", "no"))
    subset = record.get("subset")
    about = _OBJECT.match(question)
    return Example(
        id="/".join([stem, *([str(subset)] if subset else []), record.key("question_id")]),
        prompt=replace_instruction(question, instruction),
        behavior=label,
        meta={
            "image": str(record.get("image_file") or record["image"]),
            "subset": str(subset or next(iter(_SUBSET.findall(stem)[::-1]), stem)),
            "object": about[1] if about else "",
        },
    )
