"""Order in which a layer can do without its input channels: backward elimination by Optimal Brain Surgeon.

Without a block B of its inputs, a layer y = W x computes as well as it can with changed weights for the others. The
mean squared error then rises by tr(W_B ([G^-1]_BB)^-1 W_B^T), where G = mean x x^T. The block of least rise goes
first, W and G^-1 become those of the others, and so on. Source: Hassibi and Stork, Second order derivatives for network
pruning: Optimal Brain Surgeon, NIPS 1992.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depthcomp.fitting.cholesky import least_cholesky_factor

__all__ = ["Elimination", "eliminate"]

AT_ONCE = 32  # one of so many blocks that are left go before the matrices are updated
POOL = 4  # times as many blocks of least rise are looked at for these
RIDGE = 1e-4  # relative to the mean power of an input


@dataclass(frozen=True, slots=True)
class Elimination:
    """Order of the blocks of a layer's inputs, those that it needs least first.

    Attributes:
        order: numbers of the blocks in the order of their removal; the last one stays.
        rises: the rise of the mean squared error, summed over outputs, with each removal.
    """

    order: tuple[int, ...]
    rises: tuple[float, ...]

    def kept(self, count: int) -> list[int]:
        """Return the blocks that are left when `count` are, in their own order."""
        return sorted(self.order[len(self.order) - count :])


@torch.no_grad()
def eliminate(
    second_moment: Tensor, weight: Tensor, blocks: int, *, others: int = 0, ridge: float = RIDGE
) -> Elimination:
    """Return the order in which the blocks of a layer's inputs go.

    Args:
        second_moment: centred second moment G of the inputs (n, n), in float64; inputs of a block are neighbours, and
            all blocks have (n - others) / blocks of them.
        weight: the layer's weights (outputs, n).
        blocks: number of blocks.
        others: number of inputs behind the blocks, all of which stay.
        ridge: relative to the mean power of an input, above 0; without one the inverse of equal inputs is noise. It is
            multiplied by 10 until the moment can be inverted.

    Raises:
        torch.linalg.LinAlgError: the moment is not finite.
    """
    size = (len(second_moment) - others) // blocks
    power = second_moment.diagonal().mean().clamp_min(1e-12)
    inverse = torch.cholesky_inverse(least_cholesky_factor(second_moment, ridge * power))
    weight = weight.to(second_moment).clone()
    names = torch.arange(blocks)
    order, rises = list[int](), list[float]()
    while len(names) > 1:
        count = max(len(names) // AT_ONCE, 1)
        within = len(names) * size
        pool = _rises(inverse[:within, :within], weight[:, :within], size).argsort(stable=True)[: POOL * count]
        first, risen = _first(inverse, weight, _inputs(pool, size), size, count)
        gone = pool[first]
        rises += risen
        order.extend(names[gone].tolist())
        left = torch.ones(len(names), dtype=torch.bool)
        left[gone] = False
        staying = torch.cat([_inputs(left.nonzero()[:, 0], size), torch.arange(within, within + others)])
        inverse, weight = _without(inverse, weight, _inputs(gone, size), staying)
        names = names[left]
    return Elimination((*order, int(names[0])), tuple(rises))


def _first(inverse: Tensor, weight: Tensor, inputs: Tensor, size: int, count: int) -> tuple[list[int], list[float]]:
    """Return which `count` blocks of a pool go first, one after another, and the rise with each."""
    inverse, weight = inverse[inputs][:, inputs], weight[:, inputs]
    left = torch.arange(len(inputs) // size)
    gone, rises = list[int](), list[float]()
    for _ in range(count):
        rise = _rises(inverse, weight, size)
        least = int(rise.argmin())
        rises.append(float(rise[least]))
        gone.append(int(left[least]))
        others = torch.cat([torch.arange(least), torch.arange(least + 1, len(left))])
        inverse, weight = _without(inverse, weight, _inputs(torch.tensor([least]), size), _inputs(others, size))
        left = left[others]
    return gone, rises


def _inputs(blocks: Tensor, size: int) -> Tensor:
    """Return the numbers of the inputs of blocks."""
    return (blocks[:, None] * size + torch.arange(size)).flatten()


def _rises(inverse: Tensor, weight: Tensor, size: int) -> Tensor:
    """Return the rise of the error without each block, (blocks,)."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal()
    blocks = torch.arange(len(inverse)).reshape(-1, size)
    within = inverse[blocks[:, :, None], blocks[:, None, :]]  # (blocks, size, size)
    own = weight[:, blocks].permute(1, 2, 0)  # (blocks, size, outputs)
    solved, failed = torch.linalg.solve_ex(within, own)
    rise: Tensor = (own * solved).sum((1, 2)).masked_fill(failed != 0, torch.inf)
    return rise


def _without(inverse: Tensor, weight: Tensor, gone: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse and the weights of the inputs that are left, once others are gone."""
    factor = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, left])
    changed = torch.addmm(inverse[left][:, left], inverse[left][:, gone], factor, alpha=-1)
    return changed, torch.addmm(weight[:, left], weight[:, gone], factor, alpha=-1)
