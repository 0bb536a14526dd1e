"""Layer that scales and shifts each channel of images or signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelAffine"]


class ChannelAffine(nn.Module):
    """Scales and shifts each channel of images (n, c, h, w) or signals (n, c, length): y = x * weight + bias.

    Frozen batch normalisation, layer scales and the arithmetic of input normalisation become this layer.

    Args:
        channels: number of channels c.
        weight: whether it scales; the scale has one value per channel, (c,).
        bias: whether it shifts; the shift has one value per channel, (c,).
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if weight else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images or signals scaled and shifted."""
        if self.weight is not None:
            x = x * self.weight.reshape(-1, *[1] * (x.ndim - 2))
        if self.bias is not None:
            x = x + self.bias.reshape(-1, *[1] * (x.ndim - 2))
        return x

    def extra_repr(self) -> str:
        """Return the options that `print` shows."""
        return f"{self.channels}, weight={self.weight is not None}, bias={self.bias is not None}"
