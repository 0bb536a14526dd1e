"""The journal of a measurement: every finished entry on disk at once, so that a killed run can be resumed."""

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from depthcomp_errors import TableError
from latency_tables.entry import Entry
from latency_tables.environment import Environment, require_same_environment
from latency_tables.signature import OperatorSignature
from latency_tables.table_file import first_fault

__all__ = ["Journal"]

JOURNAL_VERSION = 1


class _Header(BaseModel):
    """The first line: where the entries are measured."""

    model_config = ConfigDict(extra="forbid", strict=True)

    journal_version: Literal[1]
    environment: Environment


class _Line(BaseModel):
    """Any other line: one entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    entry: Entry


Record = TypeVar("Record", bound=BaseModel)


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
        with self._locked():
            text = self._text()
        *lines, unfinished = text.split("\n")
        if unfinished:
            warnings.warn(f"the last line of the journal {self.path} was cut off and is ignored.", stacklevel=2)
        if lines:
            self._check_header(lines[0])
        records = [self._record(_Line, number, line) for number, line in enumerate(lines[1:], start=2)]
        return {record.key: record.entry for record in records}

    def append(self, entries: Mapping[str, Entry]) -> None:
        """Put entries on disk at once; a new journal gets its header first, an unfinished last line goes.

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
            if isinstance(record, _Line):
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
        lock = self.path.with_name(f"{self.path.name}.lock")
        if not self.path.parent.is_dir():
            raise TableError(f"cannot write the journal {self.path}: its folder does not exist; create it first.")
        return FileLock(lock)

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"cannot read the journal {self.path}: {error}; give another journal path.") from error

    def _write_after(self, offset: int, text: str) -> None:
        try:
            with self.path.open("ab") as file:
                file.truncate(offset)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TableError(f"cannot write the journal {self.path}: {error}; give another journal path.") from error
