"""Benchmark of the importances by fits: their cost, and how well they rank choices and plans (EfficientNet-Lite0).

Images are 224x224. Choices come from the latency table that depthcomp ships for ONNX Runtime, as in a compression, so
nothing is timed. Random plans take a few choices each that do not overlap. The true loss of a plan is
the divergence of the compressed network from the original, on images that the fits have not seen. Kept convolutions
behind a change are refitted where that lowers it; the loss without these refits stands beside it. The true loss of a
choice is that of the network with this choice alone, on a few batches of every fold. All choices are scored, also those
that a compression leaves out as they cannot enter the frontier. Results are printed, and written with --json. True
losses of plans in that file are used again, as no importance changes them: give another file after a change of the
refits.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import PIXELS, pretrained
from photos import CALIBRATION, crops
from scipy.stats import bootstrap, spearmanr

from depthcomp.commands.console import Progress
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.candidate_scorer import CandidateScorer, FittedCandidates
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.scoring import score_choices
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.importance.ways import least
from depthcomp.latency.pricing import Candidate
from depthcomp.methods.candidates import worthwhile
from depthcomp.preparation import Prepared, prepare
from depthcomp.progress import silent
from fx_passes import Plan, SpanChoice
from latency_tables import LatencyTable
from latency_tables.tables.environment import cpu_name

IMPORTANCES = ("curvature", "calibrated")
MOST_CHOICES = 6  # of a random plan
FEW = 3  # choices of a plan that is told apart
JUDGING = 6  # batches for the true losses of choices, the folds in turns
COMPARED_BATCHES = 12  # that plans are refitted and judged on


def candidates_of(prepared: Prepared) -> tuple[list[Candidate], dict[SpanChoice, float]]:
    """Return the choices in the table that save enough to be scored, and what each saves in ms."""
    table = LatencyTable.load(str(files("latency_tables") / "data" / "onnxruntime_epyc.json"))
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


def true_losses(path: Path | None, images: int) -> dict[tuple[int, str], tuple[float, float]]:
    """Return the true losses in a file, with and without refits of kept convolutions, by seed and plan."""
    content = {} if path is None or not path.exists() else json.loads(path.read_text())
    runs = content["runs"] if content.get("images") == images else []
    return {_key(run["seed"], row["choices"]): (row["loss"], row["bare_loss"]) for run in runs for row in run["plans"]}


def _key(seed: int, choices: Iterable[str]) -> tuple[int, str]:
    return seed, ", ".join(choices)


def measured(
    seed: int, images: int, plans: int, known: Mapping[tuple[int, str], tuple[float, float]]
) -> dict[str, Any]:
    """Return what scoring cost for one seed, the losses found, and what random plans sum to and truly lose."""
    per_photo = -(-images // len(CALIBRATION))
    data = crops(CALIBRATION, per_photo, smallest=0.15, seed=seed, jitter=True, **PIXELS)[:images]
    prepared = prepare(pretrained(), None, data, None, seed)
    candidates, savings = candidates_of(prepared)
    print(f"seed {seed}: {len(candidates)} choices, {len(data)} images")
    found = {name: scored(prepared, candidates, savings, name, seed) for name in IMPORTANCES}
    true = true_choices(prepared, candidates, seed)
    for name, record in found.items():
        record["choice_rank_correlation"] = float(
            spearmanr([record["losses"][c] for c in true], [*true.values()]).statistic
        )
        print(f"{name} ranks {len(true)} choices by true loss with {record['choice_rank_correlation']:.3f}")
    refitter = Refitter(prepared.network, prepared.calibration.thinned(COMPARED_BATCHES), seed=seed)
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(plans):
        plan = random_plan(candidates, generator)
        names = [str(choice) for choice in plan]
        sums = {name: sum(record["losses"][choice] for choice in names) for name, record in found.items()}
        loss, bare = known.get(_key(seed, names)) or _true_loss(refitter, plan)
        rows.append({"choices": names, "sums": sums, "loss": loss, "bare_loss": bare})
        print(f"plan {number + 1:2}: {len(plan)} choices, sums {sums}, true loss {loss:7.3f} ({bare:.3f})", flush=True)
    tell(f"{len(rows)} random plans", rows)
    return {
        "seed": seed,
        "true_losses": true,
        "importances": found,
        "rank_correlations": rank_correlations(rows),
        "plans": rows,
    }


def scored(
    prepared: Prepared, candidates: Sequence[Candidate], savings: Mapping[SpanChoice, float], name: str, seed: int
) -> dict[str, Any]:
    """Return the losses that an importance finds, by choice, and what that cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress() as progress:
        losses = score_choices(prepared, candidates, savings, name, seed=seed, progress=progress).losses
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name} took {wall:.0f} s ({cpu:.0f} s of processor time), {peak_gib:.1f} GiB at the peak so far")
    by_name = {str(choice): loss for choice, loss in losses.items()}
    return {"seconds": wall, "processor_seconds": cpu, "peak_gib": peak_gib, "losses": by_name}


def true_choices(prepared: Prepared, candidates: Sequence[Candidate], seed: int) -> dict[str, float]:
    """Return the true loss of each choice alone, with refitted consumers where that lowers it."""
    network, calibration = prepared.network, prepared.calibration
    fitted = FittedCandidates(
        network, calibration, seed=seed, report=silent, memory=FitMemory(calibration.count), refit_kept=True
    )
    judging = judging_batches(calibration)[:JUDGING]
    scorer = CandidateScorer(fitted, judging, functools.partial(TrueLoss, network), ScoreJournal())
    columns = zip(*(list(scorer.losses(candidates, number)) for number in range(scorer.batches)), strict=True)
    return {str(candidate.choice): least(ways) for candidate, ways in zip(candidates, columns, strict=True)}


def _true_loss(refitter: Refitter, plan: Plan) -> tuple[float, float]:
    bare = refitter.loss(plan)
    return min(bare, refitter.loss(plan, kept="all")), bare


def rank_correlations(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlations of sums and losses, over all plans and by the number of their choices."""
    parts = {"all": rows, "up to 3": [r for r in rows if len(r["choices"]) <= FEW]}
    parts["more"] = [r for r in rows if len(r["choices"]) > FEW]
    return {
        part: {name: _correlation(some, name) for name in IMPORTANCES} for part, some in parts.items() if len(some) > 1
    }


def _correlation(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(spearmanr([row["sums"][name] for row in rows], [row["loss"] for row in rows]).statistic)


def tell(which: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the correlations over plans, with the spread over bootstrapped draws."""
    options: dict[str, Any] = {"paired": True, "vectorized": False, "method": "percentile", "rng": 0}
    for name in IMPORTANCES:
        pairs = [row["sums"][name] for row in rows], [row["loss"] for row in rows]
        drawn = bootstrap(pairs, lambda sums, losses: spearmanr(sums, losses).statistic, **options).confidence_interval
        parts = ", ".join(f"{part} {found[name]:.3f}" for part, found in rank_correlations(rows).items())
        print(
            f"{name}, {which}: rank correlation {parts}; 95 % of bootstrapped draws {drawn.low:.2f} to {drawn.high:.2f}"
        )


def main() -> None:
    """Score, draw plans, compare, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = true_losses(options.json, options.images)
    runs = [measured(seed, options.images, options.plans, known) for seed in options.seeds]
    plans = [row for run in runs for row in run["plans"]]
    tell(f"all {len(plans)} plans", plans)
    if options.json is not None:
        content = {
            "network": "efficientnet_lite0", "images": options.images, "threads": options.threads,
            "torch": torch.__version__, "machine": cpu_name(), "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "all": rank_correlations(plans), "runs": runs,
        }  # fmt: skip
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
