"""Few scenes among the images are told: crops of one photo show one scene."""

import pytest
import torch

from depthcomp.data.scenes import FEW, count_scenes, few_scenes
from depthcomp.preparation import prepare


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


def test_equal_scores_are_no_scene():
    some = torch.cat([torch.zeros(5, 1000), scores(12, 4)])
    assert count_scenes(some) == 12
    assert count_scenes(torch.zeros(5, 1000)) == 0


@pytest.mark.parametrize("one_by_one", [False, True])
def test_scenes_are_counted_in_as_many_images_whatever_the_batches(one_by_one):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 30, 1, bias=False), torch.nn.Linear(480, 120, bias=False)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y.reshape(1, -1) if one_by_one else y.flatten(1))

    torch.manual_seed(0)
    data = torch.randn(200, 3, 4, 4).split(20)
    prepared = prepare(Net().eval(), torch.zeros(1, 3, 4, 4), data, None, 0)
    assert not any("scenes" in note for note in prepared.notes)
    few = prepare(Net().eval(), torch.zeros(1, 3, 4, 4), [data[0][:3].repeat(20, 1, 1, 1)], None, 0)
    assert any("about 3 different scenes" in note for note in few.notes)


@pytest.mark.parametrize(
    "found", [scores(3, 9, classes=10), torch.zeros(0), torch.randn(4, 200, 3, 3), torch.full((4, 200), torch.nan)]
)
def test_outputs_that_tell_no_scenes_give_no_note(found):
    assert few_scenes(found) == ""
