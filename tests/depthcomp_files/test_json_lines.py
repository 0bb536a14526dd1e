"""A journal keeps each line that was finished, whatever happens to the process, the disk or the file."""

import errno
import multiprocessing
import os
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from depthcomp_errors import DataError
from depthcomp_files import JsonLines

pytestmark = pytest.mark.whole


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    step: str
    n: int


def journal(path: Path) -> JsonLines[Step]:
    return JsonLines(
        path=path,
        what="steps",
        parse=Step.model_validate_json,
        encode=Step.model_dump_json,
        beginning='{"step":',
        elsewhere="choose another folder",
        anew="walk",
        error=DataError,
    )


def steps(*numbers: int) -> list[Step]:
    return [Step(step="pas à pas", n=n) for n in numbers]


@pytest.fixture
def lines(tmp_path: Path) -> JsonLines[Step]:
    return journal(tmp_path / "steps.jsonl")


def test_a_journal_that_is_not_there_has_no_lines(lines: JsonLines[Step]) -> None:
    assert lines.read() == []
    assert not lines.path.exists()


def test_what_was_appended_is_read_and_stands_a_line_each(lines: JsonLines[Step]) -> None:
    lines.append(steps(1))
    lines.append(steps(2, 3))
    lines.append([])
    assert lines.read() == steps(1, 2, 3)
    assert lines.path.read_text(encoding="utf-8").splitlines()[2] == '{"step":"pas à pas","n":3}'
    assert sorted(path.name for path in lines.path.parent.iterdir()) == ["steps.jsonl", "steps.jsonl.lock"]


def test_wherever_a_write_was_cut_off_the_journal_goes_on(lines: JsonLines[Step]) -> None:
    lines.append(steps(1, 2))
    whole = lines.path.read_bytes()
    for length in range(len(whole)):
        lines.path.write_bytes(whole[:length])
        finished = steps(1, 2)[: whole[:length].count(b"\n")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert lines.read() == finished
        unfinished = length > 0 and not whole[:length].endswith(b"\n")
        assert [str(warning.message) for warning in caught] == [
            f"the last line of the journal {lines.path} was cut off and is ignored."
        ] * unfinished
        lines.append(steps(7))
        assert lines.read() == finished + steps(7)


def test_a_broken_line_is_refused_with_its_number(lines: JsonLines[Step]) -> None:
    lines.append(steps(1, 2))
    with lines.path.open("a") as file:
        file.write('{"step":"three","n":"3"}\n')
    sentence = r"line 3 of the journal .*steps.jsonl is broken \(n: Input should be a valid integer\); delete that line"
    with pytest.raises(DataError, match=rf"{sentence}, or the journal to walk anew\."):
        lines.read()


@pytest.mark.parametrize("content", [b"# notes\n", b"\xff\xfe\x00", b'{"steps":'])
def test_the_file_of_somebody_else_is_neither_read_nor_changed(lines: JsonLines[Step], content: bytes) -> None:
    lines.path.write_bytes(content)
    sentence = r"steps.jsonl is no journal of steps; move it away, or choose another folder\."
    for use in (lines.read, lambda: lines.append(steps(1)), lambda: lines.rewrite(lambda before: before)):
        with pytest.raises(DataError, match=sentence):
            use()
    assert lines.path.read_bytes() == content


def test_a_folder_in_place_of_the_file_is_named(lines: JsonLines[Step]) -> None:
    lines.path.mkdir()
    with pytest.raises(DataError, match=r"cannot read the journal .*: Is a directory; choose another folder"):
        lines.read()


def test_a_full_disk_leaves_what_was_there(lines: JsonLines[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lines.append(steps(1))
    before = lines.path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot write the journal .*: No space left on device; make room or choose"):
        lines.append(steps(2))
    assert lines.path.read_bytes() == before


def test_the_first_line_decides_what_goes_before_the_others(lines: JsonLines[Step]) -> None:
    seen: list[Step | None] = []

    def begin(first: Step | None) -> list[Step]:
        seen.append(first)
        return [] if first else steps(0)

    lines.append(steps(1), begin=begin)
    lines.append(steps(2), begin=begin)
    assert seen == [None, *steps(0)]
    assert lines.read() == steps(0, 1, 2)


def test_where_the_first_line_is_refused_nothing_is_written(lines: JsonLines[Step]) -> None:
    def refuse(first: Step | None) -> list[Step]:
        raise DataError("not this one")

    lines.append(steps(1))
    with pytest.raises(DataError, match="not this one"):
        lines.append(steps(2), begin=refuse)
    assert lines.read() == steps(1)


def test_lines_are_replaced_and_the_file_goes_with_the_last(lines: JsonLines[Step]) -> None:
    lines.append(steps(1, 2, 3))
    assert lines.rewrite(lambda before: [line for line in before if line.n != 2])
    assert lines.read() == steps(1, 3)
    assert not lines.rewrite(lambda before: [])
    assert not lines.path.exists()
    assert not lines.rewrite(lambda before: before)


def test_where_a_change_fails_the_file_stays(lines: JsonLines[Step]) -> None:
    def fail(before: list[Step]) -> list[Step]:
        raise DataError("not now")

    lines.append(steps(1))
    with pytest.raises(DataError, match="not now"):
        lines.rewrite(fail)
    assert lines.read() == steps(1)


def append_one_by_one(path: Path, numbers: range, start: Barrier) -> None:
    start.wait(timeout=60)
    for n in numbers:
        journal(path).append(steps(n))


def test_processes_append_to_one_journal(lines: JsonLines[Step]) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [
        context.Process(target=append_one_by_one, args=(lines.path, numbers, start))
        for numbers in (range(50), range(50, 100))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(line.n for line in lines.read()) == list(range(100))
