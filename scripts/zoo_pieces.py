"""Comparison of two graphs piece by piece, from one tensor that both share to the next.

Networks with random weights may double each rounding error many times: some amplify errors of 1e-14 to 1e-2. Piece by
piece, from given tensors, two graphs compute the same if, and only if, their outputs would in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["error_in_pieces", "largest_error", "recorded", "shared_nodes", "tensors_in"]


def shared_nodes(one: fx.GraphModule, other: fx.GraphModule) -> set[str]:
    """Return the names of the layers, and the output, that two graphs share."""
    first, second = ({n.name for n in gm.graph.nodes if n.op in ("call_module", "output")} for gm in (one, other))
    return first & second


def recorded(gm: fx.GraphModule, x: Tensor, scaled: Collection[str] = ()) -> dict[str, Any]:
    """Return what each node computes, by name.

    Args:
        gm: the graph.
        x: images (n, c, h, w).
        scaled: names of nodes whose tensors are divided by their root mean square, so that none overflows.
    """
    run = _Pieces(gm, scaled, {})
    run.run(x)
    return run.values


def error_in_pieces(gm: fx.GraphModule, x: Tensor, given: Mapping[str, Any], scaled: Collection[str] = ()) -> float:
    """Return the largest error of a graph's layers and output, relative to the largest value of a tensor.

    Args:
        gm: the graph.
        x: images (n, c, h, w).
        given: what the nodes of another graph compute; where shapes agree, the next pieces read these tensors.
        scaled: as for `recorded`, the same names.
    """
    run = _Pieces(gm, scaled, given)
    run.run(x)
    return float(np.max(run.errors))


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors in a nested result."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest deviation of any tensor relative to its largest wanted value; NaN where one is."""
    errors = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-12))
        for a, b in zip(found, wanted, strict=True)
    ]
    return float(np.max(errors))


class _Pieces(fx.Interpreter):
    """Runs a graph, and compares with given tensors, which replace its own.

    Attributes:
        values: what each node computes.
        errors: the error of each layer and output whose tensor is given.
    """

    def __init__(self, gm: fx.GraphModule, scaled: Collection[str], given: Mapping[str, Any]) -> None:
        super().__init__(gm)
        self._scaled, self._given = scaled, given
        self.values: dict[str, Any] = {}
        self.errors: list[float] = []

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        """Return what a node computes, or what is given for it."""
        result = super().run_node(n)
        if n.name in self._scaled:
            result = tree_map_only(Tensor, _at_unit_scale, result)
        self.values[n.name] = result
        if n.op not in ("call_module", "output") or n.name not in self._given:
            return result
        found, wanted = tensors_in(result), tensors_in(self._given[n.name])
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
            return result
        self.errors.append(largest_error(found, wanted))
        return self._given[n.name]


def _at_unit_scale(tensor: Tensor) -> Tensor:
    return tensor / tensor.square().mean().sqrt().clamp_min(1e-12)
