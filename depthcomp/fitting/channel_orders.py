"""Orders of inner channels, from those that the layer behind them needs least to those that it needs most.

Backward elimination (`depthcomp.fitting.elimination`) orders the channels of a tensor by what the layer that reads them
loses without them, once its other weights make up for it. One Gram matrix of the layer's inputs and one order serve all
widths. Where several layers read the channels, the one with the most multiply-adds decides. Where all of them are too
large to be solved, the sizes of their weights decide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.elimination import eliminate
from depthcomp.fitting.execution import record
from depthcomp.fitting.expectation import expectation_of
from depthcomp.fitting.leaning import least_strength
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import RidgeSystem, sample_positions
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, Plan
from fx_passes.affine import AffineConv
from fx_passes.channels.layout import Layout
from fx_passes.inner_channels import InnerFamily, read_power
from fx_passes.kinds import kind_of
from fx_passes.slot_layers import as_images, can_be_solved, channel_axis, operator_at
from fx_passes.slots import Width

__all__ = ["ChannelOrders"]

EXPECTED = 0.1  # share of the expectation's samples; 0.03 serves about as well, 0.3 and 1 worse


@dataclass(frozen=True, slots=True)
class _Reader:
    """The layer that decides which channels of a family stay.

    Attributes:
        family: the channels.
        node: name of the layer's node.
        entry: name of the node whose tensor it reads.
        operator: its weights.
        system: the sums of its inputs.
        inputs: numbers of its input channels, those of one id in a row.
        labels: the id of each of these rows.
        others: numbers of its other input channels, which all stay.
        axis: axis of the channels in the tensors that it reads and makes.
    """

    family: InnerFamily
    node: str
    entry: str
    operator: AffineConv
    system: RidgeSystem
    inputs: Tensor  # (ids, channels of each)
    labels: tuple[int, ...]
    others: Tensor
    axis: int

    def eliminated(self, unseen: int | None, ridge: float) -> tuple[int, ...]:
        """Return the ids in the order in which the layer can do without them, on all folds but one."""
        size = self.system.unknowns // self.operator.in_channels
        place = torch.cat([self.inputs.flatten(), self.others])
        unknowns = (place[:, None] * size + torch.arange(size)).flatten()
        moment = self.system.second_moment(unseen)[unknowns][:, unknowns]
        weight = self.system.unknowns_of(self.operator)[0].T[:, unknowns]
        found = eliminate(moment, weight, len(self.labels), others=len(self.others) * size, ridge=ridge)
        return tuple(self.labels[number] for number in found.order)


class ChannelOrders:
    """Decides which inner channels stay; all tensors are looked at in few passes at the first question.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        calibration: the images.
        seed: seed of the sampled pixels.
        memory: the memory that the sums may use; None for the default.
        progress: called as (what, done, total).
    """

    def __init__(
        self,
        network: CapturedNetwork,
        calibration: CalibrationSet,
        *,
        seed: int = 0,
        memory: FitMemory | None = None,
        progress: Progress = silent,
    ) -> None:
        self._network, self._calibration = network, calibration
        self._seed, self._report = seed, progress
        self._memory = FitMemory(calibration.count) if memory is None else memory

    def decided(self, plan: Plan, unseen: int | None = None) -> Plan:
        """Return a plan that says which channels stay, as the images without a fold decide."""
        keep = functools.partial(self.kept, unseen=unseen)
        return Plan.of(kind_of(choice).decided(choice, keep) for choice in plan)

    def kept(self, tensor: str, count: int, unseen: int | None = None) -> tuple[int, ...]:
        """Return the numbers of the channels that stay where a tensor keeps `count` of them."""
        family = self._families[tensor]
        gone = self._gone(family, count, unseen)
        return tuple(number for number, label in enumerate(family.ids) if label not in gone)

    def left(self, tensor: str, widths: Iterable[Width], unseen: int | None) -> Tensor:
        """Return which channels of a tensor stay (c,), as booleans, where some tensors keep fewer."""
        gone = set[int]()
        for name, count in widths:
            gone |= self._gone(self._families[name], count, unseen)
        layout = self._network.channels.made[tensor]
        assert isinstance(layout, Layout)  # or its channels would not be known to be inner ones
        return torch.tensor([label not in gone for label in layout.ids.tolist()])

    def _gone(self, family: InnerFamily, count: int, unseen: int | None) -> set[int]:
        """Return the ids that do not stay."""
        order = self._order(family, self._calibration.withheld if unseen is None else unseen)
        return set(order[: (len(family.ids) - count) // family.step])

    def _order(self, family: InnerFamily, unseen: int | None) -> Sequence[int]:
        """Return the ids in the order of their removal."""
        return self._orders.get((family.tensor, unseen)) or self._by_weights[family.tensor]

    @functools.cached_property
    def _by_weights(self) -> dict[str, list[int]]:
        """The ids of each family by the weights of the layers that read them, smallest first, by tensor."""
        powers = {f.tensor: read_power(self._network, self._network.channels, f) for f in self._families.values()}
        return {tensor: sorted(power, key=lambda label: (power[label], label)) for tensor, power in powers.items()}

    @functools.cached_property
    def _families(self) -> dict[str, InnerFamily]:
        found = (family for inner in self._network.inner_channels.values() for family in inner.families)
        return {family.tensor: family for family in found}

    @functools.cached_property
    def _orders(self) -> dict[tuple[str, int | None], tuple[int, ...]]:
        """The ids of each family in the order of their removal, by tensor and unseen fold."""
        readers = (reader for family in self._families.values() for reader in self._readers(family))
        passes = list(self._memory.passes(readers, lambda reader: reader.system, lambda reader: 0))
        folds = {self._calibration.withheld, *self._calibration.judges}
        ridge = least_strength(self._calibration.precision)
        found: dict[tuple[str, int | None], tuple[int, ...]] = {}
        for number, several in enumerate(passes):
            self._sum_up(several)
            for done, reader in enumerate(several):
                found |= {(reader.family.tensor, unseen): reader.eliminated(unseen, ridge) for unseen in folds}
                self._report(f"ordering channels, pass {number + 1} of {len(passes)}", done + 1, len(several))
            several.clear()  # frees their sums for the next pass
        return found

    def _sum_up(self, readers: list[_Reader]) -> None:
        """Sum the inputs of layers over all images."""
        wanted = {name for reader in readers for name in (reader.entry, reader.node)}
        batches = zip(self._calibration.batches, self._calibration.folds, strict=True)
        for number, (batch, fold) in enumerate(batches):
            tensors = record(self._network.gm, batch, wanted)
            for reader in readers:
                samples = samples_per_batch(reader.system.unknowns, self._calibration.least_fitted)
                generator = torch.Generator().manual_seed(self._seed + number)
                positions = sample_positions(as_images(tensors[reader.node], reader.axis), samples, generator)
                reader.system.accumulate(as_images(tensors[reader.entry], reader.axis), {}, positions, fold=fold)

    def _readers(self, family: InnerFamily) -> Iterator[_Reader]:
        """Yield the layer with the most multiply-adds that reads a family, if one can be solved."""
        nodes, gm = self._network.nodes, self._network.gm
        some = [node for node in (nodes[name] for name in family.readers) if can_be_solved(gm, node)]
        some = [node for node in some if self._memory.patterns(operator_at(gm, node))]
        if not some:
            return
        node = max(some, key=lambda node: _macs(node, operator_at(gm, node)))
        entry, operator = node.all_input_nodes[0].name, operator_at(gm, node)
        layout, expected = self._network.channels.made[entry], expectation_of(self._network, node.name, share=EXPECTED)
        assert isinstance(layout, Layout)  # as `node` reads the family there
        inputs: dict[int, list[int]] = {label: [] for label in family.ids if label >= 0}
        others = list[int]()
        for number, label in enumerate(layout.ids.tolist()):
            inputs.get(label, others).append(number)
        yield _Reader(
            family, node.name, entry, operator, self._memory.system(entry, operator).expecting(expected),
            torch.tensor(list(inputs.values())), tuple(inputs), torch.tensor(others, dtype=torch.long),
            channel_axis(gm, node),
        )  # fmt: skip


def _macs(node: fx.Node, operator: AffineConv) -> int:
    """Return the multiply-adds of the layer at a node, for the whole batch."""
    positions: int = math.prod(node.meta["tensor_meta"].shape)
    return positions * operator.weight[0].numel()
