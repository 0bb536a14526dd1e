"""The log of a training that was interrupted holds each update once."""

import json

import pytest

from depthcomp.training.log import FILE, TrainingLog


def logged(folder, start, *updates, tensorboard):
    log = TrainingLog(folder, start, tensorboard=tensorboard)
    for update in updates:
        log.write("update", update, loss=1 / update)
    log.close()


def test_lines_beyond_the_checkpoint_are_written_again(tmp_path):
    logged(tmp_path, 0, 2, 4, 6, tensorboard=False)
    logged(tmp_path, 4, 6, 8, tensorboard=False)
    assert [json.loads(line)["update"] for line in (tmp_path / FILE).read_text().splitlines()] == [2, 4, 6, 8]


def test_tensorboard_keeps_the_update_of_the_checkpoint(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged(tmp_path, 0, 2, 4, 6, tensorboard=True)
    logged(tmp_path, 4, 6, 8, tensorboard=True)
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("update/loss")] == [2, 4, 6, 8]
