"""Store of latencies: the table that a compression starts from, and the files for new measurements."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from depthcomp.errors import DepthCompError, TableError
from depthcomp.warning import warn_caller
from latency_tables import AnyBackend, Environment, LatencyTable, OperatorSignature, Progress, measure
from latency_tables.tables.table_file import require_writable_table
from latency_tables.tables.table_update import update_table

__all__ = ["TableStore"]


@dataclass(frozen=True, slots=True)
class TableStore:
    """Known latencies of one environment, and the files that new ones are added to.

    The journal's name holds the environment's fingerprint. So runs with other thread counts or on other machines may
    use one folder in turn, and each resumes its own journal.

    Attributes:
        environment: the environment of the measurements.
        known: the table to start from; None for an empty one.
        path: file for the completed table; None for no file.
        journal: file for the measurements of an unfinished run; None for no file.
    """

    environment: Environment
    known: LatencyTable | None
    path: Path | None
    journal: Path | None

    @classmethod
    def open(
        cls, table: LatencyTable | str | os.PathLike[str] | None, environment: Environment, folder: Path | None = None
    ) -> TableStore:
        """Return the store for a table, or for a path where a table is or will be.

        Args:
            table: the table, its path, or None to start without one.
            environment: the environment in which the table is used and completed.
            folder: folder for the journal; None for no journal.

        Raises:
            TableMismatchError: the table comes from another environment.
            TableError: the path holds something other than a table, or cannot be written.
        """
        journal = None if folder is None else folder / f"latency_journal.{environment.fingerprint()}.jsonl"
        if table is None:
            return cls(environment, None, None, journal)
        path = None if isinstance(table, LatencyTable) else _writable(table)
        known = LatencyTable.load(path) if path is not None and path.exists() else None
        known = table if isinstance(table, LatencyTable) else known
        if known is not None:
            known.check(environment)
        return cls(environment, known, path, journal)

    @property
    def failures(self) -> Mapping[str, str]:
        """Reasons why operators could not be measured in earlier runs, by key."""
        return {} if self.known is None else self.known.failures

    def complete(
        self,
        signatures: Iterable[OperatorSignature],
        backend: AnyBackend,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> LatencyTable:
        """Measure missing signatures, add them to the file at `path`, and return the complete table.

        Args:
            signatures: the signatures that the table must have.
            backend: the backend that measures, in the store's environment.
            seed: seed of the order of rounds.
            progress: called as (entries done, entries wanted, key) after each new entry.

        Raises:
            TableError: the backend refuses an operator, or a file cannot be read or written.
        """
        complete = measure(
            signatures, backend, table=self.known, journal=self.journal, seed=seed, progress=progress,
            check_environment=False,
        )  # fmt: skip
        if self.path is not None:  # another run may have updated the file since it was read
            fresh = self._fresh(complete) if self.path.exists() else complete
            update_table(self.path, replace(fresh, calibration=None))
        return complete

    def _fresh(self, complete: LatencyTable) -> LatencyTable:
        """Return a table with only the entries that are new since the start."""
        known = {} if self.known is None else self.known.entries
        new = {key: entry for key, entry in complete.entries.items() if known.get(key) != entry}
        return replace(complete, entries=new)

    def keep_calibration(self, table: LatencyTable) -> None:
        """Write only a table's line to whole networks to the file at `path`, if there is one.

        Warns:
            UserWarning: the file can no longer be written; this does not stop the run.
        """
        if self.path is None:
            return
        try:
            update_table(self.path, replace(table, entries={}, failures={}))
        except DepthCompError as error:
            warn_caller(f"the calibration on whole networks was not added to the latency table: {error}")

    def forget_journal(self) -> None:
        """Delete the journal of this environment; journals of other environments stay."""
        if self.journal is not None:
            for path in (self.journal, self.journal.with_name(f"{self.journal.name}.lock")):
                path.unlink(missing_ok=True)


def _writable(table: str | os.PathLike[str]) -> Path:
    if not isinstance(table, str | os.PathLike):
        raise TableError(f"table (={table!r}) must be a LatencyTable or the path of one")
    path = Path(table)
    require_writable_table(path)
    return path
