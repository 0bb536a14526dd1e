"""Plan of a compression: the choice for each span that is rewritten, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.kinds import decode_choice, encode_choice
from fx_passes.kinds.codec import from_version_1

__all__ = ["Plan", "require_plan"]

SCHEMA_VERSION = 2
_READERS: Mapping[int, Callable[[Any], SpanChoice]] = {
    1: lambda stored: decode_choice(from_version_1(stored)),
    SCHEMA_VERSION: decode_choice,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices for all spans that are not kept, in the graph's order. An empty plan keeps everything.

    Example:
        >>> from fx_passes import Fit
        >>> plan = Plan((Fit("relu", "relu_2", (3, 3)),))
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    choices: tuple[SpanChoice, ...] = ()

    @classmethod
    def of(cls, choices: Iterable[SpanChoice]) -> Plan:
        """Return the plan of these choices."""
        return cls(tuple(choices))

    def __iter__(self) -> Iterator[SpanChoice]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def to_json(self) -> str:
        """Return the plan as JSON text; equal plans give equal text."""
        content = {"schema_version": SCHEMA_VERSION, "choices": [encode_choice(choice) for choice in self.choices]}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote, in this or an earlier version.

        Raises:
            PlanError: the text is not JSON, of another schema version, or a field is missing or malformed.
        """
        if not isinstance(text, str | bytes):
            raise PlanError(f"a plan is read from JSON text, and a {type(text).__name__} was given")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"the plan is not JSON ({error}); write it with Plan.to_json") from error
        read = _READERS[_version(content)]
        entries = content.get("choices")
        if not isinstance(entries, list):
            raise PlanError(f"choices (={entries!r}) of the plan is no list; a plan needs a list of choices")
        return cls(tuple(read(entry) for entry in entries))


def _version(content: Any) -> int:
    if not isinstance(content, dict):
        raise PlanError(f"a plan is a JSON object, and a {type(content).__name__} was given")
    found = content.get("schema_version")
    if type(found) is not int or found not in _READERS:
        known = " and ".join(map(str, _READERS))
        raise PlanError(f"the plan has schema_version {found}, and this release reads {known}")
    return found


def require_plan(plan: object) -> None:
    """Raise a PlanError unless `plan` is a Plan."""
    if not isinstance(plan, Plan):
        raise PlanError(f"a Plan is needed, and a {type(plan).__name__} was given; Plan.from_json reads JSON text")
