"""Faults of a file's content, as pydantic finds them, in words for a message."""

from pydantic import ValidationError

__all__ = ["first_fault"]


def first_fault(error: ValidationError) -> str:
    """Return the first fault on one line: the field, and what is wrong with it."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    what = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    return f"{where}: {what}" if where else what
