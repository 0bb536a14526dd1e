"""Reader of the folder of published tables for the solver's scripts; a missing or malformed table is refused.

It holds a folder for each network, with the published `time_*.csv` (latencies of merged spans) and `opt_time_*.csv`
(their T_opt with its breaks) and importances in the authors' columns; beside them `reference_solutions.json`, a list
of what the authors' solver answered: `net`, `importance` (a file name), `budget_ms`, `prec`, `value`, `time_ms` (sum of
the unrounded T_opt of its solution), `seconds`, `A` and `S`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from depthcomp.errors import TableError
from latency_tables import PublishedLatencies, import_kim23

LARGEST = 1e300  # as the solver takes
ANSWERS = "reference_solutions.json"
Answer = dict[str, Any]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


def _is_positions(value: object) -> bool:
    return isinstance(value, list) and all(type(part) is int for part in value)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "net": (_is_name, "the name of a folder"),
    "importance": (_is_name, "the name of a file"),
    "budget_ms": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "prec": (_is_number, "a number"),
    "value": (_is_number, "a number"),
    "time_ms": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "seconds": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "A": (_is_positions, "a list of integers"),
    "S": (_is_positions, "a list of integers"),
}


def read_answers(tables: Path) -> list[Answer]:
    """Return the answers of the reference.

    Raises:
        TableError: the file cannot be read, is no list of answers or an empty one, or an answer lacks a field or holds
            something else there.
    """
    path = tables / ANSWERS
    answers = read_json(path, "give the folder that holds it and the tables")
    if not isinstance(answers, list) or not answers:
        held = "an empty list" if answers == [] else f"a {type(answers).__name__}"
        raise TableError(f"{path} holds {held}; it must hold a list of at least one answer of the reference solver")
    for number, answer in enumerate(answers):
        _check(answer, f"{path}, answer {number}")
    return answers


def read_json(path: Path, advice: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        TableError: it cannot be read, with what to do about it, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is not JSON ({error}); it may be truncated, write it anew") from error


def read_latencies(folder: Path, pattern: str) -> PublishedLatencies:
    """Return the one table of a network's folder that fits a pattern; its noisy rows are kept without a warning.

    Raises:
        TableError: there is no such table or more than one, or it is malformed.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        held = f"holds {len(found)} files {pattern}" if folder.is_dir() else "is no folder"
        raise TableError(f"{folder} {held}; give a folder with one table {pattern} for each network")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        return import_kim23(found[0])


def refuse(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """End the program with the error's sentence on stderr and exit code 2, as for a malformed argument."""
    parser.exit(2, f"{parser.prog}: error: {error}\n")


def _check(answer: object, where: str) -> None:
    if not isinstance(answer, dict):
        raise TableError(f"{where} is a {type(answer).__name__}; it must be an object with {', '.join(FIELDS)}")
    for name, (fits, wanted) in FIELDS.items():
        if name not in answer:
            raise TableError(f"{where} lacks {name!r}; it must have {', '.join(FIELDS)}")
        if not fits(answer[name]):
            raise TableError(f"{where}: {name} (={answer[name]!r}) must be {wanted}; correct it")
