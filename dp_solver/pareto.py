"""The one comparison of the solver: which points no other point beats."""

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "IntArray", "nondominated"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


def nondominated(costs: FloatArray, losses: FloatArray) -> IntArray:
    """Returns the indices of the points that no other point beats, by rising cost and falling loss.

    A point is beaten by one that is no worse in both and better in one. Of equal points the first stays.

    Args:
        costs: (n,), finite.
        losses: (n,), finite.

    Complexity: O(n log n) time, O(n) memory.

    Example:
        >>> nondominated(np.array([3.0, 1.0, 2.0, 1.0]), np.array([0.0, 5.0, 7.0, 5.0])).tolist()
        [1, 0]
    """
    order = np.lexsort((losses, costs))  # stable, so that the first of equal points comes first
    ordered = losses[order]
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
    return order[ordered < best_before]
