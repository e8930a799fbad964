"""The layers and ramps that were released with AdaSteer, and a steerer from arrays of that release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.methods.adasteer.schedules import Ramp
from steerlab.methods.adasteer.steerer import AdaSteer, Place


@dataclass(frozen=True)
class PublishedAdaSteer:
    """What was released for one model, with the signs of the release; `rejection` and `compliance` have ours.

    Attributes:
        n_layers, hidden_size: of the model.
        rejection_layer, harmfulness_layer: block outputs at which the two positions are read, 0-based.
        alpha: coefficient of RD, as a law of p_R; negative is towards refusal.
        beta: coefficient of the projection of HD on RD, as a law of p_H.

    Source: the code released with AdaSteer, arXiv 2504.09466.
    """

    n_layers: int
    hidden_size: int
    rejection_layer: int
    harmfulness_layer: int
    alpha: Ramp
    beta: Ramp

    @property
    def rejection(self) -> Ramp:
        """The law of our alpha: RD points to compliance and our vector to refusal, so the coefficient turns too."""
        return self.alpha.negated()

    @property
    def compliance(self) -> Ramp:
        """The law of our beta: the second vector is c * RD, and c does not depend on the signs."""
        return self.beta.negated()


#: By model. What these laws do, as far as it can be told from the arrays (p is 0 at complied harmful prompts):
#:
#: - Llama: alpha is nearly a step, from .22 to .08 of a rejection (our sign) as p_R goes from -71 to -64. Beta gives
#:   benign prompts compliance back at the blocks where c < 0 only, and pushes them to refusal below those.
#: - Qwen: alpha is .2 up to p_R = 138, on for nearly everything. **Beta contradicts the law of harmfulness**: benign
#:   prompts (p_H near 100, and c > 0 at every block) are pushed *further to refusal*, by .6 c. It is kept as released.
#: - Gemma: beta follows the law: benign prompts are pushed towards compliance.
#:
#: The last row of the released arrays was read behind the final norm, so it is not in the units of the last block's
#: output, to which the release adds it all the same.
PUBLISHED_ADASTEER: dict[str, PublishedAdaSteer] = {
    "llama-3.1-8b-instruct": PublishedAdaSteer(
        32, 4096, 8, 13, Ramp(0.02, 0.02 * 60, -0.22, -0.08), Ramp(-0.05, -0.05 * 5 - 0.5, -0.75, None)
    ),
    "qwen2.5-7b-instruct": PublishedAdaSteer(
        28, 3584, 5, 13, Ramp(0.1, -0.1 * 140, -0.2, 0.0), Ramp(-0.06, 0.06 * 50, -0.6, 0.4)
    ),
    "gemma-2-9b-it": PublishedAdaSteer(
        42, 3584, 12, 19, Ramp(0.004, -0.004 * 35, -0.02, 0.06), Ramp(0.01, -0.01 * 50, -0.06, 0.02)
    ),
}


def adasteer_from_published(
    released: str | PublishedAdaSteer,
    rd: Tensor,
    hd: Tensor,
    complied: Tensor,
    layers: Place | Sequence[Place] | None = None,
) -> AdaSteer:
    """A steerer from released arrays, their signs turned: what it adds is `alpha * RD + beta * c * RD` of the release.

    c is computed from the arrays given. The second vector that was released for Llama was made from another HD, so
    there the strength of beta differs from the release's; for Qwen and Gemma it is the same.

    Example:
        >>> ada = adasteer_from_published("qwen2.5-7b-instruct", rd, hd, class_a.mean(1))
        >>> steerlab.generate(model, prompts, steer=ada)

    Args:
        released: a key of `PUBLISHED_ADASTEER`, or settings of your own in the signs of the release.
        rd: `(layer, hidden)`, mean of the complied minus mean of the rejected, one row a block.
        hd: mean of the complied minus mean of the benign.
        complied: mean state of the complied, where both positions are 0.
        layers: the blocks to steer; None: all, as released.

    Raises:
        DataError: no such model. MismatchError: arrays of another model.

    Source: the code released with AdaSteer, arXiv 2504.09466.
    """
    if isinstance(released, str):
        if released not in PUBLISHED_ADASTEER:
            raise DataError(f"unknown model {released!r}; released are {list(PUBLISHED_ADASTEER)}")
        released = PUBLISHED_ADASTEER[released]
    wanted = (released.n_layers, released.hidden_size)
    for name, array in (("rd", rd), ("hd", hd), ("complied", complied)):
        if tuple(array.shape) != wanted:
            raise MismatchError(f"{name} has shape {tuple(array.shape)}, the settings are of a model with {wanted}")
    return AdaSteer.from_directions(
        -rd, -hd, complied, range(released.n_layers) if layers is None else layers,
        rejection_layer=released.rejection_layer, harmfulness_layer=released.harmfulness_layer,
        rejection=released.rejection, compliance=released.compliance,
    )  # fmt: skip
