"""Where in a model we read and write."""

from __future__ import annotations

from dataclasses import dataclass

from steerlab._support.errors import LayoutError

# in the order in which a forward passes them: a block's output comes after everything inside it
POINTS = ("block_in", "attn_out", "mlp_out", "block_out")


@dataclass(frozen=True, order=True)
class Site:
    """A place in the residual stream: decoder block `layer`, at `point`.

    Layers are 0-based and `block_out` is the **output of decoder block `layer`**, which Hugging Face calls
    `hidden_states[layer + 1]`. For the last block that is the stream *before* the final norm.

    Example:
        >>> Site(17), Site(17, "attn_out")

    Args:
        layer: 0-based block index; negatives count from the top and are resolved when a model is at hand.
        point: "block_in", "block_out", "attn_out" or "mlp_out".

    Raises:
        LayoutError: unknown point.
    """

    layer: int
    point: str = "block_out"

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise LayoutError(f"unknown point {self.point!r}; expected one of {', '.join(POINTS)}")

    def resolve(self, n_layers: int) -> Site:
        """This site with a non-negative layer, refused when the model has no such block."""
        if not -n_layers <= self.layer < n_layers:
            raise LayoutError(
                f"layer {self.layer} does not exist: the model has {n_layers} decoder blocks, "
                f"0 to {n_layers - 1} (or -{n_layers} to -1 from the top)"
            )
        return Site(self.layer % n_layers, self.point)

    def __str__(self) -> str:
        return f"{self.layer}" if self.point == "block_out" else f"{self.layer}.{self.point}"
