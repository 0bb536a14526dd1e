"""Which arguments of a forward the data give, and what of an item is an input or a label."""

import pytest
import torch
from torch import nn

from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import CaptureError, DataError
from fx_passes import capture

A, B, Y = torch.zeros(2, 3, 4, 5), torch.ones(2, 6), torch.tensor([1, 0])


class Two(nn.Module):
    """Needs two arguments, and may get a third."""

    def forward(self, image, vector, mask=None):
        return image.mean((1, 2, 3)) + vector.mean(1)


class One(nn.Module):
    """Needs no argument by its signature, as models of HuggingFace."""

    def forward(self, pixel_values=None, labels=None, mask=None):
        return pixel_values


class Open(nn.Module):
    """Hands on whatever it gets."""

    def forward(self, *args, **kwargs):
        return args


@pytest.mark.parametrize(
    ("model", "example", "inputs", "names"),
    [
        (Two(), None, None, ("image", "vector")),
        (Two(), (A, B), None, ("image", "vector")),
        (Two(), (A, B, A), None, ("image", "vector", "mask")),
        (Two(), {"mask": A, "vector": B, "image": A}, None, ("image", "vector", "mask")),
        (Two(), None, ["vector", "mask", "image"], ("image", "vector", "mask")),
        (One(), None, None, ()),
        (One(), A, None, ()),
        (One(), {"mask": A, "pixel_values": A}, None, ("pixel_values", "mask")),
        (One(), A, ("pixel_values",), ("pixel_values",)),
        (nn.Sequential(), A, None, ("input",)),
        (Open(), (A, B), None, ("args_0", "args_1")),
        (Open(), {"b": B, "a": A}, None, ("b", "a")),
    ],
)
def test_names(model, example, inputs, names):
    assert InputNames.of(model, example, inputs).names == names


def test_a_captured_graph_names_its_placeholders():
    gm = capture(Two(), {"image": A, "vector": B})
    assert InputNames.of(gm).names == ("image", "vector")


TWO = InputNames.of(Two())


@pytest.mark.parametrize(
    ("item", "labels"),
    [
        ((A, B), None),
        ([A, B, Y], Y),
        (((A, B), Y), Y),
        (({"vector": B, "image": A}, Y), Y),
        ({"vector": B, "image": A, "label": Y}, Y),
        ({"image": A, "vector": B, "index": Y}, None),
        (Inputs.of((A, B)), None),
    ],
)
def test_parts_of_an_item(item, labels):
    (a, b), found = TWO.parts(item, "data")
    assert a is A
    assert b is B
    assert found is labels


@pytest.mark.parametrize(
    ("item", "what"),
    [(A, "a Tensor"), ((A,), "1 parts"), ({"image": A}, "a dict without vector"), ("a.png", "a str"), ((), "a tuple")],
)
def test_an_item_without_the_inputs_is_refused(item, what):
    with pytest.raises(DataError, match=f"an item of val_data is {what}, but the network takes image, vector; yield"):
        TWO.parts(item, "val_data")


def test_an_input_may_be_called_like_a_label():
    names = InputNames.of(One(), None, ("pixel_values", "labels"))
    assert names.parts({"pixel_values": A, "labels": B, "label": Y}, "data") == ((A, B), Y)


def test_what_is_undecided_is_asked_for():
    item = {"pixel_values": A, "mask": A}
    with pytest.raises(DataError, match=r"holds mask, which the network's forward takes but does not need; say"):
        InputNames.of(One()).parts(item, "data")
    assert InputNames.of(One(), None, ("pixel_values",)).parts(item, "data") == ((A,), None)
    assert InputNames.of(One()).parts({"pixel_values": A, "labels": Y}, "data") == ((A,), Y)


@pytest.mark.parametrize(
    ("example", "inputs", "sentence"),
    [
        (A, None, "holds 1 input, but the network takes image, vector"),
        ((A, B, A, A), None, "holds 4 inputs, but the network takes image, vector, mask and no more by position"),
        ((A, B), ("image", "vector", "mask"), "holds 2 inputs, but the network takes image, vector, mask"),
        ({"image": A, "vector": B}, ("image", "vector", "mask"), "holds image, vector, but the network takes image, v"),
        (None, ("image",), "its forward takes image, vector, mask and needs vector, too"),
        (None, (), "needs image, vector, too"),
        (None, ("image", "vector", "depth"), "has no 'depth'"),
        (None, ("image", "vector", "image"), "must be different names of arguments"),
        ({"image": A, "depth": B}, None, "has no 'depth'"),
    ],
)
def test_names_that_do_not_fit_are_refused(example, inputs, sentence):
    with pytest.raises(CaptureError, match=sentence):
        InputNames.of(Two(), example, inputs)
