"""Pictures as people hold them are read as the network takes them, and what was assumed is said."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from depthcomp.data.batches import labelled_images
from depthcomp.data.pictures import readable
from depthcomp.errors import DataError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)  # n, h, w, c
WANTED = (torch.from_numpy(PIXELS).movedim(-1, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
    :, None, None
]
EXAMPLE = torch.zeros(1, 3, 10, 12)


def model(**configuration):
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    net.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 10, 12), **configuration}
    return net


class Pictures(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return self.make(PIXELS[index]), index


@pytest.fixture
def folder(tmp_path):
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


HELD = {
    "folder": lambda folder: str(folder),
    "path of a folder": lambda folder: folder,
    "paths": lambda folder: sorted(folder.iterdir()),
    "names": lambda folder: [str(path) for path in sorted(folder.iterdir())],
    "PIL images": lambda _: [Image.fromarray(pixels) for pixels in PIXELS],
    "generator of PIL images": lambda _: (Image.fromarray(pixels) for pixels in PIXELS),
    "one array": lambda _: PIXELS,
    "arrays, channels last": lambda _: list(PIXELS),
    "arrays, channels first": lambda _: [pixels.transpose(2, 0, 1) for pixels in PIXELS],
    "bytes": lambda _: torch.from_numpy(PIXELS).movedim(-1, 1),
    "pairs": lambda _: [(Image.fromarray(pixels), 1) for pixels in PIXELS],
    "dicts": lambda _: [{"image": pixels, "label": 1} for pixels in PIXELS],
    "data set of PIL images": lambda _: Pictures(Image.fromarray),
    "loader of bytes": lambda _: DataLoader(Pictures(lambda pixels: torch.from_numpy(pixels).movedim(-1, 0)), 4),
    "array of names": lambda folder: np.array([str(path) for path in sorted(folder.iterdir())]),
    "loader of paths": lambda folder: DataLoader(sorted(map(str, folder.iterdir())), 4),
    "loader of paths and labels": lambda folder: DataLoader([(str(path), 1) for path in sorted(folder.iterdir())], 4),
}


@pytest.mark.parametrize("held", HELD)
def test_images_as_people_hold_them(held, folder):
    data, sentence = readable(HELD[held](folder), model(), None)
    assert torch.allclose(labelled_images(data, EXAMPLE).images.held, WANTED, atol=1e-6)
    assert "resized and cropped to 10x12" in sentence
    assert f"normalised with the model's mean {MEAN} and std {STD}" in sentence


def test_arrays_of_real_numbers_count_as_normalised():
    data, sentence = readable(list(WANTED.double().numpy()), model(), None)
    assert torch.equal(labelled_images(data, EXAMPLE).images.held, WANTED)
    assert sentence == ""


@pytest.mark.parametrize(
    "one",
    [
        Image.fromarray(PIXELS[0]),
        PIXELS[0],
        torch.from_numpy(PIXELS[0]).movedim(-1, 0),
        iter([Image.fromarray(PIXELS[0])]),
    ],
)
def test_one_picture_is_one_image(one):
    data, _ = readable(one, model(), None)
    assert torch.allclose(labelled_images(data, EXAMPLE).images.held, WANTED[:1], atol=1e-6)


def test_grey_arrays_need_no_dimension_for_their_channel():
    grey = nn.Sequential(nn.Conv2d(1, 5, 3))
    grey.pretrained_cfg = {"mean": (0.5,), "std": (0.2,), "input_size": (1, 10, 12)}
    wanted = (torch.from_numpy(PIXELS[..., 0]) / 255 - 0.5)[:, None] / 0.2
    for held in (list(PIXELS[..., 0]), PIXELS[..., 0], PIXELS[..., :1]):
        found = labelled_images(readable(held, grey, None)[0], EXAMPLE[:, :1]).images.held
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([PIXELS[0], PIXELS[1][..., :2]], r"an array of shape \(10, 12, 2\), but the model takes 3 channels"),
        ([Image.fromarray(PIXELS[0]), None], "an item of the data holds a NoneType; give paths"),
        ([{"image": PIXELS[0]}, {"img": PIXELS[1]}], "an item of the data has no image or images .* but img"),
        (np.array(3), "shape .*, but the model takes 3 channels"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(data, sentence):
    found, _ = readable(data, model(), None)
    with pytest.raises(DataError, match=sentence):
        labelled_images(found, EXAMPLE)


def test_labels_stay_beside_their_images():
    data, _ = readable(Pictures(Image.fromarray), model(), None)
    assert labelled_images(data, EXAMPLE).labels.tolist() == list(range(len(PIXELS)))


@pytest.mark.parametrize(
    "data", [None, WANTED, [WANTED[:2], WANTED[2:]], [(WANTED, torch.zeros(6))], DataLoader(WANTED), iter([WANTED])]
)
def test_tensors_of_real_numbers_are_left_alone(data):
    found, sentence = readable(data, model(), None)
    assert sentence == ""
    assert found is data or torch.equal(next(iter(found)), WANTED)


def test_pictures_are_fitted_to_the_size_that_the_model_takes():
    large = [Image.fromarray(PIXELS[0]).resize((40, 33)), np.asarray(Image.fromarray(PIXELS[0]).resize((40, 33)))]
    data, _ = readable(large, model(), None)
    one, other = data[0], data[1]
    assert one.shape == other.shape == (3, 10, 12)
    assert (one - other).abs().mean() < 0.1
    data, sentence = readable(large, model(), torch.zeros(1, 3, 8, 8))
    assert data[0].shape == (3, 8, 8)
    assert "8x8" in sentence


def test_without_a_configuration_the_statistics_are_imagenets():
    _, sentence = readable([Image.fromarray(PIXELS[0])], nn.Sequential(nn.Conv2d(3, 5, 3)), None)
    assert "224x224, and normalised with ImageNet's, as the model has no pretrained_cfg: mean (0.485," in sentence


def test_arrays_keep_their_size_where_the_model_names_none():
    data, sentence = readable(list(PIXELS), nn.Sequential(nn.Conv2d(3, 5, 3)), None)
    assert data[0].shape == (3, 10, 12)
    assert "resized" not in sentence


def test_a_mean_for_other_channels_is_refused():
    with pytest.raises(DataError, match=r"images need 1 or 3 channels .* takes 4 with 3 means and 3 stds; set model"):
        readable([Image.fromarray(PIXELS[0])], model(input_size=(4, 10, 12)), None)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"the image folder .*nowhere does not exist"):
        readable(tmp_path / "nowhere", model(), None)


def test_integers_that_are_no_bytes_are_refused():
    data, _ = readable([PIXELS[0].astype(np.int64)], model(), None)
    with pytest.raises(DataError, match=r"an array of torch.int64; give bytes \(uint8, 0 to 255\), or real numbers"):
        labelled_images(data, EXAMPLE)


def broken():
    raise OSError("disk gone")
    yield


def test_data_that_fail_are_named():
    with pytest.raises(DataError, match=r"val_data raised an error after 0 items \(disk gone\)"):
        readable(broken(), model(), None, "val_data")
