"""Calibration data in every form that users bring, and the synthetic images where they bring none."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from depthcomp.data.batches import (
    batch_size,
    calibration_batches,
    enough_images,
    first_images,
    in_batches,
    labelled_images,
    synthetic_batches,
)
from depthcomp.data.inputs import Inputs
from depthcomp.errors import DataError

EXAMPLE = torch.zeros(1, 3, 7, 11)


def images(count=5, seed=0):
    return torch.randn(count, 3, 7, 11, generator=torch.Generator().manual_seed(seed))


def found(data):
    return Inputs.joined(calibration_batches(data, EXAMPLE)).held


X = images()
LABELS = torch.arange(5)


@pytest.mark.parametrize(
    "data",
    [
        X,
        {"images": X, "label": LABELS},
        [X],
        (X,),
        [X[:2], X[2:]],
        list(X),
        [(X, LABELS)],
        [[X, LABELS]],
        [(image, 3) for image in X],
        [{"image": X, "label": LABELS}],
        [{"label": LABELS, "image": X}],
        [{"mask": X[:, 0], "image": X, "other": X + 1}],
        [{"mask": X[:, :1], "other": X + 1, "image": X}],
        [{"boxes": X[:, 0], "photos": X}],
        [{"labels": LABELS, "pixel_values": X}],
        DataLoader(TensorDataset(X, LABELS), batch_size=2),
        DataLoader(TensorDataset(X), batch_size=3),
        TensorDataset(X, LABELS),
        [X.double()],
    ],
)
def test_every_form_gives_the_same_images(data):
    if isinstance(data, TensorDataset):  # a data set is indexed, not iterated
        data = [data[index] for index in range(len(data))]
    assert torch.equal(found(data), X)


def test_generators():
    assert torch.equal(found(image for image in X), X)
    assert torch.equal(found(iter([X[:2], X[2:]])), X)


def test_batches_are_like_the_example():
    batches = calibration_batches([X] * 9, EXAMPLE.double())
    assert [len(batch) for batch in batches] == [8, 8, 8, 7, 7, 7]
    assert all(batch.held.dtype == torch.float64 for batch in batches)


def test_an_endless_generator_stops_at_512_images():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield X[:3]

    batches = calibration_batches(endless(), EXAMPLE)
    assert sum(map(len, batches)) == 512
    assert len(drawn) == 171


class Large(Dataset):
    """Far more images than are needed, counted as they are read."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        self.read += 1
        return torch.full((3, 7, 11), float(index)), index % 5


@pytest.mark.parametrize(("batch_size", "read"), [(1, 512), (64, 512), (100, 600)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_of_a_large_data_set_only_what_is_needed_is_read(batch_size, read, shuffle):
    data = Large()
    loaded = labelled_images(DataLoader(data, batch_size, shuffle=shuffle), EXAMPLE)
    assert data.read == read
    assert [len(part) for part in loaded[:2]] == [512, 512]
    assert (loaded[0].held[:, 0, 0, 0].long() % 5).equal(loaded[1])


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.repeat({"image": X[0], "label": 3})


def test_an_endless_stream_of_dicts_in_a_loader():
    loaded, labels, _ = labelled_images(DataLoader(Endless(), 16), EXAMPLE)
    assert torch.equal(loaded.held, X[:1].expand(512, -1, -1, -1))
    assert labels.unique().tolist() == [3]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # torch's own, on machines without an accelerator
def test_a_loader_that_pins_its_memory():
    assert torch.equal(found(DataLoader(TensorDataset(X, LABELS), 2, pin_memory=True)), X)


def test_a_dataset_is_read_in_order():
    state = torch.get_rng_state()
    assert torch.equal(found(TensorDataset(X, LABELS)), X)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(labelled_images(TensorDataset(X, LABELS), EXAMPLE)[1], LABELS)


class Uneven(Dataset):
    """Images of which every third is wider."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(3, 7, 12 if index % 3 == 2 else 11)


@pytest.mark.parametrize(
    ("batch_size", "sentence"),
    [
        (1, r"data holds images of shape \(3, 7, 12\), but the model was captured for \(3, 7, 11\); resize the data"),
        (2, r"raised an error after 1 items \(.*equal size, but got \[3, 7, 12\].*\); correct the data first"),
    ],
)
def test_images_of_differing_sizes(batch_size, sentence):
    with pytest.raises(DataError, match=sentence):
        found(DataLoader(Uneven(), batch_size))


def test_one_large_tensor_is_cut_at_512_images():
    large = images(520)
    assert torch.equal(found(large), large[:512])


def test_the_data_are_not_changed():
    kept = X.clone()
    calibration_batches([(X, LABELS)], EXAMPLE)
    assert torch.equal(X, kept)


@pytest.mark.parametrize("data", [[], (), iter([]), torch.empty(0, 3, 7, 11), [torch.empty(0, 3, 7, 11)]])
def test_empty(data):
    with pytest.raises(DataError, match="val_data holds no images; pass an iterable"):
        calibration_batches(data, EXAMPLE, argument="val_data")


@pytest.mark.parametrize("batch", [X[:, :, :, :10], X[:, :2], torch.zeros(1, 1, 3, 7, 11), torch.zeros(4, 3)])
def test_wrong_shape(batch):
    with pytest.raises(DataError, match=r"data holds images of shape .* captured for \(3, 7, 11\)"):
        calibration_batches([batch], EXAMPLE)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([np.zeros((2, 3, 7, 11), int)], "ndarray"),
        (["a.png"], "str"),
        ([("a.png", 3)], "str"),
        ([{"path": "a.png"}], "dict"),
        ([None], "NoneType"),
        ([()], "tuple"),
    ],
)
def test_items_that_hold_no_tensor(data, what):
    with pytest.raises(DataError, match=f"an item of data holds a {what}, not a tensor of images"):
        calibration_batches(data, EXAMPLE)


@pytest.mark.parametrize(("data", "what"), [("photos/", "str"), (b"photos/", "bytes"), (7, "int"), (len, "builtin")])
def test_things_that_are_no_iterable_of_images(data, what):
    with pytest.raises(DataError, match=f"data is a {what}.*; pass a DataLoader"):
        calibration_batches(data, EXAMPLE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(value):
    bad = X.clone()
    bad[3, 1, 4, 5] = value
    with pytest.raises(DataError, match="data holds NaN or infinite values; clean the data first"):
        calibration_batches([X, bad], EXAMPLE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_of_integers(dtype):
    sentence = f"val_data holds images of {dtype}, but must hold floating-point images, normalised as for training; "
    with pytest.raises(DataError, match=sentence):
        calibration_batches([X, (X > 0).to(dtype)], EXAMPLE, argument="val_data")
    with pytest.raises(DataError, match=sentence):
        first_images([(X > 0).to(dtype)], argument="val_data")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_floating_point_type_are_cast(dtype):
    (batch,) = calibration_batches([X.to(dtype)], EXAMPLE)
    assert batch.held.dtype == torch.float32
    assert torch.equal(batch.held, X.to(dtype).float())


def test_first_images():
    assert torch.equal(first_images([(X[:2], 0), (X[2:], 1)]).held, X[:2])
    assert torch.equal(first_images(list(X)).held, X[:1])
    with pytest.raises(DataError, match="data holds no images"):
        first_images([])


def test_empty_batches_before_the_first_image_are_passed_over():
    empty = torch.empty(0, 3, 7, 11)
    assert torch.equal(first_images([empty, X[:2]]).held, X[:2])
    with pytest.raises(DataError, match="data holds no images"):
        first_images([empty])


@pytest.mark.parametrize("item", [torch.zeros(4, 3), torch.zeros(1, 1, 3, 7, 11)])
def test_a_first_item_of_another_shape(item):
    sentence = r"the first item of data has shape .* a batch of images \(n, c, h, w\), or one of these"
    with pytest.raises(DataError, match=sentence):
        first_images([item])


@pytest.mark.parametrize(("size", "enough", "batch"), [(512, 512, 8), (224, 512, 8), (112, 2048, 32), (28, 4096, 64)])
def test_of_smaller_images_more_are_read_and_computed_at_once(size, enough, batch):
    example = torch.empty(1, 3, size, size, device="meta")
    assert (enough_images(example), batch_size(Inputs.of(example))) == (enough, batch)


def test_in_batches_keeps_the_order():
    large = images(35)
    batches = in_batches(Inputs.of(large))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7]
    assert torch.equal(Inputs.joined(batches).held, large)


def test_synthetic_images_are_deterministic():
    state = torch.get_rng_state()
    one, same, other = (Inputs.joined(synthetic_batches(EXAMPLE, 20, seed)).held for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)  # the user's own stream of random numbers goes on undisturbed


@pytest.mark.parametrize("example", [EXAMPLE, torch.zeros(2, 1, 8, 8, dtype=torch.float64), torch.zeros(1, 3, 1, 5)])
def test_synthetic_images_are_like_the_example(example):
    batches = synthetic_batches(example, 20, 0)
    assert [len(batch) for batch in batches] == [7, 7, 6]
    images = Inputs.joined(batches).held
    assert (images.shape[1:], images.dtype) == (example.shape[1:], example.dtype)
    assert torch.isfinite(images).all()


def test_synthetic_images_have_mean_0_and_deviation_1_in_each_channel():
    batch = Inputs.joined(synthetic_batches(torch.zeros(1, 3, 37, 41), 8, 0)).held
    assert torch.allclose(batch.mean(dim=(2, 3)), torch.zeros(8, 3), atol=1e-5)
    assert torch.allclose(batch.std(dim=(2, 3)), torch.ones(8, 3), atol=1e-4)


def test_synthetic_images_have_the_spectrum_of_natural_ones():
    """Amplitude falls as 1/f: slope -1 of log amplitude over log frequency, on rings below the corners."""
    size = 64
    batch = Inputs.joined(synthetic_batches(torch.zeros(1, 3, size, size), 64, 0)).held.double()
    amplitude = torch.fft.fft2(batch).abs().mean(dim=(0, 1)).numpy()
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    inside = (frequency > 1.5 / size) & (frequency < 0.5)
    slope = np.polyfit(np.log(frequency[inside]), np.log(amplitude[inside]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.05)


def test_synthetic_colour_channels_go_together():
    batch = Inputs.joined(synthetic_batches(torch.zeros(1, 3, 32, 32), 64, 0)).held
    together = [float(torch.corrcoef(image.flatten(1))[0, 1]) for image in batch]
    assert float(np.mean(together)) > 0.7


@pytest.mark.parametrize(
    ("items", "shape"),
    [
        ([(X[:3], torch.randn(3, 7)), (X[3:5], torch.randn(2, 7))], (7,)),
        ([(X[0], torch.randn(7)), (X[1], torch.randn(7))], (7,)),
        ([(X[:4], torch.randn(4))], ()),
        ([(X[:4], torch.randn(4, 1, 7, 11))], (1, 7, 11)),
        ([(X[:3], torch.randn(3, 7)), (X[3:5], torch.randn(2, 6))], None),
        ([(X[:3], torch.tensor([[1.0, 0], [0, 1], [1, 1]])), (X[3:5], torch.eye(2))], (2,)),
        ([(X[0], torch.randn(7).numpy())], (7,)),
        ([(X[0], [0.5, 2.0])], (2,)),
        ([(X[:4], torch.randn(4, 7).softmax(1))], None),
        ([(X[:4], torch.arange(4))], None),
        ([X[:4]], None),
    ],
)
def test_numbers_to_predict_have_a_shape(items, shape):
    assert labelled_images(items, EXAMPLE).targets == shape
