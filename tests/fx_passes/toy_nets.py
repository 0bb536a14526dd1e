"""Small networks of every shape that the passes meet, with prime sizes and random batch statistics."""

import copy
import math

import torch
from signal_nets import as_signals, signals_of
from torch import nn

from fx_passes import Drop, Fit, Merge, Plan, capture


def randomise(model, seed=0):
    """Give every norm random statistics and an affine map, and return the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like.dtype)

    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
                norm.running_mean.copy_(uniform(norm.running_mean, -0.5, 0.5))
                norm.running_var.copy_(uniform(norm.running_var, 0.5, 2.0))
                if norm.affine:
                    norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
                    norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))
    return model.eval()


def relative_error(found, wanted):
    """Return the largest deviation relative to the largest wanted value; shapes must be equal."""
    assert found.shape == wanted.shape
    scale = wanted.detach().abs().max().clamp_min(1e-12)  # a toy net may have died behind its activation
    return float((found - wanted).detach().abs().max() / scale)


def captured(model, *inputs):
    """Return the float64 graph of a randomised model."""
    torch.manual_seed(0)
    return capture(randomise(model).double(), tuple(x.double() for x in inputs))


def image(channels=3, height=11, width=13, batch=2, seed=0):
    """Return a float64 batch of random images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def plan_of(*choices):
    """Return the plan of (entry, exit, kind, kernel) tuples; "drop" has no kernel."""
    kinds = {"merge": Merge, "fit": Fit, "drop": Drop}
    return Plan.of(kinds[kind](entry, exit_, *rest) for entry, exit_, kind, *rest in choices)


def frozen_copy(gm):
    """Return what must not change in a graph: its text and its tensors."""
    return str(gm.graph), copy.deepcopy(gm.state_dict())


def is_unchanged(gm, before):
    """Say whether a graph is bitwise what `frozen_copy` saw."""
    text, state = before
    same = all(torch.equal(tensor, state[name]) for name, tensor in gm.state_dict().items())
    return str(gm.graph) == text and gm.state_dict().keys() == state.keys() and same


def convolutions(gm):
    """Return the convolutions that the graph calls, in order."""
    called = [gm.get_submodule(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    return [module for module in called if isinstance(module, nn.Conv1d | nn.Conv2d)]


class Sandwich(nn.Module):
    """stem (3 -> 5), one body of the given modules on 5 channels, an activation."""

    def __init__(self, body):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.body = body
        self.end = nn.ReLU()

    def forward(self, x):
        return self.end(self.body(self.stem(x)))


class Chain(nn.Module):
    """Three convolutions of different kernels, one strided, with norms of odd eps and activations."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5, eps=0.013), act()
        self.conv2, self.bn2, self.act2 = (
            nn.Conv2d(5, 7, (3, 1), stride=2, padding=(1, 0)),
            nn.BatchNorm2d(7, eps=0.7),
            act(),
        )
        self.conv3, self.act3 = nn.Conv2d(7, 7, 3, padding=1, bias=False), act()

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.conv3(x))


class Residual(nn.Module):
    """Two convolutions and an identity skip."""

    def __init__(self, channels=5, act=nn.ReLU):
        super().__init__()
        self.conv1, self.bn1, self.act1 = (
            nn.Conv2d(channels, 7, 3, padding=1),
            nn.BatchNorm2d(7, eps=0.01),
            act(),
        )
        self.conv2, self.bn2, self.act2 = (
            nn.Conv2d(7, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            act(),
        )

    def forward(self, x):
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + x)


class NestedResidual(nn.Module):
    """A skip around a residual block and a convolution."""

    def __init__(self, channels=5):
        super().__init__()
        self.inner = Residual(channels)
        self.after = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.after(self.inner(x))


class Projection(nn.Module):
    """A strided block whose skip is a strided 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.ReLU()
        self.conv2 = nn.Conv2d(7, 11, 3, padding=1)
        self.short, self.norm = nn.Conv2d(5, 11, 1, stride=2, bias=False), nn.BatchNorm2d(11)

    def forward(self, x):
        return self.conv2(self.act1(self.conv1(x))) + self.norm(self.short(x))


class Branches(nn.Module):
    """Inception-like: a 1x1, a 3x3 behind a 1x1, and a pooled branch, side by side."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(5, 2, 1)
        self.reduce, self.act, self.three = nn.Conv2d(5, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.project = nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(5, 2, 1)
        self.mix = nn.Conv2d(7, 5, 1)

    def forward(self, x):
        parts = [self.one(x), self.three(self.act(self.reduce(x))), self.project(self.pool(x))]
        return self.mix(torch.cat(parts, dim=1))


class SqueezeExcite(nn.Module):
    """A depthwise convolution gated by squeeze-and-excitation."""

    def __init__(self, channels=5):
        super().__init__()
        self.depthwise, self.act = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU()
        self.squeeze, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)
        self.sigmoid, self.project = nn.Sigmoid(), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        x = self.act(self.depthwise(x))
        return self.project(x * self.sigmoid(self.gate(self.squeeze(x))))


class Dense(nn.Module):
    """Dense-net-like: every layer reads all tensors before it, so that branches have no single exit."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 7, 1), nn.ReLU(), nn.Conv2d(7, 3, 3, padding=1), nn.ReLU())
            for channels in (5, 8, 11)
        )

    def forward(self, x):
        known = [x]
        for layer in self.layers:
            known.append(layer(torch.cat(known, 1)))
        return torch.cat(known, 1)


class TwoInputs(nn.Module):
    """Two images, each through its own convolutions, then summed."""

    def __init__(self):
        super().__init__()
        self.left1, self.left2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.right = nn.Conv2d(2, 5, 1)
        self.end = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, a, b):
        return self.end(self.left2(self.left1(a)) + self.right(b))


class Backbone(nn.Module):
    """Three stages whose tensors are all returned."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(), nn.Conv2d(c_out, c_out, 1), nn.ReLU())
            for c_in, c_out in ((3, 5), (5, 7), (7, 11))
        )

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Pyramid(nn.Module):
    """Two residual stages, each also read by a lateral convolution; the coarse lateral is added to the fine one."""

    def __init__(self):
        super().__init__()
        self.stem, self.fine = nn.Conv2d(3, 5, 3, padding=1), nn.Sequential(Residual(), Residual())
        self.down, self.coarse = nn.Conv2d(5, 7, 3, padding=1), nn.Sequential(Residual(7), Residual(7))
        self.laterals = nn.ModuleList([nn.Conv2d(5, 2, 3, padding=1), nn.Conv2d(7, 2, 3, padding=1)])
        self.smooth = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        fine = self.fine(self.stem(x))
        coarse = self.coarse(self.down(fine))
        bottom = self.laterals[1](coarse)
        return self.smooth(self.laterals[0](fine) + bottom), bottom, coarse


class Heads(nn.Module):
    """Two heads, one on the middle and one on the end of a residual trunk, whose end is returned as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), Residual())
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(5, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)) for _ in "ab")

    def forward(self, x):
        middle = self.first(x)
        end = self.second(middle)
        return self.heads[0](middle), self.heads[1](end), end


class UNet(nn.Module):
    """Residual encoder and decoder blocks; decoders also read what the encoders of their size gave."""

    def __init__(self):
        super().__init__()
        self.stem, self.encoders = nn.Conv2d(3, 5, 3, padding=1), nn.ModuleList([Residual(), Residual()])
        self.pool, self.bottom = nn.MaxPool2d(3, 1, 1), nn.Sequential(Residual(), Residual())
        self.mixes = nn.ModuleList([nn.Conv2d(10, 5, 1), nn.Conv2d(10, 5, 1)])
        self.decoders = nn.ModuleList([Residual(), Residual()])

    def forward(self, x):
        fine = self.encoders[0](self.stem(x))
        coarse = self.encoders[1](self.pool(fine))
        x = self.bottom(self.pool(coarse))
        x = self.decoders[0](self.mixes[0](torch.cat([x, coarse], 1)))
        return self.decoders[1](self.mixes[1](torch.cat([x, fine], 1))), x


class DepthwiseChain(nn.Module):
    """Two depthwise convolutions in a row, the first with a channel multiplier."""

    def __init__(self):
        super().__init__()
        self.first, self.bn, self.act = (
            nn.Conv2d(5, 10, 3, padding=1, groups=5),
            nn.BatchNorm2d(10),
            nn.ReLU(),
        )
        self.second = nn.Conv2d(10, 10, 3, padding=1, groups=10)

    def forward(self, x):
        return self.second(self.act(self.bn(self.first(x))))


class Inverted(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise, linear 1x1 projection, skip."""

    def __init__(self, channels=5, hidden=11):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


class SamePadded(nn.Module):
    """TensorFlow-like: the padding of a strided convolution is asymmetric and stands before it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(5, 7, 3, stride=2), nn.ReLU()
        self.pad3, self.conv3 = nn.ZeroPad2d((2, 1, 1, 0)), nn.Conv2d(7, 7, (2, 4))

    def forward(self, x):
        x = nn.functional.pad(self.act1(self.conv1(x)), [0, 1, 0, 1])
        return self.conv3(self.pad3(self.act2(self.conv2(x))))


class EvenSkip(nn.Module):
    """A residual block of an even kernel, padded asymmetrically, whose skip tap is not in the middle."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 2, 2, 1))
        self.conv1, self.act = nn.Conv2d(3, 5, 4), nn.ReLU()
        self.conv2 = nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.act(self.conv1(self.pad(x))))


class Chomped(nn.Module):
    """A causal residual block: padding on both sides, then an index that cuts off what looks ahead."""

    def __init__(self, channels=5):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(channels, 7, 3, padding=(1, 2)), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(7, channels, 3, padding=(1, 4), dilation=(1, 2)), nn.ReLU()

    def forward(self, x):
        y = self.act1(self.conv1(x)[..., :-2].contiguous())
        return self.act2(self.conv2(y)[..., :-4] + x)


def straight(depth, channels=5):
    """Return `depth` convolutions with activations in a row."""
    layers = [[nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()] for _ in range(depth)]
    return nn.Sequential(*(module for pair in layers for module in pair))


TOYS = {
    "chain": (Chain, 3),
    "residual": (Residual, 5),
    "nested": (NestedResidual, 5),
    "projection": (Projection, 5),
    "branches": (Branches, 5),
    "squeeze_excite": (SqueezeExcite, 5),
    "dense": (Dense, 5),
    "backbone": (Backbone, 3),
    "pyramid": (Pyramid, 3),
    "heads": (Heads, 5),
    "unet": (UNet, 3),
    "depthwise": (DepthwiseChain, 5),
    "inverted": (Inverted, 5),
    "same_padded": (SamePadded, 3),
    "even_skip": (EvenSkip, 3),
    "chomped": (Chomped, 5),
    "signal_backbone": (lambda: as_signals(Backbone()), 3),
    "signal_branches": (lambda: as_signals(Branches()), 5),
    "signal_chomped": (lambda: as_signals(Chomped()), 5),
    "signal_even_skip": (lambda: as_signals(EvenSkip()), 3),
    "signal_inverted": (lambda: as_signals(Inverted()), 5),
    "signal_nested": (lambda: as_signals(NestedResidual()), 5),
    "signal_squeeze_excite": (lambda: as_signals(SqueezeExcite()), 5),
}


def toy(name, **options):
    """Return the float64 graph of a toy net and an image, or a signal, for it."""
    x = toy_input(name, **options)
    torch.manual_seed(0)
    return captured(TOYS[name][0](), x), x


def toy_input(name, **options):
    """Return an image, or a signal, for a toy net."""
    x = image(TOYS[name][1], **options)
    return signals_of(x) if name.startswith("signal_") else x


def outputs(gm, *inputs):
    """Return the output tensors of a graph as a list, without gradients."""
    with torch.no_grad():
        result = gm(*inputs)
    return list(result) if isinstance(result, list | tuple) else [result]


def largest_error(found, wanted):
    """Return the largest relative error over several outputs."""
    return max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))


def weight_count(gm):
    """Return the number of convolution weights in a graph."""
    return sum(math.prod(conv.weight.shape) for conv in convolutions(gm))
