"""Journals: append-only files of JSON objects, one a line, that several processes may share."""

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from depthcomp_errors import DepthCompError
from depthcomp_files.faults import first_fault
from depthcomp_files.lock import locked
from depthcomp_files.writing import write_atomically

__all__ = ["JsonLines"]

Line = TypeVar("Line", bound=BaseModel)


def _nothing(first: BaseModel | None) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLines(Generic[Line]):
    """A journal: each line is on disk before its write returns, so that a killed run can be resumed.

    Reads and writes hold the lock of the file. A last line that a killed process left unfinished is ignored with a
    warning, and the next write removes it.

    Attributes:
        path: the file; it need not exist yet. The lock is a file beside it, with `.lock` added to its name.
        what: what the lines hold, such as "scores", for messages.
        parse: returns the checked line of a JSON text, or raises pydantic's ValidationError.
        encode: returns the JSON text of a line.
        beginning: how the first line begins; a file that begins otherwise is not touched.
        elsewhere: how a user chooses another file, for messages.
        anew: what a user does again without the file, for messages.
        error: the error to raise.
    """

    path: Path
    what: str
    parse: Callable[[bytes], Line]
    encode: Callable[[Line], str]
    beginning: str
    elsewhere: str
    anew: str
    error: type[DepthCompError]

    def read(self) -> list[Line]:
        """Return all finished lines.

        Raises:
            DepthCompError: the file cannot be read or is no such journal, or a finished line is broken.

        Warns:
            UserWarning: the last line was never finished and is ignored.
        """
        with self._locked():
            return self._lines()

    def append(self, lines: Iterable[Line], *, begin: Callable[[Line | None], Iterable[Line]] = _nothing) -> None:
        """Put lines on disk at once, and remove an unfinished last line.

        Args:
            lines: what to append.
            begin: called under the lock with the first line of the file, or with None for an empty file; the
                lines that it returns go before the others. If it raises, nothing is written.

        Raises:
            DepthCompError: the file is no such journal, or it cannot be written; it keeps what it had.
        """
        with self._locked():
            whole, _ = self._content()
            first = self._parsed(1, whole.partition(b"\n")[0]) if whole else None
            self._write_after(len(whole), self._encoded([*begin(first), *lines]))

    def rewrite(self, change: Callable[[list[Line]], Iterable[Line]]) -> bool:
        """Replace the lines by the result of `change`, and return whether any are left.

        Nobody appends meanwhile. If no line is left, the file is deleted; if `change` raises, the file stays.

        Raises:
            DepthCompError: the file cannot be read or written, or is no such journal.

        Warns:
            UserWarning: the last line was never finished and is ignored.
        """
        with self._locked():
            data = self._encoded(change(self._lines()))
            if data:
                write_atomically(self.path, data, what="journal", error=self.error)
            else:
                self.path.unlink(missing_ok=True)
        return bool(data)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path, "journal", error=self.error)

    def _lines(self) -> list[Line]:
        whole, unfinished = self._content()
        if unfinished:
            warnings.warn(f"the last line of the journal {self.path} was cut off and is ignored.", stacklevel=4)
        return [self._parsed(number, line) for number, line in enumerate(whole.split(b"\n")[:-1], start=1)]

    def _content(self) -> tuple[bytes, bytes]:
        """Return the finished lines, each with its line end, and the part of an unfinished line."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b"", b""
        except OSError as cause:
            raise self.error(f"cannot read the journal {self.path}: {cause.strerror}; {self.elsewhere}.") from cause
        if not data.startswith(self.beginning.encode()[: len(data)]):
            raise self.error(f"{self.path} is no journal of {self.what}; move it away, or {self.elsewhere}.")
        end = data.rfind(b"\n") + 1
        return data[:end], data[end:]

    def _parsed(self, number: int, line: bytes) -> Line:
        try:
            return self.parse(line)
        except ValidationError as cause:
            raise self.error(
                f"line {number} of the journal {self.path} is broken ({first_fault(cause)}); delete that line, or the"
                f" journal to {self.anew} anew."
            ) from cause

    def _encoded(self, lines: Iterable[Line]) -> bytes:
        return "".join(f"{self.encode(line)}\n" for line in lines).encode()

    def _write_after(self, offset: int, data: bytes) -> None:
        try:
            with self.path.open("ab") as file:
                file.truncate(offset)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as cause:
            self._take_back(offset)
            raise self.error(
                f"cannot write the journal {self.path}: {cause.strerror}; make room or {self.elsewhere}, and run again:"
                " what it holds already stays."
            ) from cause

    def _take_back(self, offset: int) -> None:
        """Remove what was written before a disk was full, so that the journal ends with a whole line."""
        with suppress(OSError):
            os.truncate(self.path, offset)
