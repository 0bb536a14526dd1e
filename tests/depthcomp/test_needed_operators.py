"""What a plan says must be measured is what a compression then measures."""

import pytest
import torch
import torchvision
from tiny_network import EXAMPLE, tiny_net

from depthcomp import compress_depth
from depthcomp.errors import CaptureError, TableError
from depthcomp.preparation import needed_operators
from fx_passes.kinds import kinds

pytestmark = pytest.mark.whole

REWRITES = tuple(f"{kind.name} " for kind in kinds())


@pytest.mark.filterwarnings("ignore:without data")
def test_it_is_what_a_compression_measures(arithmetic_backend, monkeypatch):
    wanted = []

    def complete(self, signatures, backend, **options):
        wanted.extend(signatures)
        raise TableError("that is enough")

    monkeypatch.setattr("depthcomp.latency.table_store.TableStore.complete", complete)
    model = tiny_net()
    with pytest.raises(TableError, match="that is enough"):
        compress_depth(model, "90%", example_inputs=EXAMPLE, backend=arithmetic_backend())
    assert list(needed_operators(model, EXAMPLE)) == sorted(wanted)


def test_layers_and_rewrites_are_named():
    needed = needed_operators(tiny_net(), EXAMPLE)
    places = [place for names in needed.values() for place in names]
    rewrites = [place for place in places if place.startswith(REWRITES)]
    layers = sorted(set(places) - set(rewrites))
    assert layers == ["0", "10", "3.conv.0.0", "3.conv.1.0", "3.conv.2", "4.conv1", "4.conv2", "6"]
    assert {"fit 0 to 4", "fit 3", "merge 3.conv", "merge 4.conv1 to 4.conv2", "fit 4.conv2"} <= set(rewrites)
    assert all(names == sorted(set(names)) and names for names in needed.values())


def test_the_batch_is_that_of_the_example():
    needed = needed_operators(tiny_net(), EXAMPLE.repeat(3, 1, 1, 1))
    assert {signature.batch for signature in needed} == {3}
    alone = needed_operators(tiny_net(), EXAMPLE)
    assert len(needed) == len(alone)


def test_operators_behind_a_max_pool_have_its_output_size():
    """Traced without it, every layer of a ResNet would be timed at four times its area."""
    sizes = {
        signature.in_size for signature in needed_operators(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    }
    assert max(sizes - {(224, 224), (112, 112)}) == (56, 56)


def test_an_example_that_the_model_does_not_take_is_refused():
    with pytest.raises(CaptureError, match=r"\(4, 3, 32, 32\)|channels|shape"):
        needed_operators(tiny_net(), torch.zeros(1, 4, 32, 32))
