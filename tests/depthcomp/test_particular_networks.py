"""Networks that take only some batches or layouts are compressed in the form that they take."""

import warnings

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp import compress_depth

pytestmark = pytest.mark.whole


class Fixed(nn.Module):
    """Reshapes in a way that not every layout, or not every batch, can take."""

    def __init__(self, shape):
        super().__init__()
        self.body, self.shape, self.head = tiny_net()[:-3], shape, nn.LazyLinear(5)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(self.shape(x)))


ONE_IMAGE = "the network and its compressed form take only batches of one image"


@pytest.mark.parametrize(
    ("shape", "said"),
    [(lambda x: (x.size(0), -1), []), (lambda x: (1, 12 * 36), [ONE_IMAGE])],
    ids=["contiguous", "one image"],
)
def test_networks_that_are_particular_about_their_input(arithmetic_backend, shape, said, capsys):
    torch.manual_seed(0)
    model = Fixed(shape).eval()
    model(EXAMPLE[:1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compress_depth(model, "80%", example_inputs=EXAMPLE[:1], data=images(8), backend=arithmetic_backend())
    assert [str(each.message).partition(",")[0] for each in caught] == said
    assert list(result.warnings) == [str(each.message) for each in caught]
    assert result.measured_ms <= result.budget_ms
    assert capsys.readouterr() == ("", "")
