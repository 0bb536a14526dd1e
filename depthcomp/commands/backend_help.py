"""Help with the names of backends, methods, kinds and importances, imported only when the help is printed."""

from __future__ import annotations

from typing import Any

import typer.core

__all__ = ["BACKENDS", "IMPORTANCE_NAMES", "KIND_NAMES", "METHOD_NAMES", "BackendHelp"]

BACKENDS = "BACKENDS"
"""Placeholder in an option's help for the names of all backends."""
METHOD_NAMES = "METHOD_NAMES"
"""Placeholder in an option's help for the names of all methods of compression."""
KIND_NAMES = "KIND_NAMES"
"""Placeholder in an option's help for the names of all kinds of choices."""
IMPORTANCE_NAMES = "IMPORTANCE_NAMES"
"""Placeholder in an option's help for the names of all presets of importances."""


class BackendHelp(typer.core.TyperCommand):
    """A command whose printed help has the names of all backends, methods, kinds and importances."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from depthcomp.importance.registry import PRESETS
        from depthcomp.methods.registry import METHODS
        from fx_passes.kinds import kind_names
        from latency_tables.backends import BACKEND_NAMES

        methods = ", ".join(f"{name} ({method.summary})" for name, method in METHODS.items())
        for option in self.params:
            if isinstance(option, typer.core.TyperOption) and option.help:
                option.help = option.help.replace(BACKENDS, ", ".join(BACKEND_NAMES))
                option.help = option.help.replace(METHOD_NAMES, methods)
                option.help = option.help.replace(KIND_NAMES, ", ".join(kind_names()))
                option.help = option.help.replace(IMPORTANCE_NAMES, ", ".join(PRESETS))
        super().format_help(ctx, formatter)
