"""The check that a captured graph computes what its model computes, and what it cannot be fooled by."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthcomp_errors import CaptureError
from fx_passes import capture
from fx_passes.outputs import noise_like, require_equal, tensors_of

ZEROS = torch.zeros(1, 3, 9, 7)
NOISE = torch.randn(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Found:
    """What a detector returns."""

    scores: torch.Tensor
    extra: object = None


class Drawing(nn.Module):
    """Adds a number that is drawn anew each time; a recording holds it as a constant."""

    def __init__(self, pack=lambda y: y):
        super().__init__()
        self.conv, self.pack = nn.Conv2d(3, 5, 3), pack

    def forward(self, x):
        y = self.conv(x)
        return self.pack(y + torch.rand(1))


@pytest.mark.parametrize("pack", [lambda y: y, Found, lambda y: {"one": [Found(1, (y,))]}])
@pytest.mark.parametrize("example", [ZEROS, NOISE])
def test_a_difference_shows_on_any_example_and_in_any_output(pack, example):
    with pytest.raises(CaptureError, match=r"Drawing differs from the model .*draws random numbers"):
        capture(Drawing(pack), example)


class Returning(nn.Module):
    """A convolution, and a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 5, 3), function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize("function", [lambda y: None, lambda y: 3, lambda y: y[:0], lambda y: Found(None)])
def test_what_returns_no_values_cannot_be_compared(function):
    with pytest.raises(CaptureError, match=r"Returning returns no tensor with values .* cannot be compared"):
        capture(Returning(function), NOISE)


def test_dataclasses_are_captured():
    torch.manual_seed(0)
    net = Returning(Found).eval()
    assert torch.equal(capture(net, NOISE)(NOISE).scores, net(NOISE).scores)


@pytest.mark.filterwarnings("ignore:.*non-tensor.*")
def test_complex_outputs_are_compared():
    torch.manual_seed(0)
    net = Returning(torch.fft.rfft2).eval()
    assert torch.equal(capture(net, NOISE)(NOISE), net(NOISE))


def test_an_empty_example_is_refused():
    with pytest.raises(CaptureError, match=r"holds a tensor of shape \(0, 3, 9, 7\), which has no values; pass"):
        capture(Returning(F.relu), NOISE[:0])


class Logarithm(nn.Module):
    """Takes positive numbers only."""

    def forward(self, x):
        return torch.log(x)


def test_a_model_that_takes_no_random_numbers_is_checked_on_the_example():
    assert torch.equal(capture(Logarithm(), NOISE.abs())(NOISE.abs()), NOISE.abs().log())


def test_noise_is_the_same_each_time_and_leaves_integers():
    numbers = torch.tensor([2, 3])
    noise = noise_like((ZEROS.double(), numbers))
    assert noise[0].dtype == torch.float64
    assert noise[0].std() > 0.5
    assert torch.equal(noise[0], noise_like((ZEROS.double(),))[0])
    assert noise[1] is numbers


def test_shapes_are_compared_before_values():
    with pytest.raises(CaptureError, match=r"of shape \[\(1, 3, 1, 1\)\] where the model returns \[\(1, 3, 9, 7\)\]"):
        require_equal("Net", [ZEROS], [ZEROS[..., :1, :1]], 1e-5)
    with pytest.raises(CaptureError, match=r"returns tensors of shape \[\] where"):
        require_equal("Net", [ZEROS], [], 1e-5)


def test_tensors_are_found_in_containers_and_dataclasses():
    assert tensors_of([Found(ZEROS, {"a": NOISE}), 3, None, Found]) == [ZEROS, NOISE]


def test_autocast_in_the_forward_is_named_as_a_cause():
    class Cast(Drawing):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.conv(x)

    with pytest.raises(CaptureError, match=r"Cast differs .* switches autocast on"):
        capture(Cast(), NOISE)
