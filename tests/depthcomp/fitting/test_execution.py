"""Parts of a graph run like the whole: streams that stop anywhere, tails that start anywhere."""

import copy

import pytest
import torch
import torchvision
from torch import fx, nn

from depthcomp.fitting.execution import Stream, Tail, record
from fx_passes import capture


class Block(nn.Module):
    """A residual block with a projection, a gate, a concatenation, and one tensor read three times."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
        self.conv1, self.act1 = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.ReLU6()
        self.short = nn.Conv2d(5, 7, 1, stride=2)
        self.gate, self.sigmoid = nn.Conv2d(7, 7, 1), nn.Sigmoid()
        self.head = nn.Linear(14, 4)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.act1(self.conv1(x)) + self.short(x)
        y = torch.cat([y * self.sigmoid(self.gate(y)), y], 1)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def gm():
    torch.manual_seed(0)
    return capture(Block().eval(), torch.zeros(2, 3, 11, 13))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 11, 13, generator=generator) for size in (2, 1)]


def everywhere(gm, batch):
    """The oracle: torch.fx's own interpreter, asked for every node's value."""

    class Recorder(fx.Interpreter):
        def run_node(self, node):
            values[node.name] = super().run_node(node)
            return values[node.name]

    values = {}
    with torch.no_grad():
        Recorder(gm).run(batch)
    return values


def names(gm):
    return [node.name for node in gm.graph.nodes]


def test_a_stream_equals_a_plain_forward_at_every_node(gm):
    stream = Stream(gm, batches())
    wanted = [everywhere(gm, batch) for batch in batches()]
    for name in names(gm):
        stream.advance(name)
        for found, expected in zip(stream.values(name), wanted, strict=True):
            assert torch.equal(found, expected[name])


def test_a_stream_may_skip_nodes_and_be_asked_twice(gm):
    stream = Stream(gm, batches())
    for name in (names(gm)[3], names(gm)[3], names(gm)[-1]):
        stream.advance(name)
    assert all(
        torch.equal(found, gm(batch)) for found, batch in zip(stream.values(names(gm)[-1]), batches(), strict=True)
    )


def test_a_stream_keeps_what_ran_and_sees_later_changes(gm):
    changed = copy.deepcopy(gm)
    stream = Stream(changed, batches())
    stream.advance("act")
    with torch.no_grad():
        changed.get_submodule("stem").weight.zero_()  # has run already
        changed.get_submodule("head").bias.add_(1.0)
    stream.advance("output")
    for found, batch in zip(stream.values("output"), batches(), strict=True):
        assert torch.allclose(found, gm(batch) + 1.0, atol=1e-6)


def test_a_stream_leaves_no_gradients(gm):
    stream = Stream(gm, batches())
    stream.advance("output")
    assert not any(value.requires_grad for value in stream.values("output"))


def test_record(gm):
    batch, wanted = batches()[0], everywhere(gm, batches()[0])
    found = record(gm, batch, {"act1", "stem", "add"})
    assert found.keys() == {"act1", "stem", "add"}
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_record_stops_after_the_last_name():
    def tracing(x):
        return torch.linalg.cholesky(-x.relu())  # would raise

    graph = fx.symbolic_trace(tracing)
    assert torch.equal(record(graph, torch.eye(3), {"relu"})["relu"], torch.eye(3))


def test_a_tail_has_the_plain_forward_recorded(gm):
    batch = batches()[0]
    tail, wanted = Tail(gm, batch), everywhere(gm, batch)
    assert torch.equal(tail.output, wanted["output"])
    assert all(torch.equal(tail.value(name), wanted[name]) for name in names(gm))


def test_a_rerun_with_the_recorded_value_gives_the_recorded_output(gm):
    tail = Tail(gm, batches()[0])
    for name in names(gm):
        assert torch.equal(tail.rerun(name, tail.value(name)), tail.output)


@pytest.mark.parametrize("name", ["x", "stem", "act", "conv1", "add", "sigmoid", "cat", "head", "output"])
def test_a_rerun_with_a_changed_value_equals_an_edited_forward(gm, name):
    batch = batches()[0]
    tail = Tail(gm, batch)
    value = tail.value(name) * 0.5 + 1

    class Edited(fx.Interpreter):
        def run_node(self, node):
            return value if node.name == name else super().run_node(node)

    with torch.no_grad():
        assert torch.equal(tail.rerun(name, value), Edited(gm).run(batch))
    assert torch.equal(tail.rerun(name, tail.value(name)), tail.output)  # nothing sticks


@pytest.mark.parametrize("wanted", [set(), {"stem"}, {"conv1", "add"}, {"short", "cat", "act"}])
def test_a_rerun_tells_what_stands_at_other_nodes(gm, wanted):
    """In front of the change that is what was recorded."""
    batch = batches()[0]
    tail = Tail(gm, batch)
    value = tail.value("act") * 0.5 + 1

    class Edited(fx.Interpreter):
        def run_node(self, node):
            values[node.name] = value if node.name == "act" else super().run_node(node)
            return values[node.name]

    values = {}
    with torch.no_grad():
        Edited(gm).run(batch)
    found = tail.rerun_at("act", value, wanted)
    assert found.keys() == wanted
    assert all(torch.equal(found[name], values[name]) for name in wanted)


def test_a_rerun_stops_after_the_last_node_that_is_asked_for(gm):
    tail = Tail(gm, batches()[0])
    tail._interpreter.submodules["head"] = None  # would raise
    found = tail.rerun_at("act", tail.value("act"), {"act1", "stem"})  # the stem does not change
    assert torch.equal(found["act1"], tail.value("act1"))


def test_a_rerun_computes_something_else_where_it_is_told_to(gm):
    batch = batches()[0]
    tail, changed = Tail(gm, batch), copy.deepcopy(gm)
    with torch.no_grad():
        changed.get_submodule("conv1").weight.mul_(0.5)
        wanted = changed(batch)
    found = tail.rerun("act", tail.value("act"), {"conv1": changed.get_submodule("conv1"), "stem": torch.neg})
    assert torch.equal(found, wanted)  # the stem is not behind the change
    assert not torch.equal(found, tail.output)


def test_whole_networks():
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=7).eval()
    batch = torch.randn(1, 3, 32, 32)
    gm = capture(model, batch)
    tail = Tail(gm, batch)
    with torch.no_grad():
        assert torch.equal(tail.output, gm(batch))
        for name in names(gm)[10::40]:
            assert torch.equal(tail.rerun(name, tail.value(name)), tail.output)
