"""Images without a label among labelled ones."""

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net

from depthcomp.preparation import prepare


def data(*unknown):
    x = images(12)
    with torch.no_grad():
        y = tiny_net()(x).argmax(1)
    y[list(unknown)] = -100
    return x, y


@pytest.mark.parametrize("val_data", [None, [data(3)]])
def test_images_without_a_label_are_left_out_and_that_is_said(val_data):
    x, y = data(2, 7)
    prepared = prepare(tiny_net(), EXAMPLE, [(x, y)], val_data, seed=0)
    assert "2 of 12 images of data have the label -100 and are left out" in prepared.notes[0]
    assert ("1 of 12 images of val_data" in prepared.notes[0]) is (val_data is not None)
    calibration = prepared.calibration
    assert sum(map(len, calibration.batches)) == (10 if val_data is None else 21)
    for batch, labels in zip(calibration.batches, calibration.labels, strict=True):
        with torch.no_grad():
            assert torch.equal(batch.through(tiny_net()).argmax(1), labels)


def test_where_no_image_has_one_all_serve_without():
    prepared = prepare(tiny_net(), EXAMPLE, [data(*range(12))], None, seed=0)
    assert prepared.calibration.labels is None
    assert sum(map(len, prepared.calibration.batches)) == 12
    assert prepared.notes == ()
