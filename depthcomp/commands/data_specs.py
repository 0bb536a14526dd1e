"""Data by name, for the command line: folders, data sets of torchvision, files of arrays, and users' functions."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from depthcomp.data.batches import Data, enough_images, first_images
from depthcomp.data.images import decode, image_batches, image_files, in_turns, mode_of
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.pictures import normalization
from depthcomp.data.saved_arrays import is_array_file, read_arrays
from depthcomp.errors import DataError, DepthCompError, MissingPackageError
from depthcomp_errors.first_line import first_line

__all__ = ["calibration_data", "load_data", "names_data", "names_function", "pretrained_cfg"]

LARGE = 128  # pixels; networks of this input size see the middle of an image, as for ImageNet, smaller ones all of it
MIDDLE = 0.875
LEAST_CROP = 0.5  # smallest share of an image's area in a random crop


def names_data(spec: str) -> bool:
    """Return whether a spec is more than the path of a folder of images."""
    return ":" in spec and not Path(spec).is_dir()


def names_function(spec: str) -> bool:
    """Return whether a spec names a user's function, which prepares the images itself."""
    return names_data(spec) and spec.partition(":")[0] not in ("folder", "torchvision")


def load_data(
    spec: str,
    model: nn.Module,
    example: Tensor | Inputs,
    *,
    training: bool,
    batch_size: int = 64,
    workers: int = 0,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Iterable[Any]:
    """Return the data that a spec names, as batches that can be read every epoch.

    Images are resized to the example's size and normalised by timm with the model's `pretrained_cfg`, else with
    ImageNet's statistics for images in colour. For training, they are cropped and mirrored at random.

    Args:
        spec: `folder:PATH`, with a folder of images for each class, in the order of the network's classes;
            `torchvision:NAME`, `torchvision:NAME:SPLIT`; `package.module:function`, which returns a DataLoader, a
            Dataset or batches; the path of a folder of images without labels; or a file of arrays (.npy, .npz, .pt,
            .safetensors) with an example in each row, by name of the forward's arguments and `label` where there are
            several. No code in it is run.
        model: the model, whose `pretrained_cfg` or `default_cfg` is read.
        example: its example input, (n, c, h, w), or its example inputs.
        training: whether to crop and mirror at random.
        batch_size: images in a batch, where the spec names no function.
        workers: processes that load images.
        root: folder of torchvision's data sets; None for `data` in the current directory.
        download: whether torchvision may download missing data.
        seed: seed of the order.

    Raises:
        DataError: the spec is malformed, or its data do not exist.
        MissingPackageError: timm is not installed.
    """
    found = _named(spec, model, example, training, root, download)
    return _loader(found, batch_size, workers, seed) if _is_indexed(found) else found


def calibration_data(
    spec: str | None,
    model: nn.Module,
    example: Tensor | Inputs | None,
    *,
    repeated: bool = False,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
    names: InputNames = ONE_IMAGE,
) -> Data | None:
    """Return the calibration data that a spec names; None for None.

    A Dataset begins with images drawn by the seed, as many as fits read. They keep their order, so neighbours, for
    example crops of one photo, stay together. Each part of them has its share of every class. The others follow.

    Args:
        spec: as for `load_data`, which also lists the errors.
        model: as for `load_data`.
        example: as for `load_data`; None where the data are to tell the shapes of several inputs.
        repeated: whether the data are read again for training.
        root: as for `load_data`.
        download: as for `load_data`.
        seed: seed of the drawn images.
        names: names of the model's inputs.
    """
    if spec is None:
        return None
    if not repeated and not names_data(spec) and not is_array_file(spec):
        return image_batches(spec, _one_image(spec, example), *normalization(model))
    found: Data = _named(spec, model, example, False, root, download)
    if _is_indexed(found):
        example = first_images(found, names=names)[:1] if example is None else example
        found = _drawn(found, enough_images(example), seed)
    return found


def _drawn(dataset: Any, count: int, seed: int) -> Any:
    """Return a Dataset's items, with `count` random ones first."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn, others = sorted(order[:count]), order[count:]
    classes = getattr(dataset, "targets", None)
    if classes is not None:
        drawn = _interleaved(drawn, classes.tolist() if isinstance(classes, Tensor) else classes)
    return Subset(dataset, drawn + others)


def _interleaved(indices: Sequence[int], classes: Sequence[Hashable]) -> list[int]:
    """Return indices with each class spread evenly over them, in its own order."""
    counts, seen = Counter(classes[index] for index in indices), Counter[Hashable]()
    places = []
    for index in indices:
        places.append(((seen[classes[index]] + 0.5) / counts[classes[index]], index))
        seen[classes[index]] += 1
    return [index for _, index in sorted(places)]


def _named(
    spec: str, model: nn.Module, example: Tensor | Inputs | None, training: bool, root: Path | None, download: bool
) -> Any:
    """Return the Dataset that a spec names, or the result of a user's function."""
    source, _, name = spec.partition(":")
    if names_function(spec):
        return _made(spec)
    if is_array_file(spec):
        return read_arrays(spec)
    transform = _transform(model, _one_image(spec, example), training=training)
    if not names_data(spec):
        return _Files(Path(spec), transform)
    if source == "torchvision":
        return _torchvision(spec, name, root or Path("data"), download, transform)
    return _folder(Path(name), transform)


def _one_image(spec: str, example: Tensor | Inputs | None) -> Tensor:
    """Return the example of a model of one input, which images can be read for.

    Raises:
        DataError: the model has several inputs.
    """
    given = () if example is None else Inputs.of(example).tensors
    if len(given) != 1:
        raise DataError(
            f"data {spec} holds images alone, and the model takes several inputs; give package.module:function, or an "
            ".npz, .pt or .safetensors file with an array for each"
        )
    return given[0]


def _made(spec: str) -> Iterable[Any]:
    """Call the function that a spec names and return its result; its module may be in the current directory."""
    source, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Iterable[Any] = getattr(import_module(source), name)()
    except DepthCompError:
        raise
    except Exception as error:  # a user's module can fail in any way
        reason = first_line(error, empty="no message")
        raise DataError(
            f"data {spec} cannot be made ({type(error).__name__}: {reason}); give folder:PATH, torchvision:NAME or "
            "package.module:function, a function without arguments that returns a DataLoader or Dataset"
        ) from error
    return found


def _loader(dataset: Any, batch_size: int, workers: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, generator=generator)


def _is_indexed(data: object) -> bool:
    return isinstance(data, Dataset) and not isinstance(data, torch.utils.data.IterableDataset)


class _Files(Dataset[Tensor]):
    """All images in a folder and below, without labels."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self._paths = in_turns(image_files(folder))
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self._transform(decode(self._paths[index], "RGB"))
        return image


def _folder(folder: Path, transform: Any) -> Dataset[Any]:
    from torchvision.datasets import ImageFolder

    try:
        dataset: Dataset[Any] = ImageFolder(str(folder), transform)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        what = "holds no folder of images for each class" if folder.is_dir() else "is no folder"
        raise DataError(
            f"{folder} {what} ({reason}); give folder:PATH of a folder that holds a folder of images for each class"
        ) from error
    return dataset


def _torchvision(spec: str, name: str, root: Path, download: bool, transform: Any) -> Dataset[Any]:
    from torchvision import datasets

    name, _, split = name.partition(":")
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise DataError(f"data {spec} names no data set of torchvision.datasets; give one, for example CIFAR10")
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"transform": transform}
    if "split" in parameters:
        options["split"] = split or "train"
    elif "train" in parameters and split in ("", "train", "test"):
        options["train"] = split != "test"
    elif split:
        splits = "give train or test" if "train" in parameters else "leave it out"
        raise DataError(f"data {spec}: {name} has no split {split!r}; {splits}")
    if download and "download" in parameters:
        options["download"] = True
    try:
        dataset: Dataset[Any] = kind(str(root), **options)
    except Exception as error:  # torchvision, the network or the files can fail in any way
        reason = first_line(error)
        remedy = "give its folder with --data-root, or --download"
        if any((*root.glob("*.gz"), *(root / name / "raw").glob("*.gz"))):
            remedy = f"unpack the .gz files into DIR/{name}/raw, where torchvision looks, and give --data-root DIR"
        raise DataError(f"torchvision cannot read {name} in {root} ({reason}); {remedy}") from error
    return dataset


def _transform(model: nn.Module, example: Tensor, *, training: bool) -> Any:
    try:
        data = import_module("timm.data")
        from torchvision.transforms import Compose
    except ImportError as error:
        raise MissingPackageError('these data need the package timm; run `pip install "depthcomp[timm]"`') from error
    channels, height, width = example.shape[1:]
    mean, std = normalization(model)
    mode = mode_of(
        channels, mean, std,
        remedy='give the model a pretrained_cfg with "mean" and "std" for each channel, give package.module:function, '
        "or give `depthcomp finetune` --mean and --std",
    )  # fmt: skip
    config = {"crop_pct": MIDDLE if min(height, width) >= LARGE else 1.0, **pretrained_cfg(model)}
    config = data.resolve_data_config({}, pretrained_cfg={**config, "mean": mean, "std": std})
    config["input_size"] = (channels, height, width)
    chosen = {"is_training": True, "scale": (LEAST_CROP, 1.0), "color_jitter": None} if training else {}
    return Compose([_Converted(mode), data.create_transform(**config, **chosen)])


class _Converted:
    """A transform to the image mode for a network's channels."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert(self._mode)


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """Return the values that a model's `pretrained_cfg` or `default_cfg` sets."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, dict):
            return {key: value for key, value in config.items() if value is not None}
    return {}
