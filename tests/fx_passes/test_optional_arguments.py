"""Arguments of a forward that the example leaves out keep their defaults, which may be branched on."""

import functools
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class Optional(nn.Module):
    """Takes a mask, a size and a number of turns where they are given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, mask=None, out_size=None, turns: int = 2, *, features=False):
        for _ in range(turns):
            x = self.conv(x)
        if mask is not None:
            x = x * mask
        y = F.interpolate(x, size=x.shape[-2:] if out_size is None else out_size)
        return (x, y) if features else y


@pytest.mark.parametrize("inputs", [(X,), (X, torch.rand(2, 1, 9, 7))])
def test_what_the_example_leaves_out_has_its_default(inputs):
    torch.manual_seed(0)
    net = Optional().eval()
    gm = capture(net, inputs)
    assert torch.equal(gm(*inputs), net(*inputs))
    assert len(gm.graph.find_nodes(op="placeholder")) == len(inputs)


class Base(nn.Module):
    """A body whose forward the subclasses below call in the ways that people write."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU())


class TakesMore(Base):
    def forward(self, x, *args, **kwargs):
        return self.body(x) * kwargs.get("factor", 2 + len(args))


class StarredInputs(Base):
    def forward(self, *inputs):
        x, *others = inputs
        return self.body(x) + sum(others)


class ByKeyword(Base):
    def forward(self, pixel_values=None, labels=None):
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        y = self.body(pixel_values)
        return y if labels is None else (y, labels)


class HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = ByKeyword()

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def logged(forward):
    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        return forward(*args, **kwargs)

    return wrapper


class Decorated(Base):
    @logged
    def forward(self, images):
        return self.body(images)


class Sliced(Base):
    def forward(self, x):
        return self.body[1:](self.body[:1](x))


NAMES = {
    TakesMore: ["x"], StarredInputs: ["inputs_0"], ByKeyword: ["pixel_values"], HandsOn: ["args_0"],
    Decorated: ["images"], Sliced: ["x"],
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_forwards_as_people_write_them(kind):
    net = kind().eval()
    gm = capture(net, X)
    assert torch.equal(gm(X), net(X))
    assert [node.target for node in gm.graph.find_nodes(op="placeholder")] == NAMES[kind]


def test_averaged_models_and_several_starred_inputs():
    y = torch.rand(2, 5, 7, 5)
    net = StarredInputs().eval()
    assert torch.equal(capture(net, (X, y))(X, y), net(X, y))
    averaged = torch.optim.swa_utils.AveragedModel(ByKeyword()).eval()
    assert torch.equal(capture(averaged, X)(X), averaged(X))


@dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None = None


@dataclass
class ModelOutput(OrderedDict):
    """A dict that is a dataclass, as HuggingFace's outputs are."""

    logits: torch.Tensor | None = None
    states: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self):
        self.update({name: value for name, value in vars(self).items() if value is not None})


class Returns(Base):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(self.body(x))


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x: {"x": x, "n": 7, "none": None},
        lambda x: [x, (x.argmax(1), 1.5, "word"), x > 0],
        lambda x: x.topk(3),
        lambda x: Pair(x),
        lambda x: ModelOutput(x, (x, x)),
        lambda x: {"pair": [Pair(x, x.argmax(1)), ModelOutput(states=(x,))]},
    ],
)
def test_the_graph_returns_what_the_model_returns(outputs):
    net = Returns(outputs).eval()
    found, wanted = capture(net, X)(X), net(X)
    assert type(found) is type(wanted)
    assert _shown(found) == _shown(wanted)


def _shown(output):
    """Return an output with the sums of its tensors in their places; dicts of one class are compared by their items."""
    if isinstance(output, torch.Tensor):
        return output.sum().item()
    if isinstance(output, dict):
        return [type(output), [(name, _shown(value)) for name, value in output.items()]]
    if isinstance(output, Pair):
        return [Pair, _shown(output.first), _shown(output.second)]
    return [_shown(part) for part in output] if isinstance(output, list | tuple) else output


def test_sizes_stay_symbolic_around_a_default():
    gm = capture(Optional(), X)
    assert gm(X[:1, :, :5]).shape == (1, 3, 5, 7)
