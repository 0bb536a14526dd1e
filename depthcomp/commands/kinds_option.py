"""The option --kinds, which several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from depthcomp.commands.backend_help import KIND_NAMES

__all__ = ["Kinds", "listed"]

Kinds = Annotated[
    str | None,
    typer.Option(
        help=f"The kinds of choices that the method may make, such as fit,narrow, out of {KIND_NAMES}; by default the "
        "method's own."
    ),
]


def listed(kinds: str | None) -> list[str] | None:
    """Return the names in the text of an option; None where it is not given."""
    return None if kinds is None else [name.strip() for name in kinds.split(",")]
