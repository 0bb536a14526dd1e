"""The rival of another kind: channels pruned by the Torch-Pruning library until a latency is met when measured."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn

from depthcomp import Budget
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.timing import NetworkTimer
from fx_passes import capture, fold_batch_norms
from latency_tables import AnyBackend

__all__ = ["Pruned", "prune_channels"]

STEPS = 8  # of the bisection: the ratio is known to 1 / 256
LARGEST_RATIO = 0.95


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network with fewer channels: the share that was pruned in each layer, and how fast it was measured."""

    network: nn.Module
    ratio: float
    original_ms: float
    measured_ms: float


def prune_channels(model: nn.Module, example: Tensor, budget: Budget, backend: AnyBackend, seed: int) -> Pruned:
    """Return the network with the fewest channels pruned that meets a budget when measured; `model` is not changed.

    Each layer loses the same share, those channels of the least weights, as the library's defaults are.

    Raises:
        BudgetInfeasibleError: the largest ratio misses the budget.
    """
    original = capture(model, example)
    fold_batch_norms(original)
    timer = NetworkTimer(original, (example,), backend, seed=seed)
    best = _measured(model, example, LARGEST_RATIO, timer)
    if not _meets(best, budget):
        raise BudgetInfeasibleError(
            f"channel pruning reaches {best.measured_ms:.3f} ms, which misses {budget}", best_ms=best.measured_ms
        )
    low, high = 0.0, LARGEST_RATIO
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = _measured(model, example, middle, timer)
        if _meets(found, budget):
            best, high = found, middle
        else:
            low = middle
    return best


def _meets(found: Pruned, budget: Budget) -> bool:
    return found.measured_ms <= budget.target_ms(found.original_ms)


def _measured(model: nn.Module, example: Tensor, ratio: float, timer: NetworkTimer) -> Pruned:
    pruned = _pruned(model, example, ratio)
    original, measured = timer.compare(capture(pruned, example))
    return Pruned(pruned, ratio, original.median_ms, measured.median_ms)


def _pruned(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    network = copy.deepcopy(model)
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.enable_grad():  # the library traces the graph of gradients
        pruner = torch_pruning.pruner.BasePruner(
            network, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio, ignored_layers=[classifier],
        )  # fmt: skip
        pruner.step()
    return network.eval()
