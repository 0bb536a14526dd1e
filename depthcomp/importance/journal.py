"""Journals of scores, from which a killed run resumes.

Each finished score is written to disk at once. Each line names the run that it belongs to, so one file serves several
runs. Processes that share the work may append to one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from depthcomp.errors import TableError
from depthcomp_files import JsonLines

__all__ = ["ScoreJournal"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    run: str
    entry: str
    score: float | None  # None where it is not finite
    seconds: float


class ScoreJournal:
    """Scores by entry, in memory and, given a path, in a file.

    Args:
        path: the file, which need not exist yet; a lock file beside it adds `.lock` to its name. None for no file.
        run: hash of all that decides the scores; lines of other runs stay untouched.

    Attributes:
        seconds: wall time of all scores, earlier runs included.

    Raises:
        TableError: the file cannot be read, is no journal of scores, or has a broken line other than an unfinished
            last one.

    Warns:
        UserWarning: the last line was never finished and is ignored.
    """

    def __init__(self, path: Path | None = None, run: str = "") -> None:
        self._file = None if path is None else _file(path)
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
        """All scores so far; NaN where a score was not finite."""
        return dict(self._scores)

    def refresh(self) -> None:
        """Read the lines that other processes have appended."""
        if self._file is None or not self._file.path.exists():
            return
        for line in self._file.read():
            if line.run == self._run and line.entry not in self._scores:
                self._keep(line)

    def add(self, entry: str, score: float, seconds: float) -> float:
        """Write a score and its wall time to disk, and return the score.

        Raises:
            TableError: the file cannot be written.
        """
        finite = float(score) if abs(score) < float("inf") else None
        line = _Line(run=self._run, entry=entry, score=finite, seconds=seconds)
        self._keep(line)
        if self._file is not None:
            self._file.append([line])
        return self._scores[entry]

    def forget(self) -> None:
        """Remove this run's lines from the file, and delete an empty file; lines of other runs stay."""
        if self._file is None:
            return
        path = self._file.path
        if not self._file.rewrite(lambda lines: [line for line in lines if line.run != self._run]):
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)

    def _keep(self, line: _Line) -> None:
        self._scores[line.entry] = float("nan") if line.score is None else line.score
        self.seconds += line.seconds


def _file(path: Path) -> JsonLines[_Line]:
    return JsonLines(
        path=path,
        what="scores",
        parse=_Line.model_validate_json,
        encode=_Line.model_dump_json,
        beginning='{"run":"',
        elsewhere="choose another folder",
        anew="score",
        error=TableError,
    )
