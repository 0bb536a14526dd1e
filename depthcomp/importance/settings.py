"""Settings of an importance: JSON scalars by name, and the checks that they share."""

from __future__ import annotations

from collections.abc import Mapping

from depthcomp.errors import DepthCompError

__all__ = ["Settings", "require_counts"]

Settings = Mapping[str, int | float | str | None]
"""What decides the scores of an importance, as an importance.json holds it."""


def require_counts(config: object, *names: str) -> None:
    """Refuse settings that are no counts.

    Raises:
        DepthCompError: one of the named attributes is no whole number from 1 on.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise DepthCompError(f"{name} (={value!r}) of an importance must be a whole number from 1 on")
