"""Hashes of users' functions, which must be equal to resume from a checkpoint."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterable
from types import CellType, CodeType, FunctionType
from typing import Any

from depthcomp.fingerprint import fingerprint

__all__ = ["function_hash"]


def function_hash(function: Callable[..., Any]) -> str:
    """Return a hash of a function's name, code, defaults and enclosed values.

    Of defaults and enclosed values only numbers, texts and tensors count, except variables that the function changes,
    for example a counter. Values from its module and functions that it calls do not count.
    """
    if isinstance(function, functools.partial):
        return fingerprint(function_hash(function.func), function.args, function.keywords)
    called = function if hasattr(function, "__code__") else type(function).__call__
    code = getattr(called, "__code__", None)
    kept = None if called is function else getattr(function, "__dict__", None)
    cells = _enclosed(code, called.__closure__ or ()) if isinstance(called, FunctionType) and code else None
    name = [getattr(function, part, None) for part in ("__module__", "__qualname__")]
    return fingerprint(name, _code(code) if code else None, getattr(called, "__defaults__", None), cells, kept)


def _enclosed(code: CodeType, cells: Iterable[CellType]) -> list[Any]:
    changed = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    return [cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True) if name not in changed]


def _code(code: CodeType) -> list[Any]:
    constants = [_code(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _constant(value: Any) -> str:
    """Return a constant as text that is equal in each process; sets are sorted, as their order is not."""
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
