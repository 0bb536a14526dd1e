import numpy as np
import pytest
import torch
from PIL import Image

from depthcomp.data.images import image_batches
from depthcomp.errors import DataError

EXAMPLE = torch.zeros(1, 3, 14, 21)
MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 2.0)


def draw(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def first_values(batches):
    return torch.cat(list(batches))[:, 0, 0, 0]


def test_batches_have_the_examples_shape_and_are_normalised(tmp_path):
    for index, suffix in enumerate(("jpg", "jpeg", "PNG", "bmp", "webp")):
        draw(tmp_path / f"{index}.{suffix}", (255, 0, 255), size=(17 + 11 * index, 53))
    (tmp_path / "labels.txt").write_text("no image")
    (tmp_path / "._0.jpg").write_bytes(b"what macOS leaves")
    batches = list(image_batches(tmp_path, EXAMPLE, MEAN, STD, batch_size=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 14, 21), (2, 3, 14, 21), (1, 3, 14, 21)]
    wanted = torch.tensor([1.0, -1.0, 0.125]).reshape(1, 3, 1, 1).expand(5, 3, 14, 21)
    torch.testing.assert_close(torch.cat(batches), wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (30, 30)).save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    (batch,) = image_batches(tmp_path, EXAMPLE, MEAN, STD)
    assert batch.shape == (1, 3, 14, 21)


def test_one_channel(tmp_path):
    draw(tmp_path / "x.png", (255, 255, 255))
    (batch,) = image_batches(tmp_path, torch.zeros(1, 1, 7, 7), (0.5,), (0.5,))
    torch.testing.assert_close(batch, torch.ones(1, 1, 7, 7))


def test_the_crop_is_the_middle_seven_eighths_of_the_short_side(tmp_path):
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8), (64, 128))
    Image.fromarray(np.ascontiguousarray(columns)).convert("RGB").save(tmp_path / "ramp.png")
    (batch,) = image_batches(tmp_path, torch.zeros(1, 3, 56, 56), (0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(batch[0, 0, 0] * 255, torch.arange(36.0, 92.0))


def test_folders_come_in_turns_and_names_in_order(tmp_path):
    for folder, name, value in [
        ("a", "1", 0),
        ("a", "2", 150),
        ("a", "3", 250),
        ("b/c", "1", 50),
        ("b/c", "2", 200),
    ]:
        draw(tmp_path / folder / f"{name}.png", (value,) * 3)
    values = first_values(image_batches(tmp_path, EXAMPLE, (0.0,) * 3, (1.0,) * 3)) * 255
    assert values.round().tolist() == [0, 50, 150, 200, 250]


def test_a_linked_folder_is_followed(tmp_path):
    draw(tmp_path / "elsewhere" / "x.png", (9, 9, 9))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "class").symlink_to(tmp_path / "elsewhere")
    assert len(list(image_batches(tmp_path / "data", EXAMPLE, MEAN, STD))) == 1


def test_a_folder_without_images_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="none does not exist; give a folder that holds images"):
        image_batches(tmp_path / "none", EXAMPLE, MEAN, STD)
    with pytest.raises(DataError, match="holds no image; put jpg, jpeg, png, bmp, webp files there"):
        image_batches(tmp_path, EXAMPLE, MEAN, STD)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.png is a file; give a folder"):
        image_batches(tmp_path / "x.png", EXAMPLE, MEAN, STD)


@pytest.mark.parametrize("keep", [0, 20, 0.5])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_broken_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(DataError, match=rf"broken\.{suffix} cannot be decoded as an image: .*; repair or remove"):
        list(image_batches(tmp_path, EXAMPLE, MEAN, STD))


@pytest.mark.parametrize(("channels", "statistics"), [(4, (0.5,) * 4), (1, (0.5,) * 3)])
def test_channels_that_images_do_not_have(tmp_path, channels, statistics):
    with pytest.raises(DataError, match=f"the model takes {channels} with {len(statistics)} means"):
        image_batches(tmp_path, torch.zeros(1, channels, 7, 7), statistics, statistics)
