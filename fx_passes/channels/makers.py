"""Layers that make new channels, each out of all channels of a group that they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["Maker", "maker_of", "sliced"]

Mask = NDArray[np.bool_]
L = TypeVar("L", bound=nn.Module)


def sliced(tensor: Tensor, axis: int, kept: Mask) -> Tensor:
    """Return a tensor with some of the places along an axis; a parameter stays one."""
    some = tensor.detach().index_select(axis, torch.from_numpy(kept.nonzero()[0]).to(tensor.device))
    return nn.Parameter(some, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else some


class Maker(ABC, Generic[L]):
    """A kind of layer that makes new channels.

    Attributes:
        layers: its classes.
        methods: the methods of these classes that compute; a subclass with others may compute anything.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]]
    methods: ClassVar[tuple[str, ...]]

    @abstractmethod
    def axes(self, rank: int) -> tuple[int, int]:
        """Return the axis of the channels that a layer reads, and of those that it makes, in tensors of a rank."""

    def groups(self, layer: L) -> int:
        """Return the number of groups: channels of a group are made out of those of the same group."""
        return 1

    def narrow(self, layer: L, read: Mask | None, made: Mask | None) -> None:
        """Remove channels in place, whole groups where there are several; None keeps all."""
        everything = (np.ones(count, bool) for count in self.channels(layer))
        before, after = (all_ if mask is None else mask for mask, all_ in zip((read, made), everything, strict=True))
        self._slice(layer, before, after)

    @abstractmethod
    def channels(self, layer: L) -> tuple[int, int]:
        """Return how many channels a layer reads and makes."""

    @abstractmethod
    def _slice(self, layer: L, read: Mask, made: Mask) -> None:
        """Keep some of the channels, in place."""


class _Linear(Maker[nn.Linear]):
    layers = (nn.Linear,)
    methods = ("forward",)

    def axes(self, rank: int) -> tuple[int, int]:
        """Return the last axis, for both."""
        return rank - 1, rank - 1

    def channels(self, layer: nn.Linear) -> tuple[int, int]:
        """Return the numbers of features."""
        return layer.in_features, layer.out_features

    def _slice(self, layer: nn.Linear, read: Mask, made: Mask) -> None:
        layer.weight = sliced(sliced(layer.weight, 0, made), 1, read)
        _narrow_bias(layer, made)
        layer.in_features, layer.out_features = int(read.sum()), int(made.sum())


class _Convolution(Maker[_ConvNd]):
    layers: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    methods = ("forward", "_conv_forward")
    made_axis = 0

    def axes(self, rank: int) -> tuple[int, int]:
        """Return axis 1, for both."""
        return 1, 1

    def groups(self, layer: _ConvNd) -> int:
        """Return the convolution's number of groups."""
        return layer.groups

    def channels(self, layer: _ConvNd) -> tuple[int, int]:
        """Return the numbers of channels."""
        return layer.in_channels, layer.out_channels

    def _slice(self, layer: _ConvNd, read: Mask, made: Mask) -> None:
        along = (made, read) if self.made_axis == 0 else (read, made)
        layer.weight = sliced(layer.weight, 0, along[0])
        if layer.groups > 1:
            layer.groups = layer.groups * int(read.sum()) // layer.in_channels
        else:
            layer.weight = sliced(layer.weight, 1, along[1])
        _narrow_bias(layer, made)
        layer.in_channels, layer.out_channels = int(read.sum()), int(made.sum())


class _Transposed(_Convolution):
    layers = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    methods = ("forward", "_output_padding")
    made_axis = 1


_MAKERS: tuple[Maker[Any], ...] = (_Linear(), _Convolution(), _Transposed())


def maker_of(layer: nn.Module | None) -> Maker[Any] | None:
    """Return the kind of a layer that makes new channels, None for other layers."""
    for maker in _MAKERS:
        base = next((base for base in type(layer).__mro__ if base in maker.layers), None)
        if base is not None:
            own = any(
                getattr(getattr(layer, name), "__func__", None) is not getattr(base, name) for name in maker.methods
            )
            return None if own else maker
    return None


def _narrow_bias(layer: nn.Module, made: Mask) -> None:
    if isinstance(layer.bias, Tensor):
        layer.bias = sliced(layer.bias, 0, made)
