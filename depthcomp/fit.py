"""The convolution that best maps one tensor of a network to another: ridge regression in closed form.

With patches x of the entry tensor and target pixels y, both centred, the weights minimise

    mean |y - W x|^2 + strength * mean |x_i|^2 * |W - W0|^2

where W0 is a prior kernel (identity where shapes allow it, else zero) and the bias is free. The normal equations are summed in float64
over sampled positions, once for the largest kernel of an entry; smaller kernels use a part of the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fx_passes.affine import AffineConv, Pair, Sides

__all__ = ["Design", "Positions", "RidgeSystem", "design_of", "sample_positions", "starting_point"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to the mean power of a patch element
Positions = tuple[Tensor, Tensor, Tensor]  # image, row, column of output pixels


@dataclass(frozen=True, slots=True)
class Design:
    """Which pixels of the entry tensor an output pixel reads.

    Attributes:
        entry: name of the node whose tensor is read.
        stride: step on the entry per output pixel.
        centre: where the kernel's central tap stands for output pixel (0, 0).
        groups: channel groups.
    """

    entry: str
    stride: Pair
    centre: Pair
    groups: int


def design_of(entry: str, operator: AffineConv) -> Design:
    """Return the design of a convolution that reads the tensor at `entry`; cropping its kernel changes nothing."""
    centre = (
        (operator.kernel[0] - 1) // 2 - operator.padding[0],
        (operator.kernel[1] - 1) // 2 - operator.padding[2],
    )
    return Design(entry, operator.stride, centre, operator.groups)


def starting_point(operator: AffineConv) -> AffineConv:
    """Return the prior kernel of a convolution shaped like `operator`: identity where shapes allow, else zero."""
    weight = torch.zeros(operator.weight.shape, dtype=torch.float64)
    if operator.in_channels == operator.out_channels and operator.stride == (1, 1):
        row, column = ((size - 1) // 2 for size in operator.kernel)
        channels = torch.arange(operator.out_channels)
        weight[channels, channels % weight.shape[1], row, column] = 1.0
    bias = torch.zeros(operator.out_channels, dtype=torch.float64)
    return AffineConv(weight, bias, operator.stride, operator.padding, operator.groups)


def sample_positions(target: Tensor, count: int, generator: torch.Generator) -> Positions:
    """Return (image, row, column) of at most `count` random pixels of a tensor (n, c, h, w)."""
    images, _, height, width = target.shape
    total = images * height * width
    chosen = torch.randperm(total, generator=generator)[:count].to(target.device)
    return chosen // (height * width), chosen // width % height, chosen % width


@dataclass(slots=True)
class _Sums:
    """Sums over sampled pixels; x is a patch, y a target pixel, both split into channel groups."""

    count: int
    x: Tensor  # (groups, unknowns, 1)
    xx: Tensor  # (groups, unknowns, unknowns)
    y: dict[str, Tensor]  # (groups, 1, c_out / groups)
    yy: dict[str, Tensor]  # as y
    xy: dict[str, Tensor]  # (groups, unknowns, c_out / groups)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.count + other.count, self.x + other.x, self.xx + other.xx,
            *({name: one[name] + two[name] for name in one}
              for one, two in ((self.y, other.y), (self.yy, other.yy), (self.xy, other.xy))),
        )  # fmt: skip

    def moments(self, target: str, taps: Tensor) -> _Moments:
        """Return the centred second moments of the chosen patch elements and one target."""
        mean, target_mean = self.x[:, taps] / self.count, self.y[target] / self.count
        return _Moments(
            mean,
            target_mean,
            self.xx[:, taps][:, :, taps] / self.count - mean @ mean.transpose(1, 2),
            self.xy[target][:, taps] / self.count - mean @ target_mean,
        )


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: Tensor
    target_mean: Tensor
    covariance: Tensor
    cross: Tensor

    def solve(self, prior: Tensor, strength: float) -> Tensor:
        """Return the ridge solution (groups, unknowns, c_out / groups) that leans to `prior`."""
        power = self.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        ridge = strength * power[:, None, None] * torch.eye(self.covariance.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky(self.covariance + ridge)
        return prior + torch.cholesky_solve(self.cross - self.covariance @ prior, factor)

    def bias(self, weight: Tensor) -> Tensor:
        return self.target_mean - self.mean.transpose(1, 2) @ weight


class RidgeSystem:
    """The normal equations of one design for several targets, summed over batches.

    Args:
        design: what is read.
        kernel: height and width of the largest kernel to solve for.
        channels: channels of the entry tensor.
    """

    def __init__(self, design: Design, kernel: Pair, channels: int) -> None:
        self.design = design
        self.kernel = kernel
        self._channels = channels // design.groups
        self._folds: list[_Sums] = []

    def accumulate(
        self, entry: Tensor, targets: Mapping[str, Tensor], positions: Positions, *, fold: int = 0
    ) -> None:
        """Add patches of `entry` (n, c_in, h, w) and pixels of `targets` (n, c_out, h', w') to one fold."""
        patches = self._patches(entry, next(iter(targets.values())).shape[2:], positions)
        image, row, column = positions
        pixels = {
            name: target[image, :, row, column].double().unflatten(1, (self.design.groups, -1)).transpose(0, 1)
            for name, target in targets.items()
        }
        transposed = patches.transpose(1, 2)
        sums = _Sums(
            len(image),
            transposed.sum(2, keepdim=True),
            transposed @ patches,
            {name: y.sum(1, keepdim=True) for name, y in pixels.items()},
            {name: y.square().sum(1, keepdim=True) for name, y in pixels.items()},
            {name: transposed @ y for name, y in pixels.items()},
        )
        if fold < len(self._folds):
            self._folds[fold] = self._folds[fold] + sums
        else:
            self._folds.append(sums)

    def solve(self, target: str, prior: AffineConv) -> AffineConv:
        """Return the fitted convolution towards `target`, with the shape of `prior`, which it leans to.

        How strongly it leans is chosen by the error on the second fold of a solution on the first; the result
        is then solved on both. The prior's kernel is at most the system's, with the same centre.
        """
        taps = self._taps(prior.kernel)
        start = prior.weight.double().reshape(prior.groups, -1, len(taps)).transpose(1, 2)
        whole = self._folds[0] if len(self._folds) == 1 else self._folds[0] + self._folds[1]
        moments = whole.moments(target, taps)
        weight = moments.solve(start, self._strength(target, taps, start))
        kernel = weight.transpose(1, 2).reshape(prior.weight.shape)
        bias = moments.bias(weight).flatten()
        return AffineConv(kernel, bias, prior.stride, prior.padding, prior.groups)

    def _strength(self, target: str, taps: Tensor, start: Tensor) -> float:
        if len(self._folds) == 1:
            return STRENGTHS[len(STRENGTHS) // 2]
        train, test = (fold.moments(target, taps) for fold in self._folds[:2])
        errors = []
        for strength in STRENGTHS:
            weight = train.solve(start, strength)
            errors.append(_error(test, weight, train.bias(weight)))
        return STRENGTHS[errors.index(min(errors))]

    def _patches(self, entry: Tensor, size: Sequence[int], positions: Positions) -> Tensor:
        """Return the patches read at output `positions`: (groups, samples, c_in / groups * kh * kw), float64."""
        sides = self._padding(entry, size)
        padded = F.pad(entry, (sides[2], sides[3], sides[0], sides[1]))
        windows = padded.unfold(2, self.kernel[0], self.design.stride[0])
        windows = windows.unfold(3, self.kernel[1], self.design.stride[1])  # (n, c, h', w', kh, kw), a view
        image, row, column = positions
        patches = windows[image, :, row, column].double()  # (samples, c, kh, kw)
        return patches.reshape(len(image), self.design.groups, -1).transpose(0, 1)

    def _padding(self, entry: Tensor, size: Sequence[int]) -> Sides:
        before = [(k - 1) // 2 - c for k, c in zip(self.kernel, self.design.centre, strict=True)]
        after = [
            s * (out - 1) + k - length - b
            for s, out, k, length, b in zip(
                self.design.stride, size, self.kernel, entry.shape[2:], before, strict=True
            )
        ]
        return before[0], after[0], before[1], after[1]

    def _taps(self, kernel: Pair) -> Tensor:
        """Return where the elements of a smaller kernel stand in a flattened patch."""
        index = torch.arange(self._channels * self.kernel[0] * self.kernel[1]).reshape(-1, *self.kernel)
        top, left = ((size - 1) // 2 - (k - 1) // 2 for size, k in zip(self.kernel, kernel, strict=True))
        return index[:, top : top + kernel[0], left : left + kernel[1]].flatten()


def _error(test: _Moments, weight: Tensor, bias: Tensor) -> float:
    """Return the squared error of a solution on other pixels, up to a constant of the target."""
    spread = (weight * (test.covariance @ weight - 2 * test.cross)).sum()
    shift = test.target_mean - bias - test.mean.transpose(1, 2) @ weight
    return float(spread + shift.square().sum())
