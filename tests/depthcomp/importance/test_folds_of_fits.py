"""Fits never see the fold that judges them."""

import math
from collections import defaultdict

import pytest
import torch
from torch import nn

from depthcomp.data.calibration import cross_validated
from depthcomp.importance.calibrated import calibrated
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, capture, enumerate_spans

pytestmark = pytest.mark.whole


def test_channels_that_light_up_in_the_first_fold_alone():
    """Bright photos come first; the features that they have are zero on all others."""
    torch.manual_seed(0)
    chain = [layer for _ in range(2) for layer in (nn.Conv2d(97, 97, 3, padding=1, groups=97), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 97, 3), nn.ReLU(), *chain, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.uniform_(-2.5, -1.5)
    photos = 0.05 * torch.rand(24, 3, 26, 26)
    photos[:8] += 1
    network = CapturedNetwork(capture(model, photos[:1]))
    some = Pricing(network).candidates(enumerate_spans(network, DEFAULT_LIMITS))
    found = calibrated(network, some, cross_validated(photos, seed=0), defaultdict(lambda: 1.0)).losses
    assert all(math.isfinite(loss) for loss in found.values())
