"""What may be done with a span instead of keeping it: merging, merging with layer pruning, fitting, dropping."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import fx, nn

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.collapse import operands
from fx_passes.ends import activation_to_insert, end_activation
from fx_passes.layer_pruning import Prunings
from fx_passes.module_paths import ModuleNames, module_path
from fx_passes.operators import NORMS, Role, follows_convolution, image_shape, known_layer, role
from fx_passes.plan import End, SpanChoice

__all__ = ["Offers", "Piece", "SpanLimits"]


@dataclass(frozen=True, slots=True)
class SpanLimits:
    """What is offered as a choice; the number of candidates grows linearly with depth.

    Attributes:
        longest_span: most units that one convolution may replace.
        largest_kernel: largest height or width of a new convolution's kernel.
        largest_mac_growth: most multiply-adds of a new convolution, relative to those of its span.
        layer_pruning: whether convolutions may be pruned so that the others merge into a smaller kernel.
        other_ends: what may follow a new convolution besides what follows its span.
        skips_pixels: whether a fitted or pruned kernel may be smaller than its stride, so that the layers before
            compute pixels that nothing reads.
    """

    longest_span: int = 6
    largest_kernel: int = 7
    largest_mac_growth: float = 2.0
    layer_pruning: bool = True
    other_ends: tuple[End, ...] = ("inserted", "none")
    skips_pixels: bool = True

    def __post_init__(self) -> None:
        for name in ("longest_span", "largest_kernel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise PlanError(f"{name} (={value!r}) must be a whole number from 1 on")
        if not self.largest_mac_growth >= 0:  # as NaN is not
            raise PlanError(f"largest_mac_growth (={self.largest_mac_growth!r}) must be a number from 0 on")
        if not set(self.other_ends) <= {"inserted", "none"}:
            raise PlanError(f"other_ends (={self.other_ends!r}) may hold 'inserted' and 'none'")


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a graph between two tensors, as one convolution.

    Attributes:
        entry: name of the node whose tensor it reads.
        exit: name of the node whose tensor it produces.
        core: name of the node whose tensor stands before the activation at its end.
        nodes: names of its nodes in order.
        operator: its collapse into one convolution, weights on the meta device.
        in_shape: (batch, channels, height, width) at the entry.
        macs: multiply-adds of its convolutions as they are, for the whole batch.
        prunings: which convolutions to prune for a smaller kernel; None where that is not known.
    """

    entry: str
    exit: str
    core: str
    nodes: tuple[str, ...]
    operator: AffineConv
    in_shape: tuple[int, int, int, int]
    macs: int
    prunings: Prunings | None


class Offers:
    """Says what may be done with pieces of one graph.

    Args:
        gm: a captured graph; it is not changed.
        limits: what is allowed.
    """

    def __init__(self, gm: fx.GraphModule, limits: SpanLimits) -> None:
        self._gm = gm
        self._limits = limits
        self._nodes = {node.name: node for node in gm.graph.nodes}
        self._names = ModuleNames(gm.graph)
        self._roles = {node.name: role(gm, node) for node in gm.graph.nodes}

    def choices(self, piece: Piece) -> Iterator[SpanChoice]:
        """Yield the choices for a piece, those with the original end before their variants."""
        weighted = self._weighted(piece.nodes)
        if weighted == 0:
            return
        convolutions = [*self._merges(piece, weighted), *self._fits(piece, weighted)]
        for end in self._ends(piece) if convolutions else ():
            yield from (replace(choice, end=end) for choice in convolutions)
        if image_shape(self._nodes[piece.exit]) == piece.in_shape:
            yield SpanChoice(piece.entry, piece.exit, "drop")

    def refusal(self, piece: Piece) -> str:
        """Return the sentence why there is no choice for a piece."""
        nodes, (height, width) = piece.nodes, piece.operator.kernel
        where = self._names.describe_names(nodes)
        if self._weighted(nodes) == 0:
            return f"{where}: there is no convolution between these cuts"
        if self._weighted(nodes) == 1 and (height, width) == (1, 1):
            first = module_path(self._nodes[nodes[0]])
            return f"{first}: a lone 1x1 convolution that changes its tensor's shape is as small as it can be"
        return (
            f"{where}: one convolution ({height}x{width}, {piece.operator.in_channels} to "
            f"{piece.operator.out_channels} channels) would cost more than {self._limits.largest_mac_growth:g} "
            "times the multiply-adds of what it replaces, at every kernel size, and shapes forbid identity"
        )

    def macs(self, names: Iterable[str]) -> int:
        """Return the multiply-adds of nodes as they are, for the whole batch."""
        return sum(map(self._macs, names))

    def _merges(self, piece: Piece, weighted: int) -> Iterator[SpanChoice]:
        """Yield the merges of all convolutions, then of those that are left when others are pruned."""
        full = piece.operator.kernel
        if (weighted > 1 or any(map(self._joins, piece.nodes))) and self._allows(piece, full):
            yield SpanChoice(piece.entry, piece.exit, "merge", full)
        for kernel, pruning in piece.prunings.by_kernel().items() if piece.prunings else ():
            pruned = 0 < len(pruning.names) < weighted
            if pruned and kernel != full and self._reads_enough(piece, kernel) and self._allows(piece, kernel):
                yield SpanChoice(piece.entry, piece.exit, "merge", kernel, pruned=pruning.names)

    def _fits(self, piece: Piece, weighted: int) -> Iterator[SpanChoice]:
        height, width = piece.operator.kernel
        for size in range(1, min(max(height, width), self._limits.largest_kernel) + 1, 2):
            kernel = min(size, _odd(height)), min(size, _odd(width))
            smaller = weighted > 1 or kernel != (height, width)
            if smaller and self._reads_enough(piece, kernel) and self._allows(piece, kernel):
                yield SpanChoice(piece.entry, piece.exit, "fit", kernel)

    def _ends(self, piece: Piece) -> Iterator[End]:
        """Yield what may follow the convolution that takes a piece's place."""
        core, exit_ = self._nodes[piece.core], self._nodes[piece.exit]
        active = end_activation(self._gm, core, exit_) is not None
        inner = [self._nodes[name] for name in piece.nodes]
        yield "original"
        for end in self._limits.other_ends:
            if active if end == "none" else not active and activation_to_insert(self._gm, inner, core):
                yield end

    def _allows(self, piece: Piece, kernel: tuple[int, int]) -> bool:
        allowed = self._limits.largest_mac_growth * piece.macs
        return max(kernel) <= self._limits.largest_kernel and _macs(piece.operator, kernel, piece.in_shape) <= allowed

    def _reads_enough(self, piece: Piece, kernel: tuple[int, int]) -> bool:
        """Say whether a kernel reads every pixel, or need not."""
        least = map(min, piece.operator.stride, map(_odd, piece.operator.kernel))
        return self._limits.skips_pixels or all(map(operator.ge, kernel, least))

    def _joins(self, name: str) -> bool:
        """Say whether a node makes one tensor out of several."""
        if self._roles[name] is Role.CONCAT:
            return len(operands(self._nodes[name], Role.CONCAT)) > 1
        return self._roles[name] is Role.ADD

    def _weighted(self, nodes: tuple[str, ...]) -> int:
        """Return how many operators a runtime computes one after another at these nodes."""
        modules = [known_layer(self._gm, self._nodes[name]) for name in nodes]
        return sum(isinstance(module, (nn.Conv2d, nn.AvgPool2d, *NORMS)) for module in modules) - sum(
            self._follows_conv(name) for name in nodes
        )

    def _follows_conv(self, name: str) -> bool:
        """Say whether a node is a normalisation that any runtime folds into the convolution before it."""
        node = self._nodes[name]
        return isinstance(known_layer(self._gm, node), NORMS) and follows_convolution(self._gm, node)

    def _macs(self, name: str) -> int:
        node = self._nodes[name]
        module, shape = known_layer(self._gm, node), image_shape(node)
        if shape is None or not isinstance(module, nn.Conv2d):
            return 0 if shape is None or self._roles[name] is not Role.AFFINE else math.prod(shape)
        return shape[0] * shape[2] * shape[3] * module.weight.numel()


def _odd(size: int) -> int:
    """Return the largest odd number up to `size`: a fitted kernel has a middle."""
    return size - 1 + size % 2


def _macs(operator: AffineConv, kernel: tuple[int, int], shape: tuple[int, int, int, int]) -> int:
    """Return the multiply-adds of `operator` with a kernel of another size."""
    per_pixel = operator.weight.numel() // math.prod(operator.kernel) * math.prod(kernel)
    return shape[0] * math.prod(operator.out_size((shape[2], shape[3]))) * per_pixel
