"""Folds of calibration images: every image is in one fold, and the folds take turns in judging."""

import pytest
import torch

from depthcomp.data.calibration import CalibrationSet, Layout, cross_validated, separate
from depthcomp.data.inputs import Inputs


def images(count, first=0):
    """Return images (count, 3, 5, 7) that carry a number each, from `first` on."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return numbers[:, None, None, None] + torch.linspace(0, 0.5, 3 * 5 * 7).reshape(1, 3, 5, 7)


def numbers(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in Inputs.of(batch).held]


EIGHTS = Layout(8, torch.channels_last)
COUNTS = [1, 2, 3, 4, 5, 7, 23, 24, 26, 50]


@pytest.mark.parametrize("count", COUNTS)
def test_folds_are_contiguous_parts_that_hold_every_image_once(count):
    calibration = cross_validated(images(count), seed=0)
    parts = [sorted(numbers(calibration.fold(fold))) for fold in range(calibration.count)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == min(3, count)
    assert sum(map(len, calibration.batches)) == count


@pytest.mark.parametrize("count", COUNTS)
def test_an_image_is_what_it_was(count):
    given = images(count)
    for batch in cross_validated(given, 0, EIGHTS).batches:
        assert torch.equal(batch.held, given[numbers([batch])])
        assert batch.held.is_contiguous(memory_format=torch.channels_last)
        assert 1 <= len(batch) <= 8


@pytest.mark.parametrize("count", COUNTS[1:])
def test_every_image_judges_once(count):
    calibration = cross_validated(images(count), seed=0)
    assert calibration.judges == tuple(range(min(3, count)))
    assert sorted(numbers(batch for _, batch in calibration.judging())) == list(range(count))
    for fold, batch in calibration.judging():
        assert any(batch is own for own in calibration.fold(fold))


@pytest.mark.parametrize(("count", "turns"), [(2, [0, 1]), (24, [0, 1, 2]), (26, [0, 1, 2, 1, 2]), (75, [0, 1, 2] * 4)])
def test_the_folds_take_turns(count, turns):
    assert [fold for fold, _ in cross_validated(images(count), 0, EIGHTS).judging()] == turns


def test_one_image_judges_what_was_fitted_to_it():
    calibration = cross_validated(images(1), seed=0)
    assert (calibration.count, calibration.judges) == (1, ())
    ((fold, batch),) = calibration.judging()
    assert fold == 0
    assert torch.equal(batch.held, images(1))


@pytest.mark.parametrize(("count", "judging"), [(1, 1), (20, 3), (3, 20)])
def test_separate_images_alone_judge(count, judging):
    calibration = separate(images(count), images(judging, first=100), seed=0)
    assert (calibration.count, calibration.judges) == (2, (1,))
    assert sorted(numbers(calibration.fold(0))) == list(range(count))
    assert {fold for fold, _ in calibration.judging()} == {1}
    assert sorted(numbers(batch for _, batch in calibration.judging())) == list(range(100, 100 + judging))


def test_the_seed_decides_the_order_within_folds():
    orders = [numbers(cross_validated(images(60), seed).batches) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    apart = [numbers(separate(images(20), images(20, first=100), seed).batches) for seed in (3, 3, 4)]
    assert apart[0] == apart[1] != apart[2]


def test_mixing_leaves_the_input_and_the_users_random_numbers_alone():
    given, kept, state = images(20), images(20), torch.get_rng_state()
    for batch in (*cross_validated(given, seed=0).batches, *separate(given, given, seed=0).batches):
        batch.held.zero_()
    assert torch.equal(given, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_a_fold_need_not_stand_together():
    batches = images(1), images(1, first=1), images(1, first=2)
    calibration = CalibrationSet(batches, folds=(0, 1, 0), judges=(1, 0))
    assert numbers(calibration.fold(0)) == [0, 2]
    assert [(fold, *numbers([batch])) for fold, batch in calibration.judging()] == [(1, 1), (0, 0), (0, 2)]


@pytest.mark.parametrize("count", [1, 2, 3, 11, 26, 200])
@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_a_thinned_set_has_some_batches_of_every_fold(count, most):
    whole = cross_validated(images(count), seed=0)
    thinned = whole.thinned(most)
    assert (thinned.count, thinned.judges) == (whole.count, whole.judges)
    assert len(thinned.batches) <= max(1.5 * most + whole.count, whole.count)
    for fold in range(whole.count):
        kept, all_ = thinned.fold(fold), whole.fold(fold)
        assert kept
        assert all(any(batch is own for own in all_) for batch in kept)
    assert len({id(batch) for batch in thinned.batches}) == len(thinned.batches)
    if len(whole.batches) <= most:
        assert thinned == whole


def test_a_thinned_set_judges_on_separate_images_still():
    thinned = separate(images(200), images(20, first=1000), seed=0).thinned(10)
    assert thinned.judges == (1,)
    assert all(number >= 1000 for number in numbers(batch for _, batch in thinned.judging()))
    assert {number >= 1000 for number in numbers(thinned.fold(0))} == {False}
