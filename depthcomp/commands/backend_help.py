"""Help that names every backend and method, without loading the latency tables each time the command line starts."""

from __future__ import annotations

from typing import Any

import typer.core

__all__ = ["BACKENDS", "METHOD_NAMES", "BackendHelp"]

BACKENDS = "BACKENDS"
"""Stands in the help of an option for the names of all backends."""
METHOD_NAMES = "METHOD_NAMES"
"""Stands there for the names of all methods of compression."""


class BackendHelp(typer.core.TyperCommand):
    """A command that puts the names of all backends and methods in its help when that is printed."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from depthcomp.methods.registry import METHODS
        from latency_tables.backends import BACKEND_NAMES

        for option in self.params:
            if isinstance(option, typer.core.TyperOption) and option.help:
                option.help = option.help.replace(BACKENDS, ", ".join(BACKEND_NAMES))
                option.help = option.help.replace(METHOD_NAMES, ", ".join(METHODS))
        super().format_help(ctx, formatter)
