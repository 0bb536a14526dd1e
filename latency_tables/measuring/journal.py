"""The journal of a measurement: every finished entry on disk at once, so that a killed run can be resumed."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from depthcomp_errors import TableError
from latency_tables.json_file import first_fault
from latency_tables.locking import locked
from latency_tables.operators.signature import OperatorSignature
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment, require_same_environment

__all__ = ["Journal", "Journaled"]

JOURNAL_VERSION = 2
_BEGINNING = '{"journal_version": '  # of every header


class _Header(BaseModel):
    """The first line: where the entries are measured."""

    model_config = ConfigDict(extra="forbid", strict=True)

    journal_version: Literal[2]
    environment: Environment


class _Line(BaseModel):
    """A line with one entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    entry: Entry


class _Failure(BaseModel):
    """A line with an operator that could not be measured, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    failure: str


class _Method(BaseModel):
    """A line that says how the entries before it were measured."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: Method


Record = TypeVar("Record", bound=BaseModel)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Journaled:
    """What a journal holds.

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
    """An append-only file of entries, one JSON object a line, safe for several processes under a file lock.

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
        with self._locked():
            text = self._text()
        return self._parsed(text)

    def move_to(self, keep: Callable[[Journaled], None]) -> None:
        """Hand the content to `keep` and then delete the journal, which nobody appends to meanwhile.

        Where `keep` raises, the journal stays. Raises and warns like `read` besides.
        """
        with self._locked():
            keep(self._parsed(self._text()))
            self.path.unlink(missing_ok=True)

    def _parsed(self, text: str) -> Journaled:
        *lines, unfinished = text.split("\n")
        if unfinished:
            warnings.warn(f"the last line of the journal {self.path} was cut off and is ignored.", stacklevel=3)
        if lines:
            self._check_header(lines[0])
        found = Journaled()
        method = None
        for number, line in enumerate(lines[1:], start=2):
            record = self._record(_kind(line), number, line)
            if isinstance(record, _Line):
                found.entries[record.key] = record.entry
            elif isinstance(record, _Failure):
                found.failures[record.key] = record.failure
            elif isinstance(record, _Method):
                method = record.method
        failures = {key: why for key, why in found.failures.items() if key not in found.entries}
        return Journaled(found.entries, failures, method)

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
        with self._locked():
            whole = self._text().rpartition("\n")[0]
            if whole:
                self._check_header(whole.partition("\n")[0])
            lines = [] if whole else [self._header()]
            lines += [json.dumps({"key": key, "entry": asdict(entry)}) for key, entry in entries.items()]
            lines += [json.dumps({"key": key, "failure": why}) for key, why in failures.items()]
            lines += [] if method is None else [json.dumps({"method": asdict(method)})]
            self._write_after(len(f"{whole}\n".encode()) if whole else 0, "\n".join(lines) + "\n")

    def _header(self) -> str:
        return json.dumps({"journal_version": JOURNAL_VERSION, "environment": asdict(self.environment)})

    def _check_header(self, line: str) -> None:
        require_same_environment(
            self._record(_Header, 1, line).environment,
            self.environment,
            what=f"the journal {self.path}",
            remedy="give another journal path and measure anew",
        )

    def _record(self, kind: type[Record], number: int, line: str) -> Record:
        try:
            record = kind.model_validate_json(line)
            if isinstance(record, _Line | _Failure):
                OperatorSignature.parse(record.key)
        except ValidationError as error:
            raise self._broken(number, first_fault(error)) from error
        except TableError as error:
            raise self._broken(number, str(error)) from error
        return record

    def _broken(self, number: int, why: str) -> TableError:
        return TableError(
            f"line {number} of the journal {self.path} is broken ({why}); delete that line, or the journal to"
            " measure anew."
        )

    def _locked(self) -> AbstractContextManager[object]:
        return locked(self.path, "journal")

    def _text(self) -> str:
        try:
            text = self.path.read_bytes().decode("utf-8")  # line ends as they are: what is cut off is counted in bytes
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"cannot read the journal {self.path}: {error}; give another journal path.") from error
        if "\n" not in text and not text.startswith(_BEGINNING[: len(text)]):  # not the start of a header, cut off
            raise TableError(f"{self.path} is no journal of latencies; give another journal path.")
        return text

    def _write_after(self, offset: int, text: str) -> None:
        try:
            with self.path.open("ab") as file:
                file.truncate(offset)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._take_back(offset)
            raise TableError(
                f"cannot write the journal {self.path}: {error.strerror}; make room or give another journal path, and"
                " run again: what it holds already stays."
            ) from error

    def _take_back(self, offset: int) -> None:
        """Remove what was written before a disk was full, so that the journal ends with a whole line."""
        with suppress(OSError):
            os.truncate(self.path, offset)


def _kind(line: str) -> type[BaseModel]:
    """Return what a line holds; the checks of that kind tell what is wrong with it."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return _Line
    found = raw.keys() if isinstance(raw, dict) else ()
    return _Method if "method" in found else _Failure if "failure" in found else _Line
