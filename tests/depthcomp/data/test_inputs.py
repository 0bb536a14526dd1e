"""The inputs of a batch, whatever their number and types."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from depthcomp.data.inputs import Inputs
from depthcomp.fingerprint import fingerprint

IMAGES = torch.randn(5, 3, 7, 11, generator=torch.Generator().manual_seed(0))
MASK = IMAGES[:, 0] > 0
VECTOR = torch.arange(10).reshape(5, 2)
THREE = Inputs.of((MASK, IMAGES, VECTOR))


@pytest.mark.parametrize("given", [IMAGES, (IMAGES,), [IMAGES], Inputs.of(IMAGES)])
def test_one_tensor_is_held_as_it_is(given):
    assert Inputs.of(given).held is IMAGES


def test_a_batch_is_counted_cut_joined_and_split_in_all_inputs():
    assert len(THREE) == 5
    some = THREE[torch.tensor([3, 1])]
    assert torch.equal(some.tensors[1], IMAGES[[3, 1]])
    assert torch.equal(some.tensors[2], VECTOR[[3, 1]])
    parts = THREE.split(2)
    assert [len(part) for part in parts] == [3, 2]
    joined = Inputs.joined(parts)
    assert all(map(torch.equal, joined.tensors, THREE.tensors))


def test_precision_and_size_are_those_of_the_images():
    assert THREE.real is IMAGES
    assert THREE.pixels == 7 * 11
    assert Inputs.of((VECTOR, VECTOR)).pixels == 1
    assert str(THREE[:2]) == "(2, 7, 11) of torch.bool, (2, 3, 7, 11) of torch.float32, (2, 2) of torch.int64"


def test_a_network_takes_the_tensors_in_order():
    assert THREE.through(lambda mask, images, vector: (vector, mask)) == (VECTOR, MASK)


def test_only_images_are_laid_out():
    found = THREE.laid_out(torch.channels_last)
    assert found.tensors[1].is_contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, found.tensors, THREE.tensors))


def test_tensors_count_in_a_fingerprint():
    assert [id(leaf) for leaf in tree_leaves([THREE])] == [id(tensor) for tensor in THREE.tensors]
    assert fingerprint([THREE]) != fingerprint([THREE[:4]])
