"""Feature outputs: copies of networks that also return inner tensors, to compare with a teacher's."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn

from depthcomp.errors import TrainingError
from fx_passes.graph_edit import nodes_by_name

__all__ = ["last_layer", "with_feature_outputs"]


def last_layer(network: nn.Module) -> str:
    """Return the name of the last node of a captured graph that calls a layer; "output" where there is none."""
    nodes = network.graph.find_nodes(op="call_module") if isinstance(network, fx.GraphModule) else []
    return nodes[-1].name if nodes else "output"


def with_feature_outputs(network: nn.Module, names: Sequence[str]) -> fx.GraphModule:
    """Return a copy of a captured graph that returns (its output, the tensors at the nodes called `names`).

    Raises:
        TrainingError: the network is no captured graph, lacks one of the nodes, or no names are given.
    """
    nodes = {node.name for node in network.graph.nodes} if isinstance(network, fx.GraphModule) else set()
    missing = [name for name in names if name not in nodes]
    if missing or not names:
        lacking = f"a {type(network).__name__} lacks {missing[0]!r}" if missing else "no spans are rewritten"
        raise TrainingError(
            f"features above 0 compare tensors of two captured networks at the ends of rewritten spans, but {lacking}; "
            "set features=0"
        )
    assert isinstance(network, fx.GraphModule)  # or the names are missing
    copied = copy.deepcopy(network)
    found = nodes_by_name(copied)
    output = next(iter(copied.graph.find_nodes(op="output")))
    output.args = ((output.args[0], tuple(found[name] for name in names)),)
    copied.graph.lint()
    copied.recompile()
    return copied
