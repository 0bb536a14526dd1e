"""Data by name: what the specs mean, how images are prepared, and what is refused."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from depthcomp.commands.data_specs import calibration_data, load_data, names_data
from depthcomp.errors import DataError

EXAMPLE = torch.zeros(1, 3, 20, 20)


def model(channels=3):
    net = nn.Conv2d(channels, 4, 3)
    net.pretrained_cfg = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return net


@pytest.fixture
def folder(tmp_path):
    """Two classes of one colour each; the second has more images."""
    for name, colour, count in (("apples", (255, 0, 0), 2), ("leaves", (0, 255, 0), 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (25, 31), colour).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("training", [False, True])
def test_a_folder_of_classes_has_labels_and_normalised_images(folder, training):
    data = load_data(f"folder:{folder}", model(), EXAMPLE, training=training, batch_size=8)
    ((images, labels),) = list(data)
    assert images.shape == (5, 3, 20, 20)
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 1]
    red = images[labels == 0].mean((0, 2, 3))
    assert torch.allclose(red, torch.tensor([2.0, -2.0, -2.0]), atol=0.02)


def test_a_bare_path_has_images_alone(folder):
    (images,) = list(load_data(str(folder), model(), EXAMPLE, training=False))
    assert images.shape == (5, 3, 20, 20)
    assert not names_data(str(folder))
    assert names_data(f"folder:{folder}")


def idx(path, header, values):
    path.write_bytes(bytes([0, 0, 8, len(header)]) + b"".join(n.to_bytes(4, "big") for n in header) + bytes(values))


def test_torchvisions_data_sets_are_read_from_a_root(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        idx(raw / f"{part}-images-idx3-ubyte", (count, 28, 28), [255] * (count * 784))
        idx(raw / f"{part}-labels-idx1-ubyte", (count,), range(count))
    example = torch.zeros(1, 1, 28, 28)
    for split, count in (("", 6), (":train", 6), (":test", 4)):
        spec = f"torchvision:FashionMNIST{split}"
        ((images, labels),) = list(load_data(spec, model(1), example, training=False, root=tmp_path))
        assert images.shape == (count, 1, 28, 28)
        assert torch.allclose(images, torch.tensor(2.0))
        assert sorted(labels.tolist()) == list(range(count))


def test_a_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text("import torch\ndef batches():\n    return [torch.ones(2, 3, 4, 4)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    (batch,) = load_data("own_images:batches", model(), EXAMPLE, training=True)
    assert torch.equal(batch, torch.ones(2, 3, 4, 4))


class Frames(Dataset):
    """Numbered images of as many classes, one class after another, and the fewer of each the higher its number."""

    def __init__(self, sizes):
        self.targets = [kind for kind, size in enumerate(sizes) for _ in range(size)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((1, 280, 280), float(index)), self.targets[index]


def test_what_fits_see_keeps_neighbours_together_and_classes_apart(monkeypatch):
    sizes = 400, 200, 100
    monkeypatch.setattr("depthcomp.commands.data_specs._made", lambda spec: Frames(sizes))
    example = torch.zeros(1, 1, 280, 280)  # of which 512 are read
    found, again, other = (calibration_data("own:frames", model(1), example, seed=seed) for seed in (0, 0, 1))
    assert sorted(found.indices) == list(range(700))  # fine-tuning sees all
    assert found.indices == again.indices != other.indices
    drawn = found.indices[:512]
    classes = [found.dataset.targets[index] for index in drawn]
    for kind in range(3):
        own = [index for index, its in zip(drawn, classes, strict=True) if its == kind]
        assert own == sorted(own)
        thirds = [classes[part * 512 // 3 : (part + 1) * 512 // 3].count(kind) for part in range(3)]
        assert max(thirds) - min(thirds) <= 2
    assert torch.equal(found[0][0], torch.full((1, 280, 280), float(drawn[0])))


def test_a_packed_download_of_another_layout_is_explained(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(DataError, match=r"unpack the \.gz files into DIR/FashionMNIST/raw, .* --data-root DIR"):
        load_data("torchvision:FashionMNIST", model(1), EXAMPLE[:, :1], training=False, root=tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:nowhere", "nowhere is no folder (.*); give folder:PATH of a folder that holds a folder"),
        ("nowhere", "image folder nowhere does not exist"),
        ("torchvision:FashionMINT", "names no data set of torchvision.datasets"),
        ("torchvision:FashionMNIST:half", "FashionMNIST has no split 'half'; give train or test"),
        ("torchvision:FashionMNIST", "give its folder with --data-root, or --download"),
        ("no_module_of_mine:images", "cannot be made .ModuleNotFoundError: .*package.module:function"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec, model(), EXAMPLE, training=False, root=tmp_path)


def test_channels_without_statistics_are_refused(folder):
    with pytest.raises(DataError, match="the model takes 1 with 3 means"):
        load_data(f"folder:{folder}", nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 20, 20), training=False)
