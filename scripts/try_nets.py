"""Networks of many libraries, as their users hold them, with inputs and the library's own way to run them.

Weights are random but for the ONNX files, so losses say nothing; whether all steps work does not depend on them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETS", "Net"]

SIZE, COUNT = 96, 16  # pixels, images


@dataclass(frozen=True, slots=True)
class Net:
    """A network and how it is used.

    Attributes:
        library: the package that it comes from.
        build: returns the network, or the path of an ONNX file.
        shape: the shape of one input, without the batch.
        module: the part to compress; None for the whole.
        as_lists: whether the network takes lists of images.
        run: runs the library's own pipeline on the network as its users hold it, with the compressed one in place.
    """

    library: str
    build: Callable[[], Any]
    shape: tuple[int, ...] = (3, SIZE, SIZE)
    module: str | None = None
    as_lists: bool = False
    run: Callable[[Any, Any, Tensor], object] | None = None

    def data(self) -> list[Any]:
        """Return random inputs as the network takes them, in batches of two."""
        generator = torch.Generator().manual_seed(1)
        batches = torch.rand(COUNT, *self.shape, generator=generator).split(2)
        return [([*batch],) for batch in batches] if self.as_lists else list(batches)


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    parts = {"weights", "weights_backbone"} & inspect.signature(models.get_model_builder(name)).parameters.keys()
    return models.get_model(name, **dict.fromkeys(parts))


def _detector(name: str) -> nn.Module:
    model = _torchvision(name)
    model.transform.min_size, model.transform.max_size = (SIZE,), SIZE
    return model


def _detect(original: Any, result: Any, images: Tensor) -> object:
    found = result.whole([*images])
    assert {"boxes", "scores"} <= found[0].keys()
    return found


def _yolo(name: str) -> nn.Module:
    from ultralytics import YOLO

    network: nn.Module = YOLO(f"{name}.yaml").model
    return network


def _predict(name: str, original: Any, result: Any, images: Tensor) -> object:
    """Run ultralytics' own predict and export on a model whose forward is the compressed network."""
    from ultralytics import YOLO

    yolo = YOLO(f"{name}.yaml")
    yolo.model.load_state_dict(original.state_dict())
    yolo.model.eval().forward = partial(_forward, copy.deepcopy(result.model))
    image = (images[0].permute(1, 2, 0) * 255).byte().numpy()
    return yolo.predict(image, imgsz=images.shape[-1], verbose=False)


def _forward(network: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return network(x)


def _segmentation(name: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder, encoder_weights=None, classes=5)


def _masks(original: Any, result: Any, images: Tensor) -> object:
    masks = result.model(images).argmax(1)
    assert masks.shape == (len(images), *images.shape[-2:])
    return masks


def _transformers(name: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def _logits(original: Any, result: Any, images: Tensor) -> object:
    outputs = result.model(images)
    assert type(outputs) is type(original(images))
    return outputs.logits.argmax(-1)


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **options)


def _facenet(name: str) -> nn.Module:
    import facenet_pytorch

    if name == "InceptionResnetV1":
        return facenet_pytorch.InceptionResnetV1(pretrained=None, classify=False)
    from facenet_pytorch.models import mtcnn

    return getattr(mtcnn, name)(pretrained=False)


def _rapidocr(name: str) -> Path:
    import rapidocr

    return Path(rapidocr.__file__).parent / "models" / name


class Keywords(nn.Module):
    """A network for spectrograms of sound (n, 1, bands, frames), as keyword spotting uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(*(self._block(32) for _ in range(4)))
        self.head = nn.Linear(32, 12)

    @staticmethod
    def _block(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class Series(nn.Module):
    """A network for time series (n, channels, steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 32, 7, padding=3), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x).mean(-1))
        return scores


class Denoiser(nn.Module):
    """A U-Net with transposed convolutions, writes by index and a residual of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU())
        self.middle = nn.Sequential(*(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()) for _ in range(3)))
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, 2), nn.SiLU(), nn.ConvTranspose2d(16, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = self.up(self.middle(self.down(x)))
        noise[:, :, 0] = 0
        return x - F.hardtanh(noise)


def _nets() -> Iterator[tuple[str, Net]]:
    """Yield each network with its name."""
    for name in ("mobilenet_v2", "googlenet", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121"):
        yield name, Net("torchvision", partial(_torchvision, name))
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
        yield name, Net("torchvision", partial(_torchvision, name))
    detectors = (
        "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
    )  # fmt: skip
    for name in detectors:
        yield name, Net("torchvision", partial(_detector, name), module="backbone", as_lists=True, run=_detect)
    for name in ("yolov5n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose", "yolov10n", "yolo11n"):
        yield name, Net("ultralytics", partial(_yolo, name), run=partial(_predict, name))
    for name, encoder in (
        ("Unet", "mobilenet_v2"), ("UnetPlusPlus", "resnet18"), ("FPN", "resnet18"), ("Linknet", "resnet18"),
        ("PSPNet", "mobilenet_v2"), ("DeepLabV3Plus", "timm-mobilenetv3_small_100"),
    ):  # fmt: skip
        yield (
            f"{name}({encoder})",
            Net("segmentation-models-pytorch", partial(_segmentation, name, encoder), run=_masks),
        )
    small: dict[str, dict[str, Any]] = {
        "ResNet": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
        "RegNet": {}, "MobileNetV1": {}, "MobileNetV2": {}, "EfficientNet": {},
        "ConvNext": {"depths": [2, 2, 4, 2], "hidden_sizes": [40, 80, 160, 320]},
    }  # fmt: skip
    for name, options in small.items():
        yield f"{name}ForImageClassification", Net("transformers", partial(_transformers, name, **options), run=_logits)
    for name in ("mobilenetv3_small_050", "resnet18", "efficientnet_lite0"):
        yield f"{name} features", Net("timm", partial(_timm, name, features_only=True))
    for name in ("convnext_atto", "repvgg_a0", "ghostnet_050"):
        yield name, Net("timm", partial(_timm, name))
    yield "InceptionResnetV1", Net("facenet-pytorch", partial(_facenet, "InceptionResnetV1"), (3, 160, 160))
    for name, size in (("PNet", 48), ("RNet", 24), ("ONet", 48)):
        yield name, Net("facenet-pytorch", partial(_facenet, name), (3, size, size))
    for name, shape in (
        ("PP-OCRv6_det_small.onnx", (3, 160, 160)), ("PP-OCRv6_rec_small.onnx", (3, 48, 160)),
        ("ch_ppocr_mobile_v2.0_cls_mobile.onnx", (3, 48, 192)),
    ):  # fmt: skip
        yield name, Net("rapidocr", partial(_rapidocr, name), shape)
    yield "Keywords", Net("written here", Keywords, (1, 40, 49))
    yield "Denoiser", Net("written here", Denoiser)
    yield "Series", Net("written here", Series, (3, 128))


NETS: dict[str, Net] = dict(_nets())
