"""`Site`: a place in a model whose states are read or written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steerlab.errors import LayoutError

# in the order in which a forward passes them: a block's output comes after everything inside it
POINTS = ("block_in", "heads", "attn_out", "mlp_out", "block_out")
INPUTS = ("block_in", "heads")  # what a module is given, not what it gives
PARTS = ("vision", "projector", "text")


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model: a point of a decoder block or, in an image-text model, of the vision tower or projector.

    Layers are 0-based and `block_out` is the **output of decoder block `layer`**, which Hugging Face calls
    `hidden_states[layer + 1]`. For the last block that is the stream *before* the final norm.

    Example:
        >>> Site(17), Site(17, "attn_out"), Site(17, "heads"), Site(-2, part="vision"), Site(0, part="projector")

    Args:
        layer: 0-based block index; negative indices count from the top and are resolved by `Model.site`.
        point: "block_in", "block_out", "attn_out", "mlp_out" or "heads", the results of all attention heads, one after
            the other, before the output projection; outside the text only "block_out". "attn_out" and "mlp_out" are
            what the modules return. Most models add just that to the residual stream; some normalize or scale it before
            (Gemma 2, OLMo 2, Granite) or return the stream with it (BLOOM, MPT).
        part: "text", "vision" (blocks of the vision tower) or "projector" (the module that turns states of the tower
            into the features at image tokens; its layer is 0).

    Raises:
        LayoutError: unknown point or part.
    """

    layer: int
    point: str = "block_out"
    part: str = "text"

    def __post_init__(self) -> None:
        for name, value, known in (("point", self.point, POINTS), ("part", self.part, PARTS)):
            if value not in known:
                raise LayoutError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")
        if self.part != "text" and self.point != "block_out":
            raise LayoutError(f"{self.point!r} is not read in the {self.part}; only block_out is")

    @property
    def forward_order(self) -> tuple[int, int, int]:
        """Sorts sites in the order in which a forward passes them."""
        return PARTS.index(self.part), self.layer, POINTS.index(self.point)

    @property
    def state_kind(self) -> str:
        """What is read there: "heads", or the part of the model; only states of one kind are captured together."""
        return "heads" if self.point == "heads" else self.part

    @property
    def block_before(self) -> int | None:
        """The deepest block whose output an edit here leaves as it is, before the edit; None: there is none."""
        before = self.layer - (self.point != "block_out") if self.part == "text" else -1
        return before if before >= 0 else None

    @property
    def label(self) -> int | str:
        """The layer's number, or the site's name where it is not a block's output; for tables."""
        return self.layer if str(self).isdigit() else str(self)

    def resolve(self, n_layers: int) -> Site:
        """This site with a non-negative layer, refused when the model has no such block."""
        if not -n_layers <= self.layer < n_layers:
            blocks = {"text": "decoder blocks", "vision": "blocks in its vision tower"}.get(self.part, "projector")
            raise LayoutError(
                f"layer {self.layer} does not exist: the model has {n_layers} {blocks}, 0 to {n_layers - 1}"
            )
        return Site(self.layer % n_layers, self.point, self.part)

    @classmethod
    def of(cls, layer: int | Site) -> Site:
        """The site itself, or the output of the block that a number means.

        Example:
            >>> Site.of(17) == Site(17), Site.of(Site(0, "block_in"))
        """
        return layer if isinstance(layer, Site) else cls(layer)

    def __str__(self) -> str:
        part = "" if self.part == "text" else f"{self.part}."
        return f"{part}{self.layer}" if self.point == "block_out" else f"{self.layer}.{self.point}"


def in_layer_order(layers: Iterable[Any]) -> list[Any]:
    """The different layers of a frame from the first to the last; sites, which are texts there, after them as given."""

    def place(layer: Any) -> tuple[bool, int]:
        is_site = isinstance(layer, str) and not layer.isdigit()  # a number that was read back from a file may be text
        return is_site, 0 if is_site else int(layer)

    return sorted(dict.fromkeys(layers), key=place)
