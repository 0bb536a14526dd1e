"""Networks and results on disk: the same bits after a reload, and nothing but a network from any file."""

import contextlib
import copy
import itertools
import json
import operator
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn

from depthcomp.errors import ArtifactError
from depthcomp.results import stored_network
from fx_passes import capture, linearize, merge, random_plan
from fx_passes.channel_affine import ChannelAffine
from fx_passes.graph_edit import attach_attributes

pytestmark = pytest.mark.whole

NETWORKS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.5),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0", num_classes=7),
}


class Boxes(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor | None


@dataclass
class Detections:
    scores: torch.Tensor
    boxes: Boxes
    stride: int = 4


class Detector(nn.Module):
    """Returns a dataclass with a named tuple in it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        x = self.conv(x)
        return Detections(x.softmax(1), Boxes(x[:, :4], None))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Zoo(nn.Module):
    """Everything a graph may hold: functions, methods, slices, constants, tied and free tensors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 1, bias=False)
        self.right.weight = self.left.weight
        self.act = nn.PReLU(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1), requires_grad=False)
        self.register_buffer("offset", torch.rand(1), persistent=False)

    def forward(self, x, factor=2):
        x = self.act(self.stem(F.pad(x, (0, 1, 0, 1)))) * self.scale + self.offset
        a, b = x.chunk(2, dim=1)
        b = F.max_pool2d(F.interpolate(b, scale_factor=2.0, mode="nearest"), 2)
        b = b[..., :, 0 : x.size(3)].contiguous(memory_format=torch.channels_last).to(torch.float32)
        z = torch.cat([self.left(a), self.right(b) * factor], 1).clamp(min=float("-inf"))
        return {"flat": torch.flatten(z, 1), "rest": (z.view(z.size(0), -1), None, z.shape[2])}


def zoo():
    torch.manual_seed(0)
    return fx.symbolic_trace(Zoo().eval())


def small_net():
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()).eval())


def net_of(count):
    """Return a network of so many convolutions, each of other weights."""
    torch.manual_seed(count)
    return fx.symbolic_trace(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(count))).eval())


def merged(name):
    torch.manual_seed(0)
    gm = capture(NETWORKS[name](), images(2, 3, 37, 41))
    plan = random_plan(gm, np.random.default_rng(0))
    return merge(linearize(gm, plan), plan)


def structure(folder):
    return json.loads((folder / "model.json").read_text())


def tamper(folder, change):
    content = structure(folder)
    change(content)
    (folder / "model.json").write_text(json.dumps(content))


@pytest.fixture
def saved(tmp_path):
    """Return a folder with a stored network of one convolution and one ReLU."""
    return stored_network.save_network(small_net(), tmp_path / "net", (images(1, 3, 5, 7),))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_merged_network_comes_back_bit_for_bit_without_its_library(name, tmp_path):
    gm, x = merged(name), images(2, 3, 37, 41)
    stored_network.save_network(gm, tmp_path, (x,))
    with torch.no_grad():
        torch.save((x, gm(x)), tmp_path / "io.pt")
    script = f"""
        import sys, torch
        from depthcomp.results.stored_network import load
        torch.set_num_threads(1)
        x, wanted = torch.load({str(tmp_path / "io.pt")!r}, weights_only=True)
        network = load({str(tmp_path)!r})
        assert not {{"timm", "torchvision.models", "onnxruntime", "matplotlib"}} & set(sys.modules)
        assert not any(module.training for module in network.modules())
        with torch.no_grad():
            assert torch.equal(network(x), wanted)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_a_graph_may_hold_comes_back(tmp_path):
    gm, x = zoo(), images(2, 3, 7, 9)
    loaded = stored_network.load_network(stored_network.save_network(gm, tmp_path, (x,)))
    wanted, found = gm(x), loaded(x)
    assert torch.equal(found["flat"], wanted["flat"])
    assert torch.equal(found["rest"][0], wanted["rest"][0])
    assert found["rest"][1:] == wanted["rest"][1:]
    assert loaded.code == gm.code
    assert torch.equal(loaded(x, 3)["flat"], gm(x, 3)["flat"])


def test_tensors_stay_tied_frozen_and_unsaved_as_they_were(tmp_path):
    loaded = stored_network.load_network(stored_network.save_network(zoo(), tmp_path))
    assert loaded.left.weight is loaded.right.weight
    assert not loaded.scale.requires_grad
    assert loaded.left.weight.requires_grad
    assert loaded.state_dict().keys() == zoo().state_dict().keys()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Hardtanh(-0.5, 0.7),
        nn.LeakyReLU(0.3, inplace=True),
        nn.AvgPool2d((2, 1), 1, (1, 0), count_include_pad=False),
        nn.AdaptiveAvgPool2d((None, 3)),
        nn.GroupNorm(3, 3, eps=0.1, affine=False),
        nn.BatchNorm2d(3, eps=0.01, momentum=None),
        nn.ConvTranspose2d(3, 6, (3, 2), (2, 1), groups=3, bias=False, dilation=2),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.ConstantPad2d((1, 0, 2, 3), float("-inf")),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Identity(), nn.Flatten(2), nn.LayerNorm(6), nn.GELU("tanh")),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_are_read_back_from_their_attributes(layer, tmp_path):
    gm, x = fx.symbolic_trace(nn.Sequential(layer).eval()), images(2, 3, 4, 6)
    loaded = stored_network.load_network(stored_network.save_network(gm, tmp_path, (x,)))
    assert torch.equal(loaded(x), gm(x))
    assert repr(loaded) == repr(gm)


class Scaled(nn.Module):
    """A trained scale, a fixed shift, and an input normalisation around a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 5, 3), nn.ReLU()
        self.gamma = nn.Parameter(torch.randn(5, 1, 1))
        self.register_buffer("shift", torch.randn(1, 5, 1, 1))

    def forward(self, x):
        return self.act(self.conv((x - 0.5) / 0.2)) * self.gamma + self.shift


def test_layers_may_have_any_name(tmp_path):
    net = nn.Sequential()
    for name in ("/features/0/Conv@0", "naïve conv", "a-b", "'"):
        net.add_module(name, nn.Conv2d(3, 3, 1))
    gm, x = capture(net, images(1, 3, 5, 7)), images(2, 3, 5, 7)
    assert torch.equal(stored_network.load_network(stored_network.save_network(gm, tmp_path, (x,)))(x), net(x))


def test_objects_of_the_users_class_come_back_as_records(tmp_path):
    gm, x = capture(Detector(), images(1, 3, 5, 7)), images(2, 3, 5, 7)
    found = stored_network.load_network(stored_network.save_network(gm, tmp_path, (x,)))(x)
    assert torch.equal(found.scores, gm(x).scores)
    low, high = found["boxes"]
    assert torch.equal(low, gm(x).boxes.low)
    assert found.boxes.low is low
    assert high is None
    assert (found.stride, found.boxes.high) == (4, None)
    with pytest.raises(AttributeError, match="no output 'masks'; the outputs are scores, boxes, stride"):
        _ = found.masks


def test_layers_of_captured_graphs_come_back(tmp_path):
    torch.manual_seed(0)
    x = images(2, 3, 5, 7)
    gm = capture(Scaled(), x)
    kinds = [type(gm.get_submodule(node.target)) for node in gm.graph.find_nodes(op="call_module", sort=True)]
    assert kinds == [ChannelAffine, nn.Conv2d, nn.ReLU, ChannelAffine]
    stored_network.save_network(gm, tmp_path, (x,))
    loaded = stored_network.load(tmp_path)
    assert torch.equal(loaded(x), gm(x))
    assert {name: repr(m) for name, m in loaded.named_children()} == {n: repr(m) for n, m in gm.named_children()}
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 5 * 27 + 5 + 5  # gamma trains, the rest not
    again = capture(loaded, x)
    assert torch.equal(again(x), gm(x))
    assert len(list(again.children())) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_memory_format_are_kept(dtype, tmp_path):
    gm = small_net().to(dtype).to(memory_format=torch.channels_last)
    loaded = stored_network.load_network(stored_network.save_network(gm, tmp_path, (images(1, 3, 5, 7).to(dtype),)))
    weight = loaded.get_submodule("0").weight
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)], ids=str)
def test_channels_last_is_kept_where_both_formats_look_alike(layer, tmp_path):
    """With one channel or one pixel a weight is contiguous in both formats, and kernels are chosen by its strides."""
    gm = fx.symbolic_trace(nn.Sequential(layer)).eval().to(memory_format=torch.channels_last)
    x = images(2, layer.in_channels, 20, 20)
    loaded = stored_network.load_network(stored_network.save_network(gm, tmp_path, (x,)))
    assert loaded.get_submodule("0").weight.stride() == gm.get_submodule("0").weight.stride()
    assert torch.equal(loaded(x), gm(x))


def test_plain_attributes_ride_along_and_survive_a_copy(tmp_path):
    gm = capture(timm.create_model("efficientnet_lite0", num_classes=7), images(1, 3, 37, 41))
    attach_attributes(gm, {"opaque": object()})
    loaded = copy.deepcopy(stored_network.load_network(stored_network.save_network(gm, tmp_path)))
    assert loaded.num_classes == 7
    assert loaded.pretrained_cfg == gm.pretrained_cfg
    assert loaded.pretrained_cfg["input_size"] == (3, 224, 224)
    assert not hasattr(loaded, "opaque")


def test_saving_changes_nothing_and_a_training_network_is_stored_in_evaluation_mode(tmp_path):
    gm = fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())).train()
    before = copy.deepcopy(gm.state_dict())
    loaded = stored_network.load_network(stored_network.save_network(gm, tmp_path, (images(2, 3, 5, 5),)))
    assert all(module.training for module in gm.modules())
    assert all(torch.equal(before[name], value) for name, value in gm.state_dict().items())
    assert not loaded.training


def graph_with(op, target, *args, **kwargs):
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.create_node(op, target, (x, *args), kwargs))
    return fx.GraphModule(nn.Module(), graph)


class Own(nn.ReLU):
    pass


def hooked():
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, args, output: output)
    return layer


def mutated():
    layer = nn.Linear(7, 5)
    layer.weight = nn.Parameter(torch.zeros(5, 9))
    return layer


@pytest.mark.parametrize(
    ("gm", "named"),
    [
        (
            graph_with("call_function", torch.load),
            r"load \(torch\.serialization\.load.* not on the list",
        ),
        (graph_with("call_function", eval), r"eval_1 \(builtins\.eval\) .*not on the list"),
        (graph_with("call_function", getattr, "__class__"), r"getattr_1 \(.*a getattr other than of"),
        (graph_with("call_function", operator.attrgetter), r"attrgetter \(.*not on the list"),
        (graph_with("call_method", "apply_"), r"apply_ \(apply_\) .*the tensor method 'apply_'"),
        (graph_with("call_method", "__reduce__"), "the tensor method '__reduce__'"),
        (graph_with("call_method", "add", 1j), r"add \(add\) .*a value of type builtins\.complex"),
        (graph_with("call_method", "add", **{"a=1, b": 2}), r"add \(add\) .*kwargs"),
        (fx.symbolic_trace(nn.Sequential(hooked())), "module '0' .*forward hooks"),
        (fx.symbolic_trace(nn.Sequential(mutated())), "module '0' .*it becomes Linear"),
        (fx.symbolic_trace(nn.Sequential(nn.LSTM(3, 5))), r"module '0' \(LSTM\) cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_named_when_saving(gm, named, tmp_path):
    with pytest.raises(ArtifactError, match=named):
        stored_network.save_network(gm, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_layer_of_the_users_own_class_is_named(tmp_path):
    gm = small_net()
    gm.set_submodule("1", Own())
    with pytest.raises(ArtifactError, match=r"module '1' \(Own\) .*is no layer of torch\.nn"):
        stored_network.save_network(gm, tmp_path)


def test_a_network_that_draws_random_numbers_is_refused(tmp_path):
    gm = graph_with("call_function", F.dropout)
    with pytest.raises(ArtifactError, match="other values than the original on the example inputs"):
        stored_network.save_network(gm, tmp_path, (images(2, 3, 5, 7),))


def call(target, op="call_function", **changes):
    def change(content):
        content["nodes"][-2].update({"op": op, "target": target, **changes})

    return change


def set_field(*path, value):
    def change(content):
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


def module_called(path):
    """Add a layer at a path, and call it: code that fx generates must not find anything else there."""

    def change(content):
        content["modules"][path] = {"kind": "Identity", "arguments": {}}
        content["nodes"][-2].update({"op": "call_module", "target": path})

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (call("torch.load"), r"torch\.load, which is not on the list"),
        (call("os.system"), r"os\.system, which is not on the list"),
        (call("builtins.eval"), r"builtins\.eval, which is not on the list"),
        (call("torchvision.io.read_file"), "which is not on the list"),
        (call("torch.nn.functional.__builtins__"), "which is not on the list"),
        (call("builtins.getattr", args=[{"node": "input_1"}, "__class__"]), "a getattr other than"),
        (call("__reduce__", "call_method"), "tensor method '__reduce__'"),
        (call("register_hook", "call_method"), "tensor method 'register_hook'"),
        (call("forward", "call_module"), "refers to 'forward', which is not stored"),
        (call("__class__.__init__", "get_attr"), "refers to '__class__.__init__', which is not stored"),
        (call('x"); import os; ("', "get_attr"), r"nodes\.\d\.target"),
        (call("relu; import os", "call_method"), "tensor method 'relu; import os'"),
        (module_called("to_folder"), "'to_folder' is no name of its own"),
        (module_called("__\uff43lass__"), "is no name of its own"),
        (module_called("x.\uff46orward"), "is no name of its own"),
        (set_field("nodes", 0, "name", value="self"), "a node called 'self'"),
        (call("a\\", "get_attr"), r"nodes\.\d\.target"),
        (call("a\n", "get_attr"), r"nodes\.\d\.target"),
        (call("torch.relu", kwargs={"a=__import__('os')": 1}), r"nodes\.\d\.kwargs"),
        (call("torch.relu", name="f(x): pass\n"), r"nodes\.\d\.name"),
        (call("torch.relu", args=[{"node": "nowhere"}]), "the node 'nowhere', which is unknown"),
        (call("torch.relu", args=[{"pickle": "gASV"}]), "the pickle 'gASV', which is unknown"),
        (call("torch.relu", args=[{"device": "evil:x"}]), "the device 'evil:x', which is unknown"),
        (call("torch.relu", args=[{"slice": [1, 2, 3, 4]}]), "cannot be rebuilt"),
        (call("torch.relu", args=[{}]), "where one field is expected"),
        (set_field("nodes", 0, "target", value="x: print(1)"), "which is no plain name"),
        (set_field("nodes", 0, "target", value="lambda"), "cannot be rebuilt"),
        (set_field("nodes", 1, "name", value="input_1"), "two nodes 'input_1'"),
        (set_field("modules", "1", "kind", value="DataParallel"), "arguments that DataParallel"),
        (set_field("modules", "1", "kind", value="Parameter"), "a layer Parameter, which torch.nn does not"),
        (set_field("modules", "0", "arguments", "out_channels", value=6), "has shape .*, not"),
        (set_field("tensors", "0.extra", value=None), "tensors"),
        (set_field("tensors", value={}), "the tensor '0.weight' has no values"),
        (set_field("attributes", "forward", value=1), "'forward' would hide"),
        (set_field("attributes", "_modules", value=1), "'_modules' would hide"),
        (set_field("schema_version", value=2), "schema version 2, but this depthcomp reads version 1"),
        (set_field("surprise", value=2), "surprise: Extra inputs"),
    ],
)
def test_a_tampered_structure_is_refused(change, reason, saved):
    tamper(saved, change)
    with pytest.raises(ArtifactError, match=reason):
        stored_network.load(saved)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: truncate(folder / "model.json"), r"model\.json is truncated or not JSON"),
        (lambda folder: truncate(folder / "model.safetensors"), "does not belong to the model.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot read .*model\.safetensors"),
        (lambda folder: (folder / "model.json").unlink(), r"cannot read .*model\.json"),
        (lambda folder: (folder / "model.json").write_bytes(b"\x80\x04\x95"), "truncated or not JSON"),
        (lambda folder: (folder / "model.json").write_text("[" * 100_000), "truncated or not JSON"),
        (lambda folder: (folder / "model.json").write_text("[1, 2]"), "schema version None"),
    ],
)
def test_truncated_foreign_and_missing_files_are_refused(spoil, reason, saved):
    spoil(saved)
    with pytest.raises(ArtifactError, match=reason):
        stored_network.load(saved)


def test_weights_of_another_network_are_refused(saved, tmp_path):
    other = small_net()
    with torch.no_grad():
        other.get_submodule("0").bias.add_(1)
    stored_network.save_network(other, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(ArtifactError, match="from another network"):
        stored_network.load(saved)


def saved_until(number, gm, folder, patch):
    """Save a network, and break off where a file is about to take its name for the so-manieth time."""
    replace, count = os.replace, itertools.count(1)

    def replacing(*paths):
        if next(count) == number:
            raise KeyboardInterrupt
        replace(*paths)

    with patch.context() as inside, contextlib.suppress(KeyboardInterrupt):
        inside.setattr(os, "replace", replacing)
        stored_network.save_network(gm, folder)


WHOLE = 4  # more files than take their names in one saving


def test_a_network_saved_over_another_is_whole_wherever_that_is_broken_off(tmp_path, monkeypatch):
    """Even twice in a row: the folder holds the network before, or the new one."""
    x, first, others = images(1, 3, 5, 7), net_of(1), (net_of(2), net_of(3))
    for places in itertools.product(range(1, WHOLE + 1), repeat=2):
        folder, held = stored_network.save_network(first, tmp_path / str(places)), first
        for place, new in zip(places, others, strict=True):
            saved_until(place, new, folder, monkeypatch)
            found = stored_network.load(folder)(x)
            (held,) = (network for network in (held, new) if torch.equal(network(x), found))
        if places[-1] == WHOLE:
            assert held is others[-1]
            assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors"}


def test_a_folder_that_is_a_file_or_missing_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file is a file; give the folder"):
        stored_network.load(tmp_path / "file")
    with pytest.raises(ArtifactError, match="nowhere does not exist; give the folder"):
        stored_network.load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"cannot create the folder .*file"):
        stored_network.save_network(small_net(), tmp_path / "file")
