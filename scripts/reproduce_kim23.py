"""Reproduction of Kim et al. 2023: the tables must give the optimum of the authors' solver, within the budget.

`--tables` names a folder as `kim23_tables.py` tells it: the published tables of each network, importances, taken as
I_ext, and `reference_solutions.json`, what the authors' solver answered. Checked for each answer:

- T_opt, computed here from `time_*.csv`, is that of `opt_time_*.csv`;
- within the latency that the reference's own solution really has, our optimum equals its value;
- the raw latencies of `time_*.csv`, summed from each end of a merge [S] to the next, are what our solution and the
  reference's are said to take;
- within the budget that was asked for, our solution, priced in that way, exceeds nothing.

The exit code is 1 if a check fails and 2 if the tables cannot be read. A and S are only compared and counted, since of
tied plans either is right.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kim23_tables import Answer, read_answers, read_latencies, refuse

from depthcomp.errors import BudgetInfeasibleError, DepthCompError, ProblemError, TableError
from dp_solver import Frontier, TwoStageProblem, TwoStageResult, frontier, optimal_latency, two_stage_problem
from latency_tables.published.importances import import_importance

TOLERANCE = 1e-9  # of values and of latencies in ms
Solved = tuple[Mapping[tuple[Hashable, ...], float], TwoStageProblem, Frontier]


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of the reference beside ours.

    Attributes:
        reference: the entry of `reference_solutions.json`.
        same_latency: our optimum within the latency of the reference's solution; None where no plan meets it.
        same_budget: our optimum within the budget; None where no plan meets it.
        measured: the raw latencies in ms by span.
    """

    reference: Answer
    same_latency: TwoStageResult | None
    same_budget: TwoStageResult | None
    measured: Mapping[tuple[Hashable, ...], float]

    @property
    def agrees(self) -> bool:
        """Whether both found the same optimum at the same latency, and their merges take what they say."""
        plan = self.same_latency
        return (
            plan is not None
            and abs(plan.value - self.reference["value"]) <= TOLERANCE
            and _costs(self.measured, plan.merge_ends, plan.cost_ms)
            and _costs(self.measured, self.reference["S"], self.reference["time_ms"])
        )

    @property
    def holds(self) -> bool:
        """Whether the merges of our plan are within the budget; to say that there is none exceeds nothing."""
        plan = self.same_budget
        return plan is None or (
            _costs(self.measured, plan.merge_ends, plan.cost_ms)
            and merged_ms(self.measured, plan.merge_ends) <= self.reference["budget_ms"] + TOLERANCE
        )

    @property
    def over(self) -> float:
        """By how many percent of the budget the reference's plan is above it."""
        return 100 * float(self.reference["time_ms"] / self.reference["budget_ms"] - 1)

    @property
    def same_sets(self) -> bool:
        """Whether A and S are those of the reference."""
        plan, given = self.same_latency, self.reference
        return plan is not None and (list(plan.kept_activations), list(plan.merge_ends)) == (given["A"], given["S"])

    def __str__(self) -> str:
        given, ours, held = self.reference, self.same_latency, self.same_budget
        shown = f"{held.value:.6f} {held.cost_ms:>9.4f}" if held else "no plan          "
        value = f"{ours.value:.6f}" if ours else "no plan "
        return (
            f"{given['net']:>13} {_seed(given['importance']):>5} {given['budget_ms']:>6} {given['prec']:>4}  "
            f"{given['value']:.6f} {given['time_ms']:>9.4f} {self.over:>+6.2f}%  {value}  "
            f"{shown}  {'ok' if self.agrees and self.holds else 'FAILED'}"
        )


HEADER = (
    f"{'':>13} {'':>5} {'':>6} {'':>4}  reference                    ours, at      ours, at the budget\n"
    f"{'network':>13} {'imp.':>5} {'T_0':>6} {'prec':>4}  value           ms    over   its latency  value           ms"
)


def merged_ms(measured: Mapping[tuple[Hashable, ...], float], ends: Sequence[int]) -> float:
    """Return the raw latency of a network merged at `ends`; infinity where a merge was not measured."""
    return sum(measured.get(span, math.inf) for span in zip((0, *ends), ends, strict=False))


def _costs(measured: Mapping[tuple[Hashable, ...], float], ends: Sequence[int], ms: float) -> bool:
    return abs(merged_ms(measured, ends) - ms) <= TOLERANCE


def _seed(name: str) -> str:
    return Path(name).stem.rpartition("_")[2]


def check_optimal_latency(folder: Path) -> bool:
    """Print how T_opt, computed here, compares with the published one, and return whether they are equal."""
    measured, published = read_latencies(folder, "time_*.csv"), read_latencies(folder, "opt_time_*.csv")
    ours, breaks = optimal_latency(measured.ms)
    largest = max((abs(ours[span] - ms) for span, ms in published.ms.items() if span in ours), default=0.0)
    same = ours.keys() == published.ms.keys() and largest <= TOLERANCE
    equal = sum(breaks[span] == published.breaks.get(span) for span in ours)
    print(
        f"{folder.name:>13}: T_opt of {len(ours)} spans {'equals' if same else 'DIFFERS FROM'} the published one "
        f"(largest difference {largest:.1e} ms), {equal} with the same breaks; {len(measured.noisy)} of {len(ours)} "
        "latencies have a spread above 15 %"
    )
    return same


def compare(tables: Path, references: list[Answer]) -> Iterator[Row]:
    """Yield each answer of the reference beside ours; each problem is solved once for all its budgets.

    Raises:
        TableError: a table cannot be read, or the tables of a network do not belong together.
    """
    solved: dict[tuple[str, str], Solved] = {}
    for given in references:
        name = (given["net"], given["importance"])
        if name not in solved:
            solved[name] = _solved(tables / given["net"], given["importance"])
        latencies, problem, front = solved[name]
        same_latency = _within(problem, front, given["time_ms"] + TOLERANCE)  # the sums may be rounded differently
        yield Row(given, same_latency, _within(problem, front, given["budget_ms"]), latencies)


def _solved(folder: Path, importance: str) -> Solved:
    """Return the latencies of a network, its problem with one of its importances, and the frontier."""
    latencies, importances = read_latencies(folder, "time_*.csv").ms, import_importance(folder / importance)
    try:
        problem = two_stage_problem(latencies, importances, extend_importance=False)
    except ProblemError as error:
        raise TableError(f"{folder}, {importance}: {error}") from error
    return latencies, problem, frontier(problem.chain)


def _within(problem: TwoStageProblem, front: Frontier, budget_ms: float) -> TwoStageResult | None:
    try:
        return problem.result(front, budget_ms)
    except BudgetInfeasibleError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every comparison and return the exit code; the arguments are the command line's where none are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables and reference_solutions.json")
    try:
        return reproduce(parser.parse_args(arguments).tables)
    except DepthCompError as error:
        refuse(parser, error)


def reproduce(tables: Path) -> int:
    """Print every comparison and return 0 where all of them hold, 1 otherwise.

    Raises:
        TableError: a table or the answers of the reference cannot be read.
        ProblemError: the latencies of a network name kernels.
    """
    references = read_answers(tables)
    nets = dict.fromkeys(given["net"] for given in references)
    optimal = [check_optimal_latency(tables / net) for net in nets]
    print(f"\n{HEADER}")
    rows = []
    for row in compare(tables, references):
        rows.append(row)
        print(row)
    print(
        f"\n{len(rows)} answers. At the reference's own latency our optimum equals its value in "
        f"{sum(row.agrees for row in rows)}, priced anew from the raw latencies of the "
        f"merges (same A and S in {sum(row.same_sets for row in rows)}).\n"
        f"At the budget: ours exceeds it in {sum(not row.holds for row in rows)}, the reference in "
        f"{sum(row.over > 0 for row in rows)}, by up to {max(row.over for row in rows):.2f} %."
    )
    return 0 if all(optimal) and all(row.agrees and row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
