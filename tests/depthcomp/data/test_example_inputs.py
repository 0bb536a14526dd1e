"""Where a model's example input comes from."""

import pytest
import torch
import torchvision
from torch import nn

from depthcomp.data.example import infer_example
from depthcomp.errors import CaptureError, DataError

X = torch.randn(4, 3, 9, 13, generator=torch.Generator().manual_seed(0))


def net(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.ReLU())


@pytest.mark.parametrize("given", [X, (X,), [X]])
def test_the_users_own_comes_first(given):
    data = [torch.zeros(1, 3, 5, 5)]
    example, untouched, warning = infer_example(net(), given, data)
    assert example.held is X
    assert untouched is data
    assert warning == ""


@pytest.mark.parametrize("given", [(X, X), ()])
def test_another_number_of_inputs_is_refused(given):
    with pytest.raises(CaptureError, match=r"must be one batch of images .n, c, h, w.; pass one tensor"):
        infer_example(net(), given, None)


def test_an_empty_batch_is_refused():
    with pytest.raises(CaptureError, match=r"shape \(0, 3, 9, 13\), which has no values; pass a batch of at least one"):
        infer_example(net(), X[:0], None)


@pytest.mark.parametrize("given", [X[0], (X[0],), X[None]])
def test_a_tensor_that_is_no_batch_of_images_is_refused(given):
    with pytest.raises(CaptureError, match=r"has shape .* must be one batch of images .*; x\.unsqueeze.0. makes"):
        infer_example(net(), given, None)


@pytest.mark.parametrize("given", [X.double(), X.half(), (X > 0).to(torch.uint8), torch.full_like(X, torch.nan)])
def test_an_example_of_other_values_is_refused(given):
    with pytest.raises(CaptureError, match=r"is of torch\.\w+, but must hold finite torch.float32 images, normalised"):
        infer_example(net(), given, None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [(X.numpy(), r"pass torch\.from_numpy"), (3, "a tensor is needed"), ((1, 3, 9, 13), r"pass torch\.randn")],
)
def test_an_example_that_is_no_tensor_is_refused(given, sentence):
    with pytest.raises(CaptureError, match=f"example_inputs .*{sentence}"):
        infer_example(net(), given, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(("given", "data"), [(X, None), (None, [X]), (None, None)])
def test_a_model_in_another_precision_is_refused(dtype, given, data):
    with pytest.raises(CaptureError, match=rf"0\.weight of Sequential is of {dtype}.*; pass model\.float\(\)"):
        infer_example(net().to(dtype), given, data)


def test_a_model_on_another_device_is_refused():
    with pytest.raises(CaptureError, match=r"0\.weight of Sequential is on meta, .* pass model\.cpu\(\)"):
        infer_example(net().to("meta"), X, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_data_in_another_floating_point_type_give_an_example_in_the_models(dtype):
    example, _, _ = infer_example(net(), None, [X.to(dtype)])
    assert example.held.dtype == torch.float32
    assert torch.equal(example.held, X[:1].to(dtype).float())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([(X > 0).to(torch.uint8)], "data holds images of torch.uint8, but must hold floating-point images, normal"),
        ([torch.full_like(X, torch.inf)], "data holds NaN or infinite values"),
    ],
)
def test_data_without_usable_values_give_no_example(data, sentence):
    with pytest.raises(DataError, match=sentence):
        infer_example(net(), None, data)


@pytest.mark.parametrize("data", [[X], X, [(X, 1)], [{"x": X}], list(X)])
def test_the_first_image_of_the_data(data):
    example, untouched, warning = infer_example(net(), None, data)
    assert torch.equal(example.held, X[:1])
    assert untouched is data
    assert warning == ""


def test_a_one_shot_generator_still_yields_its_first_item():
    example, data, _ = infer_example(net(), None, (image for image in X))
    assert torch.equal(example.held, X[:1])
    assert torch.equal(torch.stack(list(data)), X)


def test_empty_data_are_refused():
    with pytest.raises(DataError, match="data holds no images"):
        infer_example(net(), None, iter([]))


@pytest.mark.parametrize("name", ["pretrained_cfg", "default_cfg"])
def test_the_models_own_configuration(name):
    model = net()
    setattr(model, name, {"input_size": (3, 17, 19)})
    example, data, warning = infer_example(model, None, None)
    assert example.held.shape == (1, 3, 17, 19)
    assert data is None
    assert warning == ""


@pytest.mark.parametrize("configuration", [None, {}, {"input_size": None}])
def test_a_guess_is_said_aloud(configuration):
    model = net(channels=2)
    model.pretrained_cfg = configuration
    example, _, warning = infer_example(model, None, None)
    assert example.held.shape == (1, 2, 224, 224)
    assert warning.startswith("without example_inputs or data, one image of shape (2, 224, 224) is assumed; pass")


def test_a_guess_is_always_the_same():
    first, again = (infer_example(net(), None, None)[0] for _ in range(2))
    assert torch.equal(first.held, again.held)


def test_a_model_of_torchvision_is_guessed_right():
    example, _, _ = infer_example(torchvision.models.resnet18(), None, None)
    assert example.held.shape == (1, 3, 224, 224)


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(
        CaptureError, match="Linear has no convolution; depth compression is for convolutional networks"
    ):
        infer_example(nn.Linear(3, 5), None, None)
