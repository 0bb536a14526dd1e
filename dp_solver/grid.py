"""A grid of costs, which leaves fewer labels on request; what that may lose is bounded.

A chain whose frontier has very many points is solved faster if points whose costs differ by little count as equally
costly. Costs are rounded *up* for that comparison and nowhere else: a label keeps its true cost, so that no budget is
ever overshot.

The bound. Call a pruning by the grid a round. For every partial plan that goes through r rounds, a label is kept that
costs less than r * resolution more and loses no more. The proof is by induction: in a round, the label that stands for
the plan is kept, or gives way to a label with no more loss and no higher rounded-up cost. The true cost of that label
is less than one resolution higher. So the slack of the frontier is the resolution times the rounds on the longest path.

The grid begins at the cheapest label of each place, which is therefore kept: the smallest feasible budget stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthcomp_errors import ProblemError
from dp_solver.pareto import FloatArray, IntArray, nondominated
from dp_solver.problem import Chain, Choice, Parallel
from dp_solver.quantities import as_number

__all__ = ["Grid"]

EXACT_INTEGERS = 2.0**53  # beyond, neighbouring floats are further apart than the grid's steps
ROUNDINGS = 8  # a generous bound on the roundings of a cost in one round


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of costs.

    Attributes:
        resolution_ms: the width of its steps, above 0.

    Raises:
        ProblemError: the resolution is no number above 0.
    """

    resolution_ms: float

    def __post_init__(self) -> None:
        resolution = as_number(self.resolution_ms, "resolution_ms")
        if resolution <= 0:
            raise ProblemError(f"resolution_ms (={resolution}) must be above 0 ms; leave it out for the exact frontier")
        object.__setattr__(self, "resolution_ms", resolution)

    def prune(self, points: FloatArray) -> IntArray:
        """Return the indices of the points to keep, by rising cost and falling loss, at most one for each step.

        Args:
            points: (3, n), finite: costs, losses, changes. Of points with equal loss in one step the cheapest stays.

        Example:
            >>> points = np.array([[1.0, 1.4, 1.9, 2.5], [9.0, 5.0, 7.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
            >>> Grid(1.0).prune(points).tolist()
            [0, 1, 3]
        """
        return nondominated(np.stack((self._rounded_up(points[0]), points[1], points[0])))

    def slack_ms(self, chain: Chain, longest_ms: float) -> float:
        """Return the largest extra cost of a plan on the grid over the exact plan of `chain` that it stands for.

        Args:
            chain: the problem.
            longest_ms: the largest cost of the frontier, which sets the rounding error of its sums.
        """
        return _rounds(chain) * (self.resolution_ms + ROUNDINGS * float(np.spacing(longest_ms)))

    def _rounded_up(self, costs: FloatArray) -> FloatArray:
        least = costs.min()
        with np.errstate(over="ignore"):  # infinitely many steps are too many to count
            steps = np.ceil((costs - least) / self.resolution_ms)
        steps[steps >= EXACT_INTEGERS] = 0  # these costs stay as they are
        rounded: FloatArray = np.maximum(least + steps * self.resolution_ms, costs)
        return rounded


def _rounds(chain: Chain) -> int:
    """Return the largest number of prunings that a plan goes through."""
    return _rounds_of(chain, {})


def _rounds_of(chain: Chain, known: dict[int, int]) -> int:
    """Return the rounds of a chain; `known` caches them by the chain's identity."""
    if id(chain) not in known:
        known[id(chain)] = _longest_path(chain, known)
    return known[id(chain)]


def _longest_path(chain: Chain, known: dict[int, int]) -> int:
    most = {0: 0}
    for (start, end), items in chain.spans.items():
        if items and start in most:
            rounds = most[start] + 1 + max(_rounds_within(item, known) for item in items)
            most[end] = max(most.get(end, 0), rounds)
    return most[chain.length]


def _rounds_within(item: Choice | Parallel, known: dict[int, int]) -> int:
    return 0 if isinstance(item, Choice) else sum(_rounds_of(branch, known) + 1 for branch in item.branches)
