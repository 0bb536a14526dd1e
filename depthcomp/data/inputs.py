"""Inputs of a network for one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

__all__ = ["Inputs"]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """One tensor for each input of a network, in the order of its forward's arguments.

    The first dimension of each tensor is the batch. `len` counts the examples of the batch, and an index takes some of
    them.

    Attributes:
        tensors: the tensors.
    """

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, given: Inputs | Tensor | Sequence[Tensor]) -> Inputs:
        """Return inputs that are given as one tensor, as several, or as they are."""
        if isinstance(given, Inputs):
            return given
        return cls((given,) if isinstance(given, Tensor) else tuple(given))

    @classmethod
    def joined(cls, parts: Iterable[Inputs]) -> Inputs:
        """Return the examples of several batches in one."""
        return cls(tuple(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __str__(self) -> str:
        return ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in self.tensors)

    def __getitem__(self, examples: slice | Tensor) -> Inputs:
        return self.each(lambda tensor: tensor[examples])

    @property
    def real(self) -> Tensor:
        """The first floating-point tensor, in whose precision the network computes; the first one where none is."""
        return next((tensor for tensor in self.tensors if tensor.is_floating_point()), self.tensors[0])

    @property
    def pixels(self) -> int:
        """Number of pixels of one example in its largest input; vectors have one."""
        return max(math.prod(tensor.shape[2:]) for tensor in self.tensors)

    @property
    def held(self) -> Any:
        """The inputs as users hold them: one tensor, or a tuple of several."""
        return self.tensors[0] if len(self.tensors) == 1 else self.tensors

    def through(self, network: Callable[..., Any]) -> Any:
        """Run a network on the inputs, and return its output."""
        return network(*self.tensors)

    def each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with every tensor changed."""
        return Inputs(tuple(map(change, self.tensors)))

    def split(self, count: int) -> list[Inputs]:
        """Return the examples in `count` batches of almost equal size."""
        return [Inputs(part) for part in zip(*(torch.tensor_split(t, count) for t in self.tensors), strict=True)]

    def laid_out(self, memory: torch.memory_format) -> Inputs:
        """Return the inputs with the dimensions of images in another order in memory."""
        return self.each(lambda tensor: tensor.to(memory_format=memory) if tensor.ndim == 4 else tensor.contiguous())


register_pytree_node(Inputs, lambda inputs: (list(inputs.tensors), None), lambda tensors, _: Inputs(tuple(tensors)))
