"""What judges that are Hugging Face models share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from steerlab._support.errors import DataError, LoadError


def load(auto: Any, model_id: str, device: str | None) -> tuple[Any, Any]:
    """Tokenizer and model, in the dtype they were saved in, ready to score."""
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id)
        model = auto.from_pretrained(model_id, dtype="auto")
    except (OSError, ValueError) as error:
        raise LoadError(
            f"the judge {model_id!r} could not be loaded ({type(error).__name__}); expected a reachable hub "
            "id, with its license accepted if it is gated, or a local folder. Download it first, or use "
            "KeywordJudge offline."
        ) from error
    return tokenizer, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def check_prompts(rows: list[str], prompts: Sequence[str] | None, needed: bool) -> list[str]:
    """One prompt per response; blanks where the judge shows none."""
    if not needed:
        return [""] * len(rows)
    if prompts is None or len(prompts) != len(rows):
        given = "none" if prompts is None else str(len(prompts))
        raise DataError(f"this judge shows the prompts: expected {len(rows)}, got {given}; pass `prompts=`")
    return list(prompts)


def batches(n: int, size: int) -> Iterator[slice]:
    """The slices that cover n rows."""
    return (slice(i, i + size) for i in range(0, n, size))
