"""Benchmark of fits in little memory, with fewer patterns than kernel pixels: EfficientNet-Lite0 on photos.

Fits that are solved whole by default are solved again for two thirds, half, a third and a fifth as many unknowns.
Errors are measured on images that the fit has not seen, relative to the variance of the target. They are printed with
the processor seconds of sums and solution.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterable

import torch
from demo import PIXELS, pretrained
from photos import CALIBRATION, crops
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.execution import record
from depthcomp.fitting.ridge import RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import prepare
from fx_passes import Slot
from fx_passes.affine import AffineConv

SHARES = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 5)  # of the unknowns
UNSEEN = 2  # the fold


def chosen(candidates: Iterable[Candidate], least: int, most: int) -> list[Slot]:
    """Return the slot of one fit of several layers for each size and stride that has so many unknowns."""
    found: dict[tuple[int, tuple[int, int]], list[Slot]] = {}
    for candidate in candidates:
        for slot in candidate.slots if len(candidate.span.nodes) >= 4 else ():
            unknowns = slot.operator.weight[0].numel()
            if least <= unknowns <= most and slot.operator.kernel[0] > 1:
                found.setdefault((unknowns, slot.operator.stride), []).append(slot)
    return [several[len(several) // 2] for _, several in sorted(found.items())]


def solved(network: fx.GraphModule, data: CalibrationSet, slot: Slot, count: int) -> tuple[AffineConv, float]:
    """Return a fit for so many patterns that has not seen the fold, and the processor seconds of sums and solution."""
    operator, seconds = slot.operator, 0.0
    system = RidgeSystem(design_of(slot.entry, operator), operator.kernel, operator.in_channels, count=count)
    for number, (batch, fold) in enumerate(zip(data.batches, data.folds, strict=True)):
        tensors = record(network, batch, {slot.entry, slot.target})
        start = time.process_time()
        samples = samples_per_batch(system.unknowns, data.least_fitted)
        positions = sample_positions(tensors[slot.target], samples, torch.Generator().manual_seed(number))
        pixels = positions.pixels(tensors[slot.target])
        system.accumulate(tensors[slot.entry], {slot.target: pixels}, positions, fold=fold)
        seconds += time.process_time() - start
    start = time.process_time()
    found = system.solve_without((UNSEEN,), [slot.target], starting_point(operator), match_variance=())[UNSEEN][0]
    return found, seconds + time.process_time() - start


def error(network: fx.GraphModule, batches: Iterable[Tensor], slot: Slot, operator: AffineConv) -> float:
    """Return the squared error of a fit on images, relative to the target's variance."""
    wrong, wanted = [], []
    for batch in batches:
        tensors = record(network, batch, {slot.entry, slot.target})
        entry, target = tensors[slot.entry], tensors[slot.target]
        wrong.append((operator.to(entry)(entry) - target).square().transpose(0, 1).flatten(1))
        wanted.append(target.transpose(0, 1).flatten(1))
    return float(
        torch.cat(wrong, 1).sum() / torch.cat(wanted, 1).var(1, correction=0).sum() / sum(w.shape[1] for w in wanted)
    )


def main() -> None:
    """Solve, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--least", type=int, default=700, help="unknowns of the smallest fit")
    parser.add_argument("--most", type=int, default=3000, help="unknowns of the largest fit")
    parser.add_argument("--crops", type=int, default=8, help="of each photo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = crops(CALIBRATION, options.crops, smallest=0.15, seed=options.seed, jitter=True, **PIXELS)
    prepared = prepare(pretrained(), None, images, None, options.seed)
    network, data = prepared.network.gm, prepared.calibration
    worse: dict[float, list[float]] = {share: [] for share in SHARES}
    for slot in chosen(prepared.candidates, options.least, options.most):
        operator = slot.operator
        pixels, cells, whole = math.prod(operator.kernel), [], math.nan
        for share in SHARES:
            count = max(round(share * pixels), 1)
            fitted, seconds = solved(network, data, slot, count)
            found = error(network, data.fold(UNSEEN), slot, fitted)
            whole = found if share == 1 else whole
            worse[share].append(found / whole)
            cells.append(f"{count:2} {found:.4f} {seconds:4.1f} s")
        size = f"{operator.in_channels:4} channels {operator.kernel[0]}x{operator.kernel[1]}"
        print(
            f"{size}  {slot.entry} to {slot.target}: patterns, error, time " + " | ".join(cells),
            flush=True,
        )
    for share, ratios in worse.items():
        middle, largest = statistics.median(ratios), max(ratios)
        print(f"{share:.0%} of the unknowns: error {middle:.2f} times that of all in the median, {largest:.2f} at most")
    print(f"over {len(worse[1])} fits, {len(images)} images, seed {options.seed}")


if __name__ == "__main__":
    main()
