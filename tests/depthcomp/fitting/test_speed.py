"""Work of fits, and the speed of the machine."""

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net

from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.fitting.speed import SOLUTIONS, Speed, fit_work, speed_of
from depthcomp.preparation import prepare

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    return prepare(tiny_net().eval(), EXAMPLE, [images(24)], None, seed=0)


def unknowns(candidate):
    (slot,) = candidate.slots
    return slot.operator.weight[0].numel()


def test_the_work_of_one_fit(prepared):
    candidate = next(c for c in prepared.candidates if len(c.slots) == 1)
    n, calibration = unknowns(candidate), prepared.calibration
    samples = samples_per_batch(n, calibration.least_fitted) * len(calibration.batches)
    found = fit_work([candidate], calibration, FitMemory(calibration.count))
    assert found.passes == 1
    assert found.multiply_adds == (samples + SOLUTIONS * n) * n**2 * candidate.slots[0].operator.groups


def test_fits_of_one_system_cost_once(prepared):
    memory = FitMemory(prepared.calibration.count)
    some = [c for c in prepared.candidates if c.slots]
    whole = fit_work(some, prepared.calibration, memory)
    assert fit_work([*some, *some], prepared.calibration, memory) == whole
    single = [fit_work([candidate], prepared.calibration, memory).multiply_adds for candidate in some]
    assert max(single) <= whole.multiply_adds < sum(single)


def test_little_memory_takes_more_passes(prepared):
    some, count = [c for c in prepared.candidates if c.slots], prepared.calibration.count
    passes = [fit_work(some, prepared.calibration, FitMemory(count, mib)).passes for mib in (64.0, 2.0, 1.0)]
    assert passes[0] == 1
    assert passes == sorted(passes)
    assert passes[-1] > 1


def test_no_fit_is_no_work(prepared):
    found = fit_work([c for c in prepared.candidates if not c.slots], prepared.calibration, FitMemory(3))
    assert (found.passes, found.multiply_adds) == (0, 0)


def test_the_speed_of_a_machine(prepared):
    speed = speed_of(prepared.network, prepared.calibration)
    assert speed.batch_seconds > 0
    assert speed.multiply_adds_per_second > 1e8


def test_work_in_seconds():
    assert Speed(0.5, 2e9).seconds(forwards=3, multiply_adds=8e9) == 1.5 + 4.0
