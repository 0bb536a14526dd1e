"""Stages report their beginning and end, and only finished ones are timed."""

import pytest

from depthcomp.errors import DepthCompError
from depthcomp.progress import Stages


def test_a_stage_is_reported_and_timed():
    calls = []
    stages = Stages(lambda *call: calls.append(call))
    with stages("capturing"):
        stages.report("inside", 3, 7)
    assert calls == [("capturing", 0, 1), ("inside", 3, 7), ("capturing", 1, 1)]
    assert list(stages.seconds) == ["capturing"]
    assert stages.seconds["capturing"] >= 0


def test_a_stage_that_raises_is_not_finished():
    calls = []
    stages = Stages(lambda *call: calls.append(call))
    with pytest.raises(ZeroDivisionError), stages("capturing"):
        raise ZeroDivisionError
    assert calls == [("capturing", 0, 1)]
    assert stages.seconds == {}


def test_nobody_need_listen():
    stages = Stages(None)
    with stages("capturing"):
        stages.report("inside", 1, 1)
    assert list(stages.seconds) == ["capturing"]


class Listener:
    """A progress that wants to know how long the run will take."""

    def __init__(self):
        self.told = []

    def __call__(self, stage, done, total):
        pass

    def foretell(self, seconds):
        self.told.append(seconds)


def test_the_time_of_the_whole_run_is_foretold_from_its_beginning(monkeypatch):
    clock = iter([100.0, 130.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    listener = Listener()
    stages = Stages(listener)
    assert stages.foretold_seconds is None
    stages.foretell(45.0)
    assert listener.told == [75.0]
    assert stages.foretold_seconds == 75.0


def test_a_plain_function_need_not_know_the_future():
    stages = Stages(lambda stage, done, total: None)
    stages.foretell(45.0)
    assert stages.foretold_seconds == pytest.approx(45.0, abs=1.0)


def test_a_progress_that_is_no_function_is_refused():
    with pytest.raises(DepthCompError, match=r"progress \(='rich'\) must be a function \(stage, done, total\)"):
        Stages("rich")
