"""Shape propagation: a run of a graph on real or fake tensors that records the shape and type at each node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils._pytree import tree_leaves

from depthcomp_errors import CaptureError
from depthcomp_errors.first_line import first_line
from fx_passes.module_paths import module_path
from fx_passes.outputs import tensors_of

__all__ = ["propagate_shapes", "run_with_shapes"]


def propagate_shapes(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Write `meta["tensor_meta"]` and `meta["type"]` at the nodes of `gm`, without values if possible.

    A graph with a module that branches on values cannot run on fake tensors, and runs on the inputs themselves.

    Raises:
        CaptureError: a node fails; the message names it.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), fake:
            _Recorder(gm).run(*(fake.from_tensor(x) for x in inputs))
    except Exception:
        run_with_shapes(gm, inputs)


def run_with_shapes(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the output tensors of `gm`, and write `meta["tensor_meta"]` and `meta["type"]` at its nodes.

    Raises:
        CaptureError: a node fails; the message names it.
    """
    recorder = _Recorder(gm)
    try:
        with torch.no_grad():
            output = recorder.run(*(x.clone() for x in inputs))  # a forward may overwrite what it is given
    except Exception as error:
        place = "its inputs" if recorder.running is None else module_path(recorder.running)
        raise CaptureError(
            f"{type(gm).__name__} was traced, but its graph fails at {place} "
            f"({type(error).__name__}: {first_line(error, empty='no message')}); its forward must give equal outputs "
            "for equal images, so keep no counters or other state in it, or capture a part of the network"
        ) from error
    return tensors_of(output)


class _Recorder(fx.Interpreter):
    """Runs a graph; unlike torch's ShapeProp, it prints nothing when a node fails."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # the graph's own stack belongs to the log, not into the message
        self.running: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and record its shape and type at the node."""
        self.running = n
        result = super().run_node(n)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            n.meta["tensor_meta"] = fx.node.map_aggregate(result, _described)
        n.meta["type"] = type(result)
        return result


def _described(leaf: Any) -> Any:
    return _extract_tensor_metadata(leaf) if isinstance(leaf, Tensor) else leaf
