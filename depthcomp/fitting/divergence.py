"""Divergence of a changed network's outputs from the original's on the same images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depthcomp.errors import DataError
from fx_passes.outputs import tensors_of

__all__ = ["divergence", "divergence_of", "is_scores", "power", "require_finite", "rise_of_loss"]


def divergence(original: Any, changed: Any) -> float:
    """Return the divergence of output `changed` from output `original` of two networks on the same images.

    For one tensor of class scores (n, classes) it is the mean KL(softmax original || softmax changed) in nats. For
    other outputs it is the squared error relative to the original's variance, averaged over tensors.
    """
    return float(divergence_of(original, changed))


def divergence_of(original: Any, changed: Any) -> Tensor:
    """Return the divergence as a differentiable float64 tensor ()."""
    pairs = [(a, b) for a, b in zip(tensors_of(original), tensors_of(changed), strict=True) if a.is_floating_point()]
    if len(pairs) == 1 and is_scores(pairs[0][0]):
        scores, other = (F.log_softmax(t.double(), dim=1) for t in pairs[0])
        return F.kl_div(other, scores, log_target=True, reduction="batchmean")
    errors = [(a - b).square().mean() / power(a) for a, b in pairs]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def is_scores(output: Any) -> bool:
    """Return whether an output is a tensor of class scores (n, classes)."""
    return isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1


def rise_of_loss(original: Any, changed: Any, labels: Tensor | None) -> float:
    """Return the rise of the loss from the original's outputs to the changed network's on the same images.

    Without labels it is the divergence. With labels (n,) of class scores it is the mean of the divergence and the rise
    of the cross-entropy. Both estimate one quantity where the original is well calibrated: the divergence has less
    noise on few images, the labels correct the original's errors.
    """
    gap = divergence(original, changed)
    if labels is None:
        return gap
    before, after = (float(F.cross_entropy(s.double(), labels.to(s.device))) for s in (original, changed))
    return (gap + after - before) / 2


def require_finite(output: Any) -> None:
    """Refuse an original network whose own output is not finite.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not all(bool(part.isfinite().all()) for part in tensors_of(output)):
        raise DataError(
            "the network's own output on the calibration images is NaN or infinite; check the network's weights, and "
            "normalise the images as for training"
        )


def power(values: Tensor) -> Tensor:
    """Return the variance of values, or their mean square where they do not vary."""
    variance, square = values.var(correction=0), values.square().mean()
    return torch.where(variance > 1e-6 * square, variance, square).clamp_min(1e-12)
