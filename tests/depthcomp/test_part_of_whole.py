"""A part of a network, compressed on what the whole feeds it and put back."""

import pytest
import torch
from branched_network import Branched
from torch import nn

import depthcomp
from depthcomp import compress_depth
from depthcomp.errors import CaptureError, DataError
from depthcomp.sources.part_of_whole import PartOfWhole


class Detector(nn.Module):
    """Takes a list of images of several sizes and dicts of targets; returns a dict for each image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head, self.unused = Branched(), nn.Linear(7, 3), nn.Identity()

    def forward(self, images, targets=None, size=12):
        batch = torch.stack([self._fitted(image, size) for image in images])
        scores = self.head(self.backbone(batch * 2 - 1))
        return [{"score": row[row > row.mean()]} for row in scores]

    @staticmethod
    def _fitted(image, size):
        return nn.functional.interpolate(image[None], size=(size, size + image.shape[1] % 2))[0]


def held(count, *, height=20):
    """Return batches as detectors' loaders yield them: lists of images, and targets."""
    generator = torch.Generator().manual_seed(3)
    return [
        ([torch.rand(3, height, 17 + index, generator=generator) for index in range(2)], [{}, {}]) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def compressed(arithmetic_backend):
    whole = Detector().train()
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    result = compress_depth(
        whole, "85%", module="backbone", data=held(6), example_inputs=held(1)[0][0], backend=arithmetic_backend(),
        exclude="backbone.stem",
    )  # fmt: skip
    assert whole.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())
    return whole, result


def test_a_part_is_put_back_into_its_whole(compressed, tmp_path):
    whole, result = compressed
    assert result.measured_ms <= 0.85 * result.original_ms
    assert result.example_inputs[0].shape == (2, 3, 12, 12)
    found = result.whole(held(1)[0][0])
    assert [entry.keys() for entry in found] == [{"score"}, {"score"}]
    batch = torch.rand(4, 3, 12, 12)
    assert torch.equal(result.whole.backbone(batch), result.model(batch))
    assert not torch.equal(result.whole.backbone(batch), whole.eval().backbone(batch))
    assert torch.equal(result.whole.head.weight, whole.head.weight)
    stem = result.whole.backbone.get_submodule("stem.0")
    assert torch.equal(stem.weight, whole.backbone.stem[0].weight)
    assert result.excluded == ("backbone.stem",)
    assert result.judged_by.endswith(", of backbone alone")
    assert result.part.judged_alone.startswith("Detector cannot be captured: ")
    assert result.part.unmeasured == result.part.judged_alone
    result.save(tmp_path)
    assert torch.equal(depthcomp.load(tmp_path)(batch), result.model(batch))


def test_the_part_reads_what_the_whole_feeds_it():
    whole = Detector()
    part = PartOfWhole(whole, "backbone")
    (batch,) = part.data(held(1), "data")
    wanted = torch.stack([whole._fitted(image, 12) for image in held(1)[0][0]]) * 2 - 1
    assert torch.equal(batch, wanted)
    assert torch.equal(part.example(held(1)[0]), wanted)
    assert torch.equal(part.example(held(1)[0][0]), wanted)
    items = [{"images": held(1)[0][0], "size": 5}, {"image": torch.rand(2, 3, 12, 12), "label": torch.zeros(2)}]
    assert [tuple(PartOfWhole(whole, "backbone").data([item], "data")[0].shape) for item in items] == [
        (2, 3, 5, 5), (2, 3, 12, 12),
    ]  # fmt: skip


def test_batches_of_rare_sizes_are_left_out_and_counted():
    part = PartOfWhole(Detector(), "backbone")
    assert len(part.data([*held(3), *held(1, height=21)], "data")) == 3
    assert part.notes == [
        "1 of 4 batches of data reach backbone in another size than (3, 12, 12), and are left out; give images of one "
        "size to use all"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbon", r"module \(='backbon'\) is no part of Detector; .*such as 'backbone'"),
        ("", r"module \(=''\) is no part of Detector"),
        ("unused", "the forward of Detector does not call unused; name a module that it calls"),
        ("head", r"head reads a tensor \(2, 7\), and must read one batch of images"),
    ],
)
def test_what_is_no_part_is_refused(name, message):
    with pytest.raises(CaptureError, match=message):
        compress_depth(Detector(), "85%", module=name, data=held(2))


def test_data_that_the_whole_does_not_take_are_refused():
    with pytest.raises(
        CaptureError, match=r"Detector fails on data \(.*with module=, give what the whole network takes"
    ):
        compress_depth(Detector(), "85%", module="backbone", data=[3])
    with pytest.raises(DataError, match="data holds no items; pass an iterable of what Detector takes"):
        compress_depth(Detector(), "85%", module="backbone", data=[])
    with pytest.raises(CaptureError, match=r"model is of type int and must be a torch.nn.Module to have parts"):
        compress_depth(3, "85%", module="backbone")
