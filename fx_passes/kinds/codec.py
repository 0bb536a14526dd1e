"""JSON form of choices, which plans, importance files and results share.

A stored choice is an object with the choice's fields and its kind as a tag. This is version 2; `from_version_1`
converts choices that earlier releases wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.kinds.registry import kind_named, kind_of

__all__ = ["decode_choice", "encode_choice", "from_version_1"]

_TAG = "kind"


def encode_choice(choice: SpanChoice) -> dict[str, Any]:
    """Return a choice as JSON values.

    Raises:
        PlanError: its kind is not registered.
    """
    return {_TAG: choice.kind, **kind_of(choice).encode(choice)}


def decode_choice(stored: object) -> SpanChoice:
    """Return the choice that `encode_choice` wrote.

    Raises:
        PlanError: its kind is unknown, or a field is missing, unknown or malformed.
    """
    if not isinstance(stored, Mapping) or _TAG not in stored:
        raise PlanError(f"{stored!r} is no choice of a plan: it must be an object with the field {_TAG!r}")
    fields = {name: value for name, value in stored.items() if name != _TAG}
    choice: SpanChoice = kind_named(stored[_TAG]).decode(fields)
    return choice


def from_version_1(stored: object) -> object:
    """Return a choice of version 1 in the current form: version 1 stored all fields for every kind."""
    if not isinstance(stored, Mapping):
        return stored
    unused: dict[str, object] = {"kernel": None, "end": "original", "pruned": []}
    return {name: value for name, value in stored.items() if name not in unused or value not in (unused[name], ())}
