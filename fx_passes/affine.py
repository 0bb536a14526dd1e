"""The algebra of position-invariant affine operators on images: each is one convolution.

An operator maps an image x (zero outside its frame) to

    y[o, q] = bias[o] + sum over i, u of  weight[o, i, u] * x[i, stride * q + u - padding]

independently on both axes. Convolution, batch normalisation, average pooling, zero padding and cropping are
of this form, and the form is closed under `compose`, `add` and `concat` (Kim et al. 2023, section 3; Ding et
al. 2021, RepVGG). Negative padding crops. With several padded operators in a row, the composed operator pads
its entry once by the sum of the paddings and nothing in between.

Tensors are never modified. Derive in float64 and cast once; on the "meta" device the same functions compute
shapes only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fx_passes.channel_affine import ChannelAffine
from fx_passes.spatial_layers import AvgPool, BatchNorm, Convolution, image_kernel, on_both_axes

__all__ = [
    "AffineConv",
    "NotAffineError",
    "add",
    "bias_to_last_channel",
    "compose",
    "concat",
    "crop_kernel",
    "first_channels",
    "from_avg_pool",
    "from_batch_norm",
    "from_channel_affine",
    "from_conv",
    "from_padding",
    "identity",
    "widen_groups",
]

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # top, bottom, left, right


class NotAffineError(ValueError):
    """An operator or a combination of operators is not one convolution; the message says why."""


@dataclass(frozen=True, slots=True)
class AffineConv:
    """One convolution with undilated kernel and any zero padding.

    Attributes:
        weight: kernel, (c_out, c_in / groups, kernel height, kernel width).
        bias: (c_out,).
        stride: step on the input per output pixel, (vertical, horizontal).
        padding: zeros added to the input at (top, bottom, left, right); negative values crop.
        groups: number of channel groups.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Sides
    groups: int

    @property
    def kernel(self) -> Pair:
        """Kernel height and width."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0])

    def out_size(self, in_size: Pair) -> Pair:
        """Return the output's height and width for an input of `in_size`."""
        top, bottom, left, right = self.padding
        return (
            (in_size[0] + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (in_size[1] + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    def macs(self, in_size: Pair) -> int:
        """Return the multiply-adds for one image of `in_size`."""
        return math.prod(self.out_size(in_size)) * self.weight.numel()

    def to(self, like: Tensor) -> AffineConv:
        """Return the operator with the type and on the device of the tensor `like`."""
        return AffineConv(self.weight.to(like), self.bias.to(like), self.stride, self.padding, self.groups)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the operator applied to images (n, c_in, height, width)."""
        top, bottom, left, right = self.padding
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def identity(channels: int, *, dtype: torch.dtype = torch.float64, device: str = "cpu") -> AffineConv:
    """Return the operator that leaves images of `channels` channels as they are."""
    weight = torch.ones(channels, 1, 1, 1, dtype=dtype, device=device)
    bias = torch.zeros(channels, dtype=dtype, device=device)
    return AffineConv(weight, bias, (1, 1), (0, 0, 0, 0), channels)


def first_channels(channels: int, *, of: int) -> AffineConv:
    """Return the operator that keeps the first `channels` channels of images that have more."""
    weight = torch.eye(channels, of, dtype=torch.float64).reshape(channels, of, 1, 1)
    return AffineConv(weight, torch.zeros(channels, dtype=torch.float64), (1, 1), (0, 0, 0, 0), 1)


def bias_to_last_channel(operator: AffineConv) -> AffineConv:
    """Return an ungrouped 1x1 `operator` that reads its bias from its last input channel, which must hold ones."""
    last = operator.bias.reshape(-1, 1, 1, 1) + operator.weight[:, -1:]
    weight = torch.cat([operator.weight[:, :-1], last], dim=1)
    return AffineConv(weight, torch.zeros_like(operator.bias), operator.stride, operator.padding, operator.groups)


def from_padding(channels: int, padding: Sides, *, device: str = "cpu") -> AffineConv:
    """Return the operator that only pads (top, bottom, left, right) with zeros."""
    base = identity(channels, device=device)
    return AffineConv(base.weight, base.bias, (1, 1), padding, channels)


def from_conv(conv: Convolution, *, device: str = "cpu", largest_kernel: Pair | None = None) -> AffineConv:
    """Return zero-padded `conv` as an operator in float64, its dilated taps spread over a dense kernel.

    With `largest_kernel`, only the taps in a central window of that size are kept, as by `crop_kernel`. Only a dilated
    kernel is cropped, and its dense form is never built: with dilation 36 and size 3 it has 73 x 73 taps.
    """
    dilation, kernel = on_both_axes(conv, "dilation"), on_both_axes(conv, "kernel_size")
    spread = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if largest_kernel is not None and dilation != (1, 1):
        window = min(spread[0], largest_kernel[0]), min(spread[1], largest_kernel[1])
    else:
        window = spread[0], spread[1]
    rows, columns = spread[0] - window[0], spread[1] - window[1]
    dense = image_kernel(conv).to(device, torch.float64)
    weight = _spread_taps(dense, dilation, (rows // 2, columns // 2), window)
    bias = (
        torch.zeros(conv.out_channels, dtype=torch.float64, device=device)
        if conv.bias is None
        else conv.bias.detach().to(device, torch.float64)
    )
    cropped = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    top, bottom, left, right = (p - c for p, c in zip(conv_padding(conv), cropped, strict=True))
    return AffineConv(weight, bias, on_both_axes(conv, "stride"), (top, bottom, left, right), conv.groups)


def conv_padding(conv: Convolution) -> Sides:
    """Return the zeros that `conv` adds at (top, bottom, left, right)."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        dilation, kernel = on_both_axes(conv, "dilation"), on_both_axes(conv, "kernel_size")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2
    vertical, horizontal = on_both_axes(conv, "padding")
    return vertical, vertical, horizontal, horizontal


def from_batch_norm(norm: BatchNorm, *, device: str = "cpu") -> AffineConv:
    """Return the evaluation-mode map of `norm`, y = gamma (x - mean) / sqrt(var + eps) + beta."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics is no fixed operator")
    if device == "meta":
        return identity(norm.num_features, device=device)
    mean = norm.running_mean.detach().to(device, torch.float64)
    scale = torch.rsqrt(norm.running_var.detach().to(device, torch.float64) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to(device, torch.float64)
    bias = -mean * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().to(device, torch.float64)
    return AffineConv(scale.reshape(-1, 1, 1, 1), bias, (1, 1), (0, 0, 0, 0), norm.num_features)


def from_channel_affine(layer: ChannelAffine, *, device: str = "cpu") -> AffineConv:
    """Return y = weight x + bias per channel as a depthwise operator."""
    base = identity(layer.channels, device=device)
    if device == "meta":
        return base
    weight, bias = (None if t is None else t.detach().to(device, torch.float64) for t in (layer.weight, layer.bias))
    scale = base.weight if weight is None else weight.reshape(-1, 1, 1, 1)
    return AffineConv(scale, base.bias if bias is None else bias, (1, 1), (0, 0, 0, 0), layer.channels)


def from_avg_pool(pool: AvgPool, channels: int, *, device: str = "cpu") -> AffineConv:
    """Return average pooling with a constant divisor as a depthwise operator."""
    kernel = on_both_axes(pool, "kernel_size")
    vertical, horizontal = on_both_axes(pool, "padding")
    divisor = getattr(pool, "divisor_override", None) or math.prod(kernel)  # nn.AvgPool1d has no such option
    weight = torch.full((channels, 1, *kernel), 1 / divisor, dtype=torch.float64, device=device)
    bias = torch.zeros(channels, dtype=torch.float64, device=device)
    sides = (vertical, vertical, horizontal, horizontal)
    return AffineConv(weight, bias, on_both_axes(pool, "stride"), sides, channels)


def compose(first: AffineConv, second: AffineConv, *, largest_kernel: Pair | None = None) -> AffineConv:
    """Return the operator x -> second(first(x)), with all padding moved to its entry.

    Per axis, with kernel sizes k1, k2, strides s1, s2 and paddings p1, p2 (u = a + s1 b):

        weight[o, i, u] = sum over m, a, b of  second[o, m, b] first[m, i, a]
        bias[o] = second.bias[o] + sum over m, b of  second[o, m, b] first.bias[m]
        k = k1 + s1 (k2 - 1)    s = s1 s2    p = p1 + s1 p2    groups = gcd(g1, g2)

    The result equals the chain where no inner operator pads; where one does, it equals the chain whose
    padding was moved to the entry. Source: Kim et al. 2023, equation 1, extended to strides and groups.

    With `largest_kernel`, only the central taps of the result are computed, as `crop_kernel` would leave them.
    """
    groups = math.gcd(first.groups, second.groups)
    inner = widen_groups(first.weight, first.groups, groups)  # (m, i/g, k1h, k1w)
    full = [k1 + s * (k2 - 1) for k1, s, k2 in zip(first.kernel, first.stride, second.kernel, strict=True)]
    window = [min(k, limit) for k, limit in zip(full, largest_kernel or full, strict=True)]
    rows, columns = (k - w for k, w in zip(full, window, strict=True))
    start = rows // 2, columns // 2
    weight = _compose_weights(inner, second.weight, second.groups, first.stride, start, (window[0], window[1]))
    stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
    steps = (first.stride[0], first.stride[0], first.stride[1], first.stride[1])
    cropped = start[0], rows - start[0], start[1], columns - start[1]
    top, bottom, left, right = (
        p + s * q - c for p, s, q, c in zip(first.padding, steps, second.padding, cropped, strict=True)
    )
    return AffineConv(weight, _compose_biases(first, second), stride, (top, bottom, left, right), groups)


def add(terms: Sequence[AffineConv]) -> AffineConv:
    """Return the sum of operators that read the same entry and have outputs of the same shape.

    Kernels are aligned by their padding: tap u of a term stands at offset u - padding from the output's
    pixel, so an identity skip becomes a Dirac at the sum's tap number `padding`.

    Raises:
        NotAffineError: strides differ, so that no single convolution has this output.
    """
    aligned = align(terms)
    weight, bias = aligned[0].weight, aligned[0].bias
    for term in aligned[1:]:
        weight, bias = weight + term.weight, bias + term.bias
    return AffineConv(weight, bias, aligned[0].stride, aligned[0].padding, aligned[0].groups)


def concat(parts: Sequence[AffineConv]) -> AffineConv:
    """Return the operator that concatenates the output channels of `parts`.

    Raises:
        NotAffineError: strides differ, so that no single convolution has this output.
    """
    aligned = align([_ungrouped(part) for part in parts])
    weight = torch.cat([part.weight for part in aligned])
    bias = torch.cat([part.bias for part in aligned])
    return AffineConv(weight, bias, aligned[0].stride, aligned[0].padding, 1)


def align(terms: Sequence[AffineConv]) -> list[AffineConv]:
    """Return the operators rewritten with one kernel size, padding and number of groups.

    Raises:
        NotAffineError: the strides differ.
    """
    if len({term.stride for term in terms}) > 1:
        strides = " and ".join(str(s) for s in sorted({term.stride for term in terms}))
        raise NotAffineError(f"its branches have different strides {strides}")
    groups = math.gcd(*(term.groups for term in terms))
    rows, before_rows, top, bottom = _common_frame([(t.kernel[0], t.padding[0], t.padding[1]) for t in terms])
    columns, before_columns, left, right = _common_frame([(t.kernel[1], t.padding[2], t.padding[3]) for t in terms])
    aligned = []
    for term, row, column in zip(terms, before_rows, before_columns, strict=True):
        weight = widen_groups(term.weight, term.groups, groups)
        margins = (column, columns - column - term.kernel[1], row, rows - row - term.kernel[0])
        padding = (top, bottom, left, right)
        aligned.append(AffineConv(F.pad(weight, margins), term.bias, term.stride, padding, groups))
    return aligned


def crop_kernel(operator: AffineConv, kernel: Pair) -> AffineConv:
    """Return `operator` with only the central `kernel` taps, its output size unchanged.

    Raises:
        ValueError: `kernel` is larger than the operator's own on an axis.
    """
    height, width = operator.kernel
    if kernel[0] > height or kernel[1] > width:
        raise ValueError(f"kernel {kernel} does not fit inside the operator's kernel {operator.kernel}")
    rows, columns = height - kernel[0], width - kernel[1]
    top, left = rows // 2, columns // 2
    weight = operator.weight[:, :, top : top + kernel[0], left : left + kernel[1]]
    padding = (
        operator.padding[0] - top,
        operator.padding[1] - (rows - top),
        operator.padding[2] - left,
        operator.padding[3] - (columns - left),
    )
    return AffineConv(weight, operator.bias, operator.stride, padding, operator.groups)


def widen_groups(weight: Tensor, groups: int, wanted: int) -> Tensor:
    """Return a grouped kernel written with `wanted` groups, a divisor of `groups`, zeros between old groups.

    Shapes: (c_out, c_in / groups, kh, kw) -> (c_out, c_in / wanted, kh, kw).
    """
    ratio = groups // wanted
    if ratio == 1:
        return weight
    if weight.is_meta:
        return weight.new_empty(weight.shape[0], ratio * weight.shape[1], *weight.shape[2:])
    blocks = weight.reshape(wanted, ratio, -1, *weight.shape[1:])  # (g, r, o, i, kh, kw)
    eye = torch.eye(ratio, dtype=weight.dtype, device=weight.device)
    wide = torch.einsum("groihw,rs->grosihw", blocks, eye)
    return wide.reshape(weight.shape[0], ratio * weight.shape[1], *weight.shape[2:])


def _ungrouped(operator: AffineConv) -> AffineConv:
    weight = widen_groups(operator.weight, operator.groups, 1)
    return AffineConv(weight, operator.bias, operator.stride, operator.padding, 1)


def _compose_biases(first: AffineConv, second: AffineConv) -> Tensor:
    """Return the bias of `second` after `first`, (c_out,)."""
    if second.weight.is_meta:  # only the shape counts
        return second.bias
    taps = second.weight.sum(dim=(2, 3)).reshape(second.groups, second.out_channels // second.groups, -1)
    moved = taps @ first.bias.reshape(second.groups, -1, 1)  # taps: (g2, o/g2, m/g2)
    return second.bias + moved.flatten()


def _compose_weights(first: Tensor, second: Tensor, groups: int, stride: Pair, start: Pair, size: Pair) -> Tensor:
    """Correlate the taps of two kernels, and return the window of `size` that begins at tap `start` of the result.

    Shapes: (m, i, k1h, k1w), (o, m/groups, k2h, k2w) -> (o, i, *size).
    """
    mid, c_in, height, width = first.shape
    c_out, _, rows, columns = second.shape
    if first.is_meta:
        return first.new_empty(c_out, c_in, *size)
    result = first.new_zeros(c_out, c_in, *size)
    outer = second.reshape(groups, c_out // groups, -1, rows, columns)  # (g2, o/g2, m/g2, k2h, k2w)
    for row, column in itertools.product(range(rows), range(columns)):
        read_y, y = _overlap(row * stride[0] - start[0], height, size[0])
        read_x, x = _overlap(column * stride[1] - start[1], width, size[1])
        if y.start < y.stop and x.start < x.stop:
            read = first[:, :, read_y, read_x]
            tap = outer[..., row, column] @ read.reshape(groups, mid // groups, -1)
            result[:, :, y, x] += tap.reshape(c_out, c_in, *read.shape[2:])
    return result


def _overlap(offset: int, length: int, size: int) -> tuple[slice, slice]:
    """Return which of `length` taps, starting at `offset`, fall into a window of `size`, and where in the window."""
    low, high = max(offset, 0), min(offset + length, size)
    return slice(low - offset, high - offset), slice(low, high)


def _common_frame(axes: Sequence[tuple[int, int, int]]) -> tuple[int, list[int], int, int]:
    """Fit kernels of (size, padding before, padding after) on one axis into one frame.

    Returns the frame's size, where each kernel starts in it, and the frame's padding before and after.
    """
    first = min(-before for _, before, _ in axes)
    last = max(size - 1 - before for size, before, _ in axes)
    slack = max(after - (size - 1 - before) for size, before, after in axes)
    return last - first + 1, [-before - first for _, before, _ in axes], -first, last + slack


def _spread_taps(weight: Tensor, dilation: Pair, start: Pair, size: Pair) -> Tensor:
    """Return the window of `size` that begins at tap `start` of a dilated kernel, zeros between the taps."""
    if dilation == (1, 1):
        return weight
    first = [-(-s // d) for s, d in zip(start, dilation, strict=True)]  # the first tap inside the window
    row, column = (d * f - s for d, f, s in zip(dilation, first, start, strict=True))
    dense = weight.new_zeros(*weight.shape[:2], *size)
    places = dense[:, :, row :: dilation[0], column :: dilation[1]]
    height, width = places.shape[2:]
    places.copy_(weight[:, :, first[0] : first[0] + height, first[1] : first[1] + width])
    return dense
