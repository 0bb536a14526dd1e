"""torchvision's segmentation networks and the backbones of its detectors: captured, planned and merged."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves
from toy_nets import captured, image, largest_error, plan_of, randomise

from depthcomp_errors import CaptureError
from fx_passes import capture, enumerate_spans, linearize, merge, random_plan
from fx_passes.kinds import kind_names

pytestmark = pytest.mark.whole

QUICK = [
    "lraspp_mobilenet_v3_large",
    "ssdlite320_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_fpn",
]
SLOW = [
    "fcn_resnet50", "deeplabv3_resnet50", "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
    "ssd300_vgg16", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
]  # fmt: skip


def build(name):
    """Return a segmentation network, or the backbone of a detector."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    return randomise(model.backbone if hasattr(model, "transform") else model)


def leaves(model, x):
    with torch.no_grad():
        return tree_leaves(model(x))


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_dense_predictors_are_captured_and_merged(name):
    size = 300 if name == "ssd300_vgg16" else 96  # the one takes no smaller image
    model, x = build(name), torch.randn(1, 3, size, size)
    gm = capture(model, x)
    assert largest_error(leaves(gm, x), leaves(model, x)) < 1e-5
    assert gm(x).keys() == model(x).keys()
    assert {c.kind for span in enumerate_spans(gm) for c in span.choices} == set(kind_names())
    gm = gm.double()
    plan = random_plan(gm, np.random.default_rng(0))
    linearized = linearize(gm, plan)
    assert largest_error(leaves(merge(linearized, plan), x.double()), leaves(linearized, x.double())) < 1e-9


def test_a_fit_in_place_of_a_far_dilated_convolution_takes_no_dense_kernel():
    gm = captured(nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=700, dilation=700)), image())
    plan = plan_of(("input_1", "_1", "fit", (3, 3)))  # the dense kernel would take 64 GB
    (conv,) = (m for m in linearize(gm, plan).modules() if isinstance(m, nn.Conv2d))
    assert (conv.kernel_size, conv.padding) == ((3, 3), (1, 1))


@pytest.mark.parametrize("inputs", [torch.zeros(1, 3, 64, 64), [torch.zeros(3, 64, 64)]])
def test_a_whole_detector_is_refused_with_a_part_that_can_be_captured(inputs):
    model = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    part = r", or capture the part model\.backbone, which holds \d+ of its \d+ convolutions"
    wanted = rf"SSD.* (values of the images|lists?)\b.*{part}"
    with pytest.raises(CaptureError, match=wanted):
        capture(model, inputs)
    assert capture(model.backbone, torch.zeros(1, 3, 64, 64)) is not None


class Untraceable(nn.Module):
    """Takes a list, and has no part to fall back on."""

    def forward(self, images):
        return [image + 1 for image in (*images, *images)]


def test_a_forward_that_takes_a_list_says_so():
    with pytest.raises(CaptureError, match=r"Untraceable takes a list of tensors, .* write one that does$"):
        capture(Untraceable(), [torch.zeros(3, 5, 5), torch.zeros(3, 5, 5)])
