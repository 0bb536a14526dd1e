"""What was scored is on disk at once: nothing is lost by a kill, and nothing is taken for another run's."""

import math
import os
import signal
import subprocess
import sys

import pytest

from depthcomp.errors import TableError
from depthcomp.importance.journal import ScoreJournal

pytestmark = pytest.mark.whole


def test_what_was_added_is_there_again(tmp_path):
    path = tmp_path / "importance.jsonl"
    first = ScoreJournal(path, "run")
    first.add("a", 0.1 + 0.2, 1.5)
    first.add("b", -3e-17, 2.0)
    again = ScoreJournal(path, "run")
    assert dict(again.scores) == {"a": 0.1 + 0.2, "b": -3e-17}
    assert "a" in again
    assert again["b"] == -3e-17
    assert again.seconds == 3.5


def test_the_format_is_that_of_earlier_releases(tmp_path):
    path = tmp_path / "importance.jsonl"
    journal = ScoreJournal(path, "run")
    journal.add("a@0", 0.25, 1.5)
    journal.add("b@0", math.nan, 0.0)
    assert path.read_text() == (
        '{"run":"run","entry":"a@0","score":0.25,"seconds":1.5}\n{"run":"run","entry":"b@0","score":null,"seconds":0.0}\n'
    )


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_comes_back_as_nan(tmp_path, score):
    path = tmp_path / "importance.jsonl"
    assert math.isnan(ScoreJournal(path, "run").add("a", score, 0.0))
    again = ScoreJournal(path, "run")
    assert "a" in again
    assert math.isnan(again["a"])


def test_other_runs_are_not_seen_and_stay(tmp_path):
    path = tmp_path / "importance.jsonl"
    ScoreJournal(path, "one").add("a", 1.0, 0.0)
    other = ScoreJournal(path, "other")
    assert "a" not in other
    other.add("a", 2.0, 0.0)
    ScoreJournal(path, "one").forget()
    assert ScoreJournal(path, "other")["a"] == 2.0
    assert "a" not in ScoreJournal(path, "one")
    ScoreJournal(path, "other").forget()
    assert not list(tmp_path.iterdir())


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = ScoreJournal()
    journal.add("a", 1.0, 0.0)
    journal.forget()
    assert journal["a"] == 1.0
    assert not list(tmp_path.iterdir())


def test_an_unfinished_line_is_ignored_and_overwritten(tmp_path):
    path = tmp_path / "importance.jsonl"
    ScoreJournal(path, "run").add("a", 1.0, 0.0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    with pytest.warns(UserWarning, match="the last line of the journal .* was cut off and is ignored"):
        journal = ScoreJournal(path, "run")
    journal.add("b", 2.0, 0.0)
    assert dict(ScoreJournal(path, "run").scores) == {"a": 1.0, "b": 2.0}


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "importance.jsonl"
    ScoreJournal(path, "run").add("a", 1.0, 0.0)
    with path.open("a") as file:
        file.write('{"run":"run","entry":"b"}\n')
    with pytest.raises(TableError, match=r"line 2 of the journal .* is broken .*; delete that line"):
        ScoreJournal(path, "run")


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "importance.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(TableError, match="is no journal of scores; move it away"):
        ScoreJournal(path, "run")
    assert path.read_text() == "my notes\n"


def test_processes_share_a_journal(tmp_path):
    path = tmp_path / "importance.jsonl"
    one, other = ScoreJournal(path, "run"), ScoreJournal(path, "run")
    one.add("a", 1.0, 0.0)
    other.add("b", 2.0, 0.0)
    one.refresh()
    assert dict(one.scores) == {"a": 1.0, "b": 2.0}


def test_a_killed_process_loses_the_entry_in_flight_alone(tmp_path):
    path = tmp_path / "importance.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from depthcomp.importance.journal import ScoreJournal; "
        "journal = ScoreJournal(Path(sys.argv[1]), 'run'); journal.add('a', 1.0, 0.0); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ScoreJournal(path, "run")["a"] == 1.0
