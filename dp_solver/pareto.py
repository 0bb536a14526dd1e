"""Dominance between points of cost and loss: which points are beaten, and by how many others.

A point is a column of three numbers: cost, loss, changes. It is beaten by a point that is no worse in cost and loss and
better in one. Ties in both go to fewer changes, and then to the earlier place.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "IntArray", "nondominated", "skyband"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


def nondominated(points: FloatArray) -> IntArray:
    """Return the indices of the points that no other point beats, by rising cost and falling loss.

    Args:
        points: (3, n), finite: costs, losses, changes. Of points that tie in cost and loss one stays.

    Complexity: O(n log n) time, less where `points` consists of sorted runs; O(n) memory.

    Example:
        >>> points = np.array([[3.0, 1.0, 2.0, 1.0], [0.0, 5.0, 7.0, 5.0], [0.0, 2.0, 0.0, 1.0]])
        >>> nondominated(points).tolist()
        [3, 0]
    """
    # One stable sort by cost alone is several times faster than sorting by all three; ties are settled afterwards.
    order = points[0].argsort(kind="stable")
    losses = points[1][order]
    lowest = np.minimum.accumulate(losses)
    record = np.empty(len(order), dtype=bool)
    record[:1] = True
    np.less(losses[1:], lowest[:-1], out=record[1:])
    kept: IntArray = order[record]
    costs = points[0][kept]
    same_cost = costs[1:] == costs[:-1]
    if same_cost.any():
        kept = kept[np.append(~same_cost, True)]  # the last of them has the least loss
    level = losses == lowest  # as low as the record before, or that record: a tie if it costs the same
    if np.count_nonzero(level) == len(costs):
        return kept
    return _with_fewest_changes(points, kept, order[level & ~record])


def _with_fewest_changes(points: FloatArray, kept: IntArray, level: IntArray) -> IntArray:
    """Return `kept`, each point replaced by one of `level` that ties with it and has fewer changes."""
    place = np.searchsorted(points[0, kept], points[0, level]).clip(max=len(kept) - 1)
    ties = (points[:2, level] == points[:2, kept[place]]).all(axis=0)
    rivals = np.concatenate((kept, level[ties]))
    places = np.concatenate((np.arange(len(kept)), place[ties]))
    order = np.lexsort((rivals, points[2, rivals], places))
    first = np.append(True, np.diff(places[order]) > 0)
    best: IntArray = rivals[order][first]
    return best


def skyband(points: FloatArray, count: int) -> IntArray:
    """Return the indices of the points that fewer than `count` others beat or precede in a tie, by rising cost.

    Every other point has `count` points that are no worse in cost and loss, also after equal amounts are added to all.
    It is therefore not needed to find the `count` best. A skyband of 1 is the frontier.

    Args:
        points: (3, n), finite: costs, losses, changes.
        count: at least 1.

    Complexity: O(n (log n + min(count, n))) time, O(n) memory.

    Example:
        >>> points = np.array([[1.0, 2.0, 3.0, 2.0], [5.0, 6.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0]])
        >>> [skyband(points, count).tolist() for count in (1, 2, 3)]
        [[0, 2], [0, 1, 2], [0, 1, 3, 2]]

    References:
        Papadias et al., Progressive Skyline Computation in Database Systems, ACM TODS 30 (2005): the K-skyband.
    """
    order = np.lexsort(points[::-1])  # by cost, loss, changes, place
    losses = points[1][order]
    # Each round takes the running minimum out and hands on what it displaces: after `count` rounds `lowest` is the
    # running count-th smallest loss.
    displaced = lowest = losses
    for _ in range(min(count, len(losses))):
        lowest = np.minimum.accumulate(displaced)
        displaced = np.maximum(displaced[1:], lowest[:-1])
        displaced = np.concatenate(([np.inf], displaced))
    before = np.concatenate(([np.inf], lowest))[:-1]
    kept: IntArray = order[losses < before]
    return kept
