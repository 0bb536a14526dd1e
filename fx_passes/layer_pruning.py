"""Layer pruning: the convolutions of a span to make identity, so that the others merge into a smaller kernel.

The reach of a merged kernel is the number of pixels that it reads beyond its output's pixel. Reaches add up along a
path, each times the stride before it; of parallel paths the furthest counts. A walk along a span therefore keeps only
the best set of pruned convolutions for each reach, instead of all 2^n subsets of n convolutions. Among convolutions of
one size, this is sorting by weight.

Source: LayerMerge (Kim et al., ICML 2024, arXiv 2406.12837), section 3: for each kernel size, the convolutions with the
largest sum of absolute weights stay. Here the norms that follow are folded into the weights first, so that pruning does
not depend on whether the graph has its norms folded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import fx

from fx_passes.affine import Sides
from fx_passes.facts import GraphFacts
from fx_passes.operators import NORMS, Role, affine_operator, image_shape, known_layer, role
from fx_passes.spatial_layers import CONVOLUTIONS, Convolution, image_kernel
from fx_passes.structure import Level, Unit

__all__ = ["UNPRUNED", "LayerPruner", "Pruning", "Prunings", "with_norms"]

Pair = tuple[int, int]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Pruning:
    """Convolutions that become identity.

    Attributes:
        kept: sum of the absolute weights of the prunable convolutions that stay.
        names: names of the nodes that call the pruned convolutions, in the graph's order.
    """

    kept: float = 0.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prunings:
    """The best pruning of a piece of graph for each reach of its merged kernel.

    Attributes:
        stride: step on the piece's input per pixel of its output.
        best: the pruning for each reach: pixels beyond the output's own at (top, bottom, left, right).
    """

    stride: Pair
    best: Mapping[Sides, Pruning]

    def then(self, other: Prunings) -> Prunings:
        """Return the prunings of this piece followed by another."""
        vertical, horizontal = self.stride
        steps = (vertical, vertical, horizontal, horizontal)
        pairs = (
            (_sides(a + s * b for a, s, b in zip(near, steps, far, strict=True)), _both(one, two))
            for near, one in self.best.items()
            for far, two in other.best.items()
        )
        return Prunings((vertical * other.stride[0], horizontal * other.stride[1]), _best(pairs))

    def beside(self, other: Prunings) -> Prunings:
        """Return the prunings of this piece and another that runs in parallel, their outputs joined."""
        pairs = (
            (_sides(map(max, here, there)), _both(one, two))
            for here, one in self.best.items()
            for there, two in other.best.items()
        )
        return Prunings(self.stride, _best(pairs))

    def by_kernel(self) -> dict[Pair, Pruning]:
        """Return the best pruning for each size of the merged kernel, the smallest first."""
        kernels = (
            ((top + bottom + 1, left + right + 1), pruning) for (top, bottom, left, right), pruning in self.best.items()
        )
        return dict(sorted(_best(kernels).items()))


UNPRUNED = Prunings((1, 1), {(0, 0, 0, 0): Pruning()})


class LayerPruner:
    """Finds the best prunings of each unit of one graph; results are cached.

    Args:
        graph: a captured graph; it is not changed.
    """

    def __init__(self, graph: GraphFacts) -> None:
        self._gm = graph.gm
        self._nodes = graph.nodes
        self.of_unit = functools.cache(self._of_unit)

    def _of_unit(self, unit: Unit) -> Prunings | None:
        """Return the prunings of a unit of affine operators; None where tangled branches share convolutions."""
        if unit.tangled:
            return None
        branches = [self._of_level(branch) for branch in unit.branches]
        found = [prunings for prunings in branches if prunings is not None]
        if len(found) < len(branches):
            return None
        joined = functools.reduce(Prunings.beside, found) if found else UNPRUNED
        return functools.reduce(Prunings.then, map(self._of_node, unit.nodes), joined)

    def _of_level(self, level: Level) -> Prunings | None:
        found = UNPRUNED
        for unit in level.units:
            following = self.of_unit(unit)
            if following is None:
                return None
            found = found.then(following)
        return found

    def _of_node(self, name: str) -> Prunings:
        node = self._nodes[name]
        if role(self._gm, node) is not Role.AFFINE:
            return UNPRUNED
        shape = image_shape(node.all_input_nodes[0])
        assert shape is not None  # an affine operator reads images
        operator = affine_operator(self._gm, node, shape[1], device="meta")
        (height, width), (top, _, left, _) = operator.kernel, operator.padding
        reach = top, height - 1 - top, left, width - 1 - left
        module = known_layer(self._gm, node)
        if not isinstance(module, CONVOLUTIONS) or operator.stride != (1, 1) or image_shape(node) != shape:
            return Prunings(operator.stride, {reach: Pruning()})
        staying = Pruning(self._weight_of(node, module))
        return Prunings((1, 1), _best([((0, 0, 0, 0), Pruning(names=(name,))), (reach, staying)]))

    def _weight_of(self, node: fx.Node, conv: Convolution) -> float:
        """Return the sum of a convolution's absolute weights, the norms that follow it folded in."""
        weight = image_kernel(conv).double()
        for norm in with_norms(self._gm, [node])[1:]:
            if role(self._gm, norm) is Role.AFFINE:
                weight = weight * affine_operator(self._gm, norm, conv.out_channels, device=str(weight.device)).weight
        return float(weight.abs().sum())


def with_norms(gm: fx.GraphModule, convolutions: Sequence[fx.Node]) -> list[fx.Node]:
    """Return convolutions, each with the norms that follow as its only consumers; these are pruned with it."""
    found = []
    for node in convolutions:
        found.append(node)
        while len(found[-1].users) == 1:
            (user,) = found[-1].users
            if not isinstance(known_layer(gm, user), NORMS):
                break
            found.append(user)
    return found


def _both(one: Pruning, other: Pruning) -> Pruning:
    return Pruning(one.kept + other.kept, one.names + other.names)


def _best(pairs: Iterable[tuple[Key, Pruning]]) -> dict[Key, Pruning]:
    """Return for each key the pruning that keeps the largest weights, the first of equals."""
    best: dict[Key, Pruning] = {}
    for key, pruning in pairs:
        if key not in best or pruning.kept > best[key].kept:
            best[key] = pruning
    return best


def _sides(values: Iterable[int]) -> Sides:
    top, bottom, left, right = values
    return top, bottom, left, right
