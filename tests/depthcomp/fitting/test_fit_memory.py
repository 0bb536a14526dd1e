"""How large a fit may be, and what the user is told of those that are larger."""

import math

import pytest
import torch

from depthcomp.fitting.memory import FitMemory
from depthcomp.latency.pricing import Candidate
from fx_passes import Drop, Fit, Merge, Slot
from fx_passes.affine import AffineConv


def convolution(channels, kernel, groups=1):
    weight = torch.empty(8, channels // groups, *kernel, device="meta")
    return AffineConv(weight, weight[:, 0, 0, 0], (1, 1), (0, 0, 0, 0), groups)


def candidate(channels, kernel, kind="fit", at="a"):
    slot = Slot("b", at, "b", convolution(channels, kernel))
    choices = {"fit": Fit(at, "b", kernel), "merge": Merge(at, "b", kernel), "drop": Drop(at, "b")}
    return Candidate(None, choices[kind], None, (slot,) if kind == "fit" else (), ())


@pytest.mark.parametrize(
    ("channels", "kernel", "pixels"),
    [(320, (3, 3), 9), (512, (3, 3), 5), (40, (7, 7), 49), (64, (7, 7), 45), (1024, (3, 3), 2), (2048, (3, 3), 1)],
)
def test_what_the_default_solves_for(channels, kernel, pixels):
    memory = FitMemory(3)
    assert memory.patterns(convolution(channels, kernel)) == pixels
    assert memory.is_whole(convolution(channels, kernel)) is (pixels == math.prod(kernel))
    assert memory.system("x", convolution(channels, kernel)).unknowns == channels * pixels


def test_groups_are_systems_of_their_own():
    assert FitMemory(3, 24).patterns(convolution(64, (5, 5))) == 5
    assert FitMemory(3, 24).is_whole(convolution(64, (5, 5), groups=64))


def test_a_system_takes_a_third_of_the_memory_for_its_gram_matrices():
    memory, operator = FitMemory(3, 300), convolution(100, (5, 5))
    system = memory.system("x", operator)
    room = memory.patterns(operator)
    sums, solving = memory.mib_of(system, 0)
    assert sums == pytest.approx(1.5 * 3 * 8 * (100 * room) ** 2 / 2**20)  # with the samples that wait
    assert sums / 1.5 + solving <= 100  # none waits when it is solved
    assert memory.mib_of(system, 70)[0] == pytest.approx(sums + 1.5 * 3 * 8 * 100 * room * 70 / 2**20)
    assert 8 * (3 + 5) * (100 * (room + 1)) ** 2 / 2**20 > 100


def test_what_fits_is_not_spoken_of():
    some = [candidate(320, (3, 3)), candidate(4096, (3, 3), "merge"), candidate(4096, (1, 1), "drop")]
    assert FitMemory(3).fitting(some) == (some, ())


def test_cut_fits_are_counted_with_the_memory_that_they_need():
    some = [
        candidate(320, (3, 3)),
        candidate(1024, (3, 3)),
        candidate(1024, (5, 5), at="c"),
        candidate(8, (1, 1), "drop"),
    ]
    kept, (note,) = FitMemory(3).fitting(some)
    assert kept == some
    needed = 3 * math.ceil(8 * 8 * (1024 * 25) ** 2 / 2**20)
    assert note == (
        "2 of 3 fits solve fewer patterns than their kernels have pixels, as whole kernels need up to "
        f"{needed} MiB; CurvatureImportance(memory_mib={needed}) solves whole kernels, but takes longer"
    )
    assert FitMemory(3, needed).fitting(some) == (some, ())


def test_fits_without_room_for_one_pixel_are_left_out_and_said():
    some = [candidate(512, (1, 1)), candidate(8, (1, 1), at="c"), candidate(512, (3, 3), "merge")]
    kept, (note,) = FitMemory(3, 1).fitting(some)
    assert kept == some[1:]
    assert note.startswith("1 of 2 fits were left out, as 1 MiB are too little for even one pixel of their kernels; ")
    assert FitMemory(3, 48).fitting(some) == (some, ())
