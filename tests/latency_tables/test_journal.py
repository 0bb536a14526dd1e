import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from fake_backend import ENVIRONMENT, FakeBackend, conv

from depthcomp_errors import TableError, TableMismatchError
from latency_tables import Entry, measure
from latency_tables.measuring.journal import Journal
from latency_tables.measuring.measure import CHUNK_ENTRIES

pytestmark = pytest.mark.whole

SIGNATURES = [conv(3, channels) for channels in range(1, 3 * CHUNK_ENTRIES)]


def entries(*channels: int) -> dict[str, Entry]:
    return {conv(3, count).key: Entry(ms=count / 8, spread=0.01, n=9) for count in channels}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl", ENVIRONMENT)


def test_what_was_appended_is_read(journal: Journal) -> None:
    assert journal.read() == {}
    journal.append(entries(1, 2))
    journal.append(entries(3))
    assert journal.read() == entries(1, 2, 3)


def test_the_format_is_that_of_earlier_releases(journal: Journal) -> None:
    journal.append({conv().key: Entry(ms=1e-05, spread=0.0, n=9)}, failures={conv(7).key: "no kernel for é"})
    environment = ", ".join(f'"{name}": {json.dumps(value)}' for name, value in asdict(ENVIRONMENT).items())
    entry = '{"ms": 1e-05, "spread": 0.0, "n": 9, "unstable": false, "drifted": 0, "layout_share": 0.0}'
    assert journal.path.read_text().splitlines() == [
        f'{{"journal_version": 2, "environment": {{{environment}}}}}',
        f'{{"key": "{conv().key}", "entry": {entry}}}',
        f'{{"key": "{conv(7).key}", "failure": "no kernel for \\u00e9"}}',
    ]


def test_the_last_of_two_entries_counts(journal: Journal) -> None:
    journal.append({conv().key: Entry(ms=1.0, spread=0.0, n=9)})
    journal.append({conv().key: Entry(ms=2.0, spread=0.0, n=9)})
    assert journal.read()[conv().key].ms == 2.0


def test_wherever_a_write_was_cut_off_the_journal_goes_on(journal: Journal) -> None:
    journal.append(entries(1, 2, 3))
    whole = journal.path.read_bytes()
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        finished = max(0, whole[:length].count(b"\n") - 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert journal.read() == entries(*range(1, finished + 1))
        assert bool(caught) == (length > 0 and whole[length - 1 : length] != b"\n")
        journal.append(entries(7))
        assert journal.read() == entries(*range(1, finished + 1), 7)


def test_a_cut_off_line_is_said_aloud(journal: Journal) -> None:
    journal.append(entries(1, 2))
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"the last line of the journal .*journal.jsonl was cut off"):
        assert journal.read() == entries(1)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{]", r"line 2 of the journal .* is broken \(Invalid JSON.*delete that line"),
        ('{"key": "conv", "entry": {"ms": 1.0, "spread": 0.0, "n": 9}}', "'conv' is not an operator key"),
        (
            f'{{"key": "{conv().key}", "entry": {{"ms": -1.0, "spread": 0.0, "n": 9}}}}',
            r"is broken \(entry.ms: Input should be greater",
        ),
        (f'{{"key": "{conv().key}", "entry": {{"ms": NaN, "spread": 0.0, "n": 9}}}}', "is broken"),
        (f'{{"key": "{conv().key}", "entry": {{"ms": 1.0, "n": 9}}}}', "entry.spread: Field required"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(journal: Journal, line: str, sentence: str) -> None:
    journal.append(entries(1))
    header, last = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join([header, line, last, ""]))
    with pytest.raises(TableError, match=sentence):
        journal.read()


def test_a_foreign_journal_is_neither_read_nor_continued(journal: Journal) -> None:
    journal.append(entries(1))
    elsewhere = Journal(journal.path, replace(ENVIRONMENT, threads=4))
    sentence = "threads 1, but here threads is 4; give another journal path and measure anew"
    with pytest.raises(TableMismatchError, match=sentence):
        elsewhere.read()
    with pytest.raises(TableMismatchError, match=sentence):
        elsewhere.append(entries(2))


def test_a_file_that_is_no_journal_is_refused(journal: Journal) -> None:
    journal.path.write_text("# notes\n")
    with pytest.raises(TableError, match=r"is no journal of latencies; move it away, or give another journal path"):
        journal.read()


@pytest.mark.parametrize("text", ["# notes", '{"results": [1, 2, 3]}', '{"journal_vision"'])
def test_a_file_of_one_unfinished_line_that_is_no_journal_is_not_overwritten(journal: Journal, text: str) -> None:
    journal.path.write_text(text)
    with pytest.raises(TableError, match=r"is no journal of latencies; move it away"):
        journal.read()
    with pytest.raises(TableError, match=r"is no journal of latencies"):
        journal.append(entries(1))
    assert journal.path.read_text() == text


def test_a_journal_with_the_line_ends_of_another_system_loses_nothing(journal: Journal) -> None:
    journal.append(entries(1, 2, 3))
    journal.path.write_bytes(journal.path.read_bytes().replace(b"\n", b"\r\n"))
    journal.append(entries(4))
    assert journal.read() == entries(1, 2, 3, 4)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="its folder does not exist; create it first"):
        Journal(tmp_path / "absent" / "journal.jsonl", ENVIRONMENT).read()


def test_a_folder_in_place_of_the_journal_is_named(journal: Journal) -> None:
    journal.path.mkdir()
    with pytest.raises(TableError, match=r"cannot read the journal .*give another journal path"):
        journal.read()


@pytest.mark.parametrize("killed_at", [0, 1, CHUNK_ENTRIES, CHUNK_ENTRIES + 1, 2 * CHUNK_ENTRIES + 9])
def test_an_interrupted_run_loses_only_the_chunk_in_flight(tmp_path: Path, killed_at: int) -> None:
    def interrupt(built: int) -> None:
        if built == killed_at:
            raise KeyboardInterrupt

    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(SIGNATURES, FakeBackend(before_build=interrupt), journal=path)
    second = FakeBackend()
    table = measure(SIGNATURES, second, journal=path)
    finished_chunks = max(0, killed_at - 1) // CHUNK_ENTRIES
    assert len(second.built) - 1 == len(SIGNATURES) - finished_chunks * CHUNK_ENTRIES
    assert table == measure(SIGNATURES, FakeBackend())


def killed_run(path: Path) -> None:
    def die(built: int) -> None:
        if built == CHUNK_ENTRIES + 5:
            os._exit(9)

    measure(SIGNATURES, FakeBackend(before_build=die), journal=path)


def test_a_process_that_dies_leaves_a_journal_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    program = f"from test_journal import killed_run; killed_run({str(path)!r})"
    here = Path(__file__).parent
    assert subprocess.run([sys.executable, "-c", program], cwd=here, check=False).returncode == 9
    assert len(Journal(path, ENVIRONMENT).read()) == CHUNK_ENTRIES
    assert len(measure(SIGNATURES, FakeBackend(), journal=path)) == len(SIGNATURES)


def append_one_by_one(path: Path, channels: Iterable[int], start: Barrier) -> None:
    start.wait(timeout=60)
    for count in channels:
        Journal(path, ENVIRONMENT).append(entries(count))


def test_two_processes_write_one_journal(journal: Journal) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    arguments = [(journal.path, share, start) for share in (range(1, 101), range(101, 201))]
    writers = [context.Process(target=append_one_by_one, args=each) for each in arguments]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert journal.read() == entries(*range(1, 201))
    assert len(journal.path.read_text().splitlines()) == 201
