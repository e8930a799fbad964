"""P2S: each input's own contrast vector, looked up by sample id. An oracle: it has seen the wanted answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Steerer, check_fitted, provenance
from steerlab.models.sites import Site


def names(value: Sequence[str] | None) -> tuple[str, ...]:
    """A name or several, as a tuple; a lone string is one name, not its letters."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def contrast_table(
    acts: Activations, site: Site, position: str | None = None, zero_behaviors: Sequence[str] | None = ()
) -> tuple[list[str], Float[Tensor, "example hidden"]]:
    """The P2S vectors of all samples, by sorted id, so that the order of the rows can't change a fit.

    Samples of a behavior in `zero_behaviors` get the zero vector, whether or not they have a contrast; samples with a
    prompt row only, of other behaviors, are left out.

    Returns:
        The ids and `(sample, hidden)` float32, in units of the residual stream.

    Raises:
        DataError: `zero_behaviors` names a behavior that no sample has, or one side of a contrast is missing.
        ActivationError: there is no contrast at all.
    """
    labels = dict(zip(acts.index["example_id"], acts.index["behavior"], strict=True))
    unknown = [name for name in names(zero_behaviors) if name not in labels.values()]
    if unknown:
        have = sorted(set(map(str, labels.values())))
        raise DataError(
            f"zero={names(zero_behaviors)} names {unknown}, but the behaviors are {have}. Correct it; or, if they were "
            "captured with context=None, which leaves out rows without a contrast, capture them with a context"
        )
    nothing = torch.zeros(acts.hidden_size)
    table = {example_id: nothing for example_id, label in labels.items() if label in names(zero_behaviors)}
    if not table or acts.index["side"].isin(["positive", "negative"]).any():
        ids, z = acts.contrast(site, position)
        table = dict(zip(ids, z.to(torch.float32), strict=True)) | table
    order = sorted(table)
    return order, torch.stack([table[example_id] for example_id in order])


def check_contrasts_nonzero(z: Float[Tensor, "example hidden"], site: Site) -> None:
    """Refuse contrasts that are all exactly zero: there would be nothing to learn, and nothing to steer with.

    Raises:
        DataError: both sides are the same in every contrast.
    """
    if len(z) and not bool(z.any()):
        raise DataError(
            f"both sides have the same state in all {len(z)} contrasts at site {site}; some have to differ. Most "
            "likely they were read before their answers part: in the prompt, in words that both answers begin with, or "
            "at the embeddings of a token that both share. Capture them at positions='answer', or at a later token"
        )


@savable
class P2S(Steerer):
    """Steer each input along the difference of its own two contrast runs (prompt-to-steer, an oracle).

    Example:
        >>> oracle = P2S(layer=15).fit(acts)
        >>> oracle.vectors(Context(example_ids=("xstest/7",)))            # (1, hidden)

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        position: which captured contrast rows to use; None where there is only one kind.
        zero_behaviors: behaviors whose target is the zero vector (their samples need no contrast).

    Attributes:
        ids_: the samples known, sorted.
        table_: `(sample, hidden)` float32, in units of the residual stream.

    Raises:
        ActivationError: vectors are asked for an input whose contrast was not captured.
        DataError: `zero_behaviors` names an unknown behavior.

    Source: arXiv 2508.12815, section 3 (z_X = h(X+) - h(X-)).
    """

    oracle = True

    def __init__(
        self, layer: int | Site, *, position: str | None = None, zero_behaviors: Sequence[str] | None = ()
    ) -> None:
        self.layer, self.position, self.zero_behaviors = layer, position, zero_behaviors
        self.site = Site.of(layer)

    def fit(self, acts: Activations) -> P2S:
        """Tabulate the contrast of every sample."""
        ids, self.table_ = contrast_table(acts, self.site, self.position, self.zero_behaviors)
        self.ids_ = tuple(ids)
        self.info_ = provenance(acts)
        return self

    @classmethod
    def from_table(cls, layer: int | Site, table: Mapping[str, Float[Tensor, " hidden"]]) -> P2S:
        """A steerer from vectors made elsewhere, by sample id."""
        made = cls(layer)
        made.ids_ = tuple(table)
        made.table_ = torch.stack(list(table.values())).float()
        made.info_ = {"hidden_size": made.table_.shape[1]}
        return made

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """Each input's own vector, joined by sample id."""
        check_fitted(self, "table_")
        row = {example_id: i for i, example_id in enumerate(self.ids_)}
        missing = [example_id for example_id in context.example_ids if example_id not in row]
        if missing:
            raise ActivationError(
                f"P2S has no vector for {missing[:3]} ({len(missing)} of {len(context.example_ids)} inputs; it "
                f"knows {len(row)}). P2S is an oracle: it needs the contrast of that very input. Capture "
                "those contrasts and fit again, or use L2S or MeanDifference, which answer for unseen inputs."
            )
        return self.table_[[row[example_id] for example_id in context.example_ids]]
