"""From signatures to a latency table: build each operator, time it, journal it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path

from depthcomp_errors import TableError
from latency_tables.entry import Entry, Method
from latency_tables.journal import Journal
from latency_tables.operators import call_overhead_model, operator_model
from latency_tables.protocol import Backend, Progress, Runner
from latency_tables.signature import OperatorSignature
from latency_tables.table import LatencyTable
from latency_tables.timing import ESTIMATOR, SAMPLES_PER_ROUND, Timing, time_interleaved

__all__ = ["measure"]

CHUNK_ENTRIES = 24
CHUNK_BYTES = 2**30  # of inputs and outputs that live at the same time
STABLE_SPREAD = 0.025  # trtexec's threshold for a coefficient of variation
EXTRA_ATTEMPTS = 2
SAMPLE_MS = 3.0
WARMUP_MS = 20.0
_FLOAT_BYTES = 4


def measure(
    signatures: Iterable[OperatorSignature],
    backend: Backend,
    *,
    table: LatencyTable | None = None,
    journal: str | os.PathLike[str] | None = None,
    rounds: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    check_environment: bool = True,
) -> LatencyTable:
    """Return a table that has all the signatures, measuring those that neither table nor journal has.

    Operators are timed in chunks, side by side (see `time_interleaved`). What an all but empty model costs is
    measured first and removed from every entry. An entry whose spread is above 2.5 % gets two more attempts,
    whose rounds are added to its own; if that does not help it is flagged `unstable`.

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
        table.check(environment)
    log = None if journal is None else Journal(Path(journal), environment)
    entries = {**(table.entries if table is not None else {}), **(log.read() if log else {})}
    wanted = sorted(set(signatures))
    missing = [signature for signature in wanted if signature.key not in entries]
    method = table.method if table is not None and not missing else _method(backend, rounds, seed)
    for fresh in _measured_chunks(missing, backend, method):
        if log is not None:
            log.append(fresh)
        entries |= fresh
        if progress is not None:
            done = sum(signature.key in entries for signature in wanted)
            _report(progress, list(fresh), done, len(wanted))
    return LatencyTable(table.environment if table is not None else environment, method, entries)


def _report(progress: Progress, fresh: list[str], done: int, total: int) -> None:
    for index, key in enumerate(fresh, start=done - len(fresh) + 1):
        progress(index, total, key)


def _method(backend: Backend, rounds: int, seed: int) -> Method:
    method = Method(
        estimator=ESTIMATOR,
        rounds=rounds,
        samples_per_round=SAMPLES_PER_ROUND,
        sample_ms=SAMPLE_MS,
        warmup_ms=WARMUP_MS,
        seed=seed,
        overhead_ms=0.0,
    )
    with ExitStack() as open_runners:
        runner = _built(call_overhead_model(), "the call overhead", backend, open_runners)
        overhead = _timed({"overhead": runner}, method, attempt=0)["overhead"]
    return replace(method, overhead_ms=overhead.ms)


def _measured_chunks(
    signatures: list[OperatorSignature], backend: Backend, method: Method
) -> Iterator[dict[str, Entry]]:
    for chunk in _chunks(signatures):
        with ExitStack() as open_runners:
            runners = {
                signature.key: _built(operator_model(signature), repr(signature.key), backend, open_runners)
                for signature in chunk
            }
            timings = _stable_timings(runners, method)
        yield {key: _entry(timing, method) for key, timing in timings.items()}


def _chunks(signatures: list[OperatorSignature]) -> Iterator[list[OperatorSignature]]:
    """Split into runs that neither hold too many sessions nor too much memory at the same time."""
    chunk: list[OperatorSignature] = []
    chunk_bytes = 0
    for signature in signatures:
        size_bytes = _live_bytes(signature)
        if chunk and (len(chunk) == CHUNK_ENTRIES or chunk_bytes + size_bytes > CHUNK_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(signature)
        chunk_bytes += size_bytes
    if chunk:
        yield chunk


def _live_bytes(signature: OperatorSignature) -> int:
    outputs = signature.out_channels * prod(signature.out_size) * (2 if signature.residual else 1)
    return _FLOAT_BYTES * signature.batch * (signature.in_channels * prod(signature.in_size) + outputs)


def _built(model: bytes, what: str, backend: Backend, open_runners: ExitStack) -> Runner:
    try:
        runner = backend.build(model)
    except TableError as error:
        raise TableError(f"cannot measure {what}: {error}") from error
    open_runners.callback(runner.close)
    return runner


def _stable_timings(runners: Mapping[str, Runner], method: Method) -> dict[str, Timing]:
    timings = _timed(runners, method, attempt=0)
    for attempt in range(1, EXTRA_ATTEMPTS + 1):
        shaky = {key: runners[key] for key, timing in timings.items() if timing.spread > STABLE_SPREAD}
        for key, timing in _timed(shaky, method, attempt).items():
            timings[key] = timings[key].pooled(timing)
    return timings


def _timed(runners: Mapping[str, Runner], method: Method, attempt: int) -> dict[str, Timing]:
    return time_interleaved(
        runners,
        rounds=method.rounds,
        seed=method.seed + attempt,
        sample_ms=method.sample_ms,
        warmup_ms=method.warmup_ms,
    )


def _entry(timing: Timing, method: Method) -> Entry:
    return Entry(
        ms=max(0.0, timing.ms - method.overhead_ms),
        spread=timing.spread,
        n=timing.n,
        unstable=timing.spread > STABLE_SPREAD,
    )
