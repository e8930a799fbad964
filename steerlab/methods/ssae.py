"""Sparse shift autoencoder: steering vectors of single concepts from pairs of texts that differ in several at once.

The difference of two states is encoded as an affine function, z - z' -> codes, and decoded as another, codes -> z - z'.
The decoder's rows have norm 1. Under a bound on the codes' mean absolute value few concepts are used for a difference,
and the ones that explain all differences with few are, under the conditions of the paper, those that really changed.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from sklearn.cluster import KMeans
from torch import Tensor

from steerlab._support.checks import as_number, as_seed, as_whole
from steerlab._support.progress import bar
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import FittedMixin, check_fitted, check_width
from steerlab.methods.classes import contrast_table, median, numeric_rank
from steerlab.methods.serialization import savable
from steerlab.methods.vector import SteeringVector
from steerlab.models.fingerprint import check_same_model
from steerlab.models.sites import Site

CONSTANT = 0.05  # of a code's mean size: one that varies less is a second offset, no concept
# by which the codes may exceed the level; and a multiplier that is as good as 0: a larger level would save nothing
TOLERANCE, NEGLIGIBLE = 0.05, 1e-3
Differences = Float[Tensor, "pair hidden"]


@savable
class SSAE(FittedMixin):
    """Directions of single concepts, from contrasts in which a few of several concepts change at once.

    Example:
        >>> pairs = steerlab.data.attribute_pairs("sentences", changed=(2, 2))
        >>> ssae = SSAE(16, n_concepts=3, level=1.0).fit(model, pairs)
        >>> texts = steerlab.generate(model, prompts, steer=ssae.direction(0), alpha=1.0)
        >>> ssae.encode(differences)                                  # (pair, concept)

    Args:
        layer: whose contrasts are encoded.
        n_concepts: the number of concepts; at most the rank of the contrasts.
        level: the largest mean over pairs of the sum of a pair's absolute codes, as a multiple of the contrasts' mean
            norm. A contrast that is one concept has 1, two equal and orthogonal ones have 1.41. Less than 1 leaves a
            part of the contrasts unexplained; None: no bound, an affine autoencoder. Choose it with `level_sweep`. One
            concept needs none, and has none.
        offset: whether the decoder adds a constant. It takes what changes in every pair, so that None means no for one
            concept, and yes for several.
        position: which captured contrasts to use; None if there is only one kind.
        steps, batch_size, learning_rate: of Adam; the rate falls to 0 over the last third.
        seed: of the first directions and the batches.
        device: where to train; None: where the contrasts are.
        progress: whether to show a bar.

    Attributes:
        encoder_, encoder_offset_: `(hidden, concept)` and `(concept,)`.
        decoder_, decoder_offset_: `(concept, hidden)`, each row of norm 1, and `(hidden,)`.
        usage_: `(concept,)`, the share of pairs that use a concept: those in the upper of two clusters of absolute
            codes, or all if the lower is not near 0; 0 for a concept whose code is always the same.
        scales_: `(concept,)`, the median change of the pairs that use it, in units of the residual stream: the absolute
            code, and what the bound left along the direction. Its sign is such that the sum of their codes is positive;
            or negative, where most pairs change a concept: then the constant holds it, and the pairs *without* it have
            the code.
        reached_: `error`, the share of the squared contrasts that is lost; `level`; `multiplier` of the bound,
            its mean over the second half of the steps: about 0 if it changed nothing; then directions are arbitrary.

    Raises:
        DataError: more concepts than contrasts or their rank, a contrast that is zero or NaN, or a number out of range.
        SteeringError: the codes are more than 5 % above the level when training ends.

    Source: arXiv 2502.12179, sections 3 and 4. Own choices: the loss is the squared error of all pairs together divided
        by their squared norm, codes are not normalized, and the gradient along each direction is removed before a step
        (the released code removes it afterwards, where it has no effect).
    """

    contrast_argument = "position"

    def __init__(
        self, layer: int | Site, n_concepts: int, level: float | None, *, offset: bool | None = None,
        position: str | None = None, steps: int = 3000, batch_size: int = 256, learning_rate: float = 5e-3,
        seed: int = 0, device: str | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        self.layer, self.n_concepts = layer, as_whole("n_concepts", n_concepts)
        self.level = None if level is None else as_number("level", level, 1e-6)
        self.offset, self.position, self.device, self.progress = offset, position, device, progress
        self.steps, self.batch_size = as_whole("steps", steps), as_whole("batch_size", batch_size)
        self.learning_rate, self.seed = as_number("learning_rate", learning_rate, 0.0), as_seed(seed)
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Fit to the contrasts of activations."""
        ids, z = contrast_table(acts, self.site, self.position)
        if bad := [one for one, zero in zip(ids, (z == 0).all(1).tolist(), strict=True) if zero]:
            raise DataError(f"{len(bad)} of {len(ids)} contrasts are zero ({bad[:3]}): leave out pairs of equal states")
        self.fit_differences(z)

    def fit_differences(self, z: Tensor) -> SSAE:
        """Fit to differences `(pair, hidden)` that were computed before; returns self."""
        if z.ndim != 2:
            raise DataError(f"differences of shape {tuple(z.shape)}: expected (pair, hidden)")
        z = z.float().to(self.device or z.device)
        if not bool(z.isfinite().all()):
            raise DataError("the differences hold NaN or infinity")
        if len(z) and not bool(z.any(1).all()):
            raise DataError(f"{int((~z.any(1)).sum())} of {len(z)} differences are zero: leave them out")
        if self.n_concepts > (rank := numeric_rank(z.cpu())):
            raise DataError(
                f"n_concepts={self.n_concepts}, and {len(z)} differences have rank {rank}: give at most that"
            )
        size = float(z.norm(dim=1).mean())
        encoder, shift, decoder, constant, multiplier = self._train(z / size)
        self.encoder_, self.encoder_offset_ = encoder.cpu(), (shift * size).cpu()
        self.decoder_, self.decoder_offset_ = decoder.cpu(), (constant * size).cpu()
        self.info_, z = {"hidden_size": z.shape[1]}, z.cpu()
        self._orient(z)
        codes = self.encode(z)
        lost = (self.decode(codes) - z).square().sum() / z.square().sum()
        level = float(codes.abs().sum(1).mean()) / size
        self.reached_ = {"error": float(lost), "level": level, "multiplier": multiplier}
        self._check_level()
        return self

    def _train(self, z: Differences) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """Encoder, its offset, decoder, its offset, and the multiplier of the bound, its mean over the second half."""
        generator = torch.Generator().manual_seed(self.seed)
        decoder = torch.nn.functional.normalize(torch.randn(self.n_concepts, z.shape[1], generator=generator), dim=1)
        decoder = decoder.to(z.device)
        encoder = decoder.T.clone(memory_format=torch.contiguous_format)
        sizes = (self.n_concepts, z.shape[1], (), ())
        shift, constant, multiplier, held = (torch.zeros(size, device=z.device) for size in sizes)
        trained = [encoder, shift, decoder, *([constant] if self._has_offset else [])]
        level = None if self.n_concepts == 1 else self.level
        adam = torch.optim.Adam([t.requires_grad_() for t in trained], lr=self.learning_rate)
        rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 3 * (1 - step / self.steps)))
        with torch.enable_grad(), bar(self.steps, "SSAE", "step", self.progress) as shown:
            for step in range(self.steps):
                batch = z[torch.randint(len(z), (self.batch_size,), generator=generator).to(z.device)]
                codes = batch @ encoder + shift
                excess = codes.abs().sum(1).mean() / (level or 1.0) - 1
                lost = (codes @ decoder + constant - batch).square().sum() / batch.square().sum()
                adam.zero_grad()
                (lost + multiplier * excess).backward()
                with torch.no_grad():
                    assert decoder.grad is not None
                    decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
                    adam.step()
                    rate.step()
                    decoder /= decoder.norm(dim=1, keepdim=True)
                    if level is not None:  # dual ascent on the bound
                        multiplier = (multiplier + 0.05 * excess).clamp(min=0.0)
                        # it falls to 0 and rises again: where it stands at the end says little
                        held += multiplier * (step >= self.steps // 2) / (self.steps - self.steps // 2)
                shown.update()
        return encoder.detach(), shift.detach(), decoder.detach(), constant.detach(), float(held)

    @property
    def _has_offset(self) -> bool:
        return self.n_concepts > 1 if self.offset is None else self.offset

    def _orient(self, z: Differences) -> None:
        """Find the pairs that use each concept, turn directions so that their codes are positive in sum, and set the
        median size.
        """
        codes = self.encode(z)
        used = torch.stack([_uses(code, self._has_offset) for code in codes.T], dim=1)
        signs = torch.where((codes * used).sum(0) < 0, -1.0, 1.0)
        self._turn(signs)
        self.usage_ = used.float().mean(0)
        # the bound makes codes smaller than the changes: what is left along a direction belongs to it
        sizes = ((codes * signs) + (z - self.decode(codes * signs)) @ self.decoder_.T).abs()
        self.scales_ = median(sizes.masked_fill(~used, torch.nan)).nan_to_num()
        # where the constant cancels the code, the pairs with the code stay as they are and all others change
        constant = torch.linalg.lstsq(self.decoder_.T, self.decoder_offset_[:, None]).solution[:, 0] / self.scales_
        self._turn(torch.where((constant < -0.5) & (constant > -1.5), -1.0, 1.0))

    def _turn(self, signs: Tensor) -> None:
        """Turn the directions with sign -1 round, and their codes with them."""
        self.encoder_, self.encoder_offset_ = self.encoder_ * signs, self.encoder_offset_ * signs
        self.decoder_ = self.decoder_ * signs[:, None]

    def _check_level(self) -> None:
        if self.level is None or self.n_concepts == 1:  # one direction needs no bound to be found
            return
        reached, lost, multiplier = (self.reached_[name] for name in ("level", "error", "multiplier"))
        if reached > self.level * (1 + TOLERANCE):
            raise SteeringError(f"the codes have a level of {reached:.3g}, above {self.level:g}: give more steps")
        if lost > 0.9:
            wanted = "a larger level (level_sweep)" if multiplier > NEGLIGIBLE else "more concepts"
            warnings.warn(f"{lost:.2f} of the differences is left unexplained: give {wanted}", stacklevel=3)
        elif multiplier <= NEGLIGIBLE and reached < self.level * (1 - TOLERANCE):
            warnings.warn(
                f"level={self.level:g} bounds nothing: without it the codes have {reached:.3g}. The concepts are "
                "then not identified: give a smaller level (level_sweep)",
                stacklevel=3,
            )

    def encode(self, differences: Float[Tensor, "... hidden"]) -> Float[Tensor, "... concept"]:
        """The codes of differences: how far each concept changes, in units of the residual stream.

        They are never exactly 0: the encoder is affine.
        """
        check_fitted(self, "encoder_")
        return check_width(differences, len(self.encoder_), self.name).cpu() @ self.encoder_ + self.encoder_offset_

    def decode(self, codes: Float[Tensor, "... concept"]) -> Float[Tensor, "... hidden"]:
        """The differences that codes stand for."""
        check_fitted(self, "decoder_")
        return codes @ self.decoder_ + self.decoder_offset_

    def direction(self, concept: int) -> SteeringVector:
        """The vector of one concept; at alpha 1 it is as long as in the median pair that uses the concept.

        Raises:
            DataError: no such concept. SteeringError: no pair uses it.
        """
        self._check_concept(concept)
        return self._vector(self.site, self.scales_[concept] * self.decoder_[concept])

    def direction_at(self, layer: int | Site, concept: int, acts: Activations) -> SteeringVector:
        """The vector of one concept at another layer: what changes there with the concept's code.

        The layer at which concepts are told apart best is often not one at which adding them does much. This is the
        slope of the other layer's contrasts on the code, times the median code of the pairs that use the concept. It
        holds what changes together with the concept, too.

        Example:
            >>> acts = steerlab.capture(model, pairs, layers=[3, 22], context=None)
            >>> ssae = SSAE(3, n_concepts=20, level=1.6).fit(acts)
            >>> texts = steerlab.generate(model, prompts, steer=ssae.direction_at(22, 0, acts))

        Args:
            layer: where the vector is added.
            concept: its number.
            acts: contrasts of pairs, labeled or not, at this layer and at the one that was fitted.

        Raises:
            DataError: no such concept. SteeringError: none of these pairs uses it. ActivationError: one of the two
            layers was not captured. MismatchError: the activations are another model's.
        """
        self._check_concept(concept)
        check_same_model(self.name, self.info_, acts.info)
        codes = self.encode(contrast_table(acts, self.site, self.position)[1])[:, concept]
        used, centered = _uses(codes, self._has_offset), codes - codes.mean() * self._has_offset
        if not used.any() or not centered.any():
            raise SteeringError(f"concept {concept} is used by none of these {len(codes)} pairs, or by all in one way")
        slope = centered @ contrast_table(acts, Site.of(layer), self.position)[1] / centered.square().sum()
        return self._vector(Site.of(layer), median(codes[used].abs()) * slope)

    def _check_concept(self, concept: int) -> None:
        check_fitted(self, "decoder_")
        as_whole("concept", concept, 0, self.n_concepts - 1)
        if not self.usage_[concept]:
            raise SteeringError(f"no pair uses concept {concept}: take one with usage_ above 0")

    def _vector(self, site: Site, row: Tensor) -> SteeringVector:
        found = SteeringVector({site: row})
        found.info_ = dict(self.info_)  # so that vectors of two models are not combined
        return found

    def with_options(self, **options: Any) -> SSAE:
        """An unfitted copy with some arguments changed."""
        return SSAE(**{name: getattr(self, name) for name in inspect.signature(SSAE).parameters} | options)


def _uses(code: Float[Tensor, " pair"], has_offset: bool) -> Bool[Tensor, " pair"]:
    """Which pairs use a concept."""
    size = code.abs()
    if not size.any() or (has_offset and code.std(correction=0) <= CONSTANT * size.mean()):
        return torch.zeros_like(code, dtype=torch.bool)
    if len(code) == 1:
        return size > 0
    clusters = KMeans(2, n_init=1, init=[[0.0], [float(size.max())]]).fit(size[:, None].double().numpy())
    low, high = sorted(clusters.cluster_centers_[:, 0].tolist())
    return size > (low + high) / 2 if low < high / 2 else size > 0
