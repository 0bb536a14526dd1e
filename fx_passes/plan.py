"""A plan: which spans of a network are rewritten, and how. Frozen, and JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from depthcomp_errors import PlanError

__all__ = ["End", "Plan", "SpanChoice"]

Kind = Literal["merge", "fit", "drop"]
End = Literal["original", "inserted", "none"]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class SpanChoice:
    """One way to realise the span between two tensors of the captured graph.

    Attributes:
        entry: name of the node whose tensor the span reads.
        exit: name of the node whose tensor the span produces, after the end's activation.
        kind: "merge" (activations inside become identity and all collapses exactly into one convolution),
            "fit" (one convolution of size `kernel`, its weights fitted), or "drop" (identity).
        kernel: height and width of the convolution; None for "drop".
        end: what follows the convolution: the span's "original" activation or, where it ends without one, nothing;
            an "inserted" activation, of the kind that stands last inside the span; or "none", the original removed.
            After a "drop" nothing follows.
        pruned: names of the nodes whose convolutions become identity before the others merge into the smaller
            `kernel`, each together with the normalisation that follows it.
    """

    entry: str
    exit: str
    kind: Kind
    kernel: tuple[int, int] | None = None
    end: End = "original"
    pruned: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = "" if self.kernel is None else f" {self.kernel[0]}x{self.kernel[1]}"
        without = f" without {', '.join(self.pruned)}" if self.pruned else ""
        end = {"original": "", "inserted": " + activation", "none": " - activation"}[self.end]
        return f"{self.kind}{size} ({self.entry} -> {self.exit}]{without}{end}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices for all spans that are not kept, in the graph's order. An empty plan keeps everything.

    Example:
        >>> plan = Plan((SpanChoice("relu", "relu_2", "fit", (3, 3)),))
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
        """Return the plan as JSON text, the same text for the same plan."""
        content = {"schema_version": SCHEMA_VERSION, "choices": [asdict(choice) for choice in self.choices]}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises:
            PlanError: the text is not JSON, of another schema version, or a field is missing or malformed.
        """
        if not isinstance(text, str | bytes):
            raise PlanError(f"a plan is read from JSON text, and a {type(text).__name__} was given")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"the plan is not JSON ({error}); write it with Plan.to_json") from error
        if not isinstance(content, dict) or not _is_current(content.get("schema_version")):
            found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
            raise PlanError(f"the plan has schema_version {found}, and this release reads {SCHEMA_VERSION}")
        entries = content.get("choices")
        if not isinstance(entries, list):
            raise PlanError(f"choices (={entries!r}) of the plan is no list; a plan needs a list of choices")
        return cls(tuple(_parse(entry) for entry in entries))


def _is_current(version: Any) -> bool:
    return type(version) is int and version == SCHEMA_VERSION


def _parse(entry: Any) -> SpanChoice:
    names = [field.name for field in fields(SpanChoice)]
    if not isinstance(entry, dict) or not {*names[:4]} <= set(entry) <= {*names} or entry["kind"] not in get_args(Kind):
        raise PlanError(f"{entry!r} is no choice of a plan: it needs the fields {names[:4]} and a known kind")
    ends = entry["entry"], entry["exit"]
    if not all(isinstance(end, str) for end in ends):
        raise PlanError(f"entry and exit of a choice (={ends!r}) must be names of nodes")
    kernel = entry["kernel"]
    sized = isinstance(kernel, list) and len(kernel) == 2 and all(type(k) is int and k > 0 for k in kernel)
    if (entry["kind"] == "drop") != (kernel is None) or not (kernel is None or sized):
        raise PlanError(f"kernel (={kernel!r}) of a {entry['kind']!r} choice must be two sizes, or null for 'drop'")
    end, pruned = entry.get("end", "original"), entry.get("pruned", [])
    if end not in get_args(End):
        raise PlanError(f"end (={end!r}) of a choice must be one of {', '.join(get_args(End))}")
    if not isinstance(pruned, list) or not all(isinstance(name, str) for name in pruned):
        raise PlanError(f"pruned (={pruned!r}) of a choice must be a list of names of nodes")
    return SpanChoice(*ends, entry["kind"], None if kernel is None else (kernel[0], kernel[1]), end, tuple(pruned))
