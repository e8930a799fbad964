"""AdaSteer: two coordinates of the input decide how much rejection is added, and how much compliance is restored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods.adasteer.fit import ClassStates, Coordinate
from steerlab.methods.adasteer.published import PUBLISHED_ADASTEER, PublishedAdaSteer
from steerlab.methods.adasteer.schedules import CoefficientSchedule, fit_schedule
from steerlab.methods.base import Context, Intervention, RequiredActivation, check_fitted, check_origin, repeat_vector
from steerlab.methods.layers import Layer, Layers, MultiSiteSteerer
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

SiteVector = Callable[[Site], Float[Tensor, " hidden"]]
MIN_PROJECTION = 0.05  # with a smaller c, a negative beta restores next to no compliance
MAX_RESTORED = -0.5  # rejected harmful prompts should not be pushed further towards compliance, in rejections


@savable
class AdaSteer(MultiSiteSteerer):
    """Steer along refusal with a strength that depends on the unsteered prompt's position among three classes.

    At every steered layer `alpha * rejection + beta * restoring` is added to all prompt tokens. `alpha` depends on
    p_R: 0 at the mean of complied harmful prompts, 100 at the mean of rejected ones. `beta` depends on p_H: 0 as
    before, 100 at the mean of benign prompts. Positive is towards refusal here; the paper's vectors and coefficients
    both have the opposite sign (`from_published` converts them).

    The restoring vector is the *projection* of harmfulness on rejection, `c * rejection`: as released, both vectors
    are collinear, and a **negative** beta restores compliance where c > 0. Where c is negative it adds rejection, and
    where c is small it has no effect: `ineffective_sites` names such layers, `fit` warns about them, and nothing is
    changed. Rejected harmful prompts may have a large p_H too (29, 50 and 63 in the released arrays of Llama, Qwen and
    Gemma), which restores some compliance; `fit` warns if that is half a rejection or more.

    Without given schedules the classes are the labels: complied harmful prompts need rejection and rejected ones do
    not; benign ones need compliance and complied harmful ones do not. Complied harmful prompts are then moved by about
    one `rejection`, the mean of benign ones by about nothing. `calibrate` takes measured labels.

    Example:
        >>> ada = AdaSteer(range(14, 28), rejection_layer=5, harmfulness_layer=13).fit(acts)
        >>> ada.coefficients(Context.of(acts))                        # alpha and beta of each input
        >>> AdaSteer(15, rejection_layer=5, harmfulness_layer=13, rejection=ada.rejection_schedule.ramp())

    Args:
        layers: blocks whose output is steered, 0-based, one or several.
        rejection_layer, harmfulness_layer: where p_R and p_H are read; they need not be steered.
        complied, rejected, benign: labels of harmful prompts that are complied with, of those that are rejected, and
            of benign prompts.
        label: the index column that holds these labels.
        position: the prompt token that is read.
        rejection, compliance: the schedules of alpha (of p_R) and of beta (of p_H); None: fitted.
        strength: alpha where no rejection is needed, and where it is, for a fitted schedule.
        restore: beta where compliance is needed, for a fitted schedule (where it is not, beta is 0); None: the value
            that cancels the rejection of the mean of benign prompts, in the least-squares sense over all layers.

    Attributes:
        rejection_: `(layer, hidden)` float32, mean of the rejected minus mean of the complied.
        harmfulness_: `(layer, hidden)`, mean of the benign minus mean of the complied.
        c_: `(layer,)`, `<harmfulness, rejection> / |rejection|^2`; it does not depend on the signs of the two.
        rejection_axis_, harmfulness_axis_: the two coordinates.
        benign_coordinate_: p_R of the mean of benign prompts.
        rejected_coordinate_: p_H of the mean of rejected ones.
        needs_rejection_, needs_compliance_: fitted schedules from 0 to 1, before they are scaled to coefficients.

    Raises:
        DataError: a class of fewer than two inputs, one input in two classes, classes with equal means, no layer, or
            one layer twice.
        ActivationError: a layer, token or label that was not captured.
        MismatchError: states of another width.

    Source: AdaSteer, arXiv 2504.09466, and its released code, which holds only fitted ramps: the default labels,
        `strength` and `restore` are not in either.
    """

    default_positions: Positions = "prompt"
    gates_by_length = True

    def __init__(
        self, layers: Layers, *, rejection_layer: Layer, harmfulness_layer: Layer,
        complied: Sequence[str] = ("complied",), rejected: Sequence[str] = ("rejected",),
        benign: Sequence[str] = ("answer",), label: str = "behavior", position: str | int = "last",
        rejection: CoefficientSchedule | None = None, compliance: CoefficientSchedule | None = None,
        strength: tuple[float, float] = (0.0, 1.0), restore: float | None = None,
    ) -> None:  # fmt: skip
        self._set_layers(layers)
        self.rejection_layer, self.harmfulness_layer = rejection_layer, harmfulness_layer
        self.complied, self.rejected, self.benign = complied, rejected, benign
        self.label, self.position, self.rejection, self.compliance = label, position, rejection, compliance
        self.strength, self.restore = strength, restore

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """Two states of the plain prompt: where p_R is read, and where p_H is."""
        layers = (self.rejection_layer, self.harmfulness_layer)
        return tuple(RequiredActivation(Site.of(layer), self.position) for layer in layers)

    def fit_activations(self, acts: Activations) -> None:
        """Compute the class means, and fit the schedules that were not given."""
        at_r, at_h = self.required_activations
        labels = {"complied": self.complied, "rejected": self.rejected, "benign": self.benign}
        classes = ClassStates(acts, at_r, labels, self.label)
        start = partial(classes.mean, "complied")
        self._set_directions(
            start, lambda site: classes.mean("rejected", site) - start(site),
            lambda site: classes.mean("benign", site) - start(site),
        )  # fmt: skip
        if self.rejection is None:
            self.needs_rejection_ = classes.fit_schedule(self.rejection_axis_, at_r.site, "complied", "rejected")
        if self.compliance is None:
            self.needs_compliance_ = classes.fit_schedule(self.harmfulness_axis_, at_h.site, "benign", "complied")
        self._warn()

    @classmethod
    def from_directions(
        cls, to_refusal: Tensor, to_benign: Tensor, start: Tensor, layers: Layers, **options: Any
    ) -> AdaSteer:
        """A steerer from existing directions, `(layer, hidden)` each, one row for each block of the model.

        Example:
            >>> schedules = dict(rejection=Ramp(-0.01, 1.0, 0.0, 1.0), compliance=Ramp(0.0, 0.0))
            >>> AdaSteer.from_directions(r, h, complied, 15, rejection_layer=5, harmfulness_layer=13, **schedules)

        Args:
            to_refusal: mean of the rejected minus mean of the complied.
            to_benign: mean of the benign minus mean of the complied.
            start: mean of the complied, where both coordinates are 0.
            layers, options: the constructor's; schedules that are not given must be set by `calibrate`.

        Raises:
            MismatchError: arrays of different shapes, or without a row for a layer.
            DataError: a direction that is zero.
        """
        made, n = cls(layers, **options), len(start)
        if not to_refusal.shape == to_benign.shape == start.shape:
            shapes = [tuple(array.shape) for array in (to_refusal, to_benign, start)]
            raise MismatchError(f"to_refusal, to_benign and start have the shapes {shapes}; they must be the same")
        sites = [*made.sites, *(required.site for required in made.required_activations)]
        if missing := [str(site) for site in sites if site != Site(site.layer) or not 0 <= site.layer < n]:
            raise MismatchError(f"the arrays have a row for each of the blocks 0 to {n - 1}, but none for {missing}")
        arrays = [array.detach().cpu().double() for array in (start, to_refusal, to_benign)]
        made._set_directions(*(partial(_row_of, array) for array in arrays))
        made.info_ = {"hidden_size": start.shape[1], "layers": n}
        return made

    @classmethod
    def from_published(
        cls, published: str | PublishedAdaSteer, rd: Tensor, hd: Tensor, complied: Tensor, layers: Layers | None = None
    ) -> AdaSteer:
        """A steerer from released arrays, with their signs changed: it adds the release's `alpha * RD + beta * c * RD`.

        c is computed from the arrays given. The second vector that was released for Llama was made from another HD, so
        there the strength of beta differs from the release's; for Qwen and Gemma it is the same.

        Example:
            >>> ada = AdaSteer.from_published("qwen2.5-7b-instruct", rd, hd, class_a.mean(1))
            >>> steerlab.generate(model, prompts, steer=ada)

        Args:
            published: a key of `PUBLISHED_ADASTEER`, or other settings in the signs of the release.
            rd: `(layer, hidden)`, mean of the complied minus mean of the rejected, one row per block.
            hd: mean of the complied minus mean of the benign.
            complied: mean state of the complied, where both coordinates are 0.
            layers: the blocks to steer; None: all, as released.

        Raises:
            DataError: no such model. MismatchError: arrays of another model.

        Source: the code released with AdaSteer, arXiv 2504.09466.
        """
        if isinstance(published, str):
            if published not in PUBLISHED_ADASTEER:
                raise DataError(f"unknown model {published!r}; released are {list(PUBLISHED_ADASTEER)}")
            published = PUBLISHED_ADASTEER[published]
        expected = (published.n_layers, published.hidden_size)
        for name, array in (("rd", rd), ("hd", hd), ("complied", complied)):
            if tuple(array.shape) != expected:
                raise MismatchError(
                    f"{name} has shape {tuple(array.shape)}, the settings are of a model with {expected}"
                )
        return cls.from_directions(
            -rd, -hd, complied, range(published.n_layers) if layers is None else layers,
            rejection_layer=published.rejection_layer, harmfulness_layer=published.harmfulness_layer,
            rejection=published.rejection, compliance=published.compliance,
        )  # fmt: skip

    def calibrate(
        self, inputs: Activations | Context, *, rejection: Mapping[str, bool | float] | None = None,
        compliance: Mapping[str, bool | float] | None = None,
    ) -> AdaSteer:  # fmt: skip
        """Fit the schedules to measured needs of inputs, by id; returns self.

        Example:
            >>> needs = {e.id: not refused[e.id][0.0] and refused[e.id][1.0] for e in harmful}   # by strength
            >>> ada.calibrate(acts, rejection=needs)

        Args:
            inputs: their activations at the two reading layers.
            rejection: whether the input needs strong steering towards refusal, for instance because its answer changes
                only at a high strength. None leaves that schedule as it is.
            compliance: whether the input needs its compliance restored, likewise.

        Raises:
            DataError: no labels, labels of one kind only, or labels for a schedule given to the constructor.
            ActivationError: an input was not captured.
            MismatchError: another model read the inputs.

        Source: AdaSteer, arXiv 2504.09466 (logistic regression).
        """
        acts = inputs if isinstance(inputs, Activations) else inputs.activations
        if not rejection and not compliance:
            raise DataError("calibrate needs labels: give rejection={id: needs it}, compliance={id: needs it}, or both")
        for i, (name, labels) in enumerate((("rejection", rejection), ("compliance", compliance))):
            if not labels:
                continue
            if getattr(self, name) is not None:
                raise DataError(f"this AdaSteer was constructed with a {name} schedule: leave it out there to fit it")
            if bad := [f"{one!r}: {needs!r}" for one, needs in labels.items() if needs not in (0, 1)]:
                raise DataError(f"{name}={{{bad[0]}}}: say True or False for each input; {len(bad)} are neither")
            p = self.coordinates(Context(tuple(labels), acts))[i]
            setattr(self, f"needs_{name}_", fit_schedule(p, [bool(needs) for needs in labels.values()]))
        return self

    def coordinates(self, context: Context) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """p_R and p_H of each input, from its unsteered prompt."""
        check_fitted(self, "rejection_axis_")
        check_origin(self, context)
        at_r, at_h = self.required_activations
        return self.rejection_axis_(context.get_states(at_r)), self.harmfulness_axis_(context.get_states(at_h))

    def coefficients(self, context: Context) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """alpha and beta of each input: the multiples of `rejection_` and `restoring_vectors` that it gets."""
        p_r, p_h = self.coordinates(context)
        return self.rejection_schedule(p_r), self.compliance_schedule(p_h)

    @property
    def restoring_vectors(self) -> Float[Tensor, "layer hidden"]:
        """The vectors that beta multiplies: `c * rejection`, the projection of harmfulness on rejection."""
        check_fitted(self, "c_")
        return self.c_[:, None] * self.rejection_

    @property
    def ineffective_sites(self) -> tuple[Site, ...]:
        """Steered sites where a negative beta restores next to no compliance, or adds rejection: c below 0.05."""
        check_fitted(self, "c_")
        return tuple(site for site, c in zip(self.sites, self.c_.tolist(), strict=True) if c < MIN_PROJECTION)

    @property
    def rejection_schedule(self) -> CoefficientSchedule:
        """alpha as a function of p_R."""
        if self.rejection is not None:
            return self.rejection
        self._check_schedule("rejection")
        return self.needs_rejection_.with_range(*self.strength)

    @property
    def compliance_schedule(self) -> CoefficientSchedule:
        """beta as a function of p_H."""
        if self.compliance is not None:
            return self.compliance
        self._check_schedule("compliance")
        return self.needs_compliance_.with_range(0.0, self._restore())

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, if one layer is steered."""
        self._check_one_site()
        alpha, beta = self.coefficients(context)
        return (alpha + beta * self.c_[0])[:, None] * self.rejection_[0]

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """One intervention per steered layer: the rejection vector, and both coefficients as the gate of each row."""
        alpha, beta = self.coefficients(context)
        of_sites = zip(self.sites, self.rejection_, self.c_, strict=True)
        return tuple(
            Intervention(site, repeat_vector(vector, context.example_ids), gate=alpha + beta * c)
            for site, vector, c in of_sites
        )

    def _set_directions(self, start: SiteVector, refusal: SiteVector, benign: SiteVector) -> None:
        """Set the coordinates and the vectors from the mean of the complied and the two directions, float64."""
        at_r, at_h = (required.site for required in self.required_activations)
        self.rejection_axis_ = Coordinate(start(at_r), refusal(at_r))
        self.harmfulness_axis_ = Coordinate(start(at_h), benign(at_h))
        self.benign_coordinate_ = float(self.rejection_axis_((start(at_r) + benign(at_r))[None]))
        self.rejected_coordinate_ = float(self.harmfulness_axis_((start(at_h) + refusal(at_h))[None]))
        rejection, harmfulness = (torch.stack([vector(site) for site in self.sites]) for vector in (refusal, benign))
        squares = rejection.square().sum(-1)
        if equal := [str(site) for site, square in zip(self.sites, squares.tolist(), strict=True) if not square > 0]:
            raise DataError(
                f"rejected and complied prompts have the same mean at {equal}: leave these sites out, read another "
                "token, or check the labels"
            )
        self.c_ = ((harmfulness * rejection).sum(-1) / squares).float()
        self.rejection_, self.harmfulness_ = rejection.float(), harmfulness.float()

    def _check_schedule(self, name: str) -> None:
        if not hasattr(self, f"needs_{name}_"):
            raise ActivationError(f"no {name} schedule: fit or calibrate it, or construct with {name}=Ramp(...)")

    def _restore(self) -> float:
        if self.restore is not None:
            return float(self.restore)
        c = self.c_.double()
        if not bool(c.any()):
            raise DataError(
                "harmfulness is orthogonal to rejection at every steered layer, so no beta restores compliance: give "
                "restore=0 or a compliance schedule, or steer other layers"
            )
        push = float(self.rejection_schedule(torch.tensor([self.benign_coordinate_])))
        return -push * float(c.sum() / c.square().sum())  # least squares, each layer's rejection being the unit

    def _warn(self) -> None:
        if self.ineffective_sites:
            c = {str(site): round(value, 3) for site, value in zip(self.sites, self.c_.tolist(), strict=True)}
            warnings.warn(
                f"AdaSteer at {', '.join(map(str, self.ineffective_sites))}: a negative beta restores no compliance: "
                f"harmfulness has next to no component along rejection, or an opposite one (c below {MIN_PROJECTION}; "
                f"all: {c}). Nothing was changed: steer other layers, or give another compliance schedule",
                stacklevel=3,
            )
        if self.compliance is None:
            alpha = float(self.rejection_schedule(torch.tensor([100.0])))
            beta = self.compliance_schedule(torch.tensor([self.rejected_coordinate_]))
            net = alpha + float(beta * self.c_.mean())
            if net < MAX_RESTORED:
                warnings.warn(
                    f"AdaSteer: rejected harmful prompts are at p_H = {self.rejected_coordinate_:.0f} (benign ones at "
                    f"100), so their compliance is restored too, {net:.2f} rejections on average. Nothing was changed: "
                    "read p_H at another layer, calibrate with labels of rejected prompts, or give restore=",
                    stacklevel=3,
                )


def _row_of(array: Float[Tensor, "layer hidden"], site: Site) -> Float[Tensor, " hidden"]:
    return array[site.layer]
