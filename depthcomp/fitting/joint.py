"""Losses of plans without a refit: each choice keeps the weights that it got alone, and all run together.

A plan's sum misses how its choices act on each other: changes of neighbouring blocks lose more together than alone. A
forward of the whole changed network on a few images sees that, and costs far less than a refit of the plan.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from depthcomp.data.calibration import CalibrationSet
from depthcomp.data.inputs import Inputs
from depthcomp.fitting.candidates import Weights, fit_candidates
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.consumers import Refits, refit_consumers
from depthcomp.fitting.memory import MEMORY_MIB, FitMemory
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, Plan, Slot, SpanChoice
from fx_passes.affine import AffineConv
from fx_passes.slot_layers import load_operator
from fx_passes.trial import trial_of

__all__ = ["JointLosses"]

JUDGING = 6  # batches, the folds in turns


class JointLosses:
    """Judge of plans whose choices are fitted alone.

    Args:
        network: the captured network, in evaluation mode, its norms folded; it is not changed.
        candidates: the candidates that plans are made of.
        calibration: images to fit on and to judge with; each fold is judged with weights that have not seen it.
        seed: seed of the sampled pixels.
        memory_mib: memory that fits may use, in MiB.
        profiting: the choices whose first kept layers behind them are refitted, too; None for all.
        channels: decides which inner channels stay; None to look at the images for that.
        progress: called as (what, done, total).
    """

    def __init__(
        self,
        network: CapturedNetwork,
        candidates: Sequence[Candidate],
        calibration: CalibrationSet,
        *,
        seed: int = 0,
        memory_mib: float = MEMORY_MIB,
        profiting: Set[SpanChoice] | None = None,
        channels: ChannelOrders | None = None,
        progress: Progress = silent,
    ) -> None:
        self._network, self._calibration = network, calibration
        self._candidates = {candidate.choice: candidate for candidate in candidates}
        self._seed, self._profiting, self._report = seed, profiting, progress
        self._memory = FitMemory(calibration.count, memory_mib)
        self._channels = channels or ChannelOrders(
            network, calibration, seed=seed, memory=self._memory, progress=progress
        )
        self._weights: dict[SpanChoice, Mapping[int, Weights]] = {}
        self._consumers: Refits = {}

    def fit(self, plans: Iterable[Plan]) -> None:
        """Fit the choices of plans that are not fitted yet, in few passes over the images."""
        choices = {choice for plan in plans for choice in plan} - self._weights.keys()
        if not choices:
            return
        some = [candidate for choice, candidate in self._candidates.items() if choice in choices]
        options: dict[str, Any] = {"seed": self._seed, "memory": self._memory, "progress": self._report}
        self._weights |= fit_candidates(self._network, some, self._calibration, channels=self._channels, **options)
        profiting = [c for c in some if self._profiting is None or c.choice in self._profiting]
        if profiting and self._calibration.judges:
            self._consumers |= refit_consumers(
                self._network, profiting, self._weights, self._calibration, self._calibration.judges, **options
            )

    def loss(self, plan: Plan, *, refitted: bool) -> float:
        """Return the mean rise of the loss under a plan on the judging images; infinite where an output is NaN.

        Args:
            plan: the plan.
            refitted: whether to use refitted kept layers behind profiting choices.
        """
        self.fit([plan])
        total, images, judging = 0.0, 0, self._calibration.loss
        for fold, batches in self._judging.items():
            decided = self._channels.decided(plan, fold if self._calibration.judges else None)
            operators = self._operators(plan, fold, refitted=refitted)
            trial = trial_of(self._network, decided, operators)
            for name, operator in operators.items():
                load_operator(trial, name, operator)
            with torch.no_grad():
                for batch, wanted, classes in batches:
                    total += judging.rise(wanted, batch.through(trial.gm), batch, classes) * len(batch)
                    images += len(batch)
        return math.inf if math.isnan(total) else total / images

    def _operators(self, plan: Plan, fold: int, *, refitted: bool) -> dict[str, AffineConv]:
        """Return the operators of a plan's slots, and of refitted kept layers, that have not seen a fold, by node."""
        some = [self._candidates[choice] for choice in plan]
        changed = {name for candidate in some for name in candidate.span.nodes}
        operators: dict[str, AffineConv] = {}
        for candidate in some if refitted else ():
            consumers = self._consumers.get((candidate.choice, fold), {})
            operators |= {name: operator for name, operator in consumers.items() if name not in changed}
        for candidate in some:
            weights = self._weights[candidate.choice][fold]
            operators |= {slot.node: self._of_what_stays(slot, weights[slot.node], fold) for slot in candidate.slots}
        return operators

    def _of_what_stays(self, slot: Slot, operator: AffineConv, fold: int) -> AffineConv:
        """Return a slot's operator for the channels that stay without a fold."""
        if not slot.widths:
            return operator
        unseen = fold if self._calibration.judges else None
        read, made = (self._channels.left(name, slot.widths, unseen) for name in (slot.entry, slot.node))
        return replace(operator, weight=operator.weight[made][:, read], bias=operator.bias[made])

    @functools.cached_property
    def _judging(self) -> dict[int, list[tuple[Inputs, Any, Tensor | None]]]:
        """The images, original outputs and labels of each judging batch, by fold."""
        turns = zip(self._calibration.judging(), self._calibration.judging_labels(), strict=True)
        found: dict[int, list[tuple[Inputs, Any, Tensor | None]]] = {}
        with torch.no_grad():
            for (fold, batch), classes in itertools.islice(turns, JUDGING):
                found.setdefault(fold, []).append((batch, batch.through(self._network.gm), classes))
        return found
