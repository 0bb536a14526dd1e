"""Settings of an importance, JSON scalars by name, and their checks."""

from __future__ import annotations

from collections.abc import Mapping

from depthcomp.errors import DepthCompError

__all__ = ["Settings", "require_counts"]

Settings = Mapping[str, int | float | str | None]
"""Settings that decide the scores of an importance, as in importance.json."""


def require_counts(config: object, *names: str) -> None:
    """Refuse settings that are no counts.

    Raises:
        DepthCompError: a named attribute is not a whole number of at least 1.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise DepthCompError(f"{name} (={value!r}) of an importance must be a whole number of at least 1")
