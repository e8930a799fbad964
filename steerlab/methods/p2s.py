"""P2S: the contrast vector of each input itself, looked up by example id. An oracle: it knows the wanted answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import check_type
from steerlab.capturing.activations import Activations
from steerlab.errors import ActivationError, DataError
from steerlab.methods.base import Context, Steerer, check_fitted
from steerlab.methods.classes import contrast_table
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class P2S(Steerer):
    """Steer each input along the difference of its two contrast runs, z_X = h(X+) - h(X-) (prompt-to-steer).

    Example:
        >>> oracle = P2S(layer=15).fit(acts)
        >>> oracle.vectors(Context(example_ids=("xstest/7",)))        # (1, hidden)

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        position: which captured contrast rows to use; None if there is only one kind.
        zero_behaviors: behaviors whose vector is zero (their examples need no contrast).

    Attributes:
        ids_: the known example ids, sorted.
        table_: `(example, hidden)` float32, in units of the residual stream.

    Raises:
        ActivationError: an input whose contrast was not captured.
        DataError: `zero_behaviors` names an unknown behavior.

    Source: arXiv 2508.12815, section 3.
    """

    oracle = True

    contrast_argument = "position"

    def __init__(
        self, layer: int | Site, *, position: str | None = None, zero_behaviors: Sequence[str] | None = ()
    ) -> None:
        self.layer, self.position, self.zero_behaviors = layer, position, zero_behaviors
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Store the contrast of every example."""
        ids, self.table_ = contrast_table(acts, self.site, self.position, self.zero_behaviors)
        self.ids_ = tuple(ids)

    @classmethod
    def from_table(cls, layer: int | Site, table: Mapping[str, Float[Tensor, " hidden"]]) -> P2S:
        """A steerer with given vectors by example id."""
        check_type("table", table, Mapping, "vectors by id")
        vectors = [check_type("a vector of the table", one, Tensor, "a tensor (hidden,)") for one in table.values()]
        if len({vector.shape for vector in vectors}) != 1 or vectors[0].ndim != 1:
            raise DataError(f"expected vectors (hidden,) of one width, got {[tuple(one.shape) for one in vectors][:3]}")
        steerer = cls(layer)
        steerer.ids_ = tuple(table)
        steerer.table_ = torch.stack(vectors).float()
        steerer.info_ = {"hidden_size": steerer.table_.shape[1]}
        return steerer

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The vector of each input, by example id."""
        check_fitted(self, "table_")
        row = {example_id: i for i, example_id in enumerate(self.ids_)}
        if missing := [example_id for example_id in context.example_ids if example_id not in row]:
            raise ActivationError(
                f"P2S has no vector for {missing[:3]} ({len(missing)} of {len(context.example_ids)} inputs). It is an "
                "oracle: it needs the contrast of each input. Fit it on them, or use L2S or MeanDifference."
            )
        return self.table_[[row[example_id] for example_id in context.example_ids]]
