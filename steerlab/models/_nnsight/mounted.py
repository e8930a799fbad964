"""nnsight gives every object a method `save`; some modules can't be imported while it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_save() -> Iterator[None]:
    """Take `save` off `object` inside the block, where modules are imported whose classes refuse it (anyio's)."""
    if "nnsight" not in sys.modules or not hasattr(object, "save"):
        yield
        return
    import nnsight
    from nnsight._c import mount, unmount

    unmount("save")
    try:
        yield
    finally:
        mount(nnsight.save, "save")
