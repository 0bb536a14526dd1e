"""Sums that least squares needs of sampled pixels: their means, and their scatter about the means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthcomp.fitting.cholesky import cholesky_factor, least_cholesky_factor

__all__ = ["Cross", "PatchMoments", "Scatter", "Target"]

FLAT = 1e-8  # a variance below this share of the squared mean is rounding error of single precision
LARGEST_GAIN = 3.0  # a larger gain would turn a hardly explained channel into noise


@dataclass(frozen=True, slots=True)
class Target:
    """Sums of one target's pixels y, (groups, 1 or unknowns, outputs)."""

    y: Tensor  # mean
    yy: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, pixels: Tensor) -> Target:
        """Return the sums for centred patches (groups, samples, unknowns) and pixels (groups, samples, outputs)."""
        y, mean = _centred(pixels)
        return cls(mean, y.square().sum(1, keepdim=True).double(), (x.transpose(1, 2) @ y).double())

    def joined(self, other: Target, x: Tensor, weight: float, share: float) -> Target:
        """Return the joint sums; x is the difference of the patches' means."""
        y = other.y - self.y
        xy = (self.xy + other.xy).baddbmm_(x, y, alpha=weight)
        return Target(self.y + share * y, self.yy + other.yy + weight * y.square(), xy)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Means of sampled pixels, and their scatter about the means.

    x is a patch, split into groups like the pixels of all targets. The sums of a target do not depend on which others
    there are, to the bit. Samples are centred before they are multiplied out, so single precision suffices. Sums are
    joined in float64 after Chan, Golub and LeVeque (Updating formulae and a pairwise algorithm for computing sample
    variances, 1979). `+=` overwrites the left side's memory.
    """

    count: float
    x: Tensor  # (groups, unknowns, 1)
    xx: Tensor  # (groups, unknowns, unknowns)
    targets: Mapping[str, Target]

    @classmethod
    def of(cls, patches: Tensor, targets: Mapping[str, Tensor]) -> Scatter:
        """Return the scatter of patches (groups, samples, unknowns) and pixels (groups, samples, outputs) by target."""
        x, mean = _centred(patches)
        sums = {name: Target.of(x, pixels) for name, pixels in targets.items()}
        return cls(x.shape[1], mean.transpose(1, 2), _gram(x), sums)

    def double(self) -> Scatter:
        """Return the scatter in float64."""
        return replace(self, xx=self.xx.double())

    def __add__(self, other: Scatter) -> Scatter:
        return self._joined(other, self.xx + other.xx)

    def __iadd__(self, other: Scatter) -> Scatter:
        return self._joined(other, self.xx.add_(other.xx))

    def _joined(self, other: Scatter, xx: Tensor) -> Scatter:
        """Return the joint scatter; it overwrites `xx`, the sum of both, to add the means' difference."""
        x = other.x - self.x
        count = self.count + other.count
        share = other.count / count
        weight = self.count * share
        targets = {name: sums.joined(other.targets[name], x, weight, share) for name, sums in self.targets.items()}
        return Scatter(count, self.x + share * x, xx.baddbmm_(x, x.transpose(1, 2), alpha=weight), targets)

    def restricted(self, unknowns: Tensor) -> Scatter:
        """Return the scatter of some of the unknowns of patches, by their numbers."""
        targets = {name: replace(sums, xy=sums.xy[:, unknowns]) for name, sums in self.targets.items()}
        xx = self.xx[:, unknowns][:, :, unknowns]
        return replace(self, x=self.x[:, unknowns], xx=xx, targets=targets)

    def moments(self) -> PatchMoments:
        """Return the centred second moments of the patches."""
        covariance, rounding = self.xx / self.count, FLAT * self.x.square().mean((1, 2))
        power = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12).maximum(rounding)
        return PatchMoments(self.x, covariance, power)

    def cross(self, target: str) -> Cross:
        """Return the moments of a target's pixels with the patches."""
        sums = self.targets[target]
        return Cross(sums.y, sums.xy / self.count, sums.yy / self.count)


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
class Cross:
    """Moments of one target's pixels with the patches."""

    mean: Tensor  # (groups, 1, outputs), of the pixels
    cross: Tensor  # (groups, unknowns, outputs)
    variance: Tensor  # (groups, 1, outputs)

    def thinned(self, step: int) -> Cross:
        """Return the moments of every output number 0, `step`, 2 * `step` and so on."""
        return Cross(self.mean[..., ::step], self.cross[..., ::step], self.variance[..., ::step])


@dataclass(frozen=True, slots=True)
class PatchMoments:
    """Moments of the patches."""

    mean: Tensor  # (groups, unknowns, 1)
    covariance: Tensor  # (groups, unknowns, unknowns)
    power: Tensor  # (groups,), the scale of the ridge

    def factor(self, strength: float) -> Tensor | None:
        """Return the Cholesky factor of the normal equations at a strength of the ridge; None if that is too weak."""
        return cholesky_factor(self.covariance, strength * self.power)

    def least_factor(self, strength: float) -> Tensor:
        """Return the Cholesky factor at a strength, which is multiplied by 10 until there is a factor."""
        return least_cholesky_factor(self.covariance, strength * self.power)

    def solve(self, target: Cross, prior: Tensor, factor: Tensor) -> Tensor:
        """Return the ridge solution (groups, unknowns, outputs) that leans to `prior`."""
        return prior + torch.cholesky_solve(target.cross - self.covariance @ prior, factor)

    def bias(self, target: Cross, weight: Tensor) -> Tensor:
        """Return the bias (groups, 1, outputs) that makes the means agree."""
        return target.mean - self.mean.transpose(1, 2) @ weight

    def gain(self, target: Cross, weight: Tensor) -> Tensor:
        """Return a factor for each output that scales a solution to its target's variance."""
        explained = (weight * (self.covariance @ weight)).sum(1, keepdim=True)
        return (target.variance / explained.clamp_min(1e-12)).sqrt().clamp(max=LARGEST_GAIN)

    def error(self, target: Cross, weight: Tensor, bias: Tensor) -> float:
        """Return the squared error of a solution over all outputs, up to a constant of the target."""
        spread = (weight * (self.covariance @ weight - 2 * target.cross)).sum()
        shift = target.mean - bias - self.mean.transpose(1, 2) @ weight
        return float(spread + shift.square().sum())
