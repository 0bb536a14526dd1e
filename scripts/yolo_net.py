"""A YOLOv8n of ultralytics for pictures of shapes: trained here, compressed in three forms, put back and judged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}  # read by the import

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load_file, save_file
from shapes_data import CLASSES, SIZE
from torch import Tensor, nn
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

__all__ = [
    "EPOCHS", "FORMS", "compressible", "exported", "matched_boxes", "onnx_error", "predicted", "put_back", "trained",
    "validated",
]  # fmt: skip

EPOCHS, BATCH, LEARNING_RATE, SEED = 8, 16, 2e-3, 0
SAME_BOX = 0.5  # intersection over union
_PLAIN = {"mosaic": 0.0, "close_mosaic": 0, "erasing": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "scale": 0.2}
_SETTINGS = {"imgsz": SIZE, "batch": BATCH, "device": "cpu", "workers": 0, "plots": False, "verbose": False}


class Raw(nn.Module):
    """A detector that returns what its head computes before boxes are decoded: boxes, scores and feature maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Any]:
        raw: dict[str, Any] = self.network(x)[1]
        return raw


class Decoding(nn.Module):
    """A network of raw outputs with the decoding of a head behind it."""

    def __init__(self, raw: nn.Module, head: Any) -> None:
        super().__init__()
        self.raw, self.head = raw, head

    def forward(self, x: Tensor) -> Any:
        raw = self.raw(x)
        decoded = self.head._inference(raw)
        return decoded if self.head.export else (decoded, raw)


def _decoded(network: Any) -> nn.Module:
    network.model[-1].export = True
    return network


FORMS = {"held": lambda network: network, "decoded": _decoded, "raw": Raw}
"""What is compressed: the network as ultralytics holds it, with decoded outputs alone, with raw outputs alone."""


def compressible(yolo: Any, form: str) -> nn.Module:
    """Return the network of a YOLO object in a form; the object's head may change."""
    network: nn.Module = FORMS[form](yolo.model)
    return network


def put_back(yolo: Any, compressed: nn.Module, form: str) -> None:
    """Let a compressed network be the only layer of a YOLO object's network."""
    layer = Decoding(compressed, yolo.model.model[-1]) if form == "raw" else nn.Sequential(compressed)
    layer.f, layer.i = -1, 0  # the layer reads the image, and is the first one
    yolo.model.model, yolo.predictor = nn.Sequential(layer), None


def trained(description: Path, cache: Path) -> Any:
    """Return the YOLO object of a network, trained now where the cache does not hold its weights."""
    weights = cache / f"yolov8n-{EPOCHS}.safetensors"
    if not weights.exists():
        save_file(_trained_weights(description, cache), weights)
    yolo = YOLO("yolov8n.yaml")
    args = yolo.model.args
    yolo.model = DetectionModel("yolov8n.yaml", nc=len(CLASSES), verbose=False)
    yolo.model.names, yolo.model.args, yolo.model.task = dict(enumerate(CLASSES)), args, yolo.task
    yolo.model.load_state_dict(load_file(weights))
    return yolo


def _trained_weights(description: Path, cache: Path) -> dict[str, Tensor]:
    yolo = YOLO("yolov8n.yaml")
    yolo.train(
        data=str(description), epochs=EPOCHS, optimizer="AdamW", lr0=LEARNING_RATE, seed=SEED, pretrained=False,
        val=False, warmup_epochs=1.0, cos_lr=True, cache="ram", project=str(cache / "runs"), **_PLAIN, **_SETTINGS,
    )  # fmt: skip
    return {name: value.contiguous() for name, value in yolo.model.float().state_dict().items()}


def validated(yolo: Any, description: Path, cache: Path) -> dict[str, float]:
    """Return the mean average precisions on the test part, by ultralytics' own validator."""
    found = yolo.val(
        data=str(description), split="test", rect=False, project=str(cache / "runs"), exist_ok=True, **_SETTINGS
    )
    return {"map50": round(float(found.box.map50), 4), "map50_95": round(float(found.box.map), 4)}


def predicted(yolo: Any, images: Sequence[Path]) -> list[Tensor]:
    """Return the boxes that a YOLO object predicts for each image, rows of corners, confidence and class."""
    results = yolo.predict(list(images), imgsz=SIZE, rect=False, device="cpu", verbose=False)
    return [result.boxes.data for result in results]


def matched_boxes(before: Tensor, after: Tensor) -> int:
    """Return how many boxes have a box of their class in their place afterwards, one to one, the surest first."""
    overlaps = box_iou(before[:, :4], after[:, :4]) * (before[:, None, 5] == after[:, 5])
    found = 0
    for row in overlaps[before[:, 4].argsort(descending=True)]:
        best = row.argmax() if len(row) else 0
        if len(row) and row[best] >= SAME_BOX:
            overlaps[:, best] = 0
            found += 1
    return found


def exported(yolo: Any, path: Path) -> Path:
    """Export a YOLO object's network as ultralytics does, and return the path of the ONNX file."""
    yolo.model.pt_path = str(path.with_suffix(".pt"))  # ultralytics names its files by it
    return Path(yolo.export(format="onnx", imgsz=SIZE, simplify=False))


def onnx_error(yolo: Any, path: Path) -> float:
    """Return the largest difference of an exported file's boxes and scores from the network's, relative to each."""
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    session = onnxruntime.InferenceSession(path)
    found = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        wanted = yolo.model.eval()(images)
    decoded = wanted if isinstance(wanted, Tensor) else wanted[0]
    errors = np.abs(decoded.numpy() - found).max((0, 2)) / np.abs(found).max((0, 2))
    return float(errors.max())
