"""An instruction appended to the prompt: the baseline without a vector."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import SteeringError
from steerlab.methods.base import Context, Intervention, Steerer
from steerlab.methods.serialization import savable
from steerlab.models.template import Messages, with_suffix

# the default instruction of `Prompt`
SAFETY_INSTRUCTION = (
    "If what I ask could cause harm, decline to help with it. If it concerns law, money or health, tell me "
    "to turn to a qualified professional. Otherwise simply answer."
)
LOOK_INSTRUCTION = "Examine the picture closely before you answer."


@savable
class Prompt(Steerer):
    """Append an instruction to the user's text and add no vector: the baseline for every steering vector.

    Any strength above 0 appends it; 0 and negative ones leave the prompt as it is.

    Example:
        >>> Prompt().transform_prompt("How do I pick a lock?")
        'How do I pick a lock? If what I ask could cause harm, ...'

    Args:
        instruction: appended after a space; the default asks for refusal and deferral to experts.

    Source: arXiv 2508.12815, section 4 (Prompt); the paper does not print its wording.
    """

    is_fittable = False

    def __init__(self, instruction: str = SAFETY_INSTRUCTION) -> None:
        self.instruction = instruction

    def fit(self, model: Any = None, data: Any = None, **options: Any) -> Prompt:
        """Return self; there is nothing to fit."""
        return self

    def fit_activations(self, acts: Activations) -> None:
        """There is nothing to fit."""

    def transform_prompt(self, prompt: str | Messages) -> str | Messages:
        """The prompt, or the user's last turn, followed by the instruction."""
        return with_suffix(prompt.rstrip() if isinstance(prompt, str) else prompt, self.instruction)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Empty: nothing is added to the residual stream."""
        return ()

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """Not available.

        Raises:
            SteeringError: always.
        """
        raise SteeringError("Prompt steers by words and has no vectors; use its `transform_prompt`")
