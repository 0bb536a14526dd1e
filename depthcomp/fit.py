"""The convolution that best maps one tensor of a network to another: ridge regression in closed form.

With patches x of the entry tensor and target pixels y, both centred, the weights minimise

    mean |y - W x|^2 + strength * mean |x_i|^2 * |W - W0|^2

where W0 is a prior kernel (identity where shapes allow it, else zero) and the bias is free. The normal equations
are multiplied out per batch in the network's precision, summed and solved in float64, over sampled positions,
once for the largest kernel of an entry; smaller kernels use a part of the same sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fx_passes.affine import AffineConv, Pair, Sides

__all__ = ["Design", "Positions", "RidgeSystem", "design_of", "sample_positions", "starting_point"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to the mean power of a patch element
LARGEST_GAIN = 3.0  # a channel that is hardly explained would otherwise become noise
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


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over sampled pixels; x is a patch, y the pixels of all targets side by side, both split into groups."""

    count: int
    x: Tensor  # (groups, unknowns, 1)
    xx: Tensor  # (groups, unknowns, unknowns)
    y: Tensor  # (groups, 1, outputs)
    yy: Tensor  # (groups, 1, outputs)
    xy: Tensor  # (groups, unknowns, outputs)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.count + other.count, self.x + other.x, self.xx + other.xx,
            self.y + other.y, self.yy + other.yy, self.xy + other.xy,
        )  # fmt: skip

    def moments(self, taps: Tensor, outputs: Tensor) -> _Moments:
        """Return the centred second moments of the chosen patch elements and outputs."""
        mean, target_mean = self.x[:, taps] / self.count, self.y[..., outputs] / self.count
        chosen = self.xx if len(taps) == self.xx.shape[1] else self.xx[:, taps[:, None], taps]
        return _Moments(
            mean,
            target_mean,
            chosen / self.count - mean @ mean.transpose(1, 2),
            self.xy[:, taps[:, None], outputs] / self.count - mean @ target_mean,
            (self.yy[..., outputs] / self.count - target_mean.square()).clamp_min(0.0),
        )


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: Tensor
    target_mean: Tensor
    covariance: Tensor
    cross: Tensor
    variance: Tensor

    def solve(self, prior: Tensor, strength: float) -> Tensor:
        """Return the ridge solution (groups, unknowns, outputs) that leans to `prior`."""
        power = self.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        ridged = self.covariance.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(strength * power[:, None])
        factor = torch.linalg.cholesky(ridged)
        return prior + torch.cholesky_solve(self.cross - self.covariance @ prior, factor)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the bias (groups, 1, outputs) that makes the means agree."""
        return self.target_mean - self.mean.transpose(1, 2) @ weight

    def gain(self, weight: Tensor) -> Tensor:
        """Return the factor per output that gives a solution its target's variance."""
        explained = (weight * (self.covariance @ weight)).sum(1, keepdim=True)
        return (self.variance / explained.clamp_min(1e-12)).sqrt().clamp(max=LARGEST_GAIN)

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the squared error of a solution per output (outputs,), up to a constant of the target."""
        spread = (weight * (self.covariance @ weight - 2 * self.cross)).sum((0, 1))
        shift = self.target_mean - bias - self.mean.transpose(1, 2) @ weight
        return spread + shift.square().sum((0, 1))


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
        self.unknowns = self._channels * kernel[0] * kernel[1]
        self._folds: list[_Sums] = []
        self._outputs: dict[str, Tensor] = {}
        self._origin: tuple[Tensor, Tensor] | None = None  # near the means, so that single precision suffices

    def accumulate(self, entry: Tensor, targets: Mapping[str, Tensor], positions: Positions, *, fold: int = 0) -> None:
        """Add patches of `entry` (n, c_in, h, w) and pixels of `targets` (n, c_out, h', w') to one fold.

        The targets are the same in each call, and in the same order.
        """
        patches = self._patches(entry, next(iter(targets.values())).shape[2:], positions)
        image, row, column = positions
        pixels = [
            target[image, :, row, column].reshape(len(image), self.design.groups, -1).transpose(0, 1)
            for target in targets.values()
        ]
        starts = list(itertools.accumulate((part.shape[2] for part in pixels), initial=0))
        self._outputs = {
            name: torch.arange(start, stop) for name, start, stop in zip(targets, starts, starts[1:], strict=False)
        }
        y = torch.cat(pixels, dim=2)
        if self._origin is None:
            self._origin = patches.mean(1, keepdim=True), y.mean(1, keepdim=True)
        patches, y = patches - self._origin[0], y - self._origin[1]
        transposed = patches.transpose(1, 2)
        products = (
            transposed.sum(2, keepdim=True), transposed @ patches,
            y.sum(1, keepdim=True), y.square().sum(1, keepdim=True), transposed @ y,
        )  # fmt: skip
        sums = _Sums(len(image), *(product.double() for product in products))
        if fold < len(self._folds):
            self._folds[fold] = self._folds[fold] + sums
        else:
            self._folds.append(sums)

    def solve(self, targets: Sequence[str], prior: AffineConv, *, match_variance: Collection[str]) -> list[AffineConv]:
        """Return the fitted convolution towards each target, with the shape of `prior`, which it leans to.

        How strongly it leans is chosen by the error on the second fold of a solution on the first; the result
        is then solved on both. A least-squares fit varies less than its target, by what it cannot explain;
        for targets named in `match_variance` each output channel is scaled back to the target's variance. The
        prior's kernel is at most the system's, with the same centre.
        """
        taps = self._taps(prior.kernel)
        start = prior.weight.double().reshape(prior.groups, -1, len(taps)).transpose(1, 2)
        outputs = torch.cat([self._outputs[target] for target in targets])
        starts = start.repeat(1, 1, len(targets))
        strengths = self._strengths(taps, outputs, starts, len(targets))
        whole = self._folds[0] if len(self._folds) == 1 else self._folds[0] + self._folds[1]
        moments = whole.moments(taps, outputs)
        solutions = {strength: moments.solve(starts, strength) for strength in set(strengths)}
        width = start.shape[2]
        slices = [slice(index * width, (index + 1) * width) for index in range(len(targets))]
        weight = torch.cat([solutions[s][..., part] for s, part in zip(strengths, slices, strict=True)], dim=2)
        matched = torch.tensor([target in match_variance for target in targets]).repeat_interleave(width)
        weight = torch.where(matched, weight * moments.gain(weight), weight)
        bias = moments.bias(weight) + self._shift(taps, outputs, weight)
        return [
            AffineConv(
                weight[..., part].transpose(1, 2).reshape(prior.weight.shape), bias[..., part].flatten(),
                prior.stride, prior.padding, prior.groups,
            )
            for part in slices
        ]  # fmt: skip

    def _shift(self, taps: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
        """Return what the origin of the sums adds to the bias, (groups, 1, outputs)."""
        if self._origin is None:
            raise ValueError("nothing was accumulated, so there is nothing to solve")
        x, y = self._origin
        return y[..., outputs].double() - x[..., taps].double() @ weight

    def _strengths(self, taps: Tensor, outputs: Tensor, starts: Tensor, targets: int) -> list[float]:
        """Return the strength of the ridge that suits each target best."""
        if len(self._folds) == 1:
            return [STRENGTHS[len(STRENGTHS) // 2]] * targets
        train, test = (fold.moments(taps, outputs) for fold in self._folds[:2])
        errors = []
        for strength in STRENGTHS:
            weight = train.solve(starts, strength)
            errors.append(test.error(weight, train.bias(weight)).reshape(targets, -1).sum(1))
        return [STRENGTHS[index] for index in torch.stack(errors).argmin(0).tolist()]

    def _patches(self, entry: Tensor, size: Sequence[int], positions: Positions) -> Tensor:
        """Return the patches read at output `positions`: (groups, samples, c_in / groups * kh * kw)."""
        sides = self._padding(entry, size)
        padded = F.pad(entry, (sides[2], sides[3], sides[0], sides[1]))
        windows = padded.unfold(2, self.kernel[0], self.design.stride[0])
        windows = windows.unfold(3, self.kernel[1], self.design.stride[1])  # (n, c, h', w', kh, kw), a view
        image, row, column = positions
        patches = windows[image, :, row, column]  # (samples, c, kh, kw)
        return patches.reshape(len(image), self.design.groups, -1).transpose(0, 1)

    def _padding(self, entry: Tensor, size: Sequence[int]) -> Sides:
        before = [(k - 1) // 2 - c for k, c in zip(self.kernel, self.design.centre, strict=True)]
        after = [
            s * (out - 1) + k - length - b
            for s, out, k, length, b in zip(self.design.stride, size, self.kernel, entry.shape[2:], before, strict=True)
        ]
        return before[0], after[0], before[1], after[1]

    def _taps(self, kernel: Pair) -> Tensor:
        """Return where the elements of a smaller kernel stand in a flattened patch."""
        index = torch.arange(self._channels * self.kernel[0] * self.kernel[1]).reshape(-1, *self.kernel)
        top, left = ((size - 1) // 2 - (k - 1) // 2 for size, k in zip(self.kernel, kernel, strict=True))
        return index[:, top : top + kernel[0], left : left + kernel[1]].flatten()
