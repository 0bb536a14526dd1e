"""Two processes train as one: the same updates, one folder, the same network in both."""

import os
import socket

import pytest
import torch
from torch import nn
from tuning import classifier, config, exit_code, images, labelled, loader, same_bits, started

from depthcomp.training.finetune import finetune

pytestmark = pytest.mark.whole

DOUBLE = torch.float64


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def trained_by_two(folder, student, data, options, earlier=0):
    """Return the network of two processes, set up as torchrun would; they have trained `earlier` times before."""
    port = str(free_port())
    children = [started(_train_as, rank, port, folder, student, data, options, earlier) for rank in (0, 1)]
    assert [exit_code(child) for child in children] == [0, 0]
    states = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return states[0]


def _train_as(rank, port, folder, student, data, options, earlier):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for _ in range(earlier):
        finetune(student, None, data, labelled(15, 2, DOUBLE), options)
    found = finetune(student, None, data, labelled(15, 2, DOUBLE), options, folder=folder / "out")
    torch.save(found.network.state_dict(), folder / f"{rank}.pt")


def in_batches(count=44, size=8):
    x, y = labelled(count, dtype=DOUBLE).tensors
    return list(zip(x.split(size), y.split(size), strict=True))


def partly_labelled():
    return [(x, y.index_fill(0, torch.arange(len(y) % 3, len(y) - 2, 2), -100)) for x, y in in_batches()]


@pytest.mark.parametrize("data", [lambda: loader(44, dtype=DOUBLE), in_batches, partly_labelled])
def test_with_frozen_norms_two_processes_make_the_updates_of_one(tmp_path, data):
    student = classifier(dtype=DOUBLE)
    student[3] = nn.Identity()  # dropout draws per process
    options = config(freeze_norms=True, accumulate=2, optimizer="sgd", epochs=2)
    alone = finetune(student, None, data(), labelled(15, 2, DOUBLE), options)
    together = trained_by_two(tmp_path, student, data(), options)
    error = max(float((together[name] - value).abs().max()) for name, value in alone.network.state_dict().items())
    moved = max(
        float((p - q).abs().max().detach())
        for p, q in zip(alone.network.parameters(), student.parameters(), strict=True)
    )
    assert error < 1e-9 < 1e-3 < moved
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 3 + 2  # updates and epochs, once each


def test_norms_of_two_processes_have_the_mean_of_their_statistics(tmp_path):
    """A rate of nearly nothing leaves the weights, so that the statistics are known; it is their third training."""
    student = classifier(dtype=DOUBLE)
    options = config(epochs=1, learning_rate=1e-12, ema_decay=None, metric=_latest)
    found = trained_by_two(tmp_path, student, in_batches(8, 8), options, earlier=2)
    x = student[0](images(8, dtype=DOUBLE)).detach()
    means = [x[rank::2].mean((0, 2, 3)) for rank in (0, 1)]
    assert torch.allclose(found["1.running_mean"], 0.1 * (means[0] + means[1]) / 2, atol=1e-8)


def _latest(student, teacher, batch):
    return float(student[1].num_batches_tracked)


def test_one_process_and_two_agree_on_what_two_started(tmp_path):
    student = classifier(dtype=DOUBLE)
    found = trained_by_two(tmp_path, student, loader(dtype=DOUBLE), config(epochs=1))
    with pytest.warns(UserWarning, match="it is finished"):
        again = finetune(
            student, None, loader(dtype=DOUBLE), labelled(15, 2, DOUBLE), config(epochs=1), folder=tmp_path / "out"
        )
    student.load_state_dict(found)
    assert same_bits(again.network, student)
