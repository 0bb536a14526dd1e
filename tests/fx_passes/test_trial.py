"""Trial networks compute what merged networks compute, and leave the captured network alone."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import networks
from toy_nets import outputs

from fx_passes import CapturedNetwork, capture, fold_batch_norms, linearize, merge, random_plan
from fx_passes.affine import AffineConv
from fx_passes.slot_layers import can_be_solved, load_operator, operator_at
from fx_passes.trial import trial_of

pytestmark = pytest.mark.whole


@given(networks(), st.integers(0, 2**16), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
def test_trial_equals_the_merged_network(drawn, seed, folded):
    net, x = drawn
    gm = capture(net, x)
    if folded:
        fold_batch_norms(gm)
    network, before = CapturedNetwork(gm.eval()), copy.deepcopy(gm)
    plan = random_plan(gm, np.random.default_rng(seed))
    wanted = merge(linearize(network, plan), plan)
    trial = trial_of(network, plan).gm
    assert all(torch.equal(*pair) for pair in zip(outputs(trial, x), outputs(wanted, x), strict=True))
    assert trial.code == wanted.code
    assert_unchanged(gm, before)


@given(networks(), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
def test_loaded_layers_are_copies(drawn, seed):
    net, x = drawn
    gm = capture(net, x).eval()
    network, before = CapturedNetwork(gm), copy.deepcopy(gm)
    plan = random_plan(gm, np.random.default_rng(seed))
    changed = {name for choice in plan for name in network.piece(choice).nodes}
    kept = [node.name for node in gm.graph.nodes if can_be_solved(gm, node) and node.name not in changed]
    trial = trial_of(network, plan, kept)
    kept = [name for name in kept if name in trial.nodes]
    for name in kept:
        load_operator(trial, name, doubled(operator_at(gm, network.nodes[name])))
        assert torch.equal(
            operator_at(trial.gm, trial.nodes[name]).weight, 2 * operator_at(gm, network.nodes[name]).weight
        )
    assert_unchanged(gm, before)


def doubled(operator):
    return AffineConv(2 * operator.weight, 2 * operator.bias, operator.stride, operator.padding, operator.groups)


def assert_unchanged(gm, before):
    assert gm.code == before.code
    state, wanted = gm.state_dict(), before.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in state)
