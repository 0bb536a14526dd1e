"""Few scenes among the images are told: crops of one photo show one scene."""

import pytest
import torch

from depthcomp.data.scenes import FEW, count_scenes, few_scenes


def scores(scenes, of_each, classes=1000, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(scenes, classes, generator=generator).repeat_interleave(of_each, 0)
    return centres + noise * torch.randn(centres.shape, generator=generator)


@pytest.mark.parametrize(("scenes", "of_each"), [(1, 20), (12, 1), (12, 16), (60, 4)])
def test_scenes_are_counted_whatever_the_number_of_their_images(scenes, of_each):
    assert count_scenes(scores(scenes, of_each)) == scenes


def test_few_scenes_are_told_with_their_number():
    assert "about 12 different scenes" in few_scenes(scores(12, 30))
    assert few_scenes(scores(FEW, 2)) == ""


@pytest.mark.parametrize(
    "found", [scores(3, 9, classes=10), torch.zeros(0), torch.randn(4, 200, 3, 3), torch.full((4, 200), torch.nan)]
)
def test_outputs_that_tell_no_scenes_give_no_note(found):
    assert few_scenes(found) == ""
