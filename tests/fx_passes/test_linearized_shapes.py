"""The shapes at the nodes of a linearized graph are those of the tensors that a run computes there."""

import numpy as np
import pytest
from toy_nets import TOYS, toy

from fx_passes import SpanLimits, linearize, random_plan
from fx_passes.operators import image_shape
from fx_passes.shapes import run_with_shapes

pytestmark = pytest.mark.whole

GENEROUS = SpanLimits(largest_kernel=25, largest_mac_growth=1e9)


@pytest.mark.parametrize("name", sorted(TOYS))
@pytest.mark.parametrize("seed", range(5))
def test_recorded_shapes_are_those_of_a_run(name, seed):
    gm, x = toy(name)
    linearized = linearize(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS))
    recorded = {node.name: image_shape(node) for node in linearized.graph.nodes if image_shape(node) is not None}
    run_with_shapes(linearized, [x])
    assert recorded == {node.name: image_shape(node) for node in linearized.graph.nodes if node.name in recorded}
    assert recorded
