"""JSON text of a frontier, written and read; text of another origin is refused with a sentence.

Each key is stored once, in the order of its first use, and plans hold the numbers of keys. Tuples become
lists and lists become tuples again, which loses nothing since a list cannot be a key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from depthcomp_errors import ProblemError

__all__ = ["FrontierContent", "frontier_from_json", "frontier_to_json"]

SCHEMA_VERSION = 1
LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class FrontierContent:
    """The content of a frontier's JSON text.

    Attributes:
        costs: latencies in ms, strictly increasing.
        losses: losses, strictly decreasing, as many.
        plans: the keys of each plan.
        slack_ms: 0 for an exact frontier.
    """

    costs: list[float]
    losses: list[float]
    plans: list[tuple[Hashable, ...]]
    slack_ms: float


def frontier_to_json(
    costs: Sequence[float], losses: Sequence[float], plans: Sequence[Sequence[Hashable]], slack_ms: float
) -> str:
    """Return the JSON text of a frontier.

    Raises:
        ProblemError: a key is no string, finite number, boolean, None or tuple of these.
    """
    numbers: dict[str, int] = {}  # by the key's text: 1, 1.0 and True are equal but not the same key
    seen: dict[int, tuple[Hashable, int]] = {}  # by the key's identity; it holds the key, so that no other takes its id

    def number(key: Hashable) -> int:
        if id(key) not in seen:
            seen[id(key)] = key, numbers.setdefault(_key_text(key), len(numbers))
        return seen[id(key)][1]

    numbered = [[number(key) for key in plan] for plan in plans]
    lines = {
        "schema_version": json.dumps(SCHEMA_VERSION),
        "slack_ms": json.dumps(slack_ms),
        "costs": json.dumps(list(costs)),
        "losses": json.dumps(list(losses)),
        "keys": f"[{', '.join(numbers)}]",
        "plans": json.dumps(numbered),
    }
    return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in lines.items()) + "\n}\n"


def frontier_from_json(text: str) -> FrontierContent:
    """Return the content of what `frontier_to_json` wrote.

    Raises:
        ProblemError: the text is not JSON, of another schema version, or a field is missing or malformed.
    """
    _require_text(text)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProblemError(f"the frontier is not JSON ({error}); write it with Frontier.to_json") from error
    if not isinstance(content, dict) or not _is_version(content.get("schema_version")):
        found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        raise ProblemError(f"the frontier has schema_version {found}, and this release reads {SCHEMA_VERSION}")
    costs, losses = _numbers(content, "costs"), _numbers(content, "losses")
    plans = _plans(content)
    if not len(costs) == len(losses) == len(plans) > 0:
        lengths = f"{len(costs)} costs, {len(losses)} losses and {len(plans)} plans"
        raise ProblemError(f"the frontier has {lengths}; it needs the same number of each, at least one")
    _require_order(costs, losses)
    slack_ms = content.get("slack_ms")
    if not _is_number(slack_ms) or slack_ms < 0:
        raise ProblemError(f"slack_ms (={slack_ms!r}) of the frontier must be a number of at least 0")
    return FrontierContent(costs, losses, plans, float(slack_ms))


def _require_text(text: object) -> None:
    if not isinstance(text, str | bytes | bytearray):
        given = type(text).__name__
        raise ProblemError(
            f"the frontier is of type {given} and must be JSON text; give what Frontier.to_json returned"
        )


def _key_text(key: Hashable) -> str:
    value = _jsonable(key)
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ProblemError(f"key {key!r} holds a number that is not finite, which JSON cannot hold") from error


def _jsonable(key: Any) -> Any:
    if isinstance(key, tuple):
        return [_jsonable(part) for part in key]
    if key is None or isinstance(key, str | bool | int | float):
        return key
    raise ProblemError(
        f"key {key!r} cannot be written as JSON: it must be a string, a number, a boolean, None or a tuple of these; "
        "give the choices keys of these types, or look the plans up by their number"
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_version(value: object) -> bool:
    return type(value) is int and value == SCHEMA_VERSION


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _numbers(content: dict[str, Any], name: str) -> list[float]:
    values = content.get(name)
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise ProblemError(f"{name} of the frontier must be a list of finite numbers")
    return [float(value) for value in values]


def _plans(content: dict[str, Any]) -> list[tuple[Hashable, ...]]:
    keys, plans = content.get("keys"), content.get("plans")
    if not isinstance(keys, list) or not isinstance(plans, list):
        raise ProblemError("keys and plans of the frontier must be lists")
    read = [_key(key) for key in keys]
    for k, plan in enumerate(plans):
        if not isinstance(plan, list) or not all(type(n) is int and 0 <= n < len(read) for n in plan):
            raise ProblemError(f"plan {k} of the frontier must be a list of numbers of keys, 0 to {len(read) - 1}")
    return [tuple(read[number] for number in plan) for plan in plans]


def _key(value: Any) -> Hashable:
    if isinstance(value, dict):
        raise ProblemError(f"key {value!r} of the frontier is an object; a key is a string, a number, null or a list")
    if isinstance(value, float) and not abs(value) <= LARGEST:
        raise ProblemError("a key of the frontier is a number too large for a float; write it with Frontier.to_json")
    return tuple(map(_key, value)) if isinstance(value, list) else value


def _require_order(costs: list[float], losses: list[float]) -> None:
    for k in range(1, len(costs)):
        if not (costs[k - 1] < costs[k] and losses[k - 1] > losses[k]):
            raise ProblemError(
                f"plan {k} of the frontier is no slower or loses no less than plan {k - 1}; it is damaged"
            )
    if costs[0] < 0:
        raise ProblemError(f"plan 0 of the frontier costs {costs[0]} ms, and a cost is at least 0; it is damaged")
