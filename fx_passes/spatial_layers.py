"""Layers of images and of signals: a signal (n, c, length) counts as an image of height 1.

The algebra knows images alone. This module reads layers of signals as layers of images, and makes convolutions for
either.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

__all__ = [
    "AVG_POOLS",
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "ZERO_PADS",
    "AvgPool",
    "BatchNorm",
    "Convolution",
    "cut_off",
    "holds_signals",
    "image_kernel",
    "new_convolution",
    "on_both_axes",
    "rank_obstacle",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d)
ZERO_PADS = (nn.ConstantPad1d, nn.ConstantPad2d)  # nn.ZeroPad1d and nn.ZeroPad2d are among them
Convolution = nn.Conv1d | nn.Conv2d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
AvgPool = nn.AvgPool1d | nn.AvgPool2d

_OF_SIGNALS = (nn.Conv1d, nn.BatchNorm1d, nn.AvgPool1d)
_OF_IMAGES = (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d)
_ALONG_HEIGHT = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0}  # what leaves the height as it is


def on_both_axes(layer: nn.Module, option: str) -> tuple[int, int]:
    """Return an option of a convolution or pooling along (height, width).

    Example:
        >>> on_both_axes(nn.Conv1d(2, 2, 3, padding=1), "padding"), on_both_axes(nn.AvgPool2d(2), "kernel_size")
        ((0, 1), (2, 2))
    """
    value = getattr(layer, option)
    values = value if isinstance(value, Sequence) else (value,)
    return _ALONG_HEIGHT[option] if isinstance(layer, _OF_SIGNALS) else int(values[0]), int(values[-1])


def image_kernel(convolution: Convolution) -> Tensor:
    """Return the kernel of a convolution (c_out, c_in / groups, kh, kw); it shares the layer's weights."""
    weight = convolution.weight.detach()
    return weight.unsqueeze(2) if isinstance(convolution, nn.Conv1d) else weight


def new_convolution(
    channels: tuple[int, int], kernel: tuple[int, int], *, signals: bool, stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1, **where: object,
) -> Convolution:  # fmt: skip
    """Return a convolution without values, for signals or images; no random numbers are drawn.

    Args:
        channels: numbers of input and output channels.
        kernel: height and width.
        signals: whether it reads signals; only the numbers along the width count then.
        stride: step along (height, width).
        padding: zeros on both sides along (height, width).
        dilation: spacing of the taps along (height, width).
        groups: number of channel groups.
        where: `bias`, and the device and type of the weights.
    """
    options = [each[1:] if signals else each for each in (kernel, stride, padding, dilation)]
    layer = nn.Conv1d if signals else nn.Conv2d
    made: Convolution = skip_init(  # type: ignore[no-untyped-call]
        layer, *channels, *options, groups, **where
    )
    return made


def cut_off(node: fx.Node) -> tuple[int, ...] | None:
    """Return the pixels that an index such as `x[:, :, 1:-2]` cuts off, in the order and sign of F.pad, or None.

    Another index, or one whose cut depends on the size of the tensor, cuts off no fixed number of pixels.
    """
    source, index = node.args[:2]
    rank = len(_shape(source)) if isinstance(source, fx.Node) else 0
    if rank not in (3, 4) or not isinstance(index, tuple) or any(part is Ellipsis for part in index[1:]):
        return None
    ahead = rank - len(index) + 1 if index[0] is Ellipsis else 0
    parts = [*[slice(None)] * ahead, *index[bool(ahead) :]]
    if len(parts) > rank or any(part != slice(None) for part in parts[:2]) or not all(map(_cuts_ends, parts[2:])):
        return None
    pixels = [(-(part.start or 0), part.stop or 0) for part in reversed(parts[2:])]
    return tuple(side for sides in (*[(0, 0)] * (rank - len(parts)), *pixels) for side in sides)


def _cuts_ends(part: object) -> bool:
    """Say whether an index of one axis only leaves out its first and last places."""
    if not isinstance(part, slice) or part.step not in (None, 1):
        return False
    starts = part.start is None or (type(part.start) is int and part.start >= 0)
    return starts and (part.stop is None or (type(part.stop) is int and part.stop < 0))


def rank_obstacle(layer: nn.Module | None, node: fx.Node) -> str:
    """Return why a layer does not work on a batch of images or signals at a node, as a clause; empty where it does."""
    signals, known = holds_signals(node), "tensor_meta" in node.meta
    if (signals and isinstance(layer, _OF_IMAGES)) or (known and not signals and isinstance(layer, _OF_SIGNALS)):
        return f"it reads no batch of {'images' if isinstance(layer, _OF_IMAGES) else 'signals'}"
    return ""


def holds_signals(node: fx.Node) -> bool:
    """Say whether the tensor at a node has the shape of signals, (n, c, length)."""
    return len(_shape(node)) == 3


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))
