"""Objects that a loaded network returns in place of those of the user's classes."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

__all__ = ["OutputRecord", "OutputTuple"]


class OutputRecord(dict[str, Any]):
    """Outputs by name, read as items or as attributes; a loaded network returns it for an object of the user's class.

    Example:
        >>> OutputRecord(logits=1).logits
        1
    """

    def __getattribute__(self, name: str) -> Any:
        """Return the output called `name`, also one that a method of dict is called."""
        return self[name] if not name.startswith("_") and name in self else super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        """Refuse what is no output."""
        raise AttributeError(f"there is no output {name!r}; the outputs are {', '.join(self)}")


class OutputTuple(tuple[Any, ...]):
    """Outputs in order, read as items or as attributes; a loaded network returns it for a named tuple of the user's.

    Example:
        >>> boxes, scores = OutputTuple(boxes=1, scores=2)
        >>> OutputTuple(boxes=1, scores=2).scores
        2
    """

    __slots__ = ()

    def __new__(cls, **outputs: Any) -> OutputTuple:
        """Return the outputs; their names are the arguments'."""
        fields = {name: property(itemgetter(k)) for k, name in enumerate(outputs) if not name.startswith("_")}
        named = type(cls.__name__, (cls,), fields)
        found: OutputTuple = tuple.__new__(named, outputs.values())
        return found
