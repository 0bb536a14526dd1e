"""What the default importance costs, and how well its sums rank whole plans: EfficientNet-Lite0 at 224, 256 images.

Choices are those that a compression would score by the latency table that depthcomp ships for ONNX Runtime, so nothing
is timed. Random plans take a few choices each that do not overlap; the true loss of a plan is the divergence of its
refitted network from the original on images that the fits have not seen. Prints, and writes with --json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from demo import PIXELS, pretrained
from photos import CALIBRATION, crops
from scipy.stats import spearmanr

from depthcomp.commands.console import Progress
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.config import CalibratedImportance
from depthcomp.importance.scoring import score_choices
from depthcomp.offer import worthwhile
from depthcomp.preparation import Prepared, prepare
from depthcomp.pricing import Candidate
from fx_passes import Plan, SpanChoice
from latency_tables import LatencyTable

MOST_CHOICES = 6  # of a random plan
COMPARED_BATCHES = 12  # that plans are refitted and judged on


def offered(prepared: Prepared) -> tuple[list[Candidate], dict[SpanChoice, float]]:
    """Return the choices in the table that save enough to be scored, and what each saves in ms."""
    table = LatencyTable.load(str(files("latency_tables") / "data" / "onnxruntime_epyc.json"))
    known = [c for c in prepared.candidates if c.signature is None or c.signature in table]
    offer = worthwhile(replace(prepared, candidates=known), table)
    return offer.candidates, offer.savings_ms


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


def main() -> None:
    """Score, draw plans, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    per_photo = -(-options.images // len(CALIBRATION))
    data = crops(CALIBRATION, per_photo, smallest=0.15, seed=options.seed, jitter=True, **PIXELS)[: options.images]
    prepared = prepare(pretrained(), None, data, None, options.seed)
    candidates, savings = offered(prepared)
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress() as progress:
        scored = score_choices(
            prepared, candidates, savings, CalibratedImportance(), seed=options.seed, progress=progress
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(candidates)} choices, {len(data)} images, {options.threads} threads")
    print(f"importance took {wall:.0f} s ({cpu:.0f} s of processor time), {peak_gib:.1f} GiB at the peak")
    refitter = Refitter(prepared.network, prepared.calibration.thinned(COMPARED_BATCHES), seed=options.seed)
    generator = np.random.default_rng(options.seed)
    rows = []
    for number in range(options.plans):
        plan = random_plan(candidates, generator)
        summed = sum(scored.losses[choice] for choice in plan)
        rows.append({"choices": [asdict(choice) for choice in plan], "sum": summed, "loss": refitter.loss(plan)})
        print(
            f"plan {number + 1:2}: {len(plan)} choices, sum {summed:7.3f}, true loss {rows[-1]['loss']:7.3f}",
            flush=True,
        )
    correlation = float(spearmanr([row["sum"] for row in rows], [row["loss"] for row in rows]).statistic)
    print(f"rank correlation of summed importance and true loss over {len(rows)} random plans: {correlation:.3f}")
    if options.json is not None:
        content = {
            "network": "efficientnet_lite0", "images": len(data), "seed": options.seed, "threads": options.threads,
            "torch": torch.__version__, "choices": len(candidates), "seconds": wall, "processor_seconds": cpu,
            "peak_gib": peak_gib, "rank_correlation": correlation, "plans": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
