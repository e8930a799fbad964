"""The baseline without a vector: say it in words."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Intervention, Steerer

SAFETY_INSTRUCTION = (
    "If what I ask could cause harm, decline to help with it. If it concerns law, money or health, tell me "
    "to turn to a qualified professional. Otherwise simply answer."
)
LOOK_INSTRUCTION = "Examine the picture closely before you answer."


@savable
class Prompt(Steerer):
    """Append an instruction to the user's text and add no vector (the baseline every vector has to beat).

    Example:
        >>> Prompt().transform_prompt("How do I pick a lock?")
        'How do I pick a lock? If what I ask could cause harm, ...'

    Args:
        instruction: what to append, after a space; the default covers refusal and deferral to experts.

    Raises:
        SteeringError: its vectors are asked for (there are none; use `interventions`, which is empty).

    Source: arXiv 2508.12815, section 4 (Prompt); the wording is our own.
    """

    def __init__(self, instruction: str = SAFETY_INSTRUCTION) -> None:
        self.instruction = instruction

    def fit(self, acts: Activations | None = None) -> Prompt:
        """Nothing to learn."""
        return self

    def transform_prompt(self, prompt: str) -> str:
        """The prompt with the instruction after it."""
        return f"{prompt.rstrip()} {self.instruction}"

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Nothing is added to the residual stream."""
        return ()

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """There are none.

        Raises:
            SteeringError: always.
        """
        raise SteeringError("Prompt steers by words and has no vectors; use its `transform`")
