"""The weights of a plan's fitted convolutions, solved front to back, and what the whole plan really loses.

Kept convolutions behind a change are fitted once more on the way, see `depthcomp.fitting.compensation`; those that
memory has no room to solve whole stay as they are.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import samples_per_batch, whole_states
from depthcomp.fitting.compensation import STRENGTHS, KeptConvolution, as_images, kept_behind, load_operator
from depthcomp.fitting.divergence import rise_of_loss
from depthcomp.fitting.execution import Stream, record
from depthcomp.fitting.memory import MEMORY_MIB, FitMemory
from depthcomp.fitting.ridge import Positions, RidgeSystem, sample_positions, starting_point
from depthcomp.progress import Progress
from fx_passes import PlacedConvolution, Plan, linearize, merge, placed_convolutions
from fx_passes.affine import AffineConv

__all__ = ["Kept", "Refit", "Refitter", "Unfitted"]

Kept = Literal["none", "nearest", "all"]
"""Which kept convolutions behind a change are refitted, too: none, the first ones behind each change, or all."""

_TARGET = "target"

Pixels = tuple[Positions, Tensor]  # and the tensor's values there (samples, c)


@dataclass(frozen=True, slots=True)
class Refit:
    """A plan carried out.

    Attributes:
        linearized: the plan's linearized graph with the weights found.
        kept: the new operators of kept convolutions there, by node.
    """

    linearized: fx.GraphModule
    kept: Mapping[str, AffineConv]


class Refitter:
    """Refits plans on one set of images; what they need of the original network is computed once.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        calibration: images to fit on and to judge with.
        seed: for the sampled pixels.
        memory_mib: what a fit may take, as for those that were scored.
    """

    def __init__(
        self, gm: fx.GraphModule, calibration: CalibrationSet, *, seed: int = 0, memory_mib: float = MEMORY_MIB
    ) -> None:
        self._gm = gm
        self._memory = FitMemory(calibration.count, memory_mib)
        self._calibration = calibration
        self._seed = seed
        self._pixels: dict[tuple[str, int], list[Pixels]] = {}  # by the target's name and how many in a batch

    def carry_out(
        self, plan: Plan, *, unseen: int | None = None, kept: Kept = "none", progress: Progress | None = None
    ) -> Refit:
        """Return a plan with its fitted convolutions solved front to back.

        Each fit maps the tensor that the compressed network really has at the span's entry to the original
        network's tensor at its end, so that later fits make up for what earlier ones lost.

        Args:
            plan: what to do with the network.
            unseen: a fold that is left out of the fits and only judges how strongly they lean to their prior;
                None for the one that is withheld from all fits, if there is one.
            kept: which kept convolutions behind a change are refitted, too; all of them take many times as long.
            progress: called as (what, done, total).
        """
        linearized = linearize(self._gm, plan)
        order = {node.name: position for position, node in enumerate(linearized.graph.nodes)}
        places: list[PlacedConvolution | KeptConvolution] = [
            *placed_convolutions(linearized, plan), *self._kept(linearized, plan, kept)
        ]  # fmt: skip
        places.sort(key=lambda place: order[place.core])
        self._sample(places)
        compressed, refitted = Stream(linearized, self._calibration.batches), dict[str, AffineConv]()
        for done, place in enumerate(places):
            compressed.advance(max(_read(place), key=order.__getitem__))
            operator = self._solve(place, compressed, unseen)
            if isinstance(place, KeptConvolution):
                load_operator(linearized, place.core, operator)
                refitted[place.core] = operator
            else:
                place.load(operator)
            if progress is not None:
                progress("refitting", done + 1, len(places))
        return Refit(linearized, refitted)

    def loss(self, plan: Plan, *, kept: Kept = "none") -> float:
        """Return the rise of the loss under `plan`, on each judging fold after a refit whose weights have not seen it.

        It is infinite where an output is NaN. `kept` is that of `carry_out`.
        """
        judges = self._calibration.judges
        refits = {f: self.carry_out(plan, unseen=f if judges else None, kept=kept) for f in judges or (0,)}
        networks = {fold: merge(refit.linearized, plan) for fold, refit in refits.items()}
        total, images = 0.0, 0
        labels = self._calibration.judging_labels()
        with torch.no_grad():
            for (fold, batch), wanted, classes in zip(self._calibration.judging(), self._outputs, labels, strict=True):
                total += rise_of_loss(wanted, networks[fold](batch), classes) * len(batch)
                images += len(batch)
        return math.inf if math.isnan(total) else total / images

    @functools.cached_property
    def _outputs(self) -> list[Any]:
        """The original's outputs on the judging batches."""
        with torch.no_grad():
            return [self._gm(batch) for _, batch in self._calibration.judging()]

    def _kept(self, linearized: fx.GraphModule, plan: Plan, kept: Kept) -> list[KeptConvolution]:
        """Return the kept convolutions to refit: those solved whole, and none where no fold judges how far to go."""
        if kept == "none" or not self._calibration.judges:
            return []
        found = kept_behind(linearized, plan, nearest=kept == "nearest")
        return [place for place in found if self._memory.is_whole(place.operator)]

    def _solve(self, place: PlacedConvolution | KeptConvolution, compressed: Stream, unseen: int | None) -> AffineConv:
        system = self._summed(place, compressed)
        stays = isinstance(place, KeptConvolution)
        if stays and not system.is_finite:
            return place.operator
        prior, strengths = (place.operator, STRENGTHS) if stays else (starting_point(place.operator), ())
        matched = [_TARGET] if not stays and whole_states(self._gm, [place.core]) else []
        unseen = self._calibration.withheld if unseen is None else unseen
        if unseen is None:
            judges = self._calibration.judges
            return system.solve([_TARGET], prior, judges=judges, match_variance=matched, strengths=strengths)[0]
        solved = system.solve_without([unseen], [_TARGET], prior, match_variance=matched, strengths=strengths)
        return solved[unseen][0]

    def _summed(self, place: PlacedConvolution | KeptConvolution, compressed: Stream) -> RidgeSystem:
        """Return the equations of a place: from what the compressed network has to what the original had."""
        system = self._memory.system(place.entry, place.operator)
        entries, known = compressed.values(place.entry), self._pixels[self._key(place)]
        other = place.other if isinstance(place, KeptConvolution) else None
        others = itertools.repeat(None) if other is None else compressed.values(other)
        for fold, entry, (positions, pixels), summand in zip(
            self._calibration.folds, entries, known, others, strict=False
        ):
            wanted = pixels if summand is None else pixels - positions.pixels(as_images(summand))
            system.accumulate(as_images(entry), {_TARGET: wanted}, positions, fold=fold)
        return system

    def _sample(self, places: Iterable[PlacedConvolution | KeptConvolution]) -> None:
        """Sample the original's pixels for those places that were not asked for before."""
        missing = {key for place in places if (key := self._key(place)) not in self._pixels}
        for batch in self._calibration.batches if missing else ():
            tensors = record(self._gm, batch, {target for target, _ in missing})
            for target, count in sorted(missing):
                generator = torch.Generator().manual_seed(self._seed + len(self._pixels.get((target, count), ())))
                wanted = as_images(tensors[target])
                positions = sample_positions(wanted, count, generator)
                self._pixels.setdefault((target, count), []).append((positions, positions.pixels(wanted)))

    def _key(self, place: PlacedConvolution | KeptConvolution) -> tuple[str, int]:
        """Return whose pixels a place aims at, and how many of them are sampled in a batch."""
        target = place.target if isinstance(place, KeptConvolution) else place.core
        system = self._memory.system(place.entry, place.operator)
        return target, samples_per_batch(system.unknowns, self._calibration.least_fitted)


class Unfitted(Refitter):
    """A refitter that fits nothing: a plan's weights are what linearizing gives, from which training begins."""

    def carry_out(
        self, plan: Plan, *, unseen: int | None = None, kept: Kept = "none", progress: Progress | None = None
    ) -> Refit:
        """Return the linearized graph of `plan`."""
        return Refit(linearize(self._gm, plan), {})


def _read(place: PlacedConvolution | KeptConvolution) -> list[str]:
    """Return the names of the nodes whose tensors a fit needs."""
    other = place.other if isinstance(place, KeptConvolution) else None
    return [place.entry] if other is None else [place.entry, other]
