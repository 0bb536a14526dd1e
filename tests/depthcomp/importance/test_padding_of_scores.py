"""What a choice is scored with pads as the final network does: at the span's entry, not inside it."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from depthcomp.data.calibration import cross_validated
from depthcomp.data.output_loss import divergence
from depthcomp.importance.calibrated import calibrated
from depthcomp.importance.finetuned_importance import FinetunedImportance
from depthcomp.importance.trained import entries_of
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, Plan, capture, enumerate_spans, linearize, merge


class Bordered(nn.Module):
    """Two padded convolutions whose first has a large bias: at the border the two layouts of padding differ much."""

    def __init__(self):
        super().__init__()
        self.one, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.two, self.head = nn.Conv2d(5, 7, 3, padding=1), nn.Linear(7, 4)
        nn.init.constant_(self.one.bias, 3.0)

    def forward(self, x):
        return self.head(self.act(self.two(self.act(self.one(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CapturedNetwork(capture(Bordered().double().eval(), torch.zeros(1, 3, 6, 6, dtype=torch.float64)))


@pytest.fixture(scope="module")
def merged(network):
    candidates = Pricing(network).candidates(enumerate_spans(network, DEFAULT_LIMITS))
    return next(c for c in candidates if c.choice.kind == "merge" and c.choice.kernel == (5, 5))


@pytest.fixture(scope="module")
def images():
    return torch.randn(9, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def identity_inside(network, images):
    """Return the outputs with the inner activation as identity and the padding where it was."""
    one, two, head = map(network.gm.get_submodule, ("one", "two", "head"))
    return head(two(one(images)).relu().mean((2, 3)))


def test_calibrated_scores_the_merged_network(network, merged, images):
    plan = Plan((merged.choice,))
    final = merge(linearize(network, plan), plan)
    calibration = cross_validated(images, seed=0)
    with torch.no_grad():
        losses = [divergence(batch.through(network.gm), batch.through(final)) for _, batch in calibration.judging()]
        inside = [divergence(b.through(network.gm), identity_inside(network, b.held)) for _, b in calibration.judging()]
    found = calibrated(network, [merged], calibration, defaultdict(lambda: 1.0), refit_kept=False).losses[merged.choice]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert abs(found - sum(inside) / len(inside)) > 0.01 * found


def test_finetuned_trains_the_linearized_network(network, merged, images):
    ((_, make),) = entries_of(network, [merged], FinetunedImportance()).items()
    plan = Plan((merged.choice,))
    with torch.no_grad():
        assert torch.allclose(make()(images), merge(linearize(network, plan), plan)(images), atol=1e-12)
        assert not torch.allclose(make()(images), identity_inside(network, images), atol=1e-3)
