"""Collapse of a piece of graph into one convolution, by the algebra of affine operators.

Activations and dropout inside the piece count as identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from fx_passes import affine
from fx_passes.affine import AffineConv, NotAffineError
from fx_passes.borders import zero_beyond_frame
from fx_passes.exclusion import exclusion
from fx_passes.module_paths import module_path
from fx_passes.operators import Role, affine_operator, describe, role

__all__ = ["collapse", "collapse_carrying_biases", "collapse_node", "operands"]


def collapse(
    gm: fx.GraphModule,
    entry: fx.Node,
    nodes: Iterable[fx.Node],
    channels: int,
    *,
    device: str = "cpu",
    largest_kernel: tuple[int, int] | None = None,
    skipped: Collection[fx.Node] = (),
) -> dict[fx.Node, AffineConv]:
    """Return, for `entry` and each node, the operator that maps the tensor at `entry` to the node's tensor.

    Args:
        gm: the graph; it is not changed.
        entry: the node whose tensor the piece reads.
        nodes: the piece's nodes in topological order, each reading only `entry` and earlier ones.
        channels: channels of the tensor at `entry`.
        device: where to compute; "meta" for shapes only.
        largest_kernel: crop every operator on the way to at most this size. The result is then a cheap first
            guess, not the exact collapse.
        skipped: nodes of the piece that count as identity.

    Raises:
        NotAffineError: a node is no affine operator of its inputs; the message names it.
    """
    values = {entry: affine.identity(channels, device=device)}
    for node in nodes:
        if node in skipped:
            values[node] = values[node.all_input_nodes[0]]
            continue
        value = collapse_node(gm, node, values, device=device, largest_kernel=largest_kernel)
        if largest_kernel is not None:
            height, width = value.kernel
            value = affine.crop_kernel(value, (min(height, largest_kernel[0]), min(width, largest_kernel[1])))
        values[node] = value
    return values


def collapse_carrying_biases(
    gm: fx.GraphModule, entry: fx.Node, nodes: Sequence[fx.Node], channels: int
) -> dict[fx.Node, AffineConv]:
    """Return the operators as `collapse` does, for a tensor at `entry` with a channel of ones after its own channels.

    Tensors that must be zero beyond their frame, because they are padded, read their bias from that channel.
    """
    values = {entry: affine.first_channels(channels, of=channels + 1)}
    zero = zero_beyond_frame(gm, entry, nodes, carry_biases=True)
    for node in nodes:
        value = collapse_node(gm, node, values)
        values[node] = affine.bias_to_last_channel(value) if node in zero else value
    return values


def collapse_node(
    gm: fx.GraphModule,
    node: fx.Node,
    values: Mapping[fx.Node, AffineConv],
    *,
    device: str = "cpu",
    largest_kernel: tuple[int, int] | None = None,
) -> AffineConv:
    """Return the operator from the piece's entry to `node`, given the operators of the nodes that it reads.

    `device` and `largest_kernel` are as for `collapse`, but the result of a join is not cropped.

    Raises:
        NotAffineError: the node is excluded, or no affine operator of the piece's entry; the message names it.
    """
    kind = role(gm, node)
    if exclusion(node) or kind is Role.BARRIER:
        raise NotAffineError(f"{module_path(node)}: {exclusion(node) or describe(gm, node)}")
    read = operands(node, kind)
    missing = [operand for operand in read if operand not in values]
    if missing:
        consumer, other = module_path(node), module_path(missing[0])
        raise NotAffineError(f"{consumer}: it also reads {other}, which does not come from the span's entry")
    terms = [values[operand] for operand in read]
    try:
        if kind is Role.AFFINE:
            operator = affine_operator(gm, node, terms[0].out_channels, device=device, largest_kernel=largest_kernel)
            return affine.compose(terms[0], operator, largest_kernel=largest_kernel)
        return _combine(kind, terms)
    except NotAffineError as reason:
        raise NotAffineError(f"{module_path(node)}: {reason}") from reason


def operands(node: fx.Node, kind: Role) -> list[Any]:
    """Return the tensors that a node of this role reads, each as often as it reads it."""
    if kind is Role.ADD:
        return list(node.args)
    if kind is Role.CONCAT:
        return list(node.args[0] if node.args else node.kwargs["tensors"])  # type: ignore[arg-type]
    return node.all_input_nodes


def _combine(kind: Role, terms: list[AffineConv]) -> AffineConv:
    if kind is Role.ADD:
        return affine.add(terms)
    if kind is Role.CONCAT:
        return affine.concat(terms)
    return terms[0]
