"""Random small networks: every operator that a span may hold, every way to join, and every kind of barrier."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from toy_nets import randomise

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.GELU)
LARGEST_STRIDE = 4  # of a whole network, per axis
LEAST_SIZE = 3  # of an image inside, per axis


class Sum(nn.Module):
    """The sum of branches; an empty branch is a skip."""

    def __init__(self, branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class Concat(nn.Module):
    """The outputs of branches, one after another."""

    def __init__(self, branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Arithmetic(nn.Module):
    """A number, or one per channel or pixel, times or plus the image, in some spelling."""

    def __init__(self, spelling, constant):
        super().__init__()
        self.spelling = spelling
        if isinstance(constant, torch.Tensor):
            self.constant = nn.Parameter(constant)
        else:
            self.constant = constant

    def forward(self, x):
        return self.spelling(x, self.constant)


SCALES = (lambda x, c: x * c, lambda x, c: c * x, torch.mul, lambda x, c: x / c)
SHIFTS = (lambda x, c: x + c, lambda x, c: c - x, torch.add, lambda x, c: x.sub(c), lambda x, c: x - c)


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(self.squeeze(x)))


class Overwritten(nn.Module):
    """Overwrites a tensor that a layer has read before."""

    def __init__(self, channels, overwrite):
        super().__init__()
        self.first, self.reader, self.last = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.overwrite = overwrite

    def forward(self, x):
        x = self.first(x)
        y = self.reader(x)
        self.overwrite(x)
        return self.last(y) + x


OVERWRITES = (lambda x: x.clamp_(min=0), lambda x: x.mul_(torch.sigmoid(x)), torch.abs_, lambda x: F.relu(x, True))


class Dense(nn.Module):
    """Each layer reads all tensors before it, so that the branches are tangled."""

    def __init__(self, channels, growth, count):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels + index * growth, growth, 1), nn.ReLU(), nn.Conv2d(growth, growth, 1))
            for index in range(count)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Web(nn.Module):
    """Steps that each read some of the tensors before them, numbered from the input; several tensors are returned.

    A network whose tensors are tapped in the middle, such as a feature pyramid, is a web; so are tangles of any kind.
    """

    def __init__(self, steps, returned):
        super().__init__()
        self.reads, self.returned = [reads for reads, _ in steps], returned
        self.steps = nn.ModuleList(module for _, module in steps)

    def forward(self, x):
        known = [x]
        for reads, step in zip(self.reads, self.steps, strict=True):
            known.append(step(*[known[place] for place in reads]))
        return tuple(known[place] for place in self.returned)


class Meet(nn.Module):
    """Tensors, each through a module of its own, then summed or concatenated."""

    def __init__(self, branches, how):
        super().__init__()
        self.branches, self.how = nn.ModuleList(branches), how

    def forward(self, *tensors):
        ready = [branch(x) for branch, x in zip(self.branches, tensors, strict=True)]
        return torch.cat(ready, dim=1) if self.how == "concat" else sum(ready[1:], ready[0])


class _Builder:
    """Draws modules that fit the shape (channels, height, width) of what stands before them."""

    def __init__(self, draw):
        self._draw = draw

    def pick(self, *options):
        return self._draw(st.sampled_from(options))

    def number(self, low, high):
        return self._draw(st.integers(low, high))

    def body(self, shape, strides, depth, longest=4):
        """Return a chain of modules, its output's shape and the strides that are left to use."""
        modules = []
        for _ in range(self.number(1, longest)):
            module, shape, strides = self.step(shape, strides, depth)
            modules.append(module)
        return nn.Sequential(*modules), shape, strides

    def step(self, shape, strides, depth):
        kinds = ["layer"] * 6 + [
            "norm",
            "activation",
            "pool",
            "pad",
            "dropout",
            "barrier",
            "scale",
            "shift",
            "overwritten",
        ]
        if depth > 0:
            kinds += ["skip"] * 3 + ["sum"] * 2 + ["concat"] * 2 + ["dense"]
        kind = self.pick(*kinds)
        if kind in ("skip", "sum", "concat"):
            return self.joined(kind, shape, strides, depth)
        if kind in ("layer", "pool"):
            return getattr(self, kind)(shape, strides)
        module = getattr(self, kind)(shape)
        return module, _out_shape(module, shape), strides

    def layer(self, shape, strides):
        conv, strides = self.conv(shape, strides)
        norm = [self.norm((conv.out_channels,))] if self.number(0, 1) else []
        activation = [self.activation(shape)] if self.number(0, 1) else []
        module = nn.Sequential(conv, *norm, *activation)
        return module, _out_shape(module, shape), strides

    def conv(self, shape, strides):
        c_in = shape[0]
        groups = self.pick(1, 1, *(g for g in range(2, c_in + 1) if c_in % g == 0), c_in)
        c_out = groups * self.number(1, max(1, 6 // groups))
        padding = [self.number(0, 2) for _ in "hw"]
        dilation = [self.number(1, 2) for _ in "hw"]
        room = [size + 2 * p - LEAST_SIZE for size, p in zip(shape[1:], padding, strict=True)]
        kernel = [min(self.number(1, 4), 1 + max(r, 0) // d) for r, d in zip(room, dilation, strict=True)]
        stride = [
            self.stride(left, room[axis] - dilation[axis] * (kernel[axis] - 1)) for axis, left in enumerate(strides)
        ]
        conv = nn.Conv2d(
            c_in, c_out, kernel, stride, padding, dilation, groups, bias=bool(self.number(0, 1)),
        )  # fmt: skip
        return conv, tuple(left // s for left, s in zip(strides, stride, strict=True))

    def stride(self, left, room):
        return self.pick(1, 1, 2) if left > 1 and room >= LEAST_SIZE else 1

    def pool(self, shape, strides):
        kernel = [min(self.number(1, 3), size - LEAST_SIZE + 1) for size in shape[1:]]
        padding = [self.number(0, k // 2) for k in kernel]
        stride = [
            self.stride(left, size - k - LEAST_SIZE) for left, size, k in zip(strides, shape[1:], kernel, strict=True)
        ]
        module = nn.AvgPool2d(kernel, stride, padding)
        return module, _out_shape(module, shape), tuple(a // b for a, b in zip(strides, stride, strict=True))

    def norm(self, shape):
        return nn.BatchNorm2d(shape[0], eps=self.pick(1e-5, 0.013, 0.7), affine=bool(self.number(0, 1)))

    def scale(self, shape):
        return Arithmetic(self.pick(*SCALES), self.constant(shape))

    def shift(self, shape):
        return Arithmetic(self.pick(*SHIFTS), self.constant(shape))

    def overwritten(self, shape):
        return Overwritten(shape[0], self.pick(*OVERWRITES))

    def constant(self, shape):
        """Return a number away from 0, or one per channel, in some shape."""
        sizes = self.pick(None, (), (1,), (shape[0], 1, 1), (1, shape[0], 1, 1))
        return self.pick(0.5, 3, -1.5) if sizes is None else torch.rand(sizes) + 0.5

    def activation(self, shape):
        return self.pick(*ACTIVATIONS)()

    def dropout(self, shape):
        return nn.Dropout(0.3)

    def pad(self, shape):
        low = [min(0, LEAST_SIZE + 1 - size) for size in (shape[2], shape[2], shape[1], shape[1])]
        return nn.ZeroPad2d(tuple(self.number(max(-1, bound // 2), 2) for bound in low))

    def dense(self, shape):
        return Dense(shape[0], self.number(1, 2), self.number(1, 2))

    def barrier(self, shape):
        kinds = ["max", "gate", "border", "circular", "group", "reflect", "pixels"]
        if min(shape[1:]) >= 2 * LEAST_SIZE:
            kinds.append("ceil")
        if max(shape[1:]) < 9:
            kinds.append("upsample")
        kind = self.pick(*kinds)
        return {
            "max": lambda: nn.MaxPool2d(3, 1, 1),
            "gate": lambda: Gate(shape[0]),
            "border": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            "ceil": lambda: nn.AvgPool2d(2, self.number(1, 2), ceil_mode=True),
            "circular": lambda: nn.Conv2d(shape[0], shape[0], 3, padding=1, padding_mode="circular"),
            "group": lambda: nn.GroupNorm(1, shape[0]),
            "pixels": lambda: Arithmetic(self.pick(*SCALES, *SHIFTS), torch.rand(shape) + 0.5),
            "reflect": lambda: nn.ReflectionPad2d(1),
            "upsample": lambda: nn.Upsample(scale_factor=2),
        }[kind]()

    def joined(self, kind, shape, strides, depth):
        """Return branches that were fitted to the first one's output, and how they are joined."""
        body, wanted, left = self.body(shape, strides, depth - 1, longest=3)
        if kind == "skip":
            others = [nn.Identity() if wanted == shape else self.projection(shape, wanted, strides, left)]
        else:
            others = [self.fitted(shape, wanted, strides, left, depth, kind) for _ in range(self.number(1, 2))]
        module = (Concat if kind == "concat" else Sum)(self._draw(st.permutations([body, *others])))
        return module, _out_shape(module, shape), left

    def projection(self, shape, wanted, strides, left):
        stride = tuple(a // b for a, b in zip(strides, left, strict=True))
        conv = nn.Conv2d(shape[0], wanted[0], 1, stride, bias=False)
        norm = [self.norm(wanted)] if self.number(0, 1) else []
        return nn.Sequential(*self.margin(shape, wanted, stride), conv, *norm)

    def margin(self, shape, wanted, stride=(1, 1)):
        """Return padding at the bottom and right after which a 1x1 convolution of a stride has the wanted size."""
        rows, columns = (s * (out - 1) + 1 - size for s, out, size in zip(stride, wanted[1:], shape[1:], strict=True))
        return [nn.ZeroPad2d((0, columns, 0, rows))] if rows or columns else []

    def fitted(self, shape, wanted, strides, left, depth, kind):
        """Return a branch whose output has the wanted size, of whatever stride it has."""
        body, found, _ = self.body(shape, strides, depth - 1, longest=2)
        modules = [*body, *self.margin(found, wanted)]
        if kind == "sum" and found[0] != wanted[0]:
            modules.append(nn.Conv2d(found[0], wanted[0], 1))
        return nn.Sequential(*modules)


class _Weaver:
    """Draws webs: a list of steps, and the shape and the strides that are left of each tensor so far."""

    def __init__(self, builder, shape, strides):
        self._builder = builder
        self._steps = []
        self._tensors = [(shape, strides)]

    def grow(self, source, longest, depth=1):
        """Add a chain of modules on one tensor, and return the new tensor's number."""
        shape, strides = self._tensors[source]
        module, shape, strides = self._builder.body(shape, strides, depth, longest)
        return self._add((source,), module, shape, strides)

    def meet(self, sources, how):
        """Add what joins several tensors at the size, and for a sum the channels, of the first."""
        (shape, strides), *_ = [self._tensors[source] for source in sources]
        branches = [self._adapter(self._tensors[source][0], shape, how) for source in sources]
        channels = sum(_out_shape(branch, self._tensors[s][0])[0] for branch, s in zip(branches, sources, strict=True))
        joined = (channels if how == "concat" else shape[0], *shape[1:])
        return self._add(sources, Meet(branches, how), joined, strides)

    def returning(self, *always):
        """Return the web with what nobody reads, what is asked for, and some of the rest as outputs."""
        last = len(self._tensors) - 1
        unread = set(range(1, last + 1)) - {place for reads, _ in self._steps for place in reads}
        tapped = {place for place in range(1, last + 1) if self._builder.pick(False, False, True)}
        return Web(self._steps, sorted(unread | tapped | set(always)))

    def _add(self, sources, module, shape, strides):
        self._steps.append((sources, module))
        self._tensors.append((shape, strides))
        return len(self._tensors) - 1

    def _adapter(self, shape, wanted, how):
        """Return what brings a tensor to the wanted size: an upsampling as in pyramids, or padding and cropping."""
        modules = []
        if shape[1:] != wanted[1:]:
            upsampled = [nn.Upsample(size=wanted[1:])]
            modules += self._builder.pick(upsampled, self._builder.margin(shape, wanted))
        if how == "sum" and shape[0] != wanted[0]:
            modules.append(nn.Conv2d(shape[0], wanted[0], 1))
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules) if modules else nn.Identity()


def _tapped(builder, weaver):
    """Return a trunk of blocks of which any tensor may be an output."""
    for place in range(builder.number(2, 4)):
        weaver.grow(place, longest=2)
    return weaver.returning(1)


def _pyramid(builder, weaver):
    """Return a trunk whose stages are read by laterals, joined from coarse to fine: a feature pyramid or a U-Net."""
    how = builder.pick("sum", "sum", "concat")
    stages = [0]
    for _ in range(builder.number(2, 3)):
        stages.append(weaver.grow(stages[-1], longest=2))
    top = weaver.grow(stages.pop(), longest=1, depth=0)
    for stage in reversed(stages[1:]):
        lateral = weaver.grow(stage, longest=1, depth=0)
        top = weaver.meet((lateral, top), how)
        if builder.number(0, 1):
            weaver.grow(top, longest=1)
    return weaver.returning()


def _tangle(builder, weaver):
    """Return a web whose every step reads any of the tensors before it."""
    last = weaver.grow(0, longest=1)
    for _ in range(builder.number(2, 4)):
        sources = tuple(builder.number(0, last) for _ in range(builder.pick(1, 1, 2, 2, 3)))
        several = len(set(sources)) > 1
        last = weaver.meet(sources, builder.pick("sum", "concat")) if several else weaver.grow(sources[0], longest=2)
    return weaver.returning()


WEBS = {"tapped": _tapped, "pyramid": _pyramid, "tangle": _tangle}


def _out_shape(module, shape):
    module.eval()
    with torch.no_grad():
        return tuple(module(torch.zeros(1, *shape)).shape[1:])


@st.composite
def networks(draw):
    """A float64 network in evaluation mode with random statistics, and an image for it."""
    channels, height, width = draw(st.tuples(st.integers(1, 6), st.integers(7, 13), st.integers(7, 13)))
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    builder = _Builder(draw)
    shape, strides = (channels, height, width), (LARGEST_STRIDE, LARGEST_STRIDE)
    kind = draw(st.sampled_from(["chain", "chain", *WEBS]))
    body = (
        builder.body(shape, strides, depth=2, longest=6)[0]
        if kind == "chain"
        else WEBS[kind](builder, _Weaver(builder, shape, strides))
    )
    net = randomise(body, seed).double()
    return net, torch.randn(2, channels, height, width, dtype=torch.float64)


def is_activation(module):
    return isinstance(module, (*ACTIVATIONS, nn.Sigmoid))
