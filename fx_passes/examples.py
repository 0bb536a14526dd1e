"""Example inputs of a forward: in the order of its first arguments, or by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Examples", "called", "given_by", "in_order", "like"]

Examples = Sequence[Tensor] | Mapping[str, Tensor]


def in_order(examples: Examples) -> tuple[Tensor, ...]:
    """Return the tensors in their order."""
    return tuple(examples.values() if isinstance(examples, Mapping) else examples)


def given_by(examples: Examples) -> int | tuple[str, ...]:
    """Return the number of tensors, or the names by which they are given."""
    return tuple(examples) if isinstance(examples, Mapping) else len(examples)


def like(examples: Examples, tensors: Sequence[Tensor]) -> Examples:
    """Return other tensors in the place of the examples."""
    return dict(zip(examples, tensors, strict=True)) if isinstance(examples, Mapping) else tuple(tensors)


def called(forward: Callable[..., Any], examples: Examples) -> Any:
    """Call a forward with the examples, in order or by name, and return its output."""
    return forward(**examples) if isinstance(examples, Mapping) else forward(*examples)
