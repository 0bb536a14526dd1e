"""Refit of a whole plan: its slots solved front to back, and the loss of the result.

The slots are the plan's new convolutions and the kept layers behind its changes (`depthcomp.fitting.kept_slots`). A
kept layer whose system exceeds the memory stays as it is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import whole_states
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.execution import Stream, record
from depthcomp.fitting.expectation import Expectation, expectation_of
from depthcomp.fitting.kept_slots import kept_behind, kept_slot, nearest_behind
from depthcomp.fitting.leaning import prior_of, strengths_of
from depthcomp.fitting.memory import MEMORY_MIB, FitMemory
from depthcomp.fitting.ridge import Positions, RidgeSystem, sample_positions
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.progress import Progress
from fx_passes import CapturedNetwork, Plan, Slot, SpanChoice, linearize, merge
from fx_passes.affine import AffineConv
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.slot_layers import as_images, load_operator

__all__ = ["Kept", "Refit", "Refitter", "Unfitted"]

Kept = Literal["none", "nearest", "all"]
"""Kept layers to refit: none, the first ones behind changes that profit from it, or all behind a change."""

_TARGET = "target"

Pixels = tuple[Positions, Tensor]  # positions, and a tensor's values there (samples, c)


@dataclass(frozen=True, slots=True)
class Refit:
    """A refitted plan.

    Attributes:
        plan: the plan, with the inner channels that stay.
        linearized: the plan's linearized graph with the solved weights.
        solved: the solved operators, by node.
    """

    plan: Plan
    linearized: fx.GraphModule
    solved: Mapping[str, AffineConv]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything that decides a slot's solution: equal inputs give equal solutions in all plans.

    Attributes:
        layer: the slot's tensors and geometry, and whether it is a kept layer.
        unseen: the fold that the fit does not see.
        choices: the choices before it.
        solved: the names of the slots before it.
    """

    layer: tuple[object, ...]
    unseen: int | None
    choices: frozenset[SpanChoice]
    solved: frozenset[str]

    @classmethod
    def of(cls, slot: Slot, unseen: int | None, linearized: GraphFacts, plan: Plan, slots: Sequence[Slot]) -> _Inputs:
        """Return the inputs of a slot of a plan's linearized graph."""
        before = _ancestors(linearized.nodes[name] for name in slot.reads)
        operator, tensors = slot.operator, (slot.node, slot.entry, slot.target, slot.other)
        layer = (*tensors, slot.kept, slot.widths, tuple(operator.weight.shape), operator.stride, operator.padding)
        choices = frozenset(choice for choice in plan if choice.exit in before)
        return cls(layer, unseen, choices, frozenset(each.node for each in slots if each.node in before))


def _ancestors(nodes: Iterable[fx.Node]) -> set[str]:
    """Return the names of nodes and of all nodes that they depend on."""
    pending = list(nodes)
    found = {node.name for node in pending}
    while pending:
        for source in pending.pop().all_input_nodes:
            if source.name not in found:
                found.add(source.name)
                pending.append(source)
    return found


class Refitter:
    """Refits plans on one set of images.

    The original network's tensors, and fits with equal inputs, are computed once for all plans.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        calibration: images to fit on and to judge with.
        seed: seed of the sampled pixels.
        memory_mib: memory that fits may use, in MiB; give the value that the choices were scored with.
        profiting: the choices whose loss falls where the first kept layers behind them are refitted, too; None for all.
        channels: decides which inner channels stay; None to look at the images for that.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        calibration: CalibrationSet,
        *,
        seed: int = 0,
        memory_mib: float = MEMORY_MIB,
        profiting: Set[SpanChoice] | None = None,
        channels: ChannelOrders | None = None,
    ) -> None:
        self._network = network
        self._profiting = profiting
        self._memory = FitMemory(calibration.count, memory_mib)
        self._channels = channels or ChannelOrders(network, calibration, seed=seed, memory=self._memory)
        self._calibration = calibration
        self._seed = seed
        self._pixels: dict[tuple[str, int, int], list[Pixels]] = {}  # by target, samples in a batch, axis
        self._solved: dict[_Inputs, AffineConv] = {}  # plans share the fits whose inputs are equal
        self._judged: dict[tuple[Plan, Kept, int], tuple[float, int]] = {}

    def carry_out(
        self, plan: Plan, *, unseen: int | None = None, kept: Kept = "none", progress: Progress | None = None
    ) -> Refit:
        """Solve a plan's slots front to back and return the refitted plan.

        Each fit maps the compressed network's tensor at a slot's entry to the original network's tensor at its
        target. So later fits correct the errors of earlier ones.

        Args:
            plan: the plan.
            unseen: a fold that the fits do not see; it only chooses how strongly they lean to their prior. None for
                the fold that is withheld from all fits, if any.
            kept: which kept layers to refit, too; "all" takes many times as long.
            progress: called as (what, done, total).
        """
        plan = self._channels.decided(plan, unseen)
        linearized = GraphFacts(linearize(self._network, plan))
        slots = [*self._new(linearized, plan), *self._kept(linearized, plan, kept)]
        slots.sort(key=lambda slot: linearized.order[slot.node])
        keys = [_Inputs.of(slot, unseen, linearized, plan, slots) for slot in slots]
        self._sample(slot for slot, key in zip(slots, keys, strict=True) if key not in self._solved)
        compressed, solved = Stream(linearized.gm, self._calibration.batches), dict[str, AffineConv]()
        for done, (slot, key) in enumerate(zip(slots, keys, strict=True)):
            if key not in self._solved:
                compressed.advance(max(slot.reads, key=linearized.order.__getitem__))
                self._solved[key] = self._solve(slot, compressed, unseen)
            solved[slot.node] = self._solved[key]
            load_operator(linearized, slot.node, solved[slot.node])
            if progress is not None:
                progress("refitting", done + 1, len(slots))
        return Refit(plan, linearized.gm, solved)

    def loss(self, plan: Plan, *, kept: Kept = "none", folds: int | None = None) -> float:
        """Return the mean rise of the loss under `plan` on the judging images; infinite where an output is NaN.

        Each judging fold has a refit of its own that has not seen it, and is judged once.

        Args:
            plan: the plan.
            kept: as for `carry_out`.
            folds: number of folds to judge on; None for all.
        """
        kept = "none" if kept == "nearest" and not self._profiting_of(plan) else kept
        judged = [self._judge(plan, kept, fold) for fold in (self._calibration.judges or (0,))[:folds]]
        total, images = (sum(part) for part in zip(*judged, strict=True))
        return math.inf if math.isnan(total) else total / images

    def _judge(self, plan: Plan, kept: Kept, fold: int) -> tuple[float, int]:
        """Return the total rise of the loss on the images of a judging fold, and their number."""
        if (plan, kept, fold) not in self._judged:
            refit = self.carry_out(plan, unseen=fold if self._calibration.judges else None, kept=kept)
            network, total, images = merge(refit.linearized, plan), 0.0, 0
            judging = self._calibration.loss
            batches = zip(self._calibration.judging(), self._outputs, self._calibration.judging_labels(), strict=True)
            with torch.no_grad():
                for (own, batch), wanted, classes in batches:
                    if own == fold:
                        total += judging.rise(wanted, batch.through(network), batch, classes) * len(batch)
                        images += len(batch)
            self._judged[plan, kept, fold] = total, images
        return self._judged[plan, kept, fold]

    @functools.cached_property
    def _outputs(self) -> list[Any]:
        """The original network's outputs on the judging batches."""
        with torch.no_grad():
            return [batch.through(self._network.gm) for _, batch in self._calibration.judging()]

    def _new(self, linearized: GraphFacts, plan: Plan) -> list[Slot]:
        """Return the slots of a plan's choices; kept layers are left out where memory cannot solve them whole."""
        found = [slot for choice in plan for slot in kind_of(choice).slots(choice, self._network.piece(choice))]
        slots = [replace(kept_slot(linearized, slot.node), widths=slot.widths) if slot.kept else slot for slot in found]
        return [slot for slot in slots if not slot.kept or self._memory.is_whole(slot.operator)]

    def _kept(self, linearized: GraphFacts, plan: Plan, kept: Kept) -> list[Slot]:
        """Return the kept layers to refit: those that memory can solve whole, or none where no fold judges."""
        if kept == "none" or not self._calibration.judges:
            return []
        if kept == "all":
            found = kept_behind(linearized, plan)
        else:
            found = nearest_behind(linearized, plan, self._profiting_of(plan))
        return [slot for slot in found if self._memory.is_whole(slot.operator)]

    def _profiting_of(self, plan: Plan) -> list[SpanChoice]:
        """Return the choices of a plan whose loss falls with a refit of the layers behind them."""
        return [choice for choice in plan if self._profiting is None or choice in self._profiting]

    def _solve(self, slot: Slot, compressed: Stream, unseen: int | None) -> AffineConv:
        """Return the solved operator of a slot, or its prior where its inputs are not finite."""
        unseen = self._calibration.withheld if unseen is None else unseen
        system = self._summed(slot, compressed, unseen).expecting(self._expected(slot, unseen))
        prior = prior_of(slot)
        strengths = strengths_of(slot, self._calibration.precision)
        if not system.is_finite:
            return prior
        matched = [] if slot.kept or not whole_states(self._network, [slot.target]) else [_TARGET]
        if unseen is None:
            judges = self._calibration.judges
            return system.solve([_TARGET], prior, judges=judges, match_variance=matched, strengths=strengths)[0]
        solved = system.solve_without([unseen], [_TARGET], prior, match_variance=matched, strengths=strengths)
        return solved[unseen][0]

    def _expected(self, slot: Slot, unseen: int | None) -> Expectation | None:
        """Return the expectation of a kept layer for the channels that stay. A new layer has none."""
        if not slot.kept or (slot.widths and slot.operator.groups > 1):
            return None
        inputs, outputs = (
            self._channels.left(name, slot.widths, unseen) if slot.widths else None for name in (slot.entry, slot.node)
        )
        return expectation_of(self._network, slot.node, inputs=inputs, outputs=outputs)

    def _summed(self, slot: Slot, compressed: Stream, unseen: int | None) -> RidgeSystem:
        """Return the system of a slot: from the compressed network's tensors to what is left of the original's."""
        left = self._channels.left(slot.node, slot.widths, unseen) if slot.widths else None
        system = self._memory.system(slot.entry, slot.operator)
        entries, known = compressed.values(slot.entry), self._pixels[self._key(slot)]
        others = itertools.repeat(None) if slot.other is None else compressed.values(slot.other)
        for fold, entry, (positions, pixels), summand in zip(
            self._calibration.folds, entries, known, others, strict=False
        ):
            wanted = pixels if left is None else pixels[:, left]
            if summand is not None:
                wanted = wanted - positions.pixels(as_images(summand, slot.axis))
            system.accumulate(as_images(entry, slot.axis), {_TARGET: wanted}, positions, fold=fold)
        return system

    def _sample(self, slots: Iterable[Slot]) -> None:
        """Sample the original network's target pixels for slots whose pixels are not yet known."""
        missing = {key for slot in slots if (key := self._key(slot)) not in self._pixels}
        for batch in self._calibration.batches if missing else ():
            tensors = record(self._network.gm, batch, {key[0] for key in missing})
            for key in sorted(missing):
                target, count, axis = key
                generator = torch.Generator().manual_seed(self._seed + len(self._pixels.get(key, ())))
                wanted = as_images(tensors[target], axis)
                positions = sample_positions(wanted, count, generator)
                self._pixels.setdefault(key, []).append((positions, positions.pixels(wanted)))

    def _key(self, slot: Slot) -> tuple[str, int, int]:
        """Return a slot's target, how many of its pixels are sampled in a batch, and the axis of their channels."""
        system = self._memory.system(slot.entry, slot.operator)
        return slot.target, samples_per_batch(system.unknowns, self._calibration.least_fitted), slot.axis


class Unfitted(Refitter):
    """A refitter that fits nothing: training begins from the weights that linearizing gives."""

    def carry_out(
        self, plan: Plan, *, unseen: int | None = None, kept: Kept = "none", progress: Progress | None = None
    ) -> Refit:
        """Return the linearized graph of `plan`."""
        return Refit(plan, linearize(self._network, plan), {})
