"""Stages report their beginning and end, and only finished ones are timed."""

import pytest

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
