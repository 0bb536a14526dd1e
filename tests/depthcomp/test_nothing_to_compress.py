"""Budgets, networks and machines that leave nothing to do are refused in one sentence."""

import pytest
from tiny_network import images, tiny_net
from torch import nn

from depthcomp import compress_depth
from depthcomp.errors import BudgetError, BudgetInfeasibleError

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("budget", ["1000ms", "1ms"])
def test_a_budget_that_is_met_already(arithmetic_backend, budget):
    backend = arithmetic_backend()
    sentence = f"the original, measured at 0.* ms, already meets budget {budget}; ask for less"
    with pytest.raises(BudgetError, match=sentence):
        compress_depth(tiny_net(), budget, data=[images(8)], backend=backend)
    assert len(backend.built) == 1  # no operator was measured


def test_a_network_in_which_nothing_can_be_rewritten(arithmetic_backend):
    model, backend = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()).eval(), arithmetic_backend()
    with pytest.raises(BudgetInfeasibleError, match="no span of this network can be made faster") as caught:
        compress_depth(model, "90%", data=[images(8)], backend=backend)
    assert caught.value.best_ms == pytest.approx(backend.ms(backend.built[0]))
    assert len(backend.built) == 1


def test_a_machine_on_which_no_rewrite_saves_time(arithmetic_backend):
    backend = arithmetic_backend(hidden=lambda model, ms: 1.0)  # whatever it runs
    with pytest.raises(BudgetInfeasibleError, match=r"faster than its 1\.000 ms: no rewrite of a span saves more"):
        compress_depth(tiny_net(), "90%", data=[images(8)], backend=backend)
    assert len(backend.built) > 1
