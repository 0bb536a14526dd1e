"""Number of different scenes among images, as a network sees them: crops of one photo show one scene."""

from __future__ import annotations

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from torch import Tensor

__all__ = ["count_scenes", "few_scenes"]

ALIKE = 0.4  # correlation of class scores; of 12, 19, 46 and 100 photos, crops give 13 to 16, 15, 29 and 70 scenes
FEW = 50
LEAST_CLASSES = 100  # few class scores say too little about an image


def count_scenes(scores: Tensor) -> int:
    """Return the number of groups of images with class scores (n, classes) that are alike.

    Example:
        >>> count_scenes(torch.eye(3).repeat(4, 1))
        3
    """
    scores = scores[scores.std(1, correction=0) > 0]  # equal scores say nothing
    if len(scores) < 2:
        return len(scores)
    tree = linkage(pdist(scores.double().cpu().numpy(), "correlation"), "average")
    return int(fcluster(tree, 1 - ALIKE, "distance").max())


def few_scenes(scores: Tensor) -> str:
    """Return a note for the user if images show few scenes; empty where they show enough, or that cannot be told."""
    if scores.ndim != 2 or scores.shape[1] < LEAST_CLASSES or not torch.isfinite(scores).all():
        return ""
    count = count_scenes(scores)
    if count >= FEW:
        return ""
    return (
        f"the network sees about {count} different scenes in the images; what holds on fewer than {FEW} may not hold "
        "on others, so pass images of more scenes"
    )
