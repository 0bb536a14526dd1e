"""Benchmark of the importances by fits: their cost, and how well they rank choices and plans.

Networks are those of `importance_cases.py`. Choices come from a latency table, as in a compression, so nothing is
timed. Random plans take a few choices each that do not overlap. The true loss of a plan is the divergence of the
compressed network from the original, on images that the fits have not seen. Kept convolutions behind a change are
refitted where that lowers it; the loss without these refits stands beside it. "together" is the loss of a forward of
all choices of a plan, each fitted alone, by which a search compares plans. The true loss of a choice is that of the
network with this choice alone, on a few batches of every fold. "single" sums these: as a score of choices, no
importance knows them better. All choices are scored, also those that a compression leaves out as they cannot enter the
frontier. Results are printed, and added to the file of --json after each seed. True
losses in that file are used again, as no importance changes them: give another file after a change of the fits.

    python scripts/bench_importance.py --json docs/importance.json --seeds 3 4 5
    python scripts/bench_importance.py --json docs/importance.json --seeds 0 1 2 --plans 0 --importances curvature
    python scripts/bench_importance.py --json docs/importance.json --network segmentation --data DATA --cache CACHE
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from importance_cases import CASES, Case, Source
from scipy.stats import bootstrap, spearmanr

from depthcomp.fitting.joint import JointLosses
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.candidate_scorer import CandidateScorer
from depthcomp.importance.fitted_candidates import FittedCandidates
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.scoring import score_choices
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.importance.ways import Ways, least, profiting
from depthcomp.latency.pricing import Candidate
from depthcomp.methods.candidates import worthwhile
from depthcomp.preparation import Prepared, prepare
from depthcomp.progress import silent
from depthcomp.search import search
from fx_passes import Plan, SpanChoice
from latency_tables.tables.environment import cpu_name

IMPORTANCES = ("curvature", "calibrated")
MOST_CHOICES = 6  # of a random plan
FEW = 3  # choices of a plan that is told apart
JUDGING = 6  # batches for the true losses of choices, the folds in turns
COMPARED_BATCHES = 12  # that plans are refitted and judged on


def candidates_of(case: Case, prepared: Prepared) -> tuple[list[Candidate], dict[SpanChoice, float]]:
    """Return the choices in the table that save enough to be scored, and what each saves in ms."""
    table = case.table(prepared)
    known = [c for c in prepared.candidates if all(signature in table for signature in c.signatures)]
    priced = worthwhile(replace(prepared, candidates=known), table)
    return priced.candidates, priced.savings_ms


def random_plan(candidates: Sequence[Candidate], generator: np.random.Generator) -> Plan:
    """Return a plan of one to six random choices whose spans do not overlap, in the graph's order."""
    wanted, taken, chosen = int(generator.integers(1, MOST_CHOICES + 1)), set[str](), []
    for index in generator.permutation(len(candidates)):
        candidate = candidates[index]
        if taken.isdisjoint(candidate.span.nodes):
            taken.update(candidate.span.nodes)
            chosen.append(int(index))
        if len(chosen) == wanted:
            break
    return Plan.of(candidates[index].choice for index in sorted(chosen))


def measured(
    network: str, source: Source, importances: Sequence[str], plans: int, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what scoring cost for one seed, the losses found, and what random plans sum to and truly lose.

    Args:
        network: a key of CASES.
        source: the images.
        importances: names of the importances to score with.
        plans: number of random plans.
        before: an earlier run with this seed and these images, or nothing. Its true losses and its other importances
            are taken from there.
    """
    case, seed = CASES[network], source.seed
    prepared = prepare(case.model(source), None, case.data(source), None, seed)
    candidates, savings = candidates_of(case, prepared)
    print(f"{network}, seed {seed}: {len(candidates)} choices, {source.images} images")
    new = {name: scored(prepared, candidates, savings, name, seed) for name in importances}
    found = before.get("importances", {}) | new
    ways = {} if before else true_choices(prepared, candidates, seed)
    true = before.get("true_losses") or {str(choice): least(several) for choice, several in ways.items()}
    for name, record in found.items():
        record["choice_rank_correlation"] = float(
            spearmanr([record["losses"][c] for c in true], [*true.values()]).statistic
        )
        print(f"{name} ranks {len(true)} choices by true loss with {record['choice_rank_correlation']:.3f}", flush=True)
    rows = before.get("plans") or true_plans(prepared, candidates, plans, profiting(ways), seed)
    for row in rows:
        row["sums"] = {name: sum(record["losses"][c] for c in row["choices"]) for name, record in found.items()}
        row["sums"] |= {"single": sum(true[c] for c in row["choices"]), "together": row["together"]}
    tell(f"{len(rows)} random plans", rows)
    return {
        "network": network, "seed": seed, "images": source.images, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "machine": cpu_name(), "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "true_losses": true, "importances": found, "rank_correlations": rank_correlations(rows), "plans": rows,
    }  # fmt: skip


def true_plans(
    prepared: Prepared, candidates: Sequence[Candidate], count: int, profiting: frozenset[SpanChoice], seed: int
) -> list[dict[str, Any]]:
    """Return random plans with their true losses: refitted as a compression would, without refits, and together."""
    refitter = Refitter(prepared.network, prepared.calibration.thinned(COMPARED_BATCHES), seed=seed)
    judging = prepared.calibration.thinned(search.COMPARED_BATCHES)
    joint = JointLosses(prepared.network, candidates, judging, seed=seed, profiting=profiting)
    generator, rows = np.random.default_rng(seed), []
    plans = [random_plan(candidates, generator) for _ in range(count)]
    joint.fit(plans)
    for number, plan in enumerate(plans):
        (loss, bare), together = _true_loss(refitter, plan), joint.loss(plan, refitted=True)
        rows.append({"choices": list(map(str, plan)), "loss": loss, "bare_loss": bare, "together": together})
        print(f"plan {number + 1:2}: {len(plan)} choices, true loss {loss:.3f} ({bare:.3f}, together {together:.3f})")
    return rows


def scored(
    prepared: Prepared, candidates: Sequence[Candidate], savings: Mapping[SpanChoice, float], name: str, seed: int
) -> dict[str, Any]:
    """Return the losses that an importance finds, by choice, and what that cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    losses = score_choices(prepared, candidates, savings, name, seed=seed).losses
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name} took {wall:.0f} s ({cpu:.0f} s of processor time), {peak_gib:.1f} GiB at the peak so far")
    by_name = {str(choice): loss for choice, loss in losses.items()}
    return {"seconds": wall, "processor_seconds": cpu, "peak_gib": peak_gib, "losses": by_name}


def true_choices(prepared: Prepared, candidates: Sequence[Candidate], seed: int) -> dict[SpanChoice, list[Ways]]:
    """Return the true losses of each choice alone, without and with refitted consumers."""
    network, calibration = prepared.network, prepared.calibration
    fitted = FittedCandidates(
        network, calibration, seed=seed, report=silent, memory=FitMemory(calibration.count), refit_kept=True
    )
    judging = judging_batches(calibration)[:JUDGING]
    scorer = CandidateScorer(fitted, judging, functools.partial(TrueLoss, network), ScoreJournal())
    scorer.fit(candidates, frozenset())
    columns = zip(*(list(scorer.losses(candidates, number)) for number in range(scorer.batches)), strict=True)
    return {candidate.choice: list(ways) for candidate, ways in zip(candidates, columns, strict=True)}


def _true_loss(refitter: Refitter, plan: Plan) -> tuple[float, float]:
    bare = refitter.loss(plan)
    return min(bare, refitter.loss(plan, kept="all")), bare


def rank_correlations(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlations of sums and losses, over all plans and by the number of their choices."""
    parts = {"all": rows, "up to 3": [r for r in rows if len(r["choices"]) <= FEW]}
    parts["more"] = [r for r in rows if len(r["choices"]) > FEW]
    return {
        part: {name: _correlation(some, name) for name in some[0]["sums"]}
        for part, some in parts.items()
        if len(some) > 1
    }


def _correlation(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(spearmanr([row["sums"][name] for row in rows], [row["loss"] for row in rows]).statistic)


def tell(which: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the correlations over plans, with the spread over bootstrapped draws."""
    options: dict[str, Any] = {"paired": True, "vectorized": False, "method": "percentile", "rng": 0}
    correlations = rank_correlations(rows)
    for name in rows[0]["sums"] if len(rows) > 1 else ():
        pairs = [row["sums"][name] for row in rows], [row["loss"] for row in rows]
        drawn = bootstrap(pairs, lambda sums, losses: spearmanr(sums, losses).statistic, **options).confidence_interval
        parts = ", ".join(f"{part} {found[name]:.3f}" for part, found in correlations.items())
        print(
            f"{name}, {which}: rank correlation {parts}; 95 % of bootstrapped draws {drawn.low:.2f} to {drawn.high:.2f}"
        )


def earlier(runs: Sequence[dict[str, Any]], network: str, source: Source, plans: int) -> dict[str, Any]:
    """Return the run of a network with the same images and at least as many plans, or nothing."""
    wanted = network, source.seed, source.images
    alike = (run for run in runs if (run["network"], run["seed"], run["images"]) == wanted)
    return next((run for run in alike if len(run["plans"]) >= plans), {})


def written(path: Path, run: dict[str, Any]) -> None:
    """Add a run to a file, in place of an earlier one of its network and seed."""
    kept = [other for other in runs_in(path) if (other["network"], other["seed"]) != (run["network"], run["seed"])]
    runs = sorted([*kept, run], key=lambda each: (each["network"], each["seed"]))
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def runs_in(path: Path | None) -> list[dict[str, Any]]:
    """Return the runs in a file, none where there is no file."""
    return [] if path is None or not path.exists() else json.loads(path.read_text())["runs"]


def main() -> None:
    """Score, draw plans, compare, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=CASES, default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--importances", nargs="+", choices=IMPORTANCES, default=IMPORTANCES)
    parser.add_argument("--data", type=Path, default=Path("data"), help="Fashion-MNIST, or where to download it to")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="for networks trained on it")
    parser.add_argument("--json", type=Path, help="file of all runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = []
    for seed in options.seeds:
        source = Source(options.images, seed, options.data, options.cache)
        before = earlier(runs_in(options.json), options.network, source, options.plans)
        runs.append(measured(options.network, source, options.importances, options.plans, before))
        if options.json is not None:
            written(options.json, runs[-1])
    plans = [row for run in runs for row in run["plans"]]
    tell(f"all {len(plans)} plans", plans)


if __name__ == "__main__":
    main()
