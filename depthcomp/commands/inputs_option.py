"""The option --inputs, which several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["InputsOption"]

InputsOption = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        help="The arguments of the model's forward that the data give, such as image,mask; by default those without a "
        "default, or those of the model's attribute example_inputs.",
    ),
]
