"""AdaSteer: where an input lies says how strongly it is pushed to refusal, and how much of that is taken back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods.adasteer.fit import ClassStates, Coordinate, restoration, shares
from steerlab.methods.adasteer.schedules import CoefficientSchedule, Logistic, fit_schedule
from steerlab.methods.base import Context, Intervention, RequiredActivation, Steerer, check_fitted, provenance
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

Place = int | Site
SMALL = 0.05  # a second vector of less than a twentieth of the first gives nothing back (own)
HARMFUL = -0.5  # pushed towards compliance by half a rejection, which rejected harmful prompts should not be (own)


@savable
class AdaSteer(Steerer):
    """Steer along refusal with a strength that depends on where the unsteered prompt lies between three classes.

    At every steered layer the state is moved by `alpha * rejection + beta * second`, the same everywhere in the prompt.
    `alpha` follows from p_R: 0 where harmful prompts lie that are complied with, 100 where those that are rejected
    do. `beta` follows from p_H: 0 as before, 100 where benign prompts lie. Positive is towards refusal here; the
    paper's vectors and coefficients both have the opposite sign (`adasteer_from_published` converts them).

    `second` is the *projection* of harmfulness on rejection, `c * rejection`: as released, both vectors lie on one
    line, and a **negative** beta gives compliance back where c > 0. Where c is negative it pushes on, and where c is
    small it does nothing: `ineffective_sites` names such layers, `fit` warns of them, and nothing is changed. Rejected
        harmful
    prompts may lie far along p_H too (at 29, 50 and 63 in the released arrays of Llama, Qwen and Gemma), and then get
    some of it back; `fit` warns where it comes to half a rejection.

    Without laws of your own the classes stand for the labels: complied harmful prompts need rejection and rejected
    ones do not; benign ones need compliance and complied harmful ones do not. Complied harmful prompts are then
    pushed by about one `rejection`, the mean of benign ones by about nothing. `calibrate` takes measured labels.

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
        rejection, compliance: the laws of alpha (of p_R) and of beta (of p_H); None: fitted.
        strength: alpha where no rejection is needed, and where it is, for a fitted law.
        restore: beta where compliance is needed, for a fitted law (where it is not, beta is 0); None: what takes back
            the push that the mean of benign prompts gets, over all steered layers in the least-squares sense.
        geometry: "collinear", as released; or "orthogonalised": `second` is what is left of harmfulness after its
            projection is taken away, as in a public re-implementation. That is the opposite of the release: a positive
            beta moves towards benign prompts then, nothing is taken back, and `restore` is 1 by default.

    Attributes:
        rejection_: `(layer, hidden)` float32, mean of the rejected minus mean of the complied.
        harmfulness_: `(layer, hidden)`, mean of the benign minus mean of the complied.
        c_: `(layer,)`, `<harmfulness, rejection> / |rejection|^2`; turning the signs of both leaves it as it is.
        rejection_axis_, harmfulness_axis_: the two coordinates.
        benign_coordinate_: p_R of the mean of benign prompts.
        rejected_coordinate_: p_H of the mean of rejected ones.
        needs_rejection_, needs_compliance_: fitted probabilities, before they are stretched to coefficients.

    Raises:
        DataError: a class of fewer than two inputs, one input in two classes, or classes with equal means.
        ActivationError: a layer, token or label that was not captured. SteeringError: no layer, or one given twice.
        MismatchError: states of another width.

    Source: AdaSteer, arXiv 2504.09466, and its released code; default labels, `strength` and
    `restore` are own, since the release holds fitted ramps alone.
    """

    default_positions: Positions = "prompt"

    def __init__(
        self, layers: Place | Sequence[Place], *, rejection_layer: Place, harmfulness_layer: Place,
        complied: Sequence[str] = ("complied",), rejected: Sequence[str] = ("rejected",),
        benign: Sequence[str] = ("answer",), label: str = "behavior", position: str | int = "last",
        rejection: CoefficientSchedule | None = None, compliance: CoefficientSchedule | None = None,
        strength: tuple[float, float] = (0.0, 1.0), restore: float | None = None,
        geometry: str = "collinear",
    ) -> None:  # fmt: skip
        given = (layers,) if isinstance(layers, int | Site) else tuple(layers)
        self.layers = layers if isinstance(layers, int | Site) else given
        self.rejection_layer, self.harmfulness_layer = rejection_layer, harmfulness_layer
        self.complied, self.rejected, self.benign = complied, rejected, benign
        self.label, self.position, self.rejection, self.compliance = label, position, rejection, compliance
        self.strength, self.restore, self.geometry = strength, restore, geometry
        self.sites = tuple(map(Site.of, given))
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise SteeringError(f"layers={list(given)}: give at least one layer to steer, and each once")
        if geometry not in ("collinear", "orthogonalized"):
            raise SteeringError(f"geometry={geometry!r}; expected 'collinear' (as released) or 'orthogonalised'")
        if len(self.sites) == 1:
            self.site = self.sites[0]

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """Two states of the plain prompt: where p_R is read, and where p_H is."""
        return tuple(
            RequiredActivation(Site.of(k), self.position) for k in (self.rejection_layer, self.harmfulness_layer)
        )

    def fit(self, acts: Activations) -> AdaSteer:
        """Take the class means, and fit the laws that were not given."""
        at_r, at_h = self.required_activations
        labels = {"complied": self.complied, "rejected": self.rejected, "benign": self.benign}
        classes = ClassStates(acts, at_r, labels, self.label)
        self.rejection_axis_ = Coordinate.between(*(classes.mean(k, at_r.site) for k in ("complied", "rejected")))
        self.harmfulness_axis_ = Coordinate.between(*(classes.mean(k, at_h.site) for k in ("complied", "benign")))
        self.benign_coordinate_ = float(self.rejection_axis_(classes.mean("benign", at_r.site)[None]))
        self.rejected_coordinate_ = float(self.harmfulness_axis_(classes.mean("rejected", at_h.site)[None]))
        complied, rejected, benign = (classes.means(name, self.sites) for name in labels)
        self._learn(rejected - complied, benign - complied)
        if self.rejection is None:
            self.needs_rejection_ = classes.needs(self.rejection_axis_, at_r.site, yes="complied", no="rejected")
        if self.compliance is None:
            self.needs_compliance_ = classes.needs(self.harmfulness_axis_, at_h.site, yes="benign", no="complied")
        self.info_ = provenance(acts)
        self._warn()
        return self

    @classmethod
    def from_directions(
        cls, to_refusal: Tensor, to_benign: Tensor, start: Tensor, layers: Place | Sequence[Place], **options: Any
    ) -> AdaSteer:
        """A steerer from directions made elsewhere, `(layer, hidden)` each, one row for each block of the model.

        Example:
            >>> laws = dict(rejection=Ramp(-0.01, 1.0, 0.0, 1.0), compliance=Ramp(0.0, 0.0))
            >>> AdaSteer.from_directions(r, h, complied, 15, rejection_layer=5, harmfulness_layer=13, **laws)

        Args:
            to_refusal: mean of the rejected minus mean of the complied.
            to_benign: mean of the benign minus mean of the complied.
            start: mean of the complied, where both coordinates are 0.
            layers, options: the constructor's; laws that are not given must be set by `calibrate`.

        Raises:
            MismatchError: arrays of different shapes, or without a row for a layer.
            DataError: a direction that is zero.
        """
        made, n = cls(layers, **options), len(start)
        if not to_refusal.shape == to_benign.shape == start.shape:
            shapes = [tuple(array.shape) for array in (to_refusal, to_benign, start)]
            raise MismatchError(f"to_refusal, to_benign and start have the shapes {shapes}; they must be the same")
        sites = [*made.sites, *(read.site for read in made.required_activations)]
        missing = [str(site) for site in sites if site != Site(site.layer) or not 0 <= site.layer < n]
        if missing:
            raise MismatchError(f"the arrays have a row for each of the blocks 0 to {n - 1}; none is of {missing}")
        refusal, benign, origin = (array.detach().cpu().double() for array in (to_refusal, to_benign, start))
        at_r, at_h = (read.site.layer for read in made.required_activations)
        made.rejection_axis_ = Coordinate.between(origin[at_r], origin[at_r] + refusal[at_r])
        made.harmfulness_axis_ = Coordinate.between(origin[at_h], origin[at_h] + benign[at_h])
        made.benign_coordinate_ = float(made.rejection_axis_((origin[at_r] + benign[at_r])[None]))
        made.rejected_coordinate_ = float(made.harmfulness_axis_((origin[at_h] + refusal[at_h])[None]))
        rows = [site.layer for site in made.sites]
        made._learn(refusal[rows], benign[rows])
        made.info_ = {"hidden_size": start.shape[1], "layers": n}
        return made

    def calibrate(
        self, inputs: Activations | Context, *, rejection: Mapping[str, bool] | None = None,
        compliance: Mapping[str, bool] | None = None,
    ) -> AdaSteer:  # fmt: skip
        """Fit the laws to what inputs were found to need, by id; returns self.

        Example:
            >>> needs = {e.id: not refused[e.id][0.0] and refused[e.id][1.0] for e in harmful}   # by strength
            >>> ada.calibrate(acts, rejection=needs)

        Args:
            inputs: their activations at the two reading layers.
            rejection: whether the input needs strong steering towards refusal, say because its answer flips at a high
                strength only. None leaves that law as it is.
            compliance: whether the input needs its compliance given back, likewise.

        Raises:
            DataError: no labels, labels of one kind only, or labels for a law that was given to the constructor.
            ActivationError: an input was not captured.

        Source: AdaSteer, arXiv 2504.09466 (logistic regression); own where the release says nothing.
        """
        acts = inputs if isinstance(inputs, Activations) else inputs.activations
        if not rejection and not compliance:
            raise DataError("calibrate needs labels: give rejection={id: needs it}, compliance={id: needs it}, or both")
        for name, labels in (("rejection", rejection), ("compliance", compliance)):
            if not labels:
                continue
            if getattr(self, name) is not None:
                raise DataError(f"this AdaSteer was given its law of {name}: leave it out of the constructor to fit it")
            p = self.coordinates(Context(tuple(labels), acts))[0 if name == "rejection" else 1]
            setattr(self, f"needs_{name}_", fit_schedule(p, [bool(needs) for needs in labels.values()]))
        return self

    def coordinates(self, context: Context) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """p_R and p_H of each input, read off its unsteered prompt."""
        check_fitted(self, "rejection_axis_")
        at_r, at_h = self.required_activations
        return self.rejection_axis_(context.get_states(at_r)), self.harmfulness_axis_(context.get_states(at_h))

    def coefficients(self, context: Context) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """alpha and beta of each input: how much of `rejection_` and of `second` it gets."""
        p_r, p_h = self.coordinates(context)
        return self.rejection_schedule(p_r), self.compliance_schedule(p_h)

    @property
    def second(self) -> Float[Tensor, "layer hidden"]:
        """The vector that beta multiplies, at every steered layer: `c * rejection`, or what is orthogonal to it."""
        check_fitted(self, "c_")
        along = self.c_[:, None] * self.rejection_
        return along if self.geometry == "collinear" else self.harmfulness_ - along

    @property
    def ineffective_sites(self) -> tuple[Site, ...]:
        """Steered layers at which a negative beta gives next to nothing back, or pushes on: c below a twentieth."""
        check_fitted(self, "c_")
        if self.geometry != "collinear":
            return ()
        return tuple(site for site, c in zip(self.sites, self.c_.tolist(), strict=True) if c < SMALL)

    @property
    def rejection_schedule(self) -> CoefficientSchedule:
        """How alpha depends on p_R."""
        return self.rejection if self.rejection is not None else self._needs("rejection").with_range(*self.strength)

    @property
    def compliance_schedule(self) -> CoefficientSchedule:
        """How beta depends on p_H."""
        if self.compliance is not None:
            return self.compliance
        return self._needs("compliance").with_range(0.0, self._restoration())

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, where one layer is steered.

        Raises:
            SteeringError: several layers are steered, so there is no one vector; use `interventions`.
        """
        if len(self.sites) > 1:
            raise SteeringError(f"this AdaSteer steers {len(self.sites)} layers: ask for shifts(context), one a layer")
        vectors = self.interventions(context)[0].vectors
        assert vectors is not None
        return vectors

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """What every steered layer adds for a batch of inputs; each row has its own two coefficients."""
        alpha, beta = (coefficient[:, None] for coefficient in self.coefficients(context))
        pairs = zip(self.sites, self.rejection_, self.second, strict=True)
        return tuple(Intervention(site, alpha * first + beta * second) for site, first, second in pairs)

    def with_layer(self, layer: Place) -> AdaSteer:
        """The same settings, read at the same layers, for steering one other layer; not fitted."""
        names = [name for name in inspect.signature(AdaSteer).parameters if name != "layers"]
        return AdaSteer(layer, **{name: getattr(self, name) for name in names})

    def _learn(self, rejection: Float[Tensor, "layer hidden"], harmfulness: Float[Tensor, "layer hidden"]) -> None:
        self.rejection_, self.harmfulness_ = rejection.float(), harmfulness.float()
        self.c_ = shares(rejection.double(), harmfulness.double(), self.sites).float()

    def _needs(self, which: Literal["rejection", "compliance"]) -> Logistic:
        if not hasattr(self, f"needs_{which}_"):
            raise ActivationError(
                f"this AdaSteer has no law of {which} yet: fit or calibrate it, or give {which}=Ramp(...) beforehand"
            )
        return getattr(self, f"needs_{which}_")

    def _restoration(self) -> float:
        if self.restore is not None:
            return float(self.restore)
        if self.geometry == "orthogonalized":
            return 1.0
        return restoration(float(self.rejection_schedule(torch.tensor([self.benign_coordinate_]))), self.c_)

    def _warn(self) -> None:
        if self.ineffective_sites:
            told = {str(site): round(c, 3) for site, c in zip(self.sites, self.c_.tolist(), strict=True)}
            warnings.warn(
                f"AdaSteer at {', '.join(map(str, self.ineffective_sites))}: harmfulness holds next to no "
                f"rejection or points "
                f"against it (c below {SMALL}; all: {told}). There a negative beta does not give compliance back. "
                "Nothing was changed: steer other layers, or give a law of compliance that fits",
                stacklevel=3,
            )
        if self.compliance is None and self.geometry == "collinear":
            alpha = float(self.rejection_schedule(torch.tensor([100.0])))
            net = alpha + float(self.compliance_schedule(torch.tensor([self.rejected_coordinate_])) * self.c_.mean())
            if net < HARMFUL:
                warnings.warn(
                    f"AdaSteer: rejected harmful prompts lie at p_H = {self.rejected_coordinate_:.0f} (benign "
                    f"ones at 100), so "
                    f"they get compliance back as if they were benign, {net:.2f} rejections on average. Nothing was "
                    "changed: read p_H at another layer, calibrate with labels of rejected prompts, or give restore=",
                    stacklevel=3,
                )
