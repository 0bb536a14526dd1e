import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_backend import ENVIRONMENT, FakeBackend, conv, net_ms

from depthcomp_errors import BackendUnavailableError, TableError, TableMismatchError
from latency_tables import LatencyTable, OperatorSignature, measure
from latency_tables.fleet.run_work import Run, journal_path, run_work
from latency_tables.measuring.journal import Journal

pytestmark = pytest.mark.whole

SIGNATURES = [conv(3, channels) for channels in range(10, 30)]
Counted = Callable[[], list[int]]


@pytest.fixture(autouse=True)
def _children_find_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Output channels of the operators that were built since the last call, in any process."""
    counter = tmp_path / "built.txt"
    monkeypatch.setenv("BUILD_COUNTER", str(counter))

    def since_last_call() -> list[int]:
        text = counter.read_text() if counter.exists() else ""
        counter.unlink(missing_ok=True)
        return sorted(map(int, text.split()))

    return since_last_call


def run(path: Path, signatures: list[OperatorSignature] = SIGNATURES, backend: str = "slow", **options: object) -> Run:
    return run_work(signatures, path, backend=f"own_backends:{backend}", **options)  # type: ignore[arg-type]


def test_a_run_measures_what_measure_does(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = run(path, chunk=8)
    assert found.table == LatencyTable.load(path) == measure(SIGNATURES, FakeBackend())
    assert found.measured == tuple(signature.key for signature in sorted(SIGNATURES))
    assert found.failed == {}
    assert not journal_path(path).exists()


def test_a_second_run_measures_nothing_and_leaves_the_file_alone(tmp_path: Path, built: Counted) -> None:
    path = tmp_path / "table.json"
    run(path)
    assert built() == list(range(10, 30))
    before = path.stat()
    assert run(path).measured == ()
    assert built() == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_network_that_shares_shapes_costs_only_what_is_new(tmp_path: Path, built: Counted) -> None:
    path = tmp_path / "table.json"
    run(path, SIGNATURES[:7])
    assert built() == list(range(10, 17))
    assert len(run(path, SIGNATURES[4:12]).measured) == 5
    assert built() == list(range(17, 22))
    assert len(LatencyTable.load(path)) == 12


def test_a_run_goes_on_from_the_journal_of_a_killed_one(tmp_path: Path, built: Counted) -> None:
    path = tmp_path / "table.json"
    done = measure(SIGNATURES[:6], FakeBackend(), journal=journal_path(path))
    assert len(run(path).measured) == len(SIGNATURES)
    assert built() == list(range(16, 30))
    assert LatencyTable.load(path).entries.items() >= done.entries.items()


def test_a_complete_journal_becomes_a_table_without_measuring(tmp_path: Path, built: Counted) -> None:
    path = tmp_path / "table.json"
    done = measure(SIGNATURES, FakeBackend(), journal=journal_path(path))
    assert run(path).table == done
    assert built() == []


def test_what_crashes_costs_only_itself(tmp_path: Path) -> None:
    signatures = [conv(3, channels) for channels in (4, 5, 7, 8, 9)]
    seen: list[tuple[int, int]] = []
    path = tmp_path / "table.json"
    found = run(path, signatures, "treacherous", progress=lambda done, total, key: seen.append((done, total)))
    assert sorted(found.table.entries) == [conv(3, 4).key]
    assert found.table.ms(conv(3, 4)) == pytest.approx(net_ms(conv(3, 4)))
    why = {OperatorSignature.parse(key).out_channels: reason for key, reason in found.failed.items()}
    assert "no kernel takes five channels" in why[5]
    assert why[7].startswith("its process died of signal SIGSEGV: ")
    assert "driver: unspecified launch failure" in why[7]
    assert "exit code 1" in why[8]
    assert why[8].endswith("ZeroDivisionError: eight")
    assert why[9].endswith("an illegal memory access was encountered")
    assert seen == [(5, 5)]


def test_what_hangs_costs_only_itself(tmp_path: Path) -> None:
    """One hangs when it is built, one when it is timed; the limit is far above what all else takes."""
    signatures = [conv(3, channels) for channels in (4, 7, 9)]
    found = run(tmp_path / "table.json", signatures, "hanging", chunk=2, timeout_s=10.0)
    assert list(found.table.entries) == [conv(3, 4).key]
    assert found.failed.keys() == {conv(3, 7).key, conv(3, 9).key}
    for why in found.failed.values():
        assert why.startswith("its process hung and was killed: it said nothing for 10 s; ")
        assert why.endswith("run again with --retry-failed and a larger --timeout-s")


def test_a_process_that_never_begins_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.fleet.run_work.find_backend", lambda name, threads: FakeBackend())
    sentence = r"own_backends:stuck could not measure anything: its process hung and was killed: .* for 0\.5 s"
    with pytest.raises(TableError, match=sentence):
        run(tmp_path / "t.json", backend="stuck", timeout_s=0.5)


def test_failures_are_kept_and_tried_again_only_when_asked(tmp_path: Path, built: Counted) -> None:
    path = tmp_path / "table.json"
    signatures = [conv(3, channels) for channels in (4, 5)]
    run(path, signatures, "treacherous")
    assert built() == [4]
    assert list(run(path, signatures, "slow").failed) == [conv(3, 5).key]
    assert built() == []
    again = run(path, signatures, "slow", retry_failed=True)
    assert built() == [5]
    assert again.failed == {}
    assert again.measured == (conv(3, 5).key,)
    assert LatencyTable.load(path).failures == {}


def test_a_failed_operator_is_looked_up_with_its_reason(tmp_path: Path) -> None:
    table = run(tmp_path / "t.json", [conv(3, 4), conv(3, 5)], "treacherous").table
    with pytest.raises(TableError, match=r"has no entry 'conv 1x3x11x7 -> 5 .*\(.*no kernel takes five channels"):
        table.ms(conv(3, 5))


def test_where_nothing_can_be_measured_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no operator could be measured, .* 'conv 1x3x11x7 -> 7 .*SIGSEGV"):
        run(tmp_path / "t.json", [conv(3, 7)], "treacherous")
    assert not (tmp_path / "t.json").exists()


def test_no_operator_is_no_work(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no operator to measure; give a work file"):
        run(tmp_path / "t.json", [])


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("own_backends:broken", "own_backends:broken cannot be made: OSError: no such device; name a function"),
        ("own_backends:absent", "cannot be made: AttributeError: .*absent"),
        ("absent_module:slow", "cannot be made: ModuleNotFoundError: .*absent_module"),
        ("abacus", "backend 'abacus' is unknown; choose one of"),
        ("os:getenv", "cannot be made|must be one of"),
    ],
)
def test_a_backend_that_cannot_be_made_is_named(tmp_path: Path, backend: str, sentence: str) -> None:
    with pytest.raises(BackendUnavailableError, match=sentence):
        run_work(SIGNATURES, tmp_path / "t.json", backend=backend)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("built")
def test_a_process_that_cannot_begin_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.fleet.run_work.find_backend", lambda name, threads: FakeBackend())
    with pytest.raises(
        TableError, match=r"own_backends:dead could not measure anything: its process ended with exit code 3"
    ):
        run(tmp_path / "t.json", backend="dead")


@pytest.mark.parametrize("field", ["backend", "backend_version", "device", "threads", "precision"])
def test_a_table_of_another_place_is_refused_and_stays(tmp_path: Path, field: str) -> None:
    other = 4 if field == "threads" else "other"
    table = measure(SIGNATURES[:3], FakeBackend())
    path = tmp_path / "table.json"
    replace(table, environment=replace(ENVIRONMENT, **{field: other})).save(path)
    before = path.read_bytes()
    with pytest.raises(TableMismatchError, match=f"measured with {field} {other!r}, but here {field} is"):
        run(path)
    assert path.read_bytes() == before


def test_a_foreign_journal_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    Journal(journal_path(path), replace(ENVIRONMENT, threads=4)).append({})
    before = journal_path(path).read_bytes()
    with pytest.raises(TableMismatchError, match=r"journal .* was measured with threads 4, but here threads is 1"):
        run(path)
    assert journal_path(path).read_bytes() == before
