"""The weights of a plan's fitted convolutions, solved front to back, and what the whole plan really loses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from depthcomp.calibration import CalibrationSet
from depthcomp.execution import Stream, record
from depthcomp.fit import Positions, RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.importance import rise_of_loss, samples_per_batch, whole_states
from depthcomp.progress import Progress
from fx_passes import PlacedConvolution, Plan, linearize, merge, placed_convolutions
from fx_passes.affine import AffineConv

__all__ = ["Refitter", "Unfitted"]

Pixels = tuple[Positions, Tensor]  # and the tensor's values there (samples, c)


class Refitter:
    """Refits plans on one set of images; what they need of the original network is computed once.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        calibration: images to fit on and to judge with.
        seed: for the sampled pixels.
    """

    def __init__(self, gm: fx.GraphModule, calibration: CalibrationSet, *, seed: int = 0) -> None:
        self._gm = gm
        self._calibration = calibration
        self._seed = seed
        self._pixels: dict[tuple[str, int], list[Pixels]] = {}

    def refit(self, plan: Plan, *, unseen: int | None = None, progress: Progress | None = None) -> fx.GraphModule:
        """Return the linearized graph of `plan`, its fitted convolutions solved front to back.

        Each fit maps the tensor that the compressed network really has at the span's entry to the original
        network's tensor at its end, so that later fits make up for what earlier ones lost.

        Args:
            plan: what to do with the network.
            unseen: a fold that is left out of the fits and only judges how strongly they lean to their prior;
                None for the one that is withheld from all fits, if there is one.
            progress: called as (what, done, total).
        """
        linearized = linearize(self._gm, plan)
        placed = placed_convolutions(linearized, plan)
        self._sample(placed)
        compressed = Stream(linearized, self._calibration.batches)
        for done, place in enumerate(placed):
            compressed.advance(place.entry)
            place.load(self._solve(place, compressed, unseen))
            if progress is not None:
                progress("refitting", done + 1, len(placed))
        return linearized

    def loss(self, plan: Plan) -> float:
        """Return the divergence under `plan`, on each judging fold after a refit whose weights have not seen it."""
        judges = self._calibration.judges
        networks = {fold: merge(self.refit(plan, unseen=fold if judges else None), plan) for fold in judges or (0,)}
        total, images = 0.0, 0
        labels = self._calibration.judging_labels()
        with torch.no_grad():
            for (fold, batch), wanted, classes in zip(self._calibration.judging(), self._outputs, labels, strict=True):
                total += rise_of_loss(wanted, networks[fold](batch), classes) * len(batch)
                images += len(batch)
        return total / images

    @functools.cached_property
    def _outputs(self) -> list[Any]:
        """The original's outputs on the judging batches."""
        with torch.no_grad():
            return [self._gm(batch) for _, batch in self._calibration.judging()]

    def _solve(self, place: PlacedConvolution, compressed: Stream, unseen: int | None) -> AffineConv:
        system = _system(place)
        known = self._pixels[self._key(place)]
        for fold, entry, (positions, pixels) in zip(
            self._calibration.folds, compressed.values(place.entry), known, strict=True
        ):
            system.accumulate(entry, {place.core: pixels}, positions, fold=fold)
        targets, prior, matched = [place.core], starting_point(place.operator), whole_states(self._gm, [place.core])
        unseen = self._calibration.withheld if unseen is None else unseen
        if unseen is None:
            return system.solve(targets, prior, judges=self._calibration.judges, match_variance=matched)[0]
        return system.solve_without([unseen], targets, prior, match_variance=matched)[unseen][0]

    def _sample(self, placed: Sequence[PlacedConvolution]) -> None:
        """Sample the original's pixels for those places that were not asked for before."""
        missing = {key for place in placed if (key := self._key(place)) not in self._pixels}
        for batch in self._calibration.batches if missing else ():
            tensors = record(self._gm, batch, {core for core, _ in missing})
            for core, count in sorted(missing):
                generator = torch.Generator().manual_seed(self._seed + len(self._pixels.get((core, count), ())))
                positions = sample_positions(tensors[core], count, generator)
                self._pixels.setdefault((core, count), []).append((positions, positions.pixels(tensors[core])))

    def _key(self, place: PlacedConvolution) -> tuple[str, int]:
        """Return whose pixels a place aims at, and how many of them are sampled in a batch."""
        return place.core, samples_per_batch(_system(place).unknowns, self._calibration.least_fitted)


class Unfitted(Refitter):
    """A refitter that fits nothing: a plan's weights are what linearizing gives, from which training begins."""

    def refit(self, plan: Plan, *, unseen: int | None = None, progress: Progress | None = None) -> fx.GraphModule:
        """Return the linearized graph of `plan`."""
        return linearize(self._gm, plan)


def _system(place: PlacedConvolution) -> RidgeSystem:
    return RidgeSystem(design_of(place.entry, place.operator), place.operator.kernel, place.operator.in_channels)
