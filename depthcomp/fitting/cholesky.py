"""Cholesky factors of second moments with a ridge on their diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factor", "least_factor"]

MOST_TENFOLD = 12  # times that a ridge too weak for a factor grows tenfold


def factor(moment: Tensor, ridge: Tensor) -> Tensor | None:
    """Return the factor of moments (..., n, n) with a ridge (...,) added; None where that is too weak for one."""
    found, failed = torch.linalg.cholesky_ex(_ridged(moment, ridge))
    return None if failed.any() else found


def least_factor(moment: Tensor, ridge: Tensor) -> Tensor:
    """Return the factor at the least of a ridge, ten times, a hundred times of it and so on that has one.

    Raises:
        torch.linalg.LinAlgError: there is none, as the moments are not finite.
    """
    stronger = (factor(moment, ridge * 10**power) for power in range(MOST_TENFOLD))
    found = next((each for each in stronger if each is not None), None)
    return torch.linalg.cholesky(_ridged(moment, ridge)) if found is None else found


def _ridged(moment: Tensor, ridge: Tensor) -> Tensor:
    ridged = moment.clone()
    ridged.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return ridged
