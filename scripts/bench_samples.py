"""Benchmark of the number of pixels that a fit samples: EfficientNet-Lite0 on photos.

Some fits of every size are solved with different numbers of pixels for each unknown. Their losses are true ones, on
images that the fits have not seen, relative to the losses with the most pixels. Times are processor seconds of all
fits together, the passes over the images included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib
import numpy as np
import torch
from demo import PIXELS, pretrained
from matplotlib import pyplot as plt
from photos import CALIBRATION, crops

from depthcomp.fitting import sampling
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared, prepare
from latency_tables.tables.environment import cpu_name

PER_UNKNOWN = (10.0, 5.0, 3.0, 2.0, 1.0, 0.5)
JUDGING = 6  # batches, the folds in turns


def fitted(
    prepared: Prepared, candidates: Sequence[Candidate], per_unknown: float, seed: int
) -> tuple[list[float], float]:
    """Return the true losses of candidates fitted on so many pixels for each unknown, and the processor seconds."""
    network, calibration = prepared.network, prepared.calibration
    start = time.process_time()
    with patch.object(sampling, "SAMPLES_PER_UNKNOWN", per_unknown):
        weights = fit_candidates(network, candidates, calibration, seed=seed, memory=FitMemory(calibration.count))
    seconds, losses = time.process_time() - start, np.zeros(len(candidates))
    for batch in judging_batches(calibration)[:JUDGING]:
        judge = TrueLoss(network, batch)
        losses += [judge.loss(candidate, weights[candidate.choice][batch.fold], {}) for candidate in candidates]
    return (losses / JUDGING).tolist(), seconds


def measured(seed: int, images: int, step: int) -> list[dict[str, Any]]:
    """Return the losses and seconds for one seed, by the number of pixels."""
    data = crops(CALIBRATION, -(-images // len(CALIBRATION)), smallest=0.15, seed=seed, jitter=True, **PIXELS)[:images]
    prepared = prepare(pretrained(), None, data, None, seed)
    whole = FitMemory(prepared.calibration.count)
    some = [c for c in prepared.candidates if c.slots and all(whole.is_whole(slot.operator) for slot in c.slots)]
    some = sorted(some, key=lambda candidate: candidate.slots[0].operator.weight[0].numel())[seed % step :: step]
    rows = []
    for per_unknown in PER_UNKNOWN:
        losses, seconds = fitted(prepared, some, per_unknown, seed)
        rows.append({"seed": seed, "per_unknown": per_unknown, "seconds": seconds, "losses": losses})
        ratios = np.array(losses) / rows[0]["losses"]
        print(
            f"seed {seed}, {len(some)} fits, {per_unknown:4} pixels for each unknown: {seconds:4.0f} s, loss "
            f"{np.median(ratios):.3f} times that of {PER_UNKNOWN[0]} in the median, 90 % quantile "
            f"{np.quantile(ratios, 0.9):.3f}", flush=True,
        )  # fmt: skip
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw losses and seconds by the number of pixels."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "samples"  # the same text for the same figures
    figure, axis = plt.subplots(figsize=(6, 4))
    ratios = {
        value: np.concatenate([
            np.divide(row["losses"], base["losses"])
            for row in rows if row["per_unknown"] == value
            for base in rows if base["seed"] == row["seed"] and base["per_unknown"] == PER_UNKNOWN[0]
        ])
        for value in PER_UNKNOWN
    }  # fmt: skip
    low, middle, high = (np.array([np.quantile(ratios[v], share) for v in PER_UNKNOWN]) for share in (0.1, 0.5, 0.9))
    axis.fill_between(PER_UNKNOWN, low, high, alpha=0.2, label="10 to 90 % of the fits")
    axis.plot(PER_UNKNOWN, middle, marker="o", label="median of the fits")
    axis.set(xscale="log", xlabel="sampled pixels for each unknown", ylabel=f"loss, relative to {PER_UNKNOWN[0]:g}")
    axis.set_xticks(PER_UNKNOWN, [f"{value:g}" for value in PER_UNKNOWN], minor=False)
    seconds = axis.twinx()
    means = [np.mean([row["seconds"] for row in rows if row["per_unknown"] == value]) for value in PER_UNKNOWN]
    seconds.plot(PER_UNKNOWN, means, color="grey", linestyle=":", label="processor seconds")
    seconds.set(ylabel="processor seconds of all fits", ylim=(0, None))
    handles = [*axis.get_legend_handles_labels()[0], *seconds.get_legend_handles_labels()[0]]
    axis.legend(handles, [handle.get_label() for handle in handles], loc="upper center")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Fit, judge, print, write and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=304)
    parser.add_argument("--step", type=int, default=8, help="take every so-manieth fit, in the order of unknowns")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/samples.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for seed in options.seeds for row in measured(seed, options.images, options.step)]
    content = {
        "network": "efficientnet_lite0", "images": options.images, "threads": options.threads,
        "torch": torch.__version__, "machine": cpu_name(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    plot(rows, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
