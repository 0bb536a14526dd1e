"""1x1 convolutions in place of linear layers that read a flattened one-pixel image or signal."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.graph_edit import add_module, redirect
from fx_passes.module_paths import copy_places
from fx_passes.operators import ACTIVATIONS, NORMS, PASSED, called_module, image_shape
from fx_passes.spatial_layers import CONVOLUTIONS, Convolution, holds_signals, new_convolution

__all__ = ["PixelLinears"]

_RESHAPES: tuple[Any, ...] = (
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
    "flatten", "reshape", "view", "squeeze", "unsqueeze",
)  # fmt: skip
_FOLLOWERS: tuple[type[nn.Module], ...] = (*ACTIVATIONS, nn.Dropout, nn.BatchNorm1d, nn.Identity)
_LEAST_LAYERS = 2  # a lone classifier behind pooling has no neighbour to merge with


class PixelLinears(PassBase):
    """Turn the linear layers of global heads and gates into 1x1 convolutions, so that spans may hold them.

    A network may flatten an image (n, c, 1, 1), or a signal (n, c, 1), to (n, c) for linear layers, norms, activations
    and dropout. The image now stays one until after the last of them. A reshape back to an image, as in gates,
    disappears. The pass applies where at least two affine layers follow one another; a convolution before the
    flattening counts. Shapes must be known at the nodes.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in list(graph_module.graph.nodes):
            chain = list(_vector_layers(graph_module, node)) if _flattens_pixel(graph_module, node) else []
            layers = sum(_is_linear(graph_module, link) for link in chain)
            if layers and layers + _follows_convolution(graph_module, node) >= _LEAST_LAYERS:
                _rewrite(graph_module, node, chain)
                modified = True
        return PassResult(graph_module, modified)


def _flattens_pixel(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node ends the reshapes of an image (n, c, 1, 1) to (n, c)."""
    pixel = image_shape(_before_reshapes(gm, node)) if _is_reshape(gm, node) else None
    return pixel is not None and pixel[2:] == (1, 1) and _shape(node) == pixel[:2]


def _before_reshapes(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the image or signal that a row of reshapes begins with, or the node before the first reshape."""
    while _is_reshape(gm, node) and len(_shape(node)) < 4:
        node = node.args[0]  # type: ignore[assignment]  # a reshape reads a tensor
    return node


def _vector_layers(gm: fx.GraphModule, flat: fx.Node) -> Iterator[fx.Node]:
    """Yield the layers behind a flattening that have a form on images, each read by the next alone."""
    node = flat
    while len(_consumers(node)) == 1:
        (node,) = _consumers(node)
        suits = _is_linear(gm, node) or isinstance(called_module(gm, node), _FOLLOWERS)
        if not suits or len(_shape(node)) != 2 or len(node.all_input_nodes) != 1:
            return
        yield node


def _follows_convolution(gm: fx.GraphModule, flat: fx.Node) -> bool:
    """Say whether the flattened image comes from a convolution, norms and activations between them aside."""
    node = _before_reshapes(gm, flat)
    while isinstance(called_module(gm, node), (*_FOLLOWERS, *NORMS, *PASSED)):
        node = node.all_input_nodes[0]
    return isinstance(called_module(gm, node), CONVOLUTIONS)


def _rewrite(gm: fx.GraphModule, flat: fx.Node, chain: list[fx.Node]) -> None:
    image = _before_reshapes(gm, flat)
    chain[0].replace_input_with(flat, image)
    for node in chain:
        layer = _on_pixels(called_module(gm, node), signals=holds_signals(image))
        if layer is not None:
            redirect(node, target=add_module(gm, str(node.target), layer), args=node.args)
    last = chain[-1]
    back = _back_to_pixels(gm, last, len(_shape(image)) - 2)
    if back is not None:
        back.replace_all_uses_with(last)
        return
    with gm.graph.inserting_after(last):
        moved = gm.graph.call_function(torch.flatten, (last, 1))
    copy_places(flat, moved)
    last.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)


def _back_to_pixels(gm: fx.GraphModule, node: fx.Node, axes: int) -> fx.Node | None:
    """Return the reshape of the vectors (n, c) at `node` to pixels of so many axes; None where something else follows.

    Pixels of two axes have the shape (n, c, 1, 1).
    """
    wanted = (*_shape(node), *[1] * axes)
    while len(_consumers(node)) == 1:
        (node,) = _consumers(node)
        if not _is_reshape(gm, node):
            return None
        if _shape(node) == wanted:
            return node
    return None


def _consumers(node: fx.Node) -> list[fx.Node]:
    """Return the consumers of vectors' values; their number and length can also be read from images."""
    return [user for user in node.users if not _asks_leading_size(user)]


def _asks_leading_size(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return bool(node.args[1:] in ((0,), (1,)))
    asks = node.target is getattr and node.args[1] == "shape"
    return bool(asks and all(user.target is operator.getitem and user.args[1] in (0, 1) for user in node.users))


def _on_pixels(module: nn.Module | None, *, signals: bool) -> nn.Module | None:
    """Return the layer that does to (n, c, 1, 1) what `module` does to (n, c); None where that is `module` itself.

    With `signals`, it takes (n, c, 1).
    """
    if isinstance(module, nn.Linear):
        return _convolution(module, signals)
    return _batch_norm(module) if isinstance(module, nn.BatchNorm1d) and not signals else None


def _convolution(linear: nn.Linear, signals: bool) -> Convolution:
    channels, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
    conv = new_convolution(channels, (1, 1), signals=signals, bias=has_bias, device="meta")
    weight = linear.weight.detach()[:, :, None, None]
    conv.weight = nn.Parameter(weight[..., 0] if signals else weight, linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv


def _batch_norm(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """Return the norm for images that shares the weights and statistics of `norm`."""
    image_norm = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, tensor in (*norm._parameters.items(), *norm._buffers.items()):
        setattr(image_norm, name, tensor)
    return image_norm


def _is_linear(gm: fx.GraphModule, node: fx.Node) -> bool:
    return type(called_module(gm, node)) is nn.Linear


def _is_reshape(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node only writes the shape of its first argument anew."""
    if not node.args or not isinstance(node.args[0], fx.Node) or not _shape(node):
        return False
    if node.target is operator.getitem:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(part is None or part is Ellipsis or part == slice(None) for part in index)
    return node.target in _RESHAPES or isinstance(called_module(gm, node), nn.Flatten | nn.Unflatten)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the tensor at `node`; empty where it is no tensor, or a single number."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))
