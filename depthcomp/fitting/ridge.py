"""Ridge regression from one tensor of a network to another, which gives the weights of a convolution.

With patches x of the entry tensor and target pixels y, both centred, the weights minimise

    mean |y - W x|^2 + strength * mean |x_i|^2 * |W - W0|^2

where W0 is a prior kernel (a kept layer's weights; else identity where shapes allow it, else zero). The bias is free.
The normal equations are multiplied out in the network's precision for each batch, over sampled positions. They are
summed and solved in float64.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from depthcomp.fitting.expectation import Expectation
from depthcomp.fitting.scatter import Scatter
from fx_passes.affine import AffineConv, Pair, Sides

__all__ = ["Design", "Positions", "RidgeSystem", "design_of", "patterns", "sample_positions", "starting_point"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to the mean power of a patch element
JUDGED_OUTPUTS = 32  # outputs of each target that judge; more hardly change the chosen strength
UNJUDGED_STRENGTH = 1e-1  # where no fold judges


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


def _combined(values: Tensor, columns: Tensor) -> Tensor:
    """Return `values @ columns`, and the values unchanged where `columns` is square, as then it is the identity."""
    is_identity = columns.shape[0] == columns.shape[1]
    return values if is_identity else values @ columns.to(values.dtype)


class RidgeSystem:
    """Normal equations of one design and kernel for several targets, summed over batches.

    Each batch belongs to a fold. The error of a solution on an unseen fold decides how strongly it leans to its prior.
    The solution for a target does not depend on which others there are, to the bit.

    Args:
        design: positions of the kernel on the entry tensor.
        kernel: height and width of the kernel.
        channels: channels of the entry tensor.
        count: number of `patterns` to solve for; None to solve for every weight.
    """

    def __init__(self, design: Design, kernel: Pair, channels: int, *, count: int | None = None) -> None:
        self.design = design
        self.kernel = kernel
        self._basis = patterns(kernel, kernel[0] * kernel[1] if count is None else count)
        self.unknowns = channels // design.groups * self._basis.shape[1]
        self._folds: dict[int, Scatter] = {}
        self._samples: dict[int, list[tuple[Tensor, Mapping[str, Tensor]]]] = {}
        self._expectation: Expectation | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite, so that they can be solved."""
        self._add_samples()
        return all(
            bool(part.isfinite().all())
            for sums in self._folds.values()
            for part in (sums.xx, *(target.xy for target in sums.targets.values()))
        )

    def accumulate(self, entry: Tensor, targets: Mapping[str, Tensor], positions: Positions, *, fold: int = 0) -> None:
        """Add the patches of `entry` (n, c_in, h, w) at some output positions to the sums of a fold.

        `targets` holds the output pixels there (samples, c_out) by name; each call gives equal names.
        """
        pixels = {
            name: target.reshape(len(target), self.design.groups, -1).transpose(0, 1)
            for name, target in targets.items()
        }
        samples = self._samples.setdefault(fold, [])
        samples.append((self._patches(entry, positions), pixels))
        if sum(patches.shape[1] for patches, _ in samples) >= self.unknowns:
            self._add_samples()  # fewer at a time would take longer, more would take more memory than the sums

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
            prior: the prior; its kernel has the system's size and centre.
            judges: folds, each of which judges solutions on all others, so that they choose the strength.
            match_variance: targets whose variance the fit takes.
            strengths: candidate strengths of the ridge; by default STRENGTHS.
        """
        chosen = self.best_strengths(targets, prior, judges, strengths or STRENGTHS)
        solved = self._fitted(self._sums(), chosen, prior, match_variance)
        return [solved[target] for target in targets]

    def solve_without(
        self,
        folds: Sequence[int | None],
        targets: Sequence[str],
        prior: AffineConv,
        *,
        match_variance: Collection[str],
        strengths: Sequence[float] = (),
    ) -> dict[int | None, list[AffineConv]]:
        """Return the solutions of `solve` without each of `folds`, None for all; the first chooses the strength."""
        judges = [fold for fold in folds[:1] if fold is not None]
        chosen = self.best_strengths(targets, prior, judges, strengths or STRENGTHS)
        solved = {fold: self._fitted(self._sums(fold), chosen, prior, match_variance) for fold in folds}
        return {fold: [by_target[target] for target in targets] for fold, by_target in solved.items()}

    def second_moment(self, unseen: int | None = None) -> Tensor:
        """Return the centred second moment of the patches of all folds but one, (unknowns, unknowns), ungrouped."""
        return self._sums(unseen).moments().covariance[0]

    def expecting(self, expectation: Expectation | None) -> RidgeSystem:
        """Return the system with the samples of an expectation added. Systems of fewer patterns add none."""
        self._add_samples()
        expecting = copy.copy(self)
        expecting._expectation = expectation if self._basis.shape[0] == self._basis.shape[1] else None
        return expecting

    def alone(self, target: str) -> RidgeSystem:
        """Return the system of one of the targets."""
        self._add_samples()
        alone = copy.copy(self)
        alone._folds = {k: replace(sums, targets={target: sums.targets[target]}) for k, sums in self._folds.items()}
        return alone

    def restricted(self, channels: Tensor) -> RidgeSystem:
        """Return the system of some of the entry's channels (c,), given as booleans, ungrouped."""
        self._add_samples()
        restricted = copy.copy(self)
        index = channels.repeat_interleave(self._basis.shape[1]).nonzero()[:, 0]
        restricted.unknowns = len(index)
        restricted._folds = {fold: sums.restricted(index) for fold, sums in self._folds.items()}
        if self._expectation is not None:
            restricted._expectation = replace(self._expectation, inputs=channels)
        return restricted

    def unknowns_of(self, operator: AffineConv) -> Tensor:
        """Return the weights of a convolution as unknowns of the system (groups, unknowns, outputs)."""
        weights = _combined(operator.weight.double().flatten(2), self._basis)
        return weights.reshape(operator.groups, -1, self.unknowns).transpose(1, 2)

    def _add_samples(self) -> None:
        """Add the samples that wait to the sums of their folds."""
        for fold, samples in self._samples.items():
            patches = torch.cat([patches for patches, _ in samples], dim=1)
            pixels = {name: torch.cat([each[name] for _, each in samples], dim=1) for name in samples[0][1]}
            sums = Scatter.of(patches, pixels)
            if fold in self._folds:
                self._folds[fold] += sums
            else:
                self._folds[fold] = sums.double()
        self._samples.clear()

    def _sums(self, unseen: int | None = None) -> Scatter:
        """Return the sums of all folds but `unseen`, with the samples of the expectation."""
        self._add_samples()
        chosen = [self._folds[fold] for fold in sorted(self._folds) if fold != unseen]
        if not chosen:
            raise ValueError("the system is empty; accumulate batches before solving it")
        seen = functools.reduce(Scatter.__add__, chosen)
        expectation = self._expectation
        return seen if expectation is None or not expectation.agrees_with(seen) else seen + expectation.beside(seen)

    def best_strengths(
        self, targets: Sequence[str], prior: AffineConv, judges: Sequence[int], candidates: Sequence[float]
    ) -> dict[str, float]:
        """Return a strength for each target: from the middle candidate downhill to the least error on unseen folds.

        The arguments are as for `solve`; candidates are in rising order.
        """
        if len(candidates) == 1 or not judges:
            return dict.fromkeys(targets, candidates[0] if len(candidates) == 1 else UNJUDGED_STRENGTH)
        middle = len(candidates) // 2
        best = {t: (error, middle) for t, error in self._errors(targets, prior, judges, candidates[middle]).items()}
        for step in (-1, 1):
            walking, index = [target for target in targets if best[target][1] == middle], middle + step
            while walking and 0 <= index < len(candidates):
                errors = self._errors(walking, prior, judges, candidates[index])
                walking = [target for target in walking if errors[target] < best[target][0]]
                best |= {target: (errors[target], index) for target in walking}
                index += step
        return {target: candidates[index] for target, (_, index) in best.items()}

    def _errors(
        self, targets: Sequence[str], prior: AffineConv, judges: Sequence[int], strength: float
    ) -> dict[str, float]:
        """Return the errors of solutions on folds that they have not seen; infinite where there is no solution."""
        step = -(-prior.out_channels // prior.groups // JUDGED_OUTPUTS)
        start, errors = self.unknowns_of(prior)[..., ::step], dict.fromkeys(targets, 0.0)
        for fold in judges:
            seen, unseen = self._sums(fold), self._folds[fold]
            train, test = seen.moments(), unseen.moments()
            factor = train.factor(strength)
            if factor is None:
                return dict.fromkeys(targets, math.inf)
            for target in targets:
                known, held_out = (sums.cross(target).thinned(step) for sums in (seen, unseen))
                weight = train.solve(known, start, factor)
                errors[target] += test.error(held_out, weight, train.bias(known, weight))
        return errors

    def _fitted(
        self, sums: Scatter, strengths: Mapping[str, float], prior: AffineConv, match_variance: Collection[str]
    ) -> dict[str, AffineConv]:
        """Return the convolution of each target at the strength chosen for it."""
        moments, start, fitted = sums.moments(), self.unknowns_of(prior), dict[str, AffineConv]()
        for strength in set(strengths.values()):
            factor = moments.least_factor(strength)
            for target in (name for name, chosen in strengths.items() if chosen == strength):
                cross = sums.cross(target)
                weight = moments.solve(cross, start, factor)
                if target in match_variance:
                    weight = weight * moments.gain(cross, weight)
                bias = moments.bias(cross, weight).flatten()
                fitted[target] = replace(prior, weight=self._shaped(weight, prior), bias=bias)
        return fitted

    def _shaped(self, weight: Tensor, prior: AffineConv) -> Tensor:
        """Return a solution (groups, unknowns, outputs) as a kernel of the prior's shape."""
        shape = prior.weight.shape
        solved = weight.transpose(1, 2).reshape(*shape[:2], -1)
        return _combined(solved, self._basis.T).reshape(shape)

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
