"""Journals of latencies: what a run has measured is on disk at once, so that a killed run goes on from there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from depthcomp_errors import TableError
from depthcomp_files import JsonLines
from latency_tables.operators.signature import OperatorSignature
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment, require_same_environment

__all__ = ["Journal", "Journaled"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_Key = Annotated[str, AfterValidator(lambda key: OperatorSignature.parse(key).key)]
"""The key of an operator."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Header(_Line):
    """The first line: where the entries are measured."""

    journal_version: Literal[2]
    environment: Environment


class _Measured(_Line):
    """A line with one entry."""

    key: _Key
    entry: Entry


class _Failed(_Line):
    """A line with an operator that could not be measured, and why."""

    key: _Key
    failure: str


class _Manner(_Line):
    """A line that says how the entries before it were measured."""

    method: Method


@dataclass(frozen=True, slots=True)
class Journaled:
    """The content of a journal.

    Attributes:
        entries: entry by key, the last where a key was measured twice.
        failures: why an operator could not be measured, by key; none of them has an entry.
        method: how the entries were measured last; None where that was not written down.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """A file of latencies that several processes may append to.

    Attributes:
        path: the file; it need not exist yet. The lock is a file beside it, with `.lock` added to its name.
        environment: where the entries to be appended are measured.
    """

    path: Path
    environment: Environment

    def read(self) -> dict[str, Entry]:
        """Return the entries so far, by key.

        Raises:
            TableMismatchError: the journal was begun in another environment.
            TableError: the journal cannot be read, or a line other than an unfinished last one is broken.

        Warns:
            UserWarning: the last line was never finished and is ignored.
        """
        return self.content().entries

    def content(self) -> Journaled:
        """Return all that the journal holds; raises and warns like `read`."""
        return self._collected(self._file.read())

    def move_to(self, keep: Callable[[Journaled], None]) -> None:
        """Hand the content to `keep` and then delete the journal, which nobody appends to meanwhile.

        Where `keep` raises, the journal stays. Raises and warns like `read` besides.
        """

        def kept(lines: list[_Line]) -> tuple[()]:
            keep(self._collected(lines))
            return ()

        self._file.rewrite(kept)

    def append(
        self,
        entries: Mapping[str, Entry],
        *,
        failures: Mapping[str, str] = _NOTHING,
        method: Method | None = None,
    ) -> None:
        """Put entries on disk at once; a new journal gets its header first, an unfinished last line goes.

        Args:
            entries: what was measured, by key.
            failures: why operators could not be measured, by key.
            method: how the entries were measured.

        Raises:
            TableMismatchError: the journal was begun in another environment.
            TableError: the journal cannot be written.
        """
        measured = [_Measured(key=key, entry=entry) for key, entry in entries.items()]
        failed = [_Failed(key=key, failure=why) for key, why in failures.items()]
        manner = [] if method is None else [_Manner(method=method)]
        self._file.append([*measured, *failed, *manner], begin=self._begun)

    @property
    def _file(self) -> JsonLines[_Line]:
        return JsonLines(
            path=self.path,
            what="latencies",
            parse=_parsed,
            encode=lambda line: json.dumps(line.model_dump()),
            beginning='{"journal_version": ',
            elsewhere="give another journal path",
            anew="measure",
            error=TableError,
        )

    def _begun(self, first: _Line | None) -> list[_Line]:
        """Return the header that a journal still needs; one that has a header must be of this environment."""
        if first is None:
            return [_Header(journal_version=2, environment=self.environment)]
        self._check_environment(first)
        return []

    def _collected(self, lines: list[_Line]) -> Journaled:
        for line in lines:
            self._check_environment(line)
        entries = {line.key: line.entry for line in lines if isinstance(line, _Measured)}
        failures = {line.key: line.failure for line in lines if isinstance(line, _Failed) and line.key not in entries}
        methods = [line.method for line in lines if isinstance(line, _Manner)]
        return Journaled(entries, failures, methods[-1] if methods else None)

    def _check_environment(self, line: _Line) -> None:
        if isinstance(line, _Header):
            require_same_environment(
                line.environment,
                self.environment,
                what=f"the journal {self.path}",
                remedy="give another journal path and measure anew",
            )


_LINES: Mapping[str, type[_Line]] = {"journal_version": _Header, "method": _Manner, "failure": _Failed}
"""Line by the field that only it has; a line without any of them holds an entry."""


def _parsed(text: bytes) -> _Line:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    kinds = [line for name, line in _LINES.items() if isinstance(raw, dict) and name in raw]
    return (kinds[0] if kinds else _Measured).model_validate_json(text)
