"""A small network with norms and dropout, its teacher, labelled images, and processes that train and are killed."""

import itertools
import multiprocessing
import os
import signal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import finetune

CLASSES = 4
_CLEAN = multiprocessing.get_context("forkserver")  # autograd refuses to go on in a fork of a process that used it
_CLEAN.set_forkserver_preload(["tuning"])


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


def started(work, *arguments):
    """Return a running process that calls a function of a module."""
    child = _CLEAN.Process(target=work, args=arguments)
    child.start()
    return child


def exit_code(child):
    """Wait for a process; return its exit code, negative for the signal that ended it."""
    child.join()
    return child.exitcode


def killed_at(done, folder, **options):
    """Train in a process that is killed after so many batches."""
    assert exit_code(started(_train_until, done, folder, options)) == -signal.SIGKILL


def _train_until(done, folder, options):
    finetune(
        classifier(), classifier(9), loader(), labelled(16, 2), config(**options), folder=folder,
        progress=lambda stage, at, total: die() if at == done else None,
    )  # fmt: skip


def killed_at_replacement(number, folder):
    """Train in a process that is killed when it puts a file in place of another for the so-manieth time."""
    assert exit_code(started(_train_until_replacement, number, folder)) == -signal.SIGKILL


def _train_until_replacement(number, folder):
    replace, count = os.replace, itertools.count(1)

    def replacing(*paths):
        if next(count) == number:
            die()
        replace(*paths)

    os.replace = replacing
    finetune(classifier(), None, loader(), labelled(16, 2), config(epochs=2), folder=folder)
