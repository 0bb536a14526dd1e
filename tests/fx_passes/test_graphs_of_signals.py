"""Signals (n, c, length) beside other tensors of three dimensions."""

import pytest
import torch
from torch import nn
from toy_nets import captured, convolutions, largest_error, outputs

from fx_passes import enumerate_spans, free_merges, linearize, merge
from fx_passes.channel_affine import ChannelAffine
from fx_passes.spatial_layers import new_convolution, on_both_axes


class Tokens(nn.Module):
    """A sequence (n, tokens, features) with arithmetic, as in transformers."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer, self.norm = nn.Conv2d(3, 5, 3), nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.norm(x + 0.5 * self.layer(x))


class Scaled(nn.Module):
    """Signals that are normalised before a convolution, and scaled behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.last = nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3)
        self.scale = nn.Parameter(torch.rand(5, 1) + 0.5)

    def forward(self, x):
        return self.last(self.act(self.conv((x - 0.3) / 2)) * self.scale)


def scales(gm):
    return [layer for layer in gm.modules() if isinstance(layer, ChannelAffine)]


def test_arithmetic_on_sequences_holds_for_any_number_of_tokens():
    gm = captured(Tokens(), torch.rand(2, 3, 7, 9))
    assert not scales(gm)
    assert gm(torch.rand(1, 3, 11, 5).double()).shape == (1, 27, 5)


def test_arithmetic_on_signals_becomes_layers_that_merge():
    x = torch.rand(2, 2, 17).double()
    gm = captured(Scaled(), x)
    assert [layer.channels for layer in scales(gm)] == [2, 5]
    plan = free_merges(gm)
    merged = merge(linearize(gm, plan), plan)
    assert not scales(merged)
    assert [type(conv) for conv in convolutions(merged)] == [nn.Conv1d, nn.Conv1d]
    assert largest_error(outputs(merged, x), outputs(gm, x)) < 1e-9


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ((nn.Conv1d(3, 4, 3), nn.AvgPool2d(3, 1)), "AvgPool2d is not one convolution: it reads no batch of images"),
        ((nn.Conv1d(3, 4, 3), nn.ZeroPad2d(1)), "only zero padding of height and width by fixed numbers of pixels"),
        (
            (nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(4, 4, 2)),
            "ConvTranspose1d is a transposed convolution, and only",
        ),
    ],
)
def test_layers_that_do_not_work_along_the_one_axis_are_refused(layers, sentence):
    gm = captured(nn.Sequential(*layers), torch.rand(2, 3, 11))
    assert any(sentence in span.refusal for span in enumerate_spans(gm))


def test_options_of_signals_leave_the_height_as_it_is():
    conv = nn.Conv1d(2, 3, 5, stride=2, padding=4, dilation=3)
    found = {name: on_both_axes(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    assert found == {"kernel_size": (1, 5), "stride": (1, 2), "padding": (0, 4), "dilation": (1, 3)}
    assert on_both_axes(nn.AvgPool2d((2, 3)), "stride") == (2, 3)
    made = new_convolution((2, 3), (1, 5), signals=True, stride=(1, 2), padding=(0, 4), dilation=(1, 3))
    assert str(made) == str(conv)
