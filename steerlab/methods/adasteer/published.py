"""The layers and schedules released with AdaSteer."""

from __future__ import annotations

from dataclasses import dataclass

from steerlab.methods.adasteer.schedules import Ramp


@dataclass(frozen=True)
class PublishedAdaSteer:
    """The released settings of one model, with the signs of the release; `rejection` and `compliance` have ours.

    Attributes:
        n_layers, hidden_size: of the model.
        rejection_layer, harmfulness_layer: block outputs where the two coordinates are read, 0-based.
        alpha: coefficient of RD, as a function of p_R; negative is towards refusal.
        beta: coefficient of the projection of HD on RD, as a function of p_H.

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
        """The schedule of our alpha: RD points to compliance and our vector to refusal, so the sign changes."""
        return -self.alpha

    @property
    def compliance(self) -> Ramp:
        """The schedule of our beta: the second vector is c * RD, and c does not depend on the signs."""
        return -self.beta


#: By model. Effect of these schedules on the released arrays (p is 0 at complied harmful prompts):
#:
#: - Llama: alpha is nearly a step, from .22 to .08 of a rejection (our sign) as p_R goes from -71 to -64. Beta restores
#:   the compliance of benign prompts only at the blocks where c < 0, and pushes them to refusal below those.
#: - Qwen: alpha is .2 up to p_R = 138, which covers nearly all inputs. **Beta contradicts the law of harmfulness**:
#:   benign prompts (p_H near 100, and c > 0 at every block) are pushed *further to refusal*, by .6 c. It is kept as
#:   released.
#: - Gemma: beta follows the law: benign prompts are pushed towards compliance.
#:
#: The last row of the released arrays was read after the final norm, so it is not in the units of the last block's
#: output, to which the release adds it nevertheless.
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
