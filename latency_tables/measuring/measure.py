"""Measurement of a latency table from signatures: each operator is built, timed and journalled."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path

from depthcomp_errors import TableError
from latency_tables.backends.capabilities import device_state, keep_timings_beside, layout_share, part_runner_of
from latency_tables.backends.protocol import AnyBackend, Progress, Runner, Subject
from latency_tables.measuring.journal import Journal, Journaled
from latency_tables.measuring.timing import (
    DRIFT_LIMIT,
    ESTIMATOR,
    EXTRA_ATTEMPTS,
    SAMPLES_PER_ROUND,
    STABLE_SPREAD,
    Timing,
    time_interleaved,
)
from latency_tables.operators.signature import OperatorSignature
from latency_tables.operators.subjects import CallOverhead, Operator
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.table import UNCHECKED, LatencyTable

__all__ = ["chunks", "measure", "measure_chunk", "measured_method"]

CHUNK_ENTRIES = 24
CHUNK_BYTES = 2**30  # of inputs and outputs that live at the same time
SAMPLE_MS = 3.0
WARMUP_MS = 20.0
OVERHEAD_ROUNDS = 5  # times those of an operator: it is removed from all of them, and short
_FLOAT_BYTES = 4


def measure(
    signatures: Iterable[OperatorSignature],
    backend: AnyBackend,
    *,
    table: LatencyTable | None = None,
    journal: str | os.PathLike[str] | None = None,
    rounds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
    check_environment: bool = True,
) -> LatencyTable:
    """Return a table that has all the signatures, measuring those that neither table nor journal has.

    Operators are timed in chunks, side by side (see `time_interleaved`). What an all but empty model costs is
    measured first and removed from every entry. An entry whose spread is above 2.5 % gets two more attempts,
    whose rounds are added to its own; if that does not help it is flagged `unstable`. So is one that has no round
    in which the machine kept its speed.

    Args:
        signatures: the operators wanted, in any order, repeated or not.
        backend: what measures them.
        table: a table to extend; it is not changed.
        journal: a file that receives every finished chunk; a run that is given it again goes on from there.
        rounds: interleaved rounds of each attempt, at least 3.
        seed: draws the order of the rounds; weights and inputs do not depend on it.
        progress: called as (entries done, entries wanted, key) after each new entry.
        check_environment: whether a `table` from another environment is refused. A foreign journal always is.

    Raises:
        TableMismatchError: the table or the journal comes from another environment.
        TableError: the backend refuses an operator, or the journal is broken or cannot be written.

    Example:
        >>> backend = create_backend("onnxruntime")                                    # doctest: +SKIP
        >>> table = measure(signatures, backend, journal="desktop.jsonl")              # doctest: +SKIP
        >>> table.save("desktop.json")                                                 # doctest: +SKIP
    """
    environment = backend.environment()
    if table is not None and check_environment:
        table.check(environment, remedy=UNCHECKED)
    log = None if journal is None else Journal(Path(journal), environment)
    journaled = log.content() if log is not None else Journaled()
    if log is not None:
        keep_timings_beside(backend, log.path)
    entries = {**(table.entries if table is not None else {}), **journaled.entries}
    wanted = sorted(set(signatures))
    missing = [signature for signature in wanted if signature.key not in entries]
    known = journaled.method or (table.method if table is not None else None)
    method = known if known is not None and not missing else measured_method(backend, rounds, seed)
    for chunk in chunks(missing):
        fresh = measure_chunk(chunk, backend, method)
        if log is not None:
            log.append(fresh, method=method)
        entries |= fresh
        if progress is not None:
            done = sum(signature.key in entries for signature in wanted)
            _report(progress, list(fresh), done, len(wanted))
    measured = LatencyTable(environment, method, entries)
    return table.merged(measured, check_environment=False) if table is not None else measured


def _report(progress: Progress, fresh: list[str], done: int, total: int) -> None:
    for index, key in enumerate(fresh, start=done - len(fresh) + 1):
        progress(index, total, key)


def measured_method(backend: AnyBackend, rounds: int = 5, seed: int = 0) -> Method:
    """Return how a backend measures here and now: the call overhead is measured.

    Raises:
        TableError: `rounds` is below 3, or the backend refuses an all but empty model.
    """
    method = Method(
        estimator=ESTIMATOR,
        rounds=rounds,
        samples_per_round=SAMPLES_PER_ROUND,
        sample_ms=SAMPLE_MS,
        warmup_ms=WARMUP_MS,
        seed=seed,
        overhead_ms=0.0,
        drift_limit=DRIFT_LIMIT,
    )
    with ExitStack() as open_runners:
        runner = _built(CallOverhead(), "the call overhead", backend, open_runners)
        lasting = replace(method, rounds=OVERHEAD_ROUNDS * rounds)
        overhead = _timed({"overhead": runner}, lasting, attempt=0)["overhead"]
    return replace(method, overhead_ms=overhead.ms, device_state=device_state(backend))


def measure_chunk(
    signatures: Iterable[OperatorSignature],
    backend: AnyBackend,
    method: Method,
    *,
    announce: Callable[[str | None], None] = lambda building: None,
    refused: Callable[[str, TableError], None] | None = None,
) -> dict[str, Entry]:
    """Return an entry for each operator by its key; all of them are built and then timed side by side.

    Args:
        signatures: the operators, few enough to be held at the same time: see `chunks`.
        backend: what measures them.
        method: how, and the call overhead to remove.
        announce: called with the key of each operator before it is built, and with None when all are and after each
            round of timing: a sign of life.
        refused: called with the key of an operator that the backend refuses, which is then left out; without it
            a refusal ends the measurement.

    Raises:
        TableError: the backend refuses an operator and there is no `refused`.
    """
    with ExitStack() as open_runners:
        runners: dict[str, Runner] = {}
        for signature in signatures:
            announce(signature.key)
            try:
                runner = _built(Operator(signature), repr(signature.key), backend, open_runners)
            except TableError as error:
                if refused is None:
                    raise
                refused(signature.key, error)
            else:
                runners[signature.key] = runner
        announce(None)
        timings = _stable_timings(runners, method, lambda done, total, what: announce(None))
        return {key: _entry(timing, method, layout_share(runners[key])) for key, timing in timings.items()}


def chunks(signatures: Iterable[OperatorSignature], most: int = CHUNK_ENTRIES) -> Iterator[list[OperatorSignature]]:
    """Split operators into runs of at most `most` that neither hold too many sessions nor too much memory at once."""
    chunk: list[OperatorSignature] = []
    chunk_bytes = 0
    for signature in signatures:
        size_bytes = _live_bytes(signature)
        if chunk and (len(chunk) == most or chunk_bytes + size_bytes > CHUNK_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(signature)
        chunk_bytes += size_bytes
    if chunk:
        yield chunk


def _live_bytes(signature: OperatorSignature) -> int:
    outputs = signature.out_channels * prod(signature.out_size) * (2 if signature.residual else 1)
    return _FLOAT_BYTES * signature.batch * (signature.in_channels * prod(signature.in_size) + outputs)


def _built(subject: Subject, what: str, backend: AnyBackend, open_runners: ExitStack) -> Runner:
    try:
        runner = part_runner_of(subject, backend)
    except TableError as error:
        raise TableError(f"cannot measure {what}: {error}") from error
    open_runners.callback(runner.close)
    return runner


def _stable_timings(runners: Mapping[str, Runner], method: Method, progress: Progress) -> dict[str, Timing]:
    timings = _timed(runners, method, attempt=0, progress=progress)
    for attempt in range(1, EXTRA_ATTEMPTS + 1):
        shaky = {key: runners[key] for key, timing in timings.items() if timing.spread > STABLE_SPREAD}
        for key, timing in _timed(shaky, method, attempt, progress).items():
            timings[key] = timings[key].pooled(timing)
    return timings


def _timed(
    runners: Mapping[str, Runner], method: Method, attempt: int, progress: Progress | None = None
) -> dict[str, Timing]:
    return time_interleaved(
        runners,
        rounds=method.rounds,
        seed=method.seed + attempt,
        sample_ms=method.sample_ms,
        warmup_ms=method.warmup_ms,
        progress=progress,
    )


def _entry(timing: Timing, method: Method, changes: float) -> Entry:
    return Entry(
        ms=max(0.0, timing.ms - method.overhead_ms) * (1 - changes),
        layout_share=changes,
        spread=timing.spread,
        n=timing.n,
        unstable=timing.spread > STABLE_SPREAD or timing.drifted == len(timing.rounds_ms),
        drifted=timing.drifted,
    )
