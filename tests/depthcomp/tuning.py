"""A small network with norms and dropout, its teacher, labelled images, and processes that train and are killed."""

import os
import signal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from depthcomp.finetune import finetune
from depthcomp.training.config import FinetuneConfig

CLASSES = 4


def classifier(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    ).to(dtype).eval()  # fmt: skip


def images(count=48, seed=1, dtype=torch.float32):
    return torch.randn(count, 3, 7, 9, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labelled(count=48, seed=1, dtype=torch.float32):
    x = images(count, seed, dtype)
    return TensorDataset(x, classifier(9, dtype)(x).argmax(1))


def loader(count=48, batch=8, dtype=torch.float32):
    return DataLoader(labelled(count, dtype=dtype), batch, shuffle=True)


def config(**options):
    return FinetuneConfig(**{"epochs": 3, "learning_rate": 0.01, "checkpoint_updates": 2, "log_updates": 2} | options)


def same_bits(one, other):
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Run a function in a forked process, to its end or its death; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(done, folder, **options):
    """Train in a process that is killed after so many batches."""

    def work():
        finetune(
            classifier(), classifier(9), loader(), labelled(16, 2), config(**options), folder=folder,
            progress=lambda stage, at, total: die() if at == done else None,
        )  # fmt: skip

    assert in_child(work) == -signal.SIGKILL
