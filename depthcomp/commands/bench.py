"""Benchmark of artefacts side by side, timed in turns in one run so that drift affects all alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from depthcomp.commands.bench_entries import MODEL, BenchEntry, named, read_entry, require_same_inputs
from depthcomp.errors import ArtifactError, BackendUnavailableError, EngineError, TableError
from depthcomp.progress import Progress, silent
from latency_tables import AnyBackend, Environment, Runner, Timing
from latency_tables.backends.capabilities import DeviceState, device_state
from latency_tables.backends.protocol import runner_of
from latency_tables.backends.tensorrt.backend import TensorRtBackend
from latency_tables.measuring.timing import STABLE_SPREAD, time_until_steady

__all__ = ["BenchRow", "Comparison", "bench", "compare"]

SAMPLE_MS = 50.0
WARMUP_MS = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One network and its latency.

    Attributes:
        entry: the network.
        timing: its latency.
        speedup: median latency of the baseline, divided by that of the network.
        command: command line of NVIDIA's tool that builds and times the network; None for other backends.
    """

    entry: BenchEntry
    timing: Timing
    speedup: float
    command: str | None

    @property
    def unstable(self) -> bool:
        """Whether the spread stayed above 2.5 % after all rounds."""
        return self.timing.spread > STABLE_SPREAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Networks timed side by side.

    Attributes:
        environment: the environment of the measurement.
        device_state: clocks, temperature and reasons to throttle right after it; None where they are unknown.
        baseline: name of the network that the others are compared with.
        rows: the networks, in the given order.
        rounds: turns of each network in one attempt.
        seed: seed of the order of rounds.
    """

    environment: Environment
    device_state: DeviceState | None
    baseline: str
    rows: tuple[BenchRow, ...]
    rounds: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "environment": asdict(self.environment),
            "device_state": self.device_state,
            "baseline": self.baseline,
            "rounds": self.rounds,
            "seed": self.seed,
            "sample_ms": SAMPLE_MS,
            "warmup_ms": WARMUP_MS,
            "artefacts": [_row_json(row) for row in self.rows],
        }


def bench(
    sources: Sequence[str],
    backend: AnyBackend,
    *,
    baseline: str | None = None,
    batch: int | None = None,
    rounds: int = 7,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Read artefacts and compare them on a backend.

    Args:
        sources: folders of results, ONNX files, engines or models, each also as NAME=SOURCE.
        backend: the backend that measures.
        baseline: name of the network that the others are compared with; None for the first.
        batch: size of the batch; None for the saved one.
        rounds: turns of each network, at least 3; while one is not steady, all get more, at most two more sets.
        seed: seed of the order of rounds.
        progress: called as (stage, done, total).

    Raises:
        ArtifactError: an artefact is missing, broken or has other inputs than the first, or names collide.
        TableError: the backend refuses a network.
        BackendUnavailableError: the device is missing, or cannot run an engine.
        MissingPackageError: a library is not installed.

    Example:
        >>> bench(["compressed", "timm:efficientnet_lite0"], create_backend("onnxruntime"))  # doctest: +SKIP
    """
    report, names = progress or silent, named(sources)
    if baseline is not None and baseline not in names:
        raise ArtifactError(f"baseline (={baseline!r}) must be one of {', '.join(names)}")
    backend.environment()  # report a missing library or device before anything is exported
    entries: list[BenchEntry] = []
    for name, source in names.items():
        report("reading", len(entries), len(names))
        entries.append(read_entry(name, source, batch))
    report("reading", len(names), len(names))
    return compare(entries, backend, baseline=baseline, rounds=rounds, seed=seed, progress=report)


def compare(
    entries: Sequence[BenchEntry],
    backend: AnyBackend,
    *,
    baseline: str | None = None,
    rounds: int = 7,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Time networks in turns; arguments and errors are those of `bench`."""
    require_same_inputs(entries)
    for entry in entries:
        _require_runs_on(backend, entry)
    with ExitStack() as open_runners:
        runners: dict[str, Runner] = {}
        for entry in entries:
            progress("building", len(runners), len(entries))
            runners[entry.name] = _runner(entry, backend)
            open_runners.callback(runners[entry.name].close)
        progress("building", len(entries), len(entries))
        timings = time_until_steady(
            runners, rounds=rounds, seed=seed, sample_ms=SAMPLE_MS, warmup_ms=WARMUP_MS,
            progress=lambda done, total, what: progress("measuring side by side", done, total),
        )  # fmt: skip
        state = device_state(backend)
    first = baseline or entries[0].name
    return Comparison(
        environment=backend.environment(), device_state=state, baseline=first, rounds=rounds, seed=seed,
        rows=tuple(_row(entry, timings, first, backend) for entry in entries),
    )  # fmt: skip


def _require_runs_on(backend: AnyBackend, entry: BenchEntry) -> None:
    if entry.engine_for is not None and not (isinstance(backend, TensorRtBackend) and backend.name == entry.engine_for):
        here = backend.environment().backend
        raise BackendUnavailableError(
            f"{entry.source} is an engine for {entry.engine_for}, which the backend {here} does not run; "
            f"choose --backend {entry.engine_for}, on the GPU that it was built for"
        )


def _runner(entry: BenchEntry, backend: AnyBackend) -> Runner:
    if entry.engine_for is not None and isinstance(backend, TensorRtBackend):
        return backend.load(entry.content, entry.batch)
    try:
        return runner_of(entry, backend)
    except TableError as error:
        raise TableError(f"cannot time {entry.name}: {error}") from error


def _row(entry: BenchEntry, timings: Mapping[str, Timing], baseline: str, backend: AnyBackend) -> BenchRow:
    timing = timings[entry.name]
    return BenchRow(
        entry=entry, timing=timing, speedup=timings[baseline].median_ms / timing.median_ms,
        command=entry.command or _command(entry, backend),
    )  # fmt: skip


def _command(entry: BenchEntry, backend: AnyBackend) -> str | None:
    if not isinstance(backend, TensorRtBackend):
        return None
    try:
        return backend.command(entry.content, str(entry.file or MODEL), dynamic=entry.batch is not None)
    except EngineError:
        return None


def _row_json(row: BenchRow) -> dict[str, Any]:
    entry, timing = row.entry, row.timing
    return {
        "name": entry.name,
        "source": entry.source,
        "kind": "onnx" if entry.engine_for is None else f"{entry.engine_for} engine",
        "sha256": hashlib.sha256(entry.content).hexdigest(),
        "inputs": [list(shape) for shape in entry.inputs],
        "precision": entry.precision,
        "ms": timing.median_ms,
        "least_ms": timing.ms,
        "spread": timing.spread,
        "n": timing.n,
        "rounds_ms": list(timing.rounds_ms),
        "unstable": row.unstable,
        "speedup": row.speedup,
        "when_compressed": entry.when_compressed,
        "command": row.command,
    }
