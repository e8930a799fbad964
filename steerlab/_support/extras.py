"""Packages that only a part of steerlab needs: imported on use, with a message that says how to install them."""

from __future__ import annotations

from importlib.util import find_spec

from steerlab.errors import LoadError


def require(what: str, extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Example:
        >>> require("steerlab.plots", "plots", "matplotlib", "seaborn")

    Args:
        what: what needs them, for the message.
        extra: the name that `pip install "steerlab[extra]"` takes.
        packages: by the names under which they are imported.

    Raises:
        LoadError: names those that are missing, and the command.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise LoadError(f'{what} needs {" and ".join(missing)}: pip install "steerlab[{extra}]"')
