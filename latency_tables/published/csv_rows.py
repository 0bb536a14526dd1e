"""Rows of a CSV file, read strictly: a missing or malformed field is refused with its file and line."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from depthcomp_errors import TableError

__all__ = ["Row", "read_rows"]

Value = TypeVar("Value")


class Lines(Protocol):
    """What `csv.reader` returns."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...
    def __iter__(self) -> Iterator[list[str]]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a CSV file.

    Attributes:
        path: the file.
        line: its number there, counted from 1.
        texts: the line's fields by column.
    """

    path: Path
    line: int
    texts: Mapping[str, str]

    def integer(self, column: str) -> int:
        """Return a field as an integer of at least 0.

        Raises:
            TableError: it is something else.
        """
        return self._parsed(column, int, "an integer of at least 0", lambda value: value >= 0)

    def number(self, column: str) -> float:
        """Return a field as a finite number.

        Raises:
            TableError: it is something else.
        """
        return self._parsed(column, float, "a finite number", math.isfinite)

    def boolean(self, column: str) -> bool:
        """Return a field that reads True or False.

        Raises:
            TableError: it reads something else.
        """
        return self._parsed(column, {"True": True, "False": False}.__getitem__, "True or False", lambda _: True)

    def refuse(self, what: str) -> NoReturn:
        """Raise a TableError that names the file and the line."""
        raise TableError(f"{self.path}, line {self.line}: {what}; correct the line, or export the table anew.")

    def _parsed(self, column: str, parse: Callable[[str], Value], wanted: str, fits: Callable[[Value], bool]) -> Value:
        try:
            value = parse(self.texts[column].strip())
        except (ValueError, KeyError):
            self.refuse(f"{column} (={self.texts[column]!r}) must be {wanted}")
        if not fits(value):
            self.refuse(f"{column} (={self.texts[column]!r}) must be {wanted}")
        return value


def read_rows(path: str | os.PathLike[str], columns: Collection[str]) -> list[Row]:
    """Return the rows of a CSV file whose first line names its columns.

    Args:
        path: the file.
        columns: those that it must have; more may be there.

    Raises:
        TableError: the file cannot be read, is empty or no text, lacks a column or names one twice, holds no rows, or a
            line has too few or too many fields.
    """
    if not isinstance(path, str | os.PathLike):
        raise TableError(f"the path of a table (={path!r}) must be a string or a Path; give that of a CSV file.")
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_rows(path, csv.reader(file, strict=True), columns))
    except OSError as error:
        raise TableError(f"cannot read the table {path}: {error.strerror}; check the path.") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is no text file ({error.reason}); give a CSV table.") from error


def _rows(path: Path, lines: Lines, columns: Collection[str]) -> Iterator[Row]:
    header = [name.strip() for name in _next(path, lines) or []]
    if not header:
        raise TableError(f"{path} is empty; give a CSV table with the columns {', '.join(columns)}.")
    missing = [name for name in columns if name not in header]
    if missing or len(set(header)) < len(header):
        fault = f"lacks the column {missing[0]!r}" if missing else "names a column twice"
        raise TableError(f"{path}, line 1: the table {fault}; it has {', '.join(header)}.")
    found = False
    while (fields := _next(path, lines)) is not None:
        row = Row(path, lines.line_num, dict(zip(header, fields, strict=False)))
        if fields and len(fields) != len(header):
            row.refuse(
                f"the line has {len(fields)} fields and the first line {len(header)}: it is truncated or damaged"
            )
        if fields:  # an empty line holds nothing to misread
            found = True
            yield row
    if not found:
        raise TableError(f"{path} has column names and no rows; give the whole table.")


def _next(path: Path, lines: Lines) -> list[str] | None:
    try:
        return next(lines, None)
    except csv.Error as error:
        raise TableError(f"{path}, line {lines.line_num}: {error}; the line is truncated or damaged.") from error
