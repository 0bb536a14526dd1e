"""Store of latencies: the table that a compression starts from, and the files that keep what it measures."""

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
    """What is known of the latencies in one environment, and where more of it goes.

    The journal's name holds the environment's fingerprint: runs with other threads or on other machines may use
    one folder in turn, and each resumes its own.

    Attributes:
        environment: where it is measured.
        known: the table to start from; None for an empty one.
        path: the file that the completed table is written to; None for none.
        journal: the file that keeps what an unfinished run has measured; None for none.
    """

    environment: Environment
    known: LatencyTable | None
    path: Path | None
    journal: Path | None

    @classmethod
    def open(
        cls, table: LatencyTable | str | os.PathLike[str] | None, environment: Environment, folder: Path | None = None
    ) -> TableStore:
        """Return the store for a table, or for the path of one that is there or will be written.

        Args:
            table: the table, its path, or None to begin with nothing.
            environment: where it will be used and completed.
            folder: where the journal is kept; None for no journal.

        Raises:
            TableMismatchError: the table comes from another environment.
            TableError: the path holds something else than a table, or could not be written later.
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
        """Why operators could not be measured in earlier runs, by key."""
        return {} if self.known is None else self.known.failures

    def complete(
        self,
        signatures: Iterable[OperatorSignature],
        backend: AnyBackend,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> LatencyTable:
        """Return the table with all the signatures, measuring what is not known, and add it to the file at `path`.

        Args:
            signatures: what the table must have.
            backend: what measures, in the store's environment.
            seed: draws the order of the rounds.
            progress: called as (entries done, entries wanted, key) after each new entry.

        Raises:
            TableError: the backend refuses an operator, or a file cannot be read or written.
        """
        complete = measure(
            signatures, backend, table=self.known, journal=self.journal, seed=seed, progress=progress,
            check_environment=False,
        )  # fmt: skip
        if self.path is not None:  # what stands in the file by now may be fresher than what was read from it
            fresh = self._fresh(complete) if self.path.exists() else complete
            update_table(self.path, replace(fresh, calibration=None))
        return complete

    def _fresh(self, complete: LatencyTable) -> LatencyTable:
        """Return what of a table is not known from the start."""
        known = {} if self.known is None else self.known.entries
        new = {key: entry for key, entry in complete.entries.items() if known.get(key) != entry}
        return replace(complete, entries=new)

    def keep_calibration(self, table: LatencyTable) -> None:
        """Put a table's line to whole networks into the file at `path`, where there is one, and nothing else.

        Warns:
            UserWarning: the file cannot be written any more; a network that was found is not lost by that.
        """
        if self.path is None:
            return
        try:
            update_table(self.path, replace(table, entries={}, failures={}))
        except DepthCompError as error:
            warn_caller(f"the line to whole networks was not added to the latency table: {error}")

    def forget_journal(self) -> None:
        """Delete the journal of this environment; those of others stay."""
        if self.journal is not None:
            for path in (self.journal, self.journal.with_name(f"{self.journal.name}.lock")):
                path.unlink(missing_ok=True)


def _writable(table: str | os.PathLike[str]) -> Path:
    if not isinstance(table, str | os.PathLike):
        raise TableError(f"table (={table!r}) must be a LatencyTable or the path of one")
    path = Path(table)
    require_writable_table(path)
    return path
