"""Where a compression's latencies come from and are kept, run after run."""

import shutil
from dataclasses import replace

import pytest

from depthcomp.errors import TableError, TableMismatchError
from depthcomp.latency.table_store import TableStore
from latency_tables import Calibration, LatencyTable, OperatorSignature
from latency_tables.measuring.measure import CHUNK_ENTRIES


def conv(out_channels):
    return OperatorSignature(
        op="conv", batch=1, in_channels=3, out_channels=out_channels, in_size=(7, 5), kernel=(1, 1)
    )


SIGNATURES = [conv(channels) for channels in range(1, CHUNK_ENTRIES + 5)]


def complete(backend, table=None, folder=None, signatures=SIGNATURES, progress=None):
    """Complete a table as a compression does; return the store and the table."""
    store = TableStore.open(table, backend.environment(), folder)
    return store, store.complete(signatures, backend, seed=0, progress=progress)


def measured(backend):
    """Return how many operators a backend measured; the first model of all is the call overhead."""
    return max(len(backend.built) - 1, 0)


def killed_by(number):
    """Return what lets a number of models pass and ends the run at the next."""
    left = iter(range(number))

    def hidden(model, ms):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return ms

    return hidden


def test_without_a_table_all_is_measured_and_reported(arithmetic_backend):
    calls, backend = [], arithmetic_backend()
    store, table = complete(backend, progress=lambda *call: calls.append(call))
    assert (store.known, store.path, store.journal) == (None, None, None)
    assert all(signature in table for signature in SIGNATURES)
    assert measured(backend) == len(SIGNATURES)
    assert [call[:2] for call in calls] == [(done + 1, len(SIGNATURES)) for done in range(len(SIGNATURES))]


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_table_given_by_its_path_is_written_and_grows(arithmetic_backend, tmp_path, kind):
    path = kind(tmp_path / "table.json")
    _, first = complete(arithmetic_backend(), path, signatures=SIGNATURES[:3])
    assert LatencyTable.load(path) == first
    backend = arithmetic_backend()
    _, second = complete(backend, path)
    assert measured(backend) == len(SIGNATURES) - 3
    assert LatencyTable.load(path).entries == second.entries
    assert len(second) == len(SIGNATURES)


def test_what_another_compression_wrote_meanwhile_stays(arithmetic_backend, tmp_path):
    backend, path = arithmetic_backend(), tmp_path / "table.json"
    ours, theirs = (TableStore.open(path, backend.environment()) for _ in range(2))
    theirs.complete(SIGNATURES[:4], backend, seed=0)
    ours.complete(SIGNATURES[2:8], backend, seed=0)
    assert set(LatencyTable.load(path).entries) == {signature.key for signature in SIGNATURES[:8]}


def test_an_entry_that_was_measured_better_meanwhile_stays(arithmetic_backend, tmp_path):
    backend, path = arithmetic_backend(), tmp_path / "table.json"
    _, table = complete(backend, path, signatures=SIGNATURES[:2])
    ours = TableStore.open(path, backend.environment())
    key = SIGNATURES[0].key
    better = replace(table.entries[key], n=99)
    replace(table, entries={**table.entries, key: better}).save(path)
    ours.complete(SIGNATURES[:4], backend, seed=0)
    assert LatencyTable.load(path).entries[key] == better
    assert len(LatencyTable.load(path)) == 4


LINES = [Calibration(intercept_ms=0.1 * n, slope=1.0, residual_ms=0.01, n=n) for n in (3, 4)]


def test_a_line_to_whole_networks_is_added_to_the_file_and_to_nothing_else(arithmetic_backend, tmp_path):
    backend, path = arithmetic_backend(), tmp_path / "table.json"
    store, table = complete(backend, path, signatures=SIGNATURES[:3])
    complete(backend, path, signatures=SIGNATURES[:6])  # what another process has added meanwhile stays
    store.keep_calibration(replace(table, calibration=LINES[0]))
    assert (len(LatencyTable.load(path)), LatencyTable.load(path).calibration) == (6, LINES[0])
    store.keep_calibration(replace(table, calibration=LINES[1]))
    assert LatencyTable.load(path).calibration == LINES[1]


def test_completing_a_table_leaves_a_fresher_line_in_its_file(arithmetic_backend, tmp_path):
    backend, path = arithmetic_backend(), tmp_path / "table.json"
    store, table = complete(backend, path, signatures=SIGNATURES[:3])
    store.keep_calibration(replace(table, calibration=LINES[0]))
    later = TableStore.open(path, backend.environment())
    store.keep_calibration(replace(table, calibration=LINES[1]))
    later.complete(SIGNATURES[:6], backend, seed=0)
    assert (len(LatencyTable.load(path)), LatencyTable.load(path).calibration) == (6, LINES[1])


def test_a_line_that_cannot_be_written_is_a_warning_as_the_network_must_not_be_lost(arithmetic_backend, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    store, table = complete(arithmetic_backend(), folder / "table.json", signatures=SIGNATURES[:3])
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=r"calibration on whole networks was not added .*: its folder does not exist"):
        store.keep_calibration(replace(table, calibration=LINES[0]))


def test_without_a_file_a_line_goes_nowhere(arithmetic_backend):
    store, table = complete(arithmetic_backend(), signatures=SIGNATURES[:3])
    store.keep_calibration(replace(table, calibration=LINES[0]))


def test_a_table_given_as_an_object_is_not_changed(arithmetic_backend):
    _, first = complete(arithmetic_backend(), signatures=SIGNATURES[:3])
    store, second = complete(arithmetic_backend(), first)
    assert store.known is first
    assert (len(first), len(second)) == (3, len(SIGNATURES))


def test_a_table_from_elsewhere_is_refused_at_once(arithmetic_backend, tmp_path):
    _, table = complete(arithmetic_backend(), tmp_path / "table.json", signatures=SIGNATURES[:3])
    here = arithmetic_backend(device="slide rule").environment()
    for given in (table, tmp_path / "table.json"):
        with pytest.raises(TableMismatchError, match="device 'abacus', but here device is 'slide rule'"):
            TableStore.open(given, here)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("absent/table.json", r"cannot write .*: its folder does not exist; create that first"),
        ("file/table.json", r"cannot write .*: its folder does not exist; create that first"),
        ("folder", r"cannot write .*: it is a folder; add a file name to it"),
        ("file", r"file is truncated or not JSON"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_at_once(arithmetic_backend, tmp_path, path, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableError, match=sentence):
        TableStore.open(tmp_path / path, arithmetic_backend().environment())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_what_is_no_table_is_refused(arithmetic_backend):
    with pytest.raises(TableError, match=r"table \(=3\) must be a LatencyTable or the path of one"):
        TableStore.open(3, arithmetic_backend().environment())


def test_each_environment_resumes_its_own_journal(arithmetic_backend, tmp_path):
    first_chunk = 1 + CHUNK_ENTRIES  # the call overhead first
    for device in ("abacus", "slide rule"):
        with pytest.raises(KeyboardInterrupt):
            complete(arithmetic_backend(device=device, hidden=killed_by(first_chunk)), folder=tmp_path)
    assert len(list(tmp_path.glob("latency_journal.*.jsonl"))) == 2
    for device in ("abacus", "slide rule"):
        backend = arithmetic_backend(device=device)
        _, table = complete(backend, folder=tmp_path)
        assert table.environment.device == device
        assert measured(backend) == len(SIGNATURES) - CHUNK_ENTRIES


def test_a_forgotten_journal_takes_no_other_with_it(arithmetic_backend, tmp_path):
    store, _ = complete(arithmetic_backend(), folder=tmp_path)
    other, _ = complete(arithmetic_backend(device="slide rule"), folder=tmp_path)
    store.forget_journal()
    assert {path.name for path in tmp_path.iterdir()} == {other.journal.name, f"{other.journal.name}.lock"}
    other.forget_journal()
    other.forget_journal()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_there_is_no_journal_to_forget(arithmetic_backend):
    TableStore.open(None, arithmetic_backend().environment()).forget_journal()
