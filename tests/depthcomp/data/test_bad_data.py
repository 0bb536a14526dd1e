"""Data that are wrong somewhere: one sentence says what, before anything is measured or scored."""

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp.data.batches import labelled_images
from depthcomp.errors import DataError
from depthcomp.preparation import prepare


@pytest.fixture(scope="module")
def model():
    return tiny_net()


def right(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.parametrize("label", [-1, 5, 255])
def test_labels_out_of_range(model, label):
    x = images(6)
    y = right(model, x)
    y[3] = label
    with pytest.raises(DataError, match=r"labels run from .* but the network has 5 classes, 0 to 4; number the"):
        prepare(model, EXAMPLE, [(x, y)], None, seed=0)


def test_labels_of_another_numbering_are_left_and_said(model):
    x = images(12)
    prepared = prepare(model, EXAMPLE, [(x, (right(model, x) + 1) % 5)], None, seed=0)
    assert prepared.calibration.labels is None
    (note,) = prepared.notes
    assert note.startswith("the network predicts the labels of 0.0% of the images, no more than by chance")


def test_labels_go_with_their_images(model):
    x = images(17)
    y = right(model, x)
    prepared = prepare(model, EXAMPLE, [(x[:10], y[:10]), (x[10:], y[10:])], None, seed=3)
    assert prepared.notes == ()
    calibration = prepared.calibration
    for batch, labels in zip(calibration.batches, calibration.labels, strict=True):
        assert torch.equal(right(model, batch.held), labels)
    for (_, batch), labels in zip(calibration.judging(), calibration.judging_labels(), strict=True):
        assert torch.equal(right(model, batch.held), labels)


@pytest.mark.parametrize("empty", [[], [torch.zeros(0, 3, 32, 32)], iter(())])
def test_an_empty_loader(model, empty):
    with pytest.raises(DataError, match="data holds no images; pass an iterable of x"):
        prepare(model, EXAMPLE, empty, None, seed=0)
    with pytest.raises(DataError, match="val_data holds no images; pass an iterable of x"):
        prepare(model, EXAMPLE, [images(3)], [torch.zeros(0, 3, 32, 32)], seed=0)


def breaking_off(after, error):
    for _ in range(after):
        yield images(2)
    raise error


@pytest.mark.parametrize("error", [OSError("disk gone"), RuntimeError("DataLoader worker exited"), IndexError("7")])
def test_a_loader_that_breaks_off(model, error):
    with pytest.raises(DataError, match=r"data raised an error after 3 items \(.*\); correct the data first"):
        prepare(model, EXAMPLE, breaking_off(3, error), None, seed=0)


def test_a_loader_that_ends_early_serves_with_what_it_has(model):
    prepared = prepare(model, EXAMPLE, iter([images(2), images(1)]), None, seed=0)
    assert sum(map(len, prepared.calibration.batches)) == 3


def test_labels_of_some_items_only(model):
    x = images(4)
    with pytest.raises(DataError, match="1 of 2 items of data have labels; give an integer class for every image"):
        labelled_images([(x, right(model, x)), x], EXAMPLE)


def test_labels_that_are_too_few(model):
    with pytest.raises(DataError, match="holds 3 labels for 4 images; give one class for each image"):
        labelled_images([(images(4), torch.zeros(3, dtype=torch.long))], EXAMPLE)


@pytest.mark.parametrize(
    "item",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y.to(torch.uint8)],
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"pixel_values": x, "targets": y, "index": y + 1},
    ],
)
def test_labels_in_every_form(item):
    x, y = images(4), torch.tensor([3, 1, 4, 1])
    found, labels, _ = labelled_images([item(x, y)], EXAMPLE)
    assert torch.equal(found.held, x)
    assert torch.equal(labels, y)


def test_one_image_with_its_number():
    assert labelled_images([(images(1)[0], 3), (images(1)[0], 1)], EXAMPLE)[1].tolist() == [3, 1]


@pytest.mark.parametrize("other", [torch.zeros(4, 32, 32, dtype=torch.long), torch.rand(4, 5), "text", None])
def test_what_is_no_class_is_left_behind(other):
    assert labelled_images([(images(4), other)], EXAMPLE)[1] is None


def test_labels_of_networks_without_classes_are_left_behind():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    prepared = prepare(model, EXAMPLE, [(images(4), torch.tensor([7, 8, 9, 10]))], None, seed=0)
    assert prepared.calibration.labels is None
    assert prepared.notes == ()
