"""Channel pruning by the Torch-Pruning library until the measured latency meets a budget, as a rival."""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

from depthcomp import Budget
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.latency.timing import NetworkTimer
from fx_passes import capture, fold_batch_norms
from latency_tables import AnyBackend

__all__ = ["Pruned", "prune_channels"]

RATIOS = tuple(step / 40 for step in range(1, 39))
IMPORTANCES = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """How channels are pruned.

    Attributes:
        importance: what tells how much a channel matters, one of `IMPORTANCES`.
        everywhere: whether channels of all layers are ranked together; where not, each layer loses the same share.
        multiple: of how many channels each width is: runtimes are slow at odd widths, so that a network that lost
            more of them may take longer.
    """

    importance: str
    everywhere: bool
    multiple: int

    def __str__(self) -> str:
        return f"{self.importance}, {'all layers' if self.everywhere else 'each layer'}, multiples of {self.multiple}"


VARIANTS = tuple(Variant(*parts) for parts in itertools.product(IMPORTANCES, (False, True), (8, 16)))


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network with fewer channels: how they were chosen, the share asked for, and how fast it was measured."""

    network: nn.Module
    variant: Variant
    ratio: float
    original_ms: float
    measured_ms: float


def prune_channels(
    model: nn.Module,
    example: Tensor,
    budget: Budget,
    backend: AnyBackend,
    seed: int,
    labelled: Iterable[tuple[Tensor, Tensor]],
    judge: Callable[[nn.Module], float],
) -> Pruned:
    """Return the best of all variants, each pruned no more than its measured latency needs; `model` is not changed.

    Args:
        model: the trained network.
        example: an input.
        budget: what every variant has to meet when measured.
        backend: where to measure.
        seed: for the order of rounds.
        labelled: batches of images and labels, whose gradients the importance may ask for.
        judge: returns how good a pruned network is, on images that the final figures are not taken on.

    Raises:
        BudgetInfeasibleError: no variant meets the budget.
    """
    original = capture(model, example)
    fold_batch_norms(original)
    timer = NetworkTimer(original, (example,), backend, seed=seed)
    source = _with_gradients(model, labelled)
    found = [_least(source, example, variant, budget, timer) for variant in VARIANTS]
    meeting = [pruned for pruned in found if _meets(pruned, budget)]
    if not meeting:
        best_ms = min(pruned.measured_ms for pruned in found)
        raise BudgetInfeasibleError(f"channel pruning reaches {best_ms:.3f} ms, which misses {budget}", best_ms=best_ms)
    return max(meeting, key=lambda pruned: judge(pruned.network))


def _with_gradients(model: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a copy in evaluation mode whose weights have the gradient of the cross-entropy on all batches."""
    network = copy.deepcopy(model).eval()
    with torch.enable_grad():
        for images, labels in labelled:
            F.cross_entropy(network(images), labels).backward()
    return network


def _least(source: nn.Module, example: Tensor, variant: Variant, budget: Budget, timer: NetworkTimer) -> Pruned:
    """Return the least pruned network of a variant that meets the budget, or its most pruned one where none does."""
    known: dict[int, Pruned] = {}

    def meets(index: int) -> bool:
        known[index] = _measured(source, example, variant, RATIOS[index], timer)
        return _meets(known[index], budget)

    least = bisect_left(range(len(RATIOS) - 1), True, key=meets)
    return known[least] if least in known else _measured(source, example, variant, RATIOS[least], timer)


def _meets(found: Pruned, budget: Budget) -> bool:
    return found.measured_ms <= budget.target_ms(found.original_ms)


def _measured(source: nn.Module, example: Tensor, variant: Variant, ratio: float, timer: NetworkTimer) -> Pruned:
    pruned = _pruned(source, example, variant, ratio)
    original, measured = timer.compare(capture(pruned, example))
    return Pruned(pruned, variant, ratio, original.median_ms, measured.median_ms)


def _pruned(source: nn.Module, example: Tensor, variant: Variant, ratio: float) -> nn.Module:
    network = _copy(source)
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.enable_grad():  # the library traces the graph of gradients
        pruner = torch_pruning.pruner.BasePruner(
            network, example, importance=IMPORTANCES[variant.importance](), pruning_ratio=ratio,
            global_pruning=variant.everywhere, max_pruning_ratio=RATIOS[-1], round_to=variant.multiple,
            ignored_layers=[classifier],
        )  # fmt: skip
        pruner.step()
    network.zero_grad()
    return network.eval()


def _copy(source: nn.Module) -> nn.Module:
    """Return a copy with its gradients."""
    network = copy.deepcopy(source)
    for parameter, other in zip(network.parameters(), source.parameters(), strict=True):
        parameter.grad = None if other.grad is None else other.grad.clone()
    return network
