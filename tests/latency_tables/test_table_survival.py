"""Kill -9, several writers at once, full disks and read-only folders: nothing that was finished is lost."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import own_backends
import pytest
from fake_backend import ENVIRONMENT, FakeBackend, conv

from depthcomp_errors import TableError
from latency_tables import LatencyTable, measure
from latency_tables.fleet import run_work as run_work_module
from latency_tables.fleet.run_work import journal_path, run_work
from latency_tables.fleet.work import Origin, Work
from latency_tables.measuring.chunk_process import ChunkRequest, Outcome
from latency_tables.measuring.journal import Journal
from latency_tables.measuring.measure import measure_chunk, measured_method
from latency_tables.operators.signature import OperatorSignature

pytestmark = pytest.mark.whole

KILLS = 30
SIGNATURES = [conv(3, channels) for channels in range(10, 70)]
KEYS = {signature.key for signature in SIGNATURES}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _children_find_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (HERE.parents[1], HERE):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def stored(table: Path) -> set[str]:
    """Return the keys that file and journal hold; raises where one of them cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a journal that was cut off while a line was written
        journaled = Journal(journal_path(table), ENVIRONMENT).read()
    return {*journaled, *(LatencyTable.load(table).entries if table.exists() else ())}


def run_that_tells_what_is_finished(table: Path, finished: Path) -> None:
    """Run in this process, without one for each chunk, and write down each chunk that is in the journal."""

    def measure_here(request: ChunkRequest) -> Outcome:
        backend = own_backends.slow(1)
        operators = map(OperatorSignature.parse, request.keys)
        method = measured_method(backend)
        Journal(Path(request.journal), ENVIRONMENT).append(measure_chunk(operators, backend, method), method=method)
        with finished.open("a") as file:
            file.write("".join(f"{key}\n" for key in request.keys))
        return Outcome()

    run_work_module.measure_in_process = measure_here
    run_work(SIGNATURES, table, backend="own_backends:slow", chunk=3)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        warnings.simplefilter("ignore")
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed(child: int, after_s: float) -> bool:
    """Kill a process after some time; return whether it still ran."""
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_thirty_kills_lose_nothing_that_was_finished(tmp_path: Path) -> None:
    rng, kills, generation = random.Random(0), 0, 0
    while kills < KILLS:
        generation += 1
        folder = tmp_path / str(generation)
        folder.mkdir()
        table, finished, before = folder / "table.json", folder / "finished.txt", set[str]()
        while kills < KILLS and not (table.exists() and stored(table) == KEYS and not journal_path(table).exists()):
            child = forked(lambda table=table, finished=finished: run_that_tells_what_is_finished(table, finished))
            kills += killed(child, rng.uniform(0, 0.15))
            now = stored(table)
            text = finished.read_text() if finished.exists() else ""
            assert now >= before | set(text.rpartition("\n")[0].splitlines())
            before = now
    run_work(SIGNATURES, table, backend="own_backends:slow")
    assert stored(table) == set(LatencyTable.load(table).entries) == KEYS
    assert LatencyTable.load(table).entries == measure(SIGNATURES, FakeBackend()).entries


def program(table: Path, low: int = 10, high: int = 70) -> list[str]:
    code = (
        "from pathlib import Path; from fake_backend import conv; from latency_tables.fleet.run_work import run_work;"
        f"operators = [conv(3, n) for n in range({low}, {high})];"
        f"run_work(operators, Path({str(table)!r}), backend='own_backends:slow', chunk=15)"
    )
    return [sys.executable, "-c", code]


def test_two_writers_fill_one_table(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    writers = [subprocess.Popen(program(table, low, high)) for low, high in ((10, 46), (34, 70))]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(LatencyTable.load(table).entries) == KEYS
    assert not journal_path(table).exists()


def test_a_killed_run_takes_its_measuring_process_with_it_and_harms_no_other(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    victim, other = (subprocess.Popen(program(table)) for _ in range(2))
    while not journal_path(table).exists() and other.poll() is None:
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert other.wait() == 0
    assert stored(table) == KEYS


@pytest.mark.slow
def test_thirty_kills_of_the_command_line(tmp_path: Path) -> None:
    Work({key: (Origin("toy", 1, ("stem",)),) for key in KEYS}).save(tmp_path / "work.json")
    options = "tables run work.json --backend own_backends:slow --chunk 4 --table"
    start = [sys.executable, "-c", "from depthcomp.commands.main import main; main()", *options.split()]
    rng, kills, generation, before = random.Random(0), 0, 0, set[str]()
    table = tmp_path / "table0.json"
    while kills < KILLS:
        began = time.monotonic()
        process = subprocess.Popen([*start, str(table)], cwd=tmp_path, stderr=subprocess.DEVNULL)
        while kills and time.monotonic() - began < 30 and not journal_path(table).exists() and process.poll() is None:
            time.sleep(0.01)  # most moments would fall into the start of Python
        time.sleep(rng.uniform(0, 3))
        kills += process.poll() is None
        process.kill()
        process.wait()
        assert stored(table) >= before
        before = stored(table)
        if before == KEYS:
            generation, before = generation + 1, set()
            table = tmp_path / f"table{generation}.json"
    subprocess.run([*start, str(table)], cwd=tmp_path, check=True)
    assert set(LatencyTable.load(table).entries) == KEYS


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_a_sentence_and_the_journal_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.jsonl", ENVIRONMENT)
    journal.append(measure(SIGNATURES[:2], FakeBackend()).entries)
    before = journal.path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TableError, match=r"cannot write the journal .*: No space left on device; make room or give"):
        journal.append(measure(SIGNATURES[2:4], FakeBackend()).entries)
    assert journal.path.read_bytes() == before


def test_a_full_disk_leaves_the_old_table_and_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.json"
    run_work(SIGNATURES[:3], table, backend="own_backends:slow")
    before = table.read_bytes()
    measure(SIGNATURES[3:6], FakeBackend(), journal=journal_path(table))
    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(TableError, match=r"cannot write the latency table .*: No space left on device; choose"):
            run_work(SIGNATURES[:6], table, backend="own_backends:slow")
    assert table.read_bytes() == before
    assert len(stored(table)) == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".jsonl", ".lock", ".lock"]
    assert len(run_work(SIGNATURES[:6], table, backend="own_backends:slow").table) == 6


def test_a_write_that_stops_halfway_loses_no_line_before_it(tmp_path: Path) -> None:
    """The limit on the size of a file stops a write in the middle, as a full disk does."""
    table = tmp_path / "table.json"
    limit = 5000
    halted = subprocess.run(
        program(table),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert halted.returncode == 1
    assert "TableError: cannot write the journal" in halted.stderr
    assert "File too large; make room or give another journal path" in halted.stderr
    assert 0 < len(stored(table)) < len(KEYS)
    assert journal_path(table).read_bytes().endswith(b"\n")
    subprocess.run(program(table), check=True)
    assert set(LatencyTable.load(table).entries) == KEYS


def in_a_small_file_system(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    mount = f"mount -t tmpfs -o size=8k none {folder} && cd {folder} && {script}"
    return subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("true", "No space left on device"),
        ("mount -o remount,ro .", "its folder cannot be written to|Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_real_disk_that_is_full_or_read_only(tmp_path: Path, before: str, sentence: str) -> None:
    if shutil.which("unshare") is None or in_a_small_file_system("true", tmp_path).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    code = program(Path("table.json"))[-1]
    done = in_a_small_file_system(f'{before} && {sys.executable} -c "{code}"; ls', tmp_path)
    assert "TableError: cannot write the" in done.stderr
    assert any(part in done.stderr for part in sentence.split("|"))
    assert "table.json\n" not in done.stdout


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(TableError, match=r"cannot write the journal .*: Permission denied; choose a folder that is wr"):
        Journal(tmp_path / "journal.jsonl", ENVIRONMENT).append({})


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(TableError, match=r"cannot lock the journal .*: its file system has no locks; choose a folder"):
        Journal(tmp_path / "journal.jsonl", ENVIRONMENT).append({})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_journal_costs_its_last_line(tmp_path: Path, share: float) -> None:
    table = tmp_path / "table.json"
    measure(SIGNATURES[:12], FakeBackend(), journal=journal_path(table))
    whole = journal_path(table).read_bytes()
    journal_path(table).write_bytes(whole[: int(share * len(whole))])
    finished = stored(table)
    with pytest.warns(UserWarning, match="was cut off and is ignored"):
        run_work(SIGNATURES[:12], table, backend="own_backends:slow")
    assert finished <= set(LatencyTable.load(table).entries)
    assert len(LatencyTable.load(table)) == 12


@pytest.mark.parametrize("content", [b"# notes\n", b"\xff\xfe\x00binary\n", b'{"schema_version": 1}\n'])
def test_what_is_no_journal_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "table.json"
    journal_path(table).write_bytes(content)
    with pytest.raises(TableError, match=r"table.json.journal.jsonl is no journal of latencies; move it away"):
        run_work(SIGNATURES[:3], table, backend="own_backends:slow")
    assert journal_path(table).read_bytes() == content
    assert not table.exists()
