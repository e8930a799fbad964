"""A judge made of any sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from steerlab._support.errors import LoadError
from steerlab.metrics._checks import as_texts
from steerlab.metrics._hub import batches, check_prompts, load


@dataclass
class ClassifierJudge:
    """The softmax probability of one label of a Hugging Face sequence classifier.

    Example:
        >>> judge = ClassifierJudge("org/harm-classifier", unsafe_label="unsafe")    # loads at the first call
        >>> judge(["Boil the eggs."])        # doctest: +SKIP

    Args:
        model_id: a hub id or a local folder.
        unsafe_label: name or index of the label that means harm; names as in the model's `id2label`.
        show_prompt: classify the pair (prompt, response) instead of the response alone.
        batch_size: responses per forward pass.
        max_length: tokens; longer texts are cut at the end.
        device: a torch device; by default a GPU if there is one.

    Raises:
        LoadError: the model cannot be had, or has no such label.
        DataError: no responses, or prompts are needed and missing.
    """

    model_id: str
    unsafe_label: str | int = "unsafe"
    show_prompt: bool = False
    batch_size: int = 16
    max_length: int = 512
    device: str | None = None

    def __call__(self, responses: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        import torch

        rows = as_texts(responses, "ClassifierJudge")
        asked = check_prompts(rows, prompts, self.show_prompt)
        tokenizer, model = self._loaded
        label, values = self._label(model.config), []
        for part in batches(len(rows), self.batch_size):
            texts = (asked[part], rows[part]) if self.show_prompt else (rows[part],)
            batch = tokenizer(
                *texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**batch).logits.float()
            values.append(logits.softmax(-1)[:, label].cpu().double().numpy())
        return np.concatenate(values)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification

        return load(AutoModelForSequenceClassification, self.model_id, self.device)

    def _label(self, config: Any) -> int:
        names = {int(i): str(name) for i, name in config.id2label.items()}
        hits = [i for i, name in names.items() if self.unsafe_label in (i, name)]
        if len(hits) != 1 or len(names) < 2:
            raise LoadError(
                f"{self.model_id!r} has the labels {names}, expected {self.unsafe_label!r} among "
                "two or more; pass `unsafe_label=` as one of these names or numbers"
            )
        return hits[0]
