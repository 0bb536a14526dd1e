"""Files of arrays: read as rows of inputs and labels, or refused."""

import numpy as np
import pytest
import safetensors.torch
import torch
from several_inputs import COUNT, drawn, images, siamese

from depthcomp.data.batches import labelled_images
from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.pictures import readable
from depthcomp.data.saved_arrays import read_arrays
from depthcomp.errors import DataError

SAVERS = {
    ".npz": lambda path, arrays: np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()}),
    ".pt": lambda path, arrays: torch.save(arrays, path),
    ".safetensors": lambda path, arrays: safetensors.torch.save_file(arrays, path),
}


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_file_of_arrays_has_rows_of_inputs_and_labels(tmp_path, suffix):
    path = tmp_path / f"arrays{suffix}"
    SAVERS[suffix](path, {"vector": drawn(5, seed=2), "image": images(), "label": torch.arange(COUNT) % 3})
    rows = read_arrays(path)
    assert len(rows) == COUNT
    assert torch.equal(rows[3]["image"], images()[3])
    assert rows[4]["label"] == 1


@pytest.mark.parametrize("suffix", [*SAVERS, "tuple.pt"])
def test_a_path_in_python_gives_several_inputs_and_labels(tmp_path, suffix):
    path, labels = tmp_path / f"pairs{suffix}", torch.arange(COUNT) % 3
    arrays = {"right": images(1), "left": images(), "label": labels}
    SAVERS.get(suffix, lambda path, arrays: torch.save((images(), images(1), labels), path))(path, arrays)
    data, sentence = readable(path, siamese(), None)
    found = labelled_images(data, Inputs.of((images()[:1], images(1)[:1])), names=InputNames.of(siamese()))
    assert torch.equal(found.images.tensors[0], images())
    assert torch.equal(found.images.tensors[1], images(1))
    assert torch.equal(found.labels, labels)
    assert not sentence


def test_files_without_rows_of_arrays_are_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, image=np.zeros((3, 2)), label=np.zeros(2))
    with pytest.raises(DataError, match=r"different numbers of rows, or none \(image 3, label 2\)"):
        read_arrays(path)
    np.savez(path, image=np.array([object()]))
    with pytest.raises(DataError, match=r"arrays\.npz cannot be read .*; save arrays without objects"):
        read_arrays(path)
    other = tmp_path / "list.pt"
    torch.save([1], other)
    with pytest.raises(DataError, match=r"holds something other than an array of inputs"):
        read_arrays(other)
