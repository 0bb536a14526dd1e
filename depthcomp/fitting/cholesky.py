"""Cholesky factors of second moments with a ridge on their diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cholesky_factor", "least_cholesky_factor"]

TRIES = 12  # ridges, each ten times the one before


def cholesky_factor(moment: Tensor, ridge: Tensor) -> Tensor | None:
    """Return the Cholesky factor of moments (..., n, n) with a ridge (...,); None if a sum is not positive definite."""
    found, failed = torch.linalg.cholesky_ex(_ridged(moment, ridge))
    return None if failed.any() else found


def least_cholesky_factor(moment: Tensor, ridge: Tensor) -> Tensor:
    """Return the Cholesky factor of moments with a ridge, which is multiplied by 10 until there is a factor.

    Raises:
        torch.linalg.LinAlgError: there is none, as the ridge is 0 or the moments are not finite.
    """
    stronger = (cholesky_factor(moment, ridge * 10**power) for power in range(TRIES))
    found = next((each for each in stronger if each is not None), None)
    return torch.linalg.cholesky(_ridged(moment, ridge)) if found is None else found


def _ridged(moment: Tensor, ridge: Tensor) -> Tensor:
    ridged = moment.clone()
    ridged.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return ridged
