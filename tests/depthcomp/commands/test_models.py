import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from depthcomp.commands.models import load_model, load_weights
from depthcomp.data.pictures import normalization
from depthcomp.errors import CaptureError, MissingPackageError

MODULE = """
    from torch import nn

    number = 7

    def net():
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
        model.pretrained_cfg = {"input_size": (2, 11, 13), "mean": (0.1, 0.2), "std": (0.3, 0.4)}
        return model

    def silent():
        return nn.Sequential(nn.Conv2d(2, 3, 3))

    def needy(width):
        return nn.Conv2d(2, width, 3)

    def broken():
        raise ValueError("no such width\\nin detail")

    def wrong():
        return {"model": 1}
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "some_nets.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "failing_nets.py").write_text("raise RuntimeError('half written')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("some_nets", None)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("torchvision:squeezenet1_1", (1, 3, 224, 224)),
        ("torchvision:efficientnet_b1", (1, 3, 240, 240)),
        ("timm:mobilenetv2_050", (1, 3, 224, 224)),
    ],
)
def test_a_library_net_is_in_eval_mode_and_says_that_its_weights_are_random(spec, shape):
    with pytest.warns(UserWarning, match=f"{spec} has random weights"):
        model, example = load_model(spec)
    assert not model.training
    assert example.held.shape == shape


def test_a_segmentation_net_is_built_without_a_download(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.warns(UserWarning, match="random weights"):
        _, example = load_model("torchvision:lraspp_mobilenet_v3_large")
    assert example.held.shape == (1, 3, 224, 224)


@pytest.mark.usefixtures("user_module")
def test_a_factory_in_the_current_directory():
    model, example = load_model("some_nets:net")
    assert not model.training
    assert example.held.shape == (1, 2, 11, 13)
    assert normalization(model) == ((0.1, 0.2), (0.3, 0.4))


@pytest.mark.usefixtures("user_module")
def test_a_model_that_tells_no_size_gets_the_usual_one_and_a_warning():
    with pytest.warns(UserWarning, match=r"some_nets:silent does not give its input size, so \(2, 224, 224\)"):
        _, example = load_model("some_nets:silent")
    assert example.held.shape == (1, 2, 224, 224)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"model \(='resnet18'\) must be torchvision:NAME, timm:NAME, .* or FILE\.onnx"),
        (":resnet18", "must be torchvision:NAME"),
        ("timm:", "must be torchvision:NAME"),
        ("torchvision:resnet81", "is unknown to torchvision; did you mean resnet18"),
        ("timm:mobilnetv2_050", "is unknown to timm; did you mean mobilenetv2_050"),
        ("timm:hf-hub:someone/net", "is unknown to timm"),
        ("timm:mobilenetv2_050.nobody", "cannot be built without arguments: RuntimeError"),
        ("torchvison:resnet18", "No module named 'torchvison'.*did you mean torchvision"),
        ("failing_nets:net", "cannot be imported: RuntimeError: half written"),
        ("some_nets:nett", "names nothing in some_nets.*did you mean net"),
        ("some_nets:number", "names a int in some_nets"),
        ("some_nets:needy", "cannot be built without arguments: TypeError.*width"),
        ("some_nets:broken", "ValueError: no such width$"),
        ("some_nets:wrong", "returned a dict, but must return an nn.Module"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(CaptureError, match=message):
        load_model(spec)


def test_without_timm_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r'pip install "depthcomp\[timm\]"'):
        load_model("timm:mobilenetv2_050")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_a_torch_checkpoint(net, tmp_path, nest, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "w.pth")
    model, _ = load_model("some_nets:net", tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), net.state_dict().values(), strict=True))


def test_weights_of_a_safetensors_file(net, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    load_weights(other, path)
    assert torch.equal(other[0].weight, net[0].weight)


def test_a_prefix_that_the_model_has_itself_stays(net, tmp_path):
    wrapped = nn.ModuleDict({"module": net})
    torch.save(wrapped.state_dict(), tmp_path / "w.pt")
    load_weights(wrapped, tmp_path / "w.pt")


def test_weights_of_another_model_are_refused_with_their_names(net, tmp_path):
    torch.save({f"stage.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "w.pt")
    message = r"missing 0\.weight, 0\.bias, 1\.weight and 3 more, unexpected stage\.0\.weight"
    with pytest.raises(CaptureError, match=message):
        load_weights(net, tmp_path / "w.pt")


def test_missing_weights_alone(net, tmp_path):
    torch.save(net[:1].state_dict(), tmp_path / "w.pt")
    with pytest.raises(CaptureError, match=r"missing 1\.weight, .*, unexpected none;"):
        load_weights(net, tmp_path / "w.pt")


def test_weights_of_other_shapes_are_refused(net, tmp_path):
    state = net.state_dict()
    torch.save({**state, "0.weight": torch.zeros(5, 2, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(
        CaptureError, match=r"has other shapes than the model for 0\.weight.*\(5, 2, 3, 3\), not \(3, 2, 3, 3\)"
    ):
        load_weights(net, tmp_path / "w.pt")


def test_a_file_that_is_no_state_dict(net, tmp_path):
    with pytest.raises(CaptureError, match="does not exist; check the path"):
        load_weights(net, tmp_path / "none.pt")
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(CaptureError, match=r"cannot be read \(\w+\); give a \.safetensors file"):
            load_weights(net, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CaptureError, match="holds a list without tensors by name"):
        load_weights(net, tmp_path / "list.pt")


def test_a_pickled_model_is_refused_unread(net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CaptureError, match=r"UnpicklingError.*torch\.save\(model\.state_dict\(\), path\)"):
        load_weights(nn.Sequential(), tmp_path / "whole.pt")


def test_normalization_without_a_configuration_is_that_of_imagenet():
    assert normalization(nn.Identity()) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
