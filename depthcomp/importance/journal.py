"""The journal of an importance: every finished score on disk at once, so that a killed run can be resumed.

One JSON object a line. A line names what its value depends on, so that one file serves several runs, and processes that
share the work may append to it together.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from depthcomp.errors import TableError
from depthcomp.files import write_atomically
from latency_tables.json_file import first_fault
from latency_tables.locking import locked

__all__ = ["ScoreJournal"]

_BEGINNING = '{"run":"'  # of every line


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    run: str
    entry: str
    score: float | None  # None where it is not finite
    seconds: float


class ScoreJournal:
    """Scores by entry, kept in memory and, given a path, in a file.

    Args:
        path: the file; it need not exist yet. None keeps nothing on disk. The lock is a file beside it, with `.lock`
            added to its name.
        run: what all scores depend on; lines of other runs are left alone.

    Attributes:
        seconds: what the scores cost in all, those of earlier runs included.

    Raises:
        TableError: the file cannot be read, is no such journal, or a line other than an unfinished last one is broken.

    Warns:
        UserWarning: the last line was never finished and is ignored.
    """

    def __init__(self, path: Path | None = None, run: str = "") -> None:
        self._path = path
        self._run = run
        self._scores: dict[str, float] = {}
        self.seconds = 0.0
        self.refresh()

    def __contains__(self, entry: str) -> bool:
        return entry in self._scores

    def __getitem__(self, entry: str) -> float:
        return self._scores[entry]

    @property
    def scores(self) -> Mapping[str, float]:
        """All scores so far; NaN where one was not finite."""
        return dict(self._scores)

    def refresh(self) -> None:
        """Read what other processes have appended meanwhile."""
        for line in self._lines():
            if line.run == self._run and line.entry not in self._scores:
                self._keep(line)

    def add(self, entry: str, score: float, seconds: float) -> float:
        """Keep a score with what it cost, on disk before this returns; return the score.

        Raises:
            TableError: the file cannot be written.
        """
        finite = float(score) if abs(score) < float("inf") else None
        line = _Line(run=self._run, entry=entry, score=finite, seconds=seconds)
        self._keep(line)
        if self._path is not None:
            self._append(self._path, f"{line.model_dump_json()}\n")
        return self._scores[entry]

    def forget(self) -> None:
        """Take this run's lines out of the file, and the file away where nothing is left; other runs' stay."""
        if self._path is None:
            return
        with locked(self._path, "journal"):
            others = [line for line in self._lines() if line.run != self._run]
            if others:
                write_atomically(self._path, "".join(f"{line.model_dump_json()}\n" for line in others).encode())
            else:
                self._path.unlink(missing_ok=True)
        if not others:
            self._path.with_name(f"{self._path.name}.lock").unlink(missing_ok=True)

    def _keep(self, line: _Line) -> None:
        self._scores[line.entry] = float("nan") if line.score is None else line.score
        self.seconds += line.seconds

    def _lines(self) -> list[_Line]:
        if self._path is None:
            return []
        *lines, unfinished = self._text(self._path).split("\n")
        if unfinished:
            warnings.warn(f"the last line of the journal {self._path} was cut off and is ignored.", stacklevel=4)
        return [self._parsed(number, line) for number, line in enumerate(lines, start=1)]

    def _text(self, path: Path) -> str:
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"cannot read the journal {path}: {error}; check the folder.") from error
        if not text.startswith(_BEGINNING[: len(text)]):
            raise TableError(f"{path} is no journal of scores; move it away, or choose another folder.")
        return text

    def _parsed(self, number: int, line: str) -> _Line:
        try:
            return _Line.model_validate_json(line)
        except ValidationError as error:
            raise TableError(
                f"line {number} of the journal {self._path} is broken ({first_fault(error)}); delete that line, or the "
                "journal to score anew."
            ) from error

    def _append(self, path: Path, text: str) -> None:
        """Write whole lines; what a killed process left of its last line goes."""
        with locked(path, "journal"):
            try:
                with path.open("a+b") as file:
                    file.truncate(_end_of_lines(path))
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise TableError(
                    f"cannot write the journal {path}: {error.strerror}; make room and run again: what it holds "
                    "already stays."
                ) from error


def _end_of_lines(path: Path) -> int:
    """Return where the last whole line of a file ends; a line is far shorter than what is looked at."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2**16))
        start = file.tell()
        return start + file.read().rfind(b"\n") + 1
