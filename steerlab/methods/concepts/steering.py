"""Steering by concept: an input gets the vector of the concept that it activates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole, check_type
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods.base import Context, RequiredActivation, Steerer, check_fitted, check_origin
from steerlab.methods.concepts.dictionary import ConceptDictionary
from steerlab.methods.serialization import savable


@savable
class ConceptSteering(Steerer):
    """Add to each input the vector of the concept that it activates; inputs of other concepts are left alone.

    Fine steering takes the difference of two concepts (`ConceptDictionary.between`); a representation shift takes the
    shift of each. Every input activates some concept, however far it is from all of them: fit the dictionary to all
    kinds of inputs that are to be told apart, at the token that is read here.

    Example:
        >>> concepts = ConceptDictionary(15, 6).fit(acts)             # states that predict a color
        >>> to_blue = ConceptSteering(concepts, {2: concepts.between(2, 0)})
        >>> texts = steerlab.generate(model, prompts, steer=to_blue)
        >>> as_tuned = ConceptSteering(concepts, dict(enumerate(shift.vectors)))

    Args:
        concepts: a fitted dictionary, of the layer that is read and steered.
        directions: the vector, `(hidden,)`, of each concept that has one, in units of the residual stream.
        position: token of the plain prompt whose state says which concept an input activates.

    Raises:
        DataError: no vectors, or a concept that is not there.
        MismatchError: a vector of another width.

    Source: arXiv 2501.03012, section 4.
    """

    is_fittable = False

    def __init__(
        self, concepts: ConceptDictionary, directions: Mapping[int, Tensor], *, position: str | int = "last"
    ) -> None:
        check_type("concepts", concepts, ConceptDictionary, "a fitted ConceptDictionary", SteeringError)
        check_fitted(concepts, "concepts_")
        if not directions:
            raise DataError("there are no vectors: give {concept: vector}")
        n, width = concepts.concepts_.shape
        self.directions = {as_whole("a concept", k, 0, n - 1): v.float().clone() for k, v in directions.items()}
        other = next((k for k, v in self.directions.items() if v.shape != (width,)), None)
        if other is not None:
            shape = tuple(directions[other].shape)
            raise MismatchError(f"the vector of concept {other} has shape {shape}, the concepts are {width} wide")
        self.concepts, self.position = concepts, position
        self.site, self.info_ = concepts.site, dict(concepts.info_)

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The state that says which concept an input activates."""
        return (RequiredActivation(self.site, self.position),)

    def fit_activations(self, acts: object) -> None:
        """Not available: fit the dictionary.

        Raises:
            SteeringError: always.
        """
        raise SteeringError("a ConceptSteering has nothing to fit: fit its ConceptDictionary")

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The vector of each input: zero if it activates a concept that has none, or no concept."""
        check_origin(self.concepts, context)
        table = torch.zeros(self.concepts.n_concepts + 1, self.concepts.concepts_.shape[1])  # the last is that of none
        for concept, vector in self.directions.items():
            table[concept] = vector
        return table[self.concepts.assign(context.get_states(self.required_activations[0]))]
