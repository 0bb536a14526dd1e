"""Parsers of the fields of stored choices; each error names the malformed field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args

from depthcomp_errors import PlanError
from fx_passes.choice import End, Kernel, SpanChoice

__all__ = ["Parsers", "parse_end", "parse_kernel", "parse_node", "parse_nodes", "read_choice"]

C = TypeVar("C", bound=SpanChoice)
Parsers = Mapping[str, Callable[[str, Any], Any]]
"""Parser of each field; it takes the field's name and the stored value."""


def read_choice(choice: type[C], stored: Mapping[str, Any], parsers: Parsers) -> C:
    """Return a choice from its stored fields; a field with a default may be missing.

    Raises:
        PlanError: a field is missing, unknown or malformed.
    """
    known = {field.name: field.default is MISSING for field in fields(choice)}
    missing = [name for name, needed in known.items() if needed and name not in stored]
    unknown = [name for name in stored if name not in known]
    if missing or unknown:
        faults = [f"lacks {name!r}" for name in missing] + [f"has the unknown field {name!r}" for name in unknown]
        raise PlanError(
            f"the {choice.kind!r} choice {dict(stored)!r} {' and '.join(faults)}; its fields are {', '.join(known)}"
        )
    return choice(**{name: parsers[name](name, stored[name]) for name in stored})


def parse_node(field: str, stored: Any) -> str:
    """Return the name of a node."""
    if not isinstance(stored, str):
        raise PlanError(f"{field} (={stored!r}) of a choice must be the name of a node")
    return stored


def parse_nodes(field: str, stored: Any) -> tuple[str, ...]:
    """Return names of nodes."""
    if not isinstance(stored, list | tuple) or not all(isinstance(name, str) for name in stored):
        raise PlanError(f"{field} (={stored!r}) of a choice must be a list of node names")
    return tuple(stored)


def parse_kernel(field: str, stored: Any) -> Kernel:
    """Return the height and the width of a kernel."""
    sized = isinstance(stored, list | tuple) and len(stored) == 2
    if not sized or not all(type(size) is int and size > 0 for size in stored):
        raise PlanError(f"{field} (={stored!r}) of a choice must be two whole numbers of at least 1")
    return stored[0], stored[1]


def parse_end(field: str, stored: Any) -> End:
    """Return the end of a choice: "original", "inserted" or "none"."""
    if stored not in get_args(End):
        raise PlanError(f"{field} (={stored!r}) of a choice must be one of {', '.join(get_args(End))}")
    found: End = stored
    return found
