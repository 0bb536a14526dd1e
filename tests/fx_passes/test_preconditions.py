"""What is refused before anything is captured, and the sentence that says what to pass instead."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.utils import prune
from toy_nets import Chain

from depthcomp_errors import CaptureError
from fx_passes import capture
from fx_passes.preconditions import as_tensors

EXAMPLE = torch.zeros(1, 3, 11, 13)


def scripted(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and saved models of it are still around
        return make()


@pytest.mark.parametrize(
    ("model", "what"),
    [(3, "an object of type int"), (Chain, "the class Chain"), (lambda: None, "an object of type function"),
     ({"conv.weight": EXAMPLE}, "an object of type dict"), (None, "an object of type NoneType")],
)  # fmt: skip
def test_what_is_no_network(model, what):
    with pytest.raises(CaptureError, match=f"model is {what} and must be a torch.nn.Module; build the network"):
        capture(model, EXAMPLE)


@pytest.mark.parametrize(
    ("wrap", "kind", "inside"),
    [
        (nn.DataParallel, "DataParallel", "model.module"),
        (torch.compile, "OptimizedModule", "model._orig_mod, the original nn.Module,"),
        (lambda m: scripted(lambda: torch.jit.script(m)), "RecursiveScriptModule", "the original nn.Module"),
        (lambda m: scripted(lambda: torch.jit.trace(m, EXAMPLE)), "TopLevelTracedModule", "the original nn.Module"),
    ],
)
def test_wrappers_are_named_with_what_is_inside(wrap, kind, inside):
    sentence = f"model is of type {kind}, which hides the network from tracing; use {inside}"
    with pytest.raises(CaptureError, match=re.escape(sentence)):
        capture(wrap(Chain().eval()), EXAMPLE)


def quantised(*, converted):
    """Return a network prepared for training with imitated quantisation, or quantised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated, and its networks are still around
        ao = torch.ao.quantization
        model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())).train()
        model.qconfig = ao.get_default_qat_qconfig("fbgemm")
        ao.prepare_qat(ao.fuse_modules_qat(model, ["0.0", "0.1", "0.2"], inplace=True), inplace=True)
        model(torch.zeros(1, 3, 11, 13))
        return ao.convert(model.eval()) if converted else model


@pytest.mark.parametrize(("converted", "kind"), [(False, "ConvBnReLU2d"), (True, "ConvReLU2d")])
def test_quantised_networks_are_sent_back_to_the_float_network(converted, kind):
    sentence = rf"model\[0\]\[0\] is of type {kind}, which quantises .* before prepare or prepare_qat, compress that"
    with pytest.raises(CaptureError, match=sentence):
        capture(quantised(converted=converted), EXAMPLE)


def test_stubs_of_float_networks_are_no_quantisation():
    stubbed = torchvision.models.quantization.resnet18(num_classes=7).eval()
    assert capture(stubbed, torch.zeros(1, 3, 33, 35)).graph


def test_a_distributed_network_is_refused_like_any_wrapper():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(CaptureError, match=r"model is of type DistributedDataParallel.*use model\.module instead"):
            capture(nn.parallel.DistributedDataParallel(Chain()), EXAMPLE)
    finally:
        dist.destroy_process_group()


def test_a_wrapper_inside_the_network_is_named_by_its_place():
    model = nn.Sequential(nn.ModuleDict({"stem": nn.Sequential(nn.ReLU(), nn.DataParallel(Chain()))})["stem"])
    with pytest.raises(CaptureError, match=r"model\[0\]\[1\] is of type DataParallel.*use model\[0\]\[1\]\.module"):
        capture(model, EXAMPLE)


@pytest.mark.parametrize("lazy", [nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d()])
def test_lazy_modules_want_one_forward_first(lazy):
    model = nn.Sequential(lazy, nn.ReLU())
    with pytest.raises(CaptureError, match=r"0\..* of Sequential is not initialised yet.*run model\(example\) once"):
        capture(model, EXAMPLE)
    model(torch.randn(2, 3, 11, 13))
    assert capture(model, EXAMPLE)(EXAMPLE).shape[0] == 1


def test_weights_without_values_are_refused():
    with pytest.raises(CaptureError, match=r"conv1\.weight of Chain is on the meta device and has no values; load"):
        capture(Chain().to("meta"), EXAMPLE)


class Masked(nn.Module):
    """Adds a mask of a given value to its scores, as attention does."""

    def __init__(self, value):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.register_buffer("mask", torch.zeros(11).index_fill(0, torch.tensor([2, 7]), value))

    def forward(self, x):
        return torch.softmax(self.conv(x) + self.mask, dim=-1)


def test_infinity_in_a_mask_is_no_fault():
    model = Masked(-torch.inf).eval()
    x = torch.randn(2, 3, 11, 13)
    with torch.no_grad():
        assert torch.equal(capture(model, x)(x), model(x))


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (Masked(0.0), "mask", torch.nan),
        (Masked(0.0), "conv.bias", torch.inf),
        (Masked(0.0), "conv.weight", -torch.inf),
        (Chain(), "bn1.running_mean", torch.inf),
        (Chain(), "bn1.running_var", torch.inf),
        (Chain(), "bn1.running_var", torch.nan),
    ],
)
def test_other_values_that_are_not_finite_are_refused(model, name, value):
    with torch.no_grad():
        {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].view(-1)[3] = value
    with pytest.raises(CaptureError, match=f"{name} of {type(model).__name__} holds NaN or infinite values"):
        capture(model, EXAMPLE)


def test_an_output_that_is_not_finite_is_named():
    class Logarithm(nn.Module):
        def forward(self, x):
            return x, torch.log(x)

    with pytest.raises(CaptureError, match="output 1 of Logarithm holds NaN or infinite values on the example inputs"):
        capture(Logarithm(), EXAMPLE)


def test_tensors_are_taken_as_they_are():
    assert as_tensors(EXAMPLE) == (EXAMPLE,)
    assert as_tensors([EXAMPLE, EXAMPLE]) == (EXAMPLE, EXAMPLE)
    assert as_tensors(()) == ()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            (1, 3, 11, 13),
            "is the shape (1, 3, 11, 13) and must be a tensor of that shape; pass torch.randn(1, 3, 11, 13)",
        ),
        ([3, 11, 13], "is the shape (3, 11, 13) and must be"),
        (EXAMPLE.shape, "is the shape (1, 3, 11, 13)"),
        (
            EXAMPLE.numpy(),
            "holds a NumPy array of shape (1, 3, 11, 13) where a tensor is needed; pass torch.from_numpy(",
        ),
        ((np.zeros((1, 2)),), "holds a NumPy array of shape (1, 2)"),
        (224, "holds 224 of type int where a tensor is needed; pass a tensor, such as torch.randn(1, 3, 224, 224)"),
        ({"x": 1}, "holds 1 of type int where a tensor is needed"),
        ([{"x": EXAMPLE}], "holds {'x': tensor("),
        ("photo.png", "holds 'photo.png' of type str"),
        ((EXAMPLE, None), "holds None of type NoneType"),
    ],
)
def test_example_inputs_that_are_no_tensors(given, sentence):
    with pytest.raises(CaptureError, match=re.escape(f"example_inputs {sentence}")):
        capture(Chain(), given)


def hooked(register):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 5, 3)), nn.ReLU()).eval()
    scripted(lambda: register(net))
    return net


@pytest.mark.parametrize(
    ("register", "sentence"),
    [
        (lambda net: net[0].register_forward_hook(lambda *_: None), r"model[0] has a forward hook (<lambda>), and"),
        (lambda net: net[1][0].register_forward_pre_hook(lambda *_: None), r"model[1][0] has a forward pre-hook"),
        (lambda net: net[2].register_forward_hook(lambda *_: None), r"remove it with handle.remove()"),
        (lambda net: net.register_forward_hook(lambda *_: None), r"model has a forward hook (<lambda>), and hooks of "
         "the network itself, which tracing does not see, would be lost"),
        (lambda net: prune.l1_unstructured(net[1][1], "weight", 0.5), 'prune.remove(model[1][1], "weight")'),
        (lambda net: nn.utils.spectral_norm(net[0]), "torch.nn.utils.remove_spectral_norm(model[0])"),
        (lambda net: nn.utils.weight_norm(net[0]), "torch.nn.utils.remove_weight_norm(model[0])"),
    ],
)  # fmt: skip
def test_hooks_that_tracing_does_not_see_are_refused(register, sentence):
    with pytest.raises(CaptureError, match=re.escape(sentence)):
        capture(hooked(register), EXAMPLE)


def test_hooks_of_containers_are_traced():
    x = torch.randn(2, 3, 11, 13)
    net = hooked(lambda net: net[1].register_forward_hook(lambda module, given, y: 2 * y))
    assert torch.equal(capture(net, x)(x), net(x))


def test_pruning_that_was_made_permanent_is_no_hook():
    net = hooked(lambda net: prune.l1_unstructured(net[0], "weight", 0.5))
    prune.remove(net[0], "weight")
    assert torch.equal(capture(net, EXAMPLE)(EXAMPLE), net(EXAMPLE))
