"""Networks of signals made of networks of images: every layer keeps what it does along the width."""

import math

import torch
from torch import nn

_OPTIONS = ("kernel_size", "stride", "padding", "dilation")


def as_signals(net):
    """Turn the layers of a network of images into layers of signals, in place, and return the network."""
    for name, layer in list(net.named_children()):
        setattr(net, name, _of_signals(layer))
    constant = getattr(net, "constant", None)
    if isinstance(constant, torch.Tensor) and constant.dim() >= 3:
        net.constant = nn.Parameter(constant.detach()[..., 0, :])
    return net


def signals_of(images):
    """Return the first row of each image, (n, c, width)."""
    return images[:, :, 0].contiguous()


def _of_signals(layer):
    make = _LAYERS.get(type(layer))
    return as_signals(layer) if make is None else make(layer)


def _options(layer, *names):
    values = {name: getattr(layer, name) for name in names}
    return {name: value[-1] if isinstance(value, tuple | list) else value for name, value in values.items()}


def _conv(layer):
    options = {**_options(layer, *_OPTIONS), "groups": layer.groups, "padding_mode": layer.padding_mode}
    conv = nn.Conv1d(layer.in_channels, layer.out_channels, **options, bias=layer.bias is not None)
    with torch.no_grad():
        conv.weight.copy_(layer.weight[:, :, 0] * math.sqrt(layer.kernel_size[0]))
        if layer.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv


def _norm(layer):
    norm = nn.BatchNorm1d(layer.num_features, layer.eps, affine=layer.affine)
    norm.load_state_dict(layer.state_dict())
    return norm


def _avg_pool(layer):
    options = {"ceil_mode": layer.ceil_mode, "count_include_pad": layer.count_include_pad}
    return nn.AvgPool1d(**_options(layer, "kernel_size", "stride", "padding"), **options)


def _upsample(layer):
    size = layer.size[-1] if isinstance(layer.size, tuple | list) else layer.size
    return nn.Upsample(size=size, scale_factor=layer.scale_factor)


_LAYERS = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.AvgPool2d: _avg_pool,
    nn.MaxPool2d: lambda layer: nn.MaxPool1d(**_options(layer, "kernel_size", "stride", "padding")),
    nn.AdaptiveAvgPool2d: lambda layer: nn.AdaptiveAvgPool1d(**_options(layer, "output_size")),
    nn.ZeroPad2d: lambda layer: nn.ZeroPad1d(layer.padding[:2]),
    nn.ReflectionPad2d: lambda layer: nn.ReflectionPad1d(layer.padding[:2]),
    nn.Upsample: _upsample,
    nn.Dropout2d: lambda layer: nn.Dropout1d(layer.p),
}
