"""Names and shell-style patterns of a model's modules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from depthcomp.errors import CaptureError

__all__ = ["Modules", "matched_modules"]

Modules = str | Sequence[str]
"""Paths of a model's modules, such as "layer4", or patterns of paths, such as "layer4.*", one or several."""


def matched_modules(model: nn.Module, names: Modules, argument: str) -> tuple[str, ...]:
    """Return the paths of the modules that names or patterns match, without those inside others, in the model's order.

    In a pattern, * stands for any text, dots included. A module with several paths is returned by its first.

    Raises:
        CaptureError: a name is no text, or matches no module; the message names modules like it.
    """
    first = {module: path for path, module in model.named_modules()}
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    matched, paths = set[str](), list(modules)
    for name in names if isinstance(names, Iterable) and not isinstance(names, str) else (names,):
        found = [path for path in paths if path == name or (isinstance(name, str) and fnmatchcase(path, name))]
        if not found:
            close = difflib.get_close_matches(str(name), paths) or paths[:3]
            like = f"the path of one, such as {' or '.join(map(repr, close))}" if close else "the model itself"
            raise CaptureError(f"{argument} (={name!r}) is no part of {type(model).__name__}; give {like}")
        matched.update(first[modules[path]] for path in found)
    return tuple(path for path in paths if path in matched and not _is_inside(path, matched))


def _is_inside(path: str, others: set[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)
