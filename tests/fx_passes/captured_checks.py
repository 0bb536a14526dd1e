"""Checks of captured graphs."""

import torch
from toy_nets import relative_error

from fx_passes import capture


def called(gm):
    """Return the types of the called modules, in order."""
    return [type(gm.get_submodule(node.target)) for node in gm.graph.nodes if node.op == "call_module"]


def check(model, *inputs):
    """Capture a model, compare the outputs in evaluation mode, and return the graph."""
    gm = capture(model, inputs)
    with torch.no_grad():
        assert relative_error(gm(*inputs), model.eval()(*inputs)) < 1e-6
    return gm
