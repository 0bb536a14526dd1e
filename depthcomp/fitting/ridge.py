"""The convolution that best maps one tensor of a network to another: ridge regression in closed form.

With patches x of the entry tensor and target pixels y, both centred, the weights minimise

    mean |y - W x|^2 + strength * mean |x_i|^2 * |W - W0|^2

where W0 is a prior kernel (identity where shapes allow it, else zero) and the bias is free. The normal equations
are multiplied out per batch in the network's precision, summed and solved in float64, over sampled positions,
once for the largest kernel of an entry; smaller kernels use a part of the same sums.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fx_passes.affine import AffineConv, Pair, Sides

__all__ = ["Design", "Positions", "RidgeSystem", "design_of", "patterns", "sample_positions", "starting_point"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to the mean power of a patch element
JUDGED_OUTPUTS = 32  # of each target, enough to tell one strength from another
UNJUDGED_STRENGTH = 1e-1  # where no fold judges
FLAT = 1e-8  # of the squared mean: a smaller variance is rounding in single precision
LARGEST_GAIN = 3.0  # a channel that is hardly explained would otherwise become noise


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


def patterns(kernel: Pair, count: int) -> Tensor:
    """Return orthonormal patterns (pixels, count) of weights over a kernel's pixels; all single pixels where that many.

    Of fewer, half are the single pixels nearest the centre, where most of what a convolution does happens, and half are
    the smoothest waves over the whole kernel (products of cosines, those of JPEG), as tensors of images are smooth.

    Raises:
        ValueError: there are no so many patterns.
    """
    pixels = torch.eye(kernel[0] * kernel[1], dtype=torch.float64)
    if not 1 <= count <= len(pixels):
        raise ValueError(f"count (={count}) of patterns must be from 1 to {len(pixels)}, the kernel's pixels")
    if count == len(pixels):
        return pixels
    row, column = (torch.arange(size) - (size - 1) // 2 for size in kernel)
    nearest = (row[:, None].square() + column.square()).flatten().argsort(stable=True)
    single = max(count // 2, 1)
    chosen = torch.cat([pixels[:, nearest[:single]], _waves(kernel)[:, : count - single]], dim=1)
    orthonormal: Tensor = torch.linalg.qr(chosen)[0]
    return orthonormal


def _waves(kernel: Pair) -> Tensor:
    """Return the cosine waves over a kernel (pixels, pixels), one a column, the smoothest first."""
    one, other = (torch.arange(size, dtype=torch.float64) for size in kernel)
    down, across = (torch.cos(torch.pi * (n[:, None] + 0.5) * n / len(n)) for n in (one, other))
    frequency = (one[:, None].square() + other.square()).flatten()
    return torch.kron(down, across)[:, frequency.argsort(stable=True)]


@dataclass(frozen=True, slots=True)
class Positions:
    """Some pixels of a tensor (n, c, h, w).

    Attributes:
        image: index of each pixel's image (samples,).
        row: index of its row (samples,).
        column: index of its column (samples,).
        size: height and width of the tensor.
    """

    image: Tensor
    row: Tensor
    column: Tensor
    size: Pair

    def pixels(self, tensor: Tensor) -> Tensor:
        """Return the pixels of `tensor` (n, c, h, w) at these positions, (samples, c)."""
        return tensor[self.image, :, self.row, self.column]


def sample_positions(target: Tensor, count: int, generator: torch.Generator) -> Positions:
    """Return at most `count` random positions in a tensor (n, c, h, w)."""
    images, _, height, width = target.shape
    total = images * height * width
    chosen = torch.randperm(total, generator=generator)[:count].to(target.device)
    return Positions(chosen // (height * width), chosen // width % height, chosen % width, (height, width))


@dataclass(frozen=True, slots=True)
class _Scatter:
    """Means, and scatter about them, over sampled pixels.

    x is a patch, y the pixels of all targets side by side, both split into groups. A batch is centred before it is
    multiplied out, so that single precision suffices, and batches are joined in float64 as Chan, Golub and LeVeque
    do (Updating formulae and a pairwise algorithm for computing sample variances, 1979). `+=` takes the left side's
    memory for the sum.
    """

    count: int
    x: Tensor  # (groups, unknowns, 1)
    xx: Tensor  # (groups, unknowns, unknowns)
    y: Tensor  # (groups, 1, outputs)
    yy: Tensor  # (groups, 1, outputs)
    xy: Tensor  # (groups, unknowns, outputs)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Scatter:
        """Return that of patches (groups, samples, unknowns) and pixels (groups, samples, outputs)."""
        (x, x_mean), (y, y_mean) = _centred(x), _centred(y)
        yy, xy = y.square().sum(1, keepdim=True).double(), x.transpose(1, 2) @ y
        return cls(x.shape[1], x_mean.transpose(1, 2), _gram(x), y_mean, yy, xy)

    def double(self) -> _Scatter:
        """Return the same in float64."""
        return replace(self, xx=self.xx.double(), xy=self.xy.double())

    def __add__(self, other: _Scatter) -> _Scatter:
        return self._joined(other, self.xx + other.xx, self.xy + other.xy)

    def __iadd__(self, other: _Scatter) -> _Scatter:
        return self._joined(other, self.xx.add_(other.xx), self.xy.add_(other.xy))

    def _joined(self, other: _Scatter, xx: Tensor, xy: Tensor) -> _Scatter:
        """Return both as one, in the place of the sums of their scatters; what the means differ by is added."""
        x, y = other.x - self.x, other.y - self.y
        count = self.count + other.count
        share = other.count / count
        weight = self.count * share
        return _Scatter(
            count,
            self.x + share * x, xx.baddbmm_(x, x.transpose(1, 2), alpha=weight),
            self.y + share * y, self.yy + other.yy + weight * y.square(), xy.baddbmm_(x, y, alpha=weight),
        )  # fmt: skip

    def moments(self, taps: Tensor, outputs: Tensor) -> _Moments:
        """Return the centred second moments of the chosen patch elements and outputs."""
        mean = self.x[:, taps]
        covariance = (self.xx if len(taps) == self.xx.shape[1] else self.xx[:, taps[:, None], taps]) / self.count
        rounding = FLAT * mean.square().mean((1, 2))
        return _Moments(
            mean,
            self.y[..., outputs],
            covariance,
            covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12).maximum(rounding),
            self.xy[:, taps[:, None], outputs] / self.count,
            self.yy[..., outputs] / self.count,
        )


def _gram(x: Tensor) -> Tensor:
    """Return x^T x (groups, unknowns, unknowns) of patches (groups, samples, unknowns)."""
    if len(x) > 1 or x.device.type != "cpu":
        return x.transpose(1, 2) @ x
    array = x[0].numpy()
    return torch.from_numpy(array.T @ array)[None]  # NumPy's BLAS knows that it is symmetric, and takes half the time


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (groups, samples, k) less their mean, and the mean (groups, 1, k) in float64."""
    mean = values.mean(1, keepdim=True)
    centred = values - mean
    return centred, mean.double() + centred.mean(1, keepdim=True)  # what the rounded mean left


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: Tensor  # (groups, unknowns, 1)
    target_mean: Tensor  # (groups, 1, outputs)
    covariance: Tensor  # (groups, unknowns, unknowns)
    power: Tensor  # (groups,), the scale of the ridge
    cross: Tensor  # (groups, unknowns, outputs)
    variance: Tensor  # (groups, 1, outputs)

    def of(self, outputs: Tensor) -> _Moments:
        """Return the moments with some of the outputs."""
        return replace(
            self,
            target_mean=self.target_mean[..., outputs],
            cross=self.cross[..., outputs],
            variance=self.variance[..., outputs],
        )

    def solve(self, prior: Tensor, strength: float) -> Tensor:
        """Return the ridge solution (groups, unknowns, outputs) that leans to `prior`."""
        ridged = self.covariance.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(strength * self.power[:, None])
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


@dataclass(frozen=True, slots=True)
class _Task:
    """What to solve for: which patch elements and outputs, and where the solution leans to.

    Attributes:
        prior: the convolution that gives the shape.
        basis: the patterns of weights that are solved for (pixels, patterns).
        taps: the unknowns among those of the system (unknowns,).
        outputs: the targets' pixels among all (outputs,).
        start: the prior's weights (groups, unknowns, outputs).
        matched: for each target, whether its outputs are scaled to its variance.
    """

    prior: AffineConv
    basis: Tensor
    taps: Tensor
    outputs: Tensor
    start: Tensor
    matched: tuple[bool, ...]

    def thinned(self) -> _Task:
        """Return the task with fewer outputs of each target."""
        width = self.start.shape[2] // len(self.matched)
        chosen = torch.arange(self.start.shape[2]).reshape(-1, width)[:, :: -(-width // JUDGED_OUTPUTS)].flatten()
        return replace(self, outputs=self.outputs[chosen], start=self.start[..., chosen])

    def shaped(self, weight: Tensor) -> Tensor:
        """Return a solution (groups, unknowns, outputs) as a kernel in the prior's shape."""
        shape = self.prior.weight.shape
        solved = weight.transpose(1, 2).reshape(*shape[:2], -1)
        return _combined(solved, self.basis.T).reshape(shape)


def _combined(values: Tensor, columns: Tensor) -> Tensor:
    """Return `values @ columns`; the values themselves, to the bit, where the columns are the identity's."""
    is_identity = columns.shape[0] == columns.shape[1]
    return values if is_identity else values @ columns.to(values.dtype)


class RidgeSystem:
    """The normal equations of one design for several targets, summed over batches.

    Each batch belongs to a fold. A solution on some folds is judged by its error on another, which decides how
    strongly it leans to its prior.

    Args:
        design: what is read.
        kernel: height and width of the largest kernel to solve for.
        channels: channels of the entry tensor.
        count: how many `patterns` of weights over the kernel are solved for, and then for no smaller kernel; None for
            every single weight.
    """

    def __init__(self, design: Design, kernel: Pair, channels: int, *, count: int | None = None) -> None:
        self.design = design
        self.kernel = kernel
        self._basis = patterns(kernel, kernel[0] * kernel[1] if count is None else count)
        self._channels = channels // design.groups
        self.unknowns = self._channels * self._basis.shape[1]
        self._folds: dict[int, _Scatter] = {}
        self._outputs: dict[str, Tensor] = {}

    @property
    def is_finite(self) -> bool:
        """Whether all sums are, so that they can be solved."""
        return all(bool(sums.xx.isfinite().all() and sums.xy.isfinite().all()) for sums in self._folds.values())

    def accumulate(self, entry: Tensor, targets: Mapping[str, Tensor], positions: Positions, *, fold: int = 0) -> None:
        """Add what is read from `entry` (n, c_in, h, w) for some output positions to one fold.

        `targets` holds the output pixels there (samples, c_out) by name, the same names in each call and order.
        """
        patches = self._patches(entry, positions)
        pixels = [target.reshape(len(target), self.design.groups, -1).transpose(0, 1) for target in targets.values()]
        starts = list(itertools.accumulate((part.shape[2] for part in pixels), initial=0))
        self._outputs = {
            name: torch.arange(start, stop) for name, start, stop in zip(targets, starts, starts[1:], strict=False)
        }
        y = torch.cat(pixels, dim=2)
        sums = _Scatter.of(patches, y)
        if fold in self._folds:
            self._folds[fold] += sums
        else:
            self._folds[fold] = sums.double()

    def solve(
        self,
        targets: Sequence[str],
        prior: AffineConv,
        *,
        judges: Sequence[int],
        match_variance: Collection[str],
        strengths: Sequence[float] = (),
    ) -> list[AffineConv]:
        """Return the fitted convolution towards each target, with the shape of `prior`, which it leans to.

        A least-squares fit varies less than its target, by what it cannot explain; for targets named in
        `match_variance` each output channel is scaled back to the target's variance. Where only some patterns are
        solved for, what the prior has besides them is lost.

        Args:
            targets: what to map to; each was accumulated.
            prior: its kernel is at most the system's, with the same centre.
            judges: folds, each of which judges solutions on all others. How strongly a solution leans to the prior
                is what serves them best together.
            match_variance: targets to give their variance.
            strengths: to choose from; by default STRENGTHS.
        """
        task = self._task(targets, prior, match_variance)
        return self._fitted(task, self._moments(task), self._strengths(task, judges, strengths or STRENGTHS))

    def solve_without(
        self,
        folds: Sequence[int],
        targets: Sequence[str],
        prior: AffineConv,
        *,
        match_variance: Collection[str],
        strengths: Sequence[float] = (),
    ) -> dict[int, list[AffineConv]]:
        """Return, for each of `folds`, what `solve` gives on all others; the first judges the strength for all."""
        task = self._task(targets, prior, match_variance)
        chosen = self._strengths(task, folds[:1], strengths or STRENGTHS)
        return {fold: self._fitted(task, self._moments(task, unseen=fold), chosen) for fold in folds}

    def _task(self, targets: Sequence[str], prior: AffineConv, match_variance: Collection[str]) -> _Task:
        basis, taps = self._basis, torch.arange(self.unknowns)
        if prior.kernel != self.kernel:
            basis, taps = patterns(prior.kernel, prior.kernel[0] * prior.kernel[1]), self._taps(prior.kernel)
        outputs = torch.cat([self._outputs[target] for target in targets])
        weights = _combined(prior.weight.double().flatten(2), basis)
        start = weights.reshape(prior.groups, -1, len(taps)).transpose(1, 2)
        matched = tuple(target in match_variance for target in targets)
        return _Task(prior, basis, taps, outputs, start.repeat(1, 1, len(targets)), matched)

    def _moments(self, task: _Task, unseen: int | None = None) -> _Moments:
        """Return the moments of all folds but one."""
        chosen = [sums for fold, sums in self._folds.items() if fold != unseen]
        if not chosen:
            raise ValueError("nothing was accumulated, so there is nothing to solve")
        return functools.reduce(_Scatter.__add__, chosen).moments(task.taps, task.outputs)

    def _strengths(self, task: _Task, judges: Sequence[int], offered: Sequence[float]) -> list[float]:
        """Return the strength of least error for each target."""
        if not judges:
            return [UNJUDGED_STRENGTH] * len(task.matched)
        task = task.thinned()
        errors = torch.zeros(len(offered), len(task.matched), dtype=torch.float64)
        for fold in judges:
            train, test = self._moments(task, fold), self._folds[fold].moments(task.taps, task.outputs)
            for index, strength in enumerate(offered):
                weight = train.solve(task.start, strength)
                errors[index] += test.error(weight, train.bias(weight)).reshape(len(task.matched), -1).sum(1)
        return [offered[index] for index in errors.argmin(0).tolist()]

    def _fitted(self, task: _Task, moments: _Moments, strengths: Sequence[float]) -> list[AffineConv]:
        """Return the convolution of each target at the strength chosen for it."""
        width = task.start.shape[2] // len(task.matched)
        strength, matched = (torch.tensor(each).repeat_interleave(width) for each in (strengths, task.matched))
        weight = torch.empty_like(task.start)
        for value in set(strengths):
            chosen = strength == value
            weight[..., chosen] = moments.of(chosen).solve(task.start[..., chosen], value)
        weight = torch.where(matched, weight * moments.gain(weight), weight)
        bias = moments.bias(weight)
        return [
            replace(task.prior, weight=task.shaped(part), bias=shift.flatten())
            for part, shift in zip(torch.split(weight, width, dim=2), torch.split(bias, width, dim=2), strict=True)
        ]

    def _patches(self, entry: Tensor, positions: Positions) -> Tensor:
        """Return the patches read at output `positions`: (groups, samples, unknowns)."""
        sides = self._padding(entry, positions.size)
        padded = F.pad(entry, (sides[2], sides[3], sides[0], sides[1]))
        windows = padded.unfold(2, self.kernel[0], self.design.stride[0])
        windows = windows.unfold(3, self.kernel[1], self.design.stride[1])  # (n, c, h', w', kh, kw), a view
        patches = _combined(positions.pixels(windows).flatten(2), self._basis)  # (samples, c, patterns)
        return patches.reshape(len(patches), self.design.groups, -1).transpose(0, 1)

    def _padding(self, entry: Tensor, size: Pair) -> Sides:
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
