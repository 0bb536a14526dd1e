import enum
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from random_trees import points, trees

from depthcomp_errors import ProblemError
from dp_solver import Chain, Choice, Frontier, frontier, frontier_json

KEYS = ["text é", None, 3, 2.5, True, 1, 1.0, ("a", (1, None), ()), -0.0]


def one_choice(key: object) -> Frontier:
    return frontier(Chain(1, {(0, 1): [Choice(key, 1.0, 0.0)]}))


@settings(max_examples=50, deadline=None)
@given(trees(depth=1))
def test_round_trip(tree: Chain) -> None:
    front = frontier(tree)
    copy = Frontier.from_json(front.to_json())
    assert points(copy) == points(front)
    assert [copy.plan(k) for k in range(len(copy))] == [front.plan(k) for k in range(len(front))]
    assert copy.to_json() == front.to_json()


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_come_back_as_they_were(key: object) -> None:
    (read,) = Frontier.from_json(one_choice(key).to_json()).plan(0)
    assert (repr(read), type(read)) == (repr(key), type(key))


def test_equal_keys_of_different_types_stay_apart() -> None:
    spans = {(0, 1): [Choice(1, 1.0, 0.0)], (1, 2): [Choice(1.0, 1.0, 0.0)], (2, 3): [Choice(True, 1.0, 0.0)]}
    plan = Frontier.from_json(frontier(Chain(3, spans)).to_json()).plan(0)
    assert [type(key) for key in plan] == [int, float, bool]


def test_a_grid_frontier_keeps_its_slack() -> None:
    front = frontier(Chain(1, {(0, 1): [Choice("a", 1.0, 0.0)]}), resolution_ms=0.25)
    assert Frontier.from_json(front.to_json()).slack_ms == front.slack_ms > 0


def test_what_was_read_answers_as_before() -> None:
    spans = {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.0, 0.5)]}
    copy = Frontier.from_json(frontier(Chain(1, spans)).to_json())
    assert copy.plan(copy.at(1.5)) == ("merge",)
    with pytest.raises(ValueError, match="read-only"):
        copy.costs[0] = 0.0
    with pytest.raises(IndexError, match=r"the frontier has no plan 2; use 0"):
        copy.plan(2)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("key", [frozenset(), b"bytes", 1j, Colour.RED, ("a", b"b"), np.int64(3)], ids=repr)
def test_keys_that_json_cannot_hold(key: object) -> None:
    with pytest.raises(ProblemError, match="cannot be written as JSON: it must be a string, a number, a boolean"):
        one_choice(key).to_json()


@pytest.mark.parametrize("key", [math.nan, math.inf, ("a", -math.inf)], ids=repr)
def test_keys_that_are_not_finite(key: object) -> None:
    with pytest.raises(ProblemError, match="holds a number that is not finite"):
        one_choice(key).to_json()


GOOD = json.loads(frontier(Chain(1, {(0, 1): [Choice("a", 1.0, 1.0), Choice("b", 2.0, 0.0)]})).to_json())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "has schema_version 2, and this release reads 1"),
        ({"schema_version": None}, "has schema_version None"),
        ({"costs": None}, "costs of the frontier must be a list of finite numbers"),
        ({"losses": [1.0, "0"]}, "losses of the frontier must be a list of finite numbers"),
        ({"losses": [1.0, True]}, "losses of the frontier must be a list of finite numbers"),
        ({"costs": [1.0]}, "has 1 costs, 2 losses and 2 plans; it needs the same number of each"),
        ({"costs": [], "losses": [], "plans": []}, "has 0 costs, 0 losses and 0 plans"),
        ({"costs": [2.0, 1.0]}, "plan 1 of the frontier is no slower or loses no less than plan 0"),
        ({"losses": [1.0, 1.0]}, "plan 1 of the frontier is no slower or loses no less than plan 0"),
        ({"costs": [-1.0, 1.0]}, "plan 0 of the frontier costs -1.0 ms"),
        ({"keys": {}}, "keys and plans of the frontier must be lists"),
        ({"keys": ["a", {}]}, r"key \{\} of the frontier is an object"),
        ({"plans": [[0], [2]]}, "plan 1 of the frontier must be a list of numbers of keys, 0 to 1"),
        ({"plans": [[0], [-1]]}, "plan 1 of the frontier must be a list of numbers of keys"),
        ({"plans": [[0], [0.0]]}, "plan 1 of the frontier must be a list of numbers of keys"),
        ({"slack_ms": -1}, r"slack_ms \(=-1\) of the frontier must be a number of at least 0"),
        ({"slack_ms": "0"}, r"slack_ms \(='0'\) of the frontier must be a number of at least 0"),
    ],
)
def test_malformed_text(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ProblemError, match=sentence):
        Frontier.from_json(json.dumps(GOOD | change))


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"costs": [NaN]}', "[" * 100_000])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ProblemError, match=r"the frontier is not JSON .*; write it with Frontier\.to_json"):
        Frontier.from_json(text)


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(ProblemError, match=r"has schema_version (list|int|NoneType), and this release reads 1"):
        Frontier.from_json(text)


def test_a_truncated_file_is_refused() -> None:
    text = one_choice("a").to_json()
    for length in range(len(text) - 2):
        with pytest.raises(ProblemError, match="the frontier is not JSON"):
            Frontier.from_json(text[:length])


def test_each_key_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = {(i, i + 1): [Choice(("keep", i), 0.0, 0.0), Choice(("merge", i), 2.0**i, -(2.0**i))] for i in range(6)}
    front = frontier(Chain(6, spans))
    written, text = [], frontier_json._key_text
    monkeypatch.setattr(frontier_json, "_key_text", lambda key: written.append(key) or text(key))
    assert len(Frontier.from_json(front.to_json())) == 64
    assert len(written) == 12
