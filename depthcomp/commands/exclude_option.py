"""The option --exclude, which several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Exclude"]

Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="A module that stays as it is, such as head, or a pattern, such as 'layer4.*'; give the option again for "
        "each."
    ),
]
