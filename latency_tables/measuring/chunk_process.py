"""A process for each chunk of operators: a crash costs no more than the operator that caused it.

The parent (`measure_in_process`) starts this module as a program and sends it a request. The program says on its
standard output what it is about to do, one JSON object a line, so that the parent knows what it died of; what it
measured goes straight to the journal. A program that says nothing for too long is killed. It ends at once when its
standard input is closed, so that it does not outlive a parent that is killed and time operators beside the next run.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any, TextIO, cast

from depthcomp_errors import DepthCompError, TableError
from latency_tables.backends.capabilities import keep_timings_beside
from latency_tables.backends.own_backend import find_backend
from latency_tables.measuring.journal import Journal
from latency_tables.measuring.measure import measure_chunk, measured_method
from latency_tables.operators.signature import OperatorSignature

__all__ = ["TIMEOUT_S", "ChunkRequest", "Outcome", "measure_in_process"]

TIMEOUT_S = 600.0  # no engine of a single operator takes that long to build, even on a small device
LAST_WORDS_CHARS = 300  # of what a dying process wrote on its standard error


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """The operators that a process is to measure, and how.

    Attributes:
        backend: for `find_backend`.
        threads: threads that one inference may use.
        journal: the file that receives what was measured.
        keys: the operators.
        rounds: interleaved rounds of each attempt.
        seed: draws the order of the rounds.
    """

    backend: str
    threads: int
    journal: str
    keys: tuple[str, ...]
    rounds: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended.

    Attributes:
        death: how it died, as a clause; None where it finished.
        building: the key of the operator that it was building when it died; None for none.
    """

    death: str | None = None
    building: str | None = None


def measure_in_process(request: ChunkRequest, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Measure a chunk in a process of its own and return how that ended.

    Args:
        request: what to measure.
        timeout_s: seconds that it may take to begin, for a build, or for a round of timing; then it is killed.

    Raises:
        TableError: the process could not begin, or the backend or the journal cannot be used at all.
    """
    with tempfile.TemporaryFile() as errors:
        program = [sys.executable, "-m", __name__]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        lines: Queue[str] = Queue()
        reader = threading.Thread(target=_pass_on, args=(process.stdout, lines))
        reader.start()
        try:
            return _followed(process, request, lines, timeout_s, errors)
        finally:
            process.kill()
            process.wait()
            reader.join()
            with suppress(OSError):  # a request that it did not read to its end cannot be flushed any more
                cast(IO[str], process.stdin).close()


def _pass_on(stream: IO[str], lines: Queue[str]) -> None:
    """Put what the process says into a queue, which can be waited on for a limited time; an empty line is the end."""
    try:
        with stream:
            for line in stream:
                lines.put(line)
    finally:
        lines.put("")


def _followed(
    process: "subprocess.Popen[str]", request: ChunkRequest, lines: Queue[str], timeout_s: float, errors: IO[bytes]
) -> Outcome:
    to_child = cast(IO[str], process.stdin)
    with suppress(OSError):  # it died at once; its exit code and last words say more
        to_child.write(json.dumps(asdict(request)) + "\n")
        to_child.flush()
    building, begun = None, False
    try:
        for event in _events(lines, timeout_s):
            if "error" in event:
                raise TableError(event["error"])
            if "done" in event:
                return Outcome()
            building, begun = event["building"], True
        death = _death(process.wait(), errors)
    except Empty:
        death = (
            f"its process hung and was killed: it said nothing for {timeout_s:g} s; if it only needs longer,"
            " run again with --retry-failed and a larger --timeout-s"
        )
    if not begun:
        raise TableError(f"the backend {request.backend} could not measure anything: {death}.")
    return Outcome(death, building)


def _events(lines: Queue[str], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield what the process says; half a line, the last of a process that was killed, says nothing.

    Raises:
        Empty: it has said nothing for `timeout_s`.
    """
    while (line := lines.get(timeout=timeout_s)).endswith("\n"):
        yield json.loads(line)


def _death(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    words = " ".join(errors.read().decode(errors="replace").split())
    how = f"died of signal {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"its process {how}: {words[-LAST_WORDS_CHARS:]}" if words else f"its process {how}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def main() -> None:
    """Measure the chunk that stands on the first line of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches parent and child; the parent ends the child
    events = _private_stdout()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _measure(ChunkRequest(**{**request, "keys": tuple(request["keys"])}), events)
    except DepthCompError as error:
        _say(events, error=str(error))
    else:
        _say(events, done=True)


def _measure(request: ChunkRequest, events: TextIO) -> None:
    backend = find_backend(request.backend, threads=request.threads)
    journal = Journal(Path(request.journal), backend.environment())
    keep_timings_beside(backend, journal.path)
    method = measured_method(backend, request.rounds, request.seed)
    failures: dict[str, str] = {}

    def refused(key: str, error: TableError) -> None:
        failures[key] = str(error)

    entries = measure_chunk(
        map(OperatorSignature.parse, request.keys),
        backend,
        method,
        announce=lambda building: _say(events, building=building),
        refused=refused,
    )
    journal.append(entries, failures=failures, method=method)


def _private_stdout() -> TextIO:
    """Return standard output for the events alone; what libraries print there goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _say(events: TextIO, **event: object) -> None:
    print(json.dumps(event), file=events, flush=True)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
