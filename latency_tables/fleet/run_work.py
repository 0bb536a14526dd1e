"""Runs that measure what a table's file lacks; neither a crash nor a kill costs what was measured before."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from depthcomp_errors import TableError
from latency_tables.backends.own_backend import find_backend
from latency_tables.backends.protocol import Progress
from latency_tables.measuring.chunk_process import TIMEOUT_S, ChunkRequest, measure_in_process
from latency_tables.measuring.journal import Journal, Journaled
from latency_tables.measuring.measure import CHUNK_ENTRIES, chunks
from latency_tables.operators.signature import OperatorSignature
from latency_tables.tables.environment import Environment
from latency_tables.tables.table import LatencyTable
from latency_tables.tables.table_file import require_writable_table
from latency_tables.tables.table_update import update_table

__all__ = ["Run", "journal_path", "run_work"]


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of a run.

    Attributes:
        table: what the file holds now.
        measured: keys that the file lacked before; killed runs that this one went on from may have measured some.
        failed: why operators of the work have no entry, by key, those that failed in earlier runs included.
    """

    table: LatencyTable
    measured: tuple[str, ...]
    failed: dict[str, str]


def journal_path(table: Path) -> Path:
    """Return the journal of a table's file: it stands beside it while a run is unfinished."""
    return table.with_name(f"{table.name}.journal.jsonl")


def run_work(
    signatures: Iterable[OperatorSignature],
    table: Path,
    *,
    backend: str = "auto",
    threads: int = 1,
    chunk: int = CHUNK_ENTRIES,
    rounds: int = 5,
    seed: int = 0,
    retry_failed: bool = False,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> Run:
    """Measure the operators that a table's file lacks, and add them to it.

    Operators are measured in chunks, each in a process of its own, and each chunk goes to a journal beside the file at
    once: a run that is killed loses the chunk in flight, and the next goes on from there. An operator whose build
    kills its process, or takes too long, is recorded as failed, as is one that the backend refuses; the rest of its
    chunk is measured without it. Several runs may fill one file at the same time.

    Args:
        signatures: the operators wanted.
        table: the file; created where it is not there.
        backend: for `find_backend`.
        threads: threads that one inference may use.
        chunk: operators that are timed side by side in one process.
        rounds: interleaved rounds of each attempt, at least 3.
        seed: draws the order of the rounds.
        retry_failed: whether operators that failed in earlier runs are tried again.
        timeout_s: seconds that the build of an operator, or a round of timing a chunk, may take.
        progress: called as (operators done, operators wanted, key of the last) after each chunk.

    Raises:
        TableMismatchError: the file or its journal comes from another environment.
        TableError: a file cannot be read or written, or not one operator could be measured.
        BackendUnavailableError: the backend is unknown or cannot run here.
        MissingPackageError: the backend's library is not installed.
    """
    wanted = sorted(set(signatures))
    require_writable_table(table)
    session = _Session(table, find_backend(backend, threads=threads).environment(), retry_failed, timeout_s)
    before = session.found().entries.keys() - session.journal.read().keys()
    request = ChunkRequest(backend, threads, str(session.journal.path), (), rounds, seed)
    missing = set(session.missing(signature.key for signature in wanted))
    for operators in chunks((signature for signature in wanted if signature.key in missing), chunk):
        session.measure(replace(request, keys=tuple(signature.key for signature in operators)))
        if progress is not None:
            done = len(wanted) - len(session.missing(signature.key for signature in wanted))
            progress(done, len(wanted), operators[-1].key)
    kept = session.settle()
    keys = [signature.key for signature in wanted]
    measured = tuple(key for key in keys if key in kept.entries and key not in before)
    return Run(kept, measured, {key: kept.failures[key] for key in keys if key in kept.failures})


@dataclass(slots=True)
class _Session:
    """A run in progress: what is measured and what is missing, while other processes may fill the same file.

    Attributes:
        path: the table's file.
        environment: where this session measures.
        retry_failed: whether operators that failed in earlier runs are tried again.
        timeout_s: seconds after which a process of which nothing is heard is killed.
        tried: keys that this session need not try again.
    """

    path: Path
    environment: Environment
    retry_failed: bool
    timeout_s: float
    tried: set[str] = field(default_factory=set)

    @property
    def journal(self) -> Journal:
        return Journal(journal_path(self.path), self.environment)

    def found(self) -> Journaled:
        """Return the content of journal and file together.

        The journal is read first, as entries move from it to the file.
        """
        journaled = self.journal.content()
        if not self.path.exists():
            return journaled
        table = LatencyTable.load(self.path)
        table.check(self.environment)
        entries = {**table.entries, **journaled.entries}
        return Journaled(entries, {**table.failures, **journaled.failures}, journaled.method or table.method)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those of the keys that are still to be measured."""
        found = self.found()
        given_up = self.tried if self.retry_failed else self.tried | found.failures.keys()
        return [key for key in keys if key not in found.entries and key not in given_up]

    def measure(self, request: ChunkRequest) -> None:
        """Measure the missing operators of a chunk; one that kills or blocks its process is recorded as failed."""
        while keys := tuple(self.missing(request.keys)):
            outcome = measure_in_process(replace(request, keys=keys), self.timeout_s)
            culprit = outcome.building or (keys[0] if len(keys) == 1 else None)
            if outcome.death is None:
                self.tried.update(keys)
            elif culprit is not None:
                self.tried.add(culprit)
                self.journal.append({}, failures={culprit: outcome.death})
            else:  # it died while all were timed, so each is timed alone
                for key in keys:
                    self.measure(replace(request, keys=(key,)))

    def settle(self) -> LatencyTable:
        """Move what is in the journal to the file, and return what that holds then."""
        if self.journal.path.exists():
            self.journal.move_to(self._keep)
        if not self.path.exists():
            raise TableError("there is no operator to measure; give a work file, or a shard, with at least one.")
        return LatencyTable.load(self.path)

    def _keep(self, journaled: Journaled) -> None:
        if journaled == Journaled():
            return  # another process has moved it
        method = journaled.method or (LatencyTable.load(self.path).method if self.path.exists() else None)
        if method is None:
            key, why = next(iter(journaled.failures.items()), ("nothing", "the journal does not say how"))
            raise TableError(
                f"no operator could be measured, so there is no table to write; the first, {key!r}, failed: {why}."
            )
        update_table(self.path, LatencyTable(self.environment, method, journaled.entries, journaled.failures))
