"""Ridge regression from one tensor of a network to another, which gives the weights of a convolution.

With patches x of the entry tensor and target pixels y, both centred, the weights minimise

    mean |y - W x|^2 + strength * mean |x_i|^2 * |W - W0|^2

where W0 is a prior kernel (a kept layer's weights; else identity where shapes allow it, else zero). The bias is free.
The normal equations are multiplied out in the network's precision for each batch, over sampled positions. They are
summed and solved in float64. They are summed once for the largest kernel; smaller kernels use a part of these sums.
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
JUDGED_OUTPUTS = 32  # outputs of each target that judge; more hardly change the chosen strength
UNJUDGED_STRENGTH = 1e-1  # where no fold judges
FLAT = 1e-8  # a variance below this share of the squared mean is rounding error of single precision
LARGEST_GAIN = 3.0  # a larger gain would turn a hardly explained channel into noise


@dataclass(frozen=True, slots=True)
class Design:
    """The positions of a convolution's kernel on its entry tensor.

    Attributes:
        entry: name of the node whose tensor is read.
        stride: step on the entry per output pixel.
        centre: position of the kernel's central tap for output pixel (0, 0).
        groups: channel groups.
    """

    entry: str
    stride: Pair
    centre: Pair
    groups: int


def design_of(entry: str, operator: AffineConv) -> Design:
    """Return the design of a convolution that reads the tensor at `entry`; its kernel cropped has an equal design."""
    centre = (
        (operator.kernel[0] - 1) // 2 - operator.padding[0],
        (operator.kernel[1] - 1) // 2 - operator.padding[2],
    )
    return Design(entry, operator.stride, centre, operator.groups)


def starting_point(operator: AffineConv) -> AffineConv:
    """Return a prior for a convolution shaped like `operator`: identity where shapes allow, else zero."""
    weight = torch.zeros(operator.weight.shape, dtype=torch.float64)
    if operator.in_channels == operator.out_channels and operator.stride == (1, 1):
        row, column = ((size - 1) // 2 for size in operator.kernel)
        channels = torch.arange(operator.out_channels)
        weight[channels, channels % weight.shape[1], row, column] = 1.0
    bias = torch.zeros(operator.out_channels, dtype=torch.float64)
    return AffineConv(weight, bias, operator.stride, operator.padding, operator.groups)


def patterns(kernel: Pair, count: int) -> Tensor:
    """Return orthonormal patterns (pixels, count) of weights over a kernel's pixels.

    With as many patterns as pixels they are the single pixels. Else half are the pixels nearest the centre, where most
    of a convolution's weight lies. The other half are the smoothest waves over the kernel (the cosine products of
    JPEG), as tensors of images are smooth.

    Raises:
        ValueError: `count` is not from 1 to the kernel's pixels.
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
    """Return the cosine waves over a kernel (pixels, pixels), one in each column, the smoothest first."""
    one, other = (torch.arange(size, dtype=torch.float64) for size in kernel)
    down, across = (torch.cos(torch.pi * (n[:, None] + 0.5) * n / len(n)) for n in (one, other))
    frequency = (one[:, None].square() + other.square()).flatten()
    return torch.kron(down, across)[:, frequency.argsort(stable=True)]


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of sampled pixels in a tensor (n, c, h, w).

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
    """Means of sampled pixels, and their scatter about the means.

    x is a patch, y the pixels of all targets side by side, both split into groups. Each batch is centred before it is
    multiplied out, so single precision suffices. Batches are joined in float64 after Chan, Golub and LeVeque (Updating
    formulae and a pairwise algorithm for computing sample variances, 1979). `+=` overwrites the left side's memory.
    """

    count: int
    x: Tensor  # (groups, unknowns, 1)
    xx: Tensor  # (groups, unknowns, unknowns)
    y: Tensor  # (groups, 1, outputs)
    yy: Tensor  # (groups, 1, outputs)
    xy: Tensor  # (groups, unknowns, outputs)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Scatter:
        """Return the scatter of patches (groups, samples, unknowns) and pixels (groups, samples, outputs)."""
        (x, x_mean), (y, y_mean) = _centred(x), _centred(y)
        yy, xy = y.square().sum(1, keepdim=True).double(), x.transpose(1, 2) @ y
        return cls(x.shape[1], x_mean.transpose(1, 2), _gram(x), y_mean, yy, xy)

    def double(self) -> _Scatter:
        """Return the scatter in float64."""
        return replace(self, xx=self.xx.double(), xy=self.xy.double())

    def __add__(self, other: _Scatter) -> _Scatter:
        return self._joined(other, self.xx + other.xx, self.xy + other.xy)

    def __iadd__(self, other: _Scatter) -> _Scatter:
        return self._joined(other, self.xx.add_(other.xx), self.xy.add_(other.xy))

    def _joined(self, other: _Scatter, xx: Tensor, xy: Tensor) -> _Scatter:
        """Return the joint scatter; it overwrites `xx` and `xy`, the sums of both, to add the means' difference."""
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
    return torch.from_numpy(array.T @ array)[None]  # NumPy's BLAS uses the symmetry and takes half the time


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (groups, samples, k) less their mean, and the mean (groups, 1, k) in float64."""
    mean = values.mean(1, keepdim=True)
    centred = values - mean
    return centred, mean.double() + centred.mean(1, keepdim=True)  # corrects the rounded mean


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
        """Return a factor for each output that scales a solution to its target's variance."""
        explained = (weight * (self.covariance @ weight)).sum(1, keepdim=True)
        return (self.variance / explained.clamp_min(1e-12)).sqrt().clamp(max=LARGEST_GAIN)

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the squared error of a solution for each output (outputs,), up to a constant of the target."""
        spread = (weight * (self.covariance @ weight - 2 * self.cross)).sum((0, 1))
        shift = self.target_mean - bias - self.mean.transpose(1, 2) @ weight
        return spread + shift.square().sum((0, 1))


@dataclass(frozen=True, slots=True)
class _Task:
    """A regression to solve: its unknowns, outputs and prior.

    Attributes:
        prior: the convolution that gives shape and prior weights.
        basis: the patterns of weights to solve for (pixels, patterns).
        taps: indices of the unknowns in the system (unknowns,).
        outputs: indices of the targets' channels in the system (outputs,).
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
        """Return the task with only some outputs of each target."""
        width = self.start.shape[2] // len(self.matched)
        chosen = torch.arange(self.start.shape[2]).reshape(-1, width)[:, :: -(-width // JUDGED_OUTPUTS)].flatten()
        return replace(self, outputs=self.outputs[chosen], start=self.start[..., chosen])

    def shaped(self, weight: Tensor) -> Tensor:
        """Return a solution (groups, unknowns, outputs) as a kernel of the prior's shape."""
        shape = self.prior.weight.shape
        solved = weight.transpose(1, 2).reshape(*shape[:2], -1)
        return _combined(solved, self.basis.T).reshape(shape)


def _combined(values: Tensor, columns: Tensor) -> Tensor:
    """Return `values @ columns`, and the values unchanged where `columns` is square, as then it is the identity."""
    is_identity = columns.shape[0] == columns.shape[1]
    return values if is_identity else values @ columns.to(values.dtype)


class RidgeSystem:
    """Normal equations of one design for several targets, summed over batches.

    Each batch belongs to a fold. The error of a solution on an unseen fold decides how strongly it leans to its prior.

    Args:
        design: positions of the kernel on the entry tensor.
        kernel: height and width of the largest kernel to solve for.
        channels: channels of the entry tensor.
        count: number of `patterns` to solve for, with no smaller kernel; None to solve for every weight.
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
        """Whether all sums are finite, so that they can be solved."""
        return all(bool(sums.xx.isfinite().all() and sums.xy.isfinite().all()) for sums in self._folds.values())

    def accumulate(self, entry: Tensor, targets: Mapping[str, Tensor], positions: Positions, *, fold: int = 0) -> None:
        """Add the patches of `entry` (n, c_in, h, w) at some output positions to the sums of a fold.

        `targets` holds the output pixels there (samples, c_out) by name; each call gives equal names in equal order.
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
        """Return the convolution fitted to each target, with the shape of `prior`, to which it leans.

        A least-squares fit varies less than its target by the part that it cannot explain. For targets named in
        `match_variance` each output channel is scaled to the target's variance. Where only some patterns are solved
        for, the rest of the prior is lost.

        Args:
            targets: names of accumulated targets.
            prior: the prior; its kernel is at most the system's and has an equal centre.
            judges: folds, each of which judges solutions on all others; the strength of least total error is taken.
            match_variance: targets whose variance the fit takes.
            strengths: candidate strengths of the ridge; by default STRENGTHS.
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
        """Return the solutions of `solve` without each of `folds`; the first fold chooses the strength for all."""
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
        """Return the moments of all folds but `unseen`."""
        chosen = [sums for fold, sums in self._folds.items() if fold != unseen]
        if not chosen:
            raise ValueError("the system is empty; accumulate batches before solving it")
        return functools.reduce(_Scatter.__add__, chosen).moments(task.taps, task.outputs)

    def _strengths(self, task: _Task, judges: Sequence[int], candidates: Sequence[float]) -> list[float]:
        """Return the candidate strength of least error for each target."""
        if not judges:
            return [UNJUDGED_STRENGTH] * len(task.matched)
        task = task.thinned()
        errors = torch.zeros(len(candidates), len(task.matched), dtype=torch.float64)
        for fold in judges:
            train, test = self._moments(task, fold), self._folds[fold].moments(task.taps, task.outputs)
            for index, strength in enumerate(candidates):
                weight = train.solve(task.start, strength)
                errors[index] += test.error(weight, train.bias(weight)).reshape(len(task.matched), -1).sum(1)
        return [candidates[index] for index in errors.argmin(0).tolist()]

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
        """Return the patches of `entry` at output `positions`: (groups, samples, unknowns)."""
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
        """Return the indices of a smaller kernel's elements in a flattened patch."""
        index = torch.arange(self._channels * self.kernel[0] * self.kernel[1]).reshape(-1, *self.kernel)
        top, left = ((size - 1) // 2 - (k - 1) // 2 for size, k in zip(self.kernel, kernel, strict=True))
        return index[:, top : top + kernel[0], left : left + kernel[1]].flatten()
