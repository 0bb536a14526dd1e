"""Benchmark of a detector in ultralytics' hands: YOLOv8n, trained on drawn shapes, compressed without training.

The network is compressed as ultralytics holds it, with its decoded outputs alone, and with its raw outputs alone. Each
compressed network is put back into the YOLO object. There ultralytics validates it on pictures that nothing was
trained, chosen or fitted on, predicts boxes, and exports ONNX. Rows are written one by one, with a plot beside; a row
that is there is not made again. The folder of --cache holds the pictures, the trained weights, the results, the latency
table, and the importance of each form, which budgets share.

    python scripts/bench_yolo.py --cache CACHE --out docs/yolo.json

ultralytics is in requirements-models.txt. The first row trains the network: five minutes on a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yolo_net
from PIL import Image
from shapes_data import PARTS, draw_shapes, pictures
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from depthcomp import CompressionResult, compress_depth
from depthcomp.importance.default import DEFAULT_IMPORTANCE
from depthcomp_files import locked, write_atomically
from latency_tables import create_backend
from latency_tables.tables.environment import cpu_name

ORIGINAL = "original"
COMPARED = 100  # pictures whose boxes are compared
LIBRARIES = ("torch", "ultralytics", "onnxruntime")


def made(form: str, budget: str, cache: Path, images: int, seed: int) -> dict[str, Any]:
    """Return the figures of a row."""
    yolo = yolo_net.trained(description(cache), cache)
    if form == ORIGINAL:
        return yolo_net.validated(yolo, description(cache), cache)
    found = _compressed(yolo, form, budget, cache, images, seed)
    some = pictures(cache / "shapes", "test")[:COMPARED]
    before = yolo_net.predicted(yolo, some)
    yolo_net.put_back(yolo, found.pop("network"), form)
    boxes = list(zip(before, yolo_net.predicted(yolo, some), strict=True))
    path = yolo_net.exported(yolo, cache / f"{form}-{budget}.onnx")
    return {
        **yolo_net.validated(yolo, description(cache), cache),
        **found,
        "boxes_of_the_first_picture": _counts(boxes[:1]),
        f"boxes_of_{COMPARED}_pictures": _counts(boxes),
        "onnx_error": float(f"{yolo_net.onnx_error(yolo, path):.2g}"),
    }


def description(cache: Path) -> Path:
    """Return the path of the data set's description; the pictures are drawn where they are not there."""
    return draw_shapes(cache / "shapes")


def _compressed(yolo: Any, form: str, budget: str, cache: Path, images: int, seed: int) -> dict[str, Any]:
    """Return the compressed network and the figures of its compression."""
    stored = cache / f"importance-{form}-{images}-{seed}.json"
    start, computed = time.perf_counter(), time.process_time()
    known = stored.exists()
    result = compress_depth(
        yolo_net.compressible(yolo, form), budget, data=calibration(cache / "shapes", images), seed=seed,
        backend=create_backend("onnxruntime", threads=1), table=cache / "table.json",
        importance=stored if known else DEFAULT_IMPORTANCE, output_dir=cache / f"{form}-{budget}",
    )  # fmt: skip
    seconds = {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(time.process_time() - computed)}
    result.importance.save(stored)
    settings = {"calibration_images": images, "importance_known": known}
    return {"network": result.model, **settings, **seconds, **_figures(result)}


def calibration(folder: Path, count: int) -> Tensor:
    """Return the first training pictures as ultralytics feeds them, (n, 3, h, w) in 0..1."""
    return torch.stack([to_tensor(Image.open(path).convert("RGB")) for path in pictures(folder, "train")[:count]])


def _figures(result: CompressionResult) -> dict[str, Any]:
    return {
        "stages": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "original_ms": round(result.original_ms, 4),
        "predicted_ms": round(result.predicted_ms, 4),
        "measured_ms": round(result.measured_ms, 4),
        "speedup": round(result.original_ms / result.measured_ms, 3),
        "spread": round(result.measured_timing.spread, 4),
        "rounds": len(result.measured_timing.rounds_ms),
        "loss": float(f"{result.loss:.4g}"),
        "judged_by": result.judged_by,
        "plan": [f"{span.choice.kind} {span.modules}" for span in result.spans],
        "warnings": list(result.warnings),
    }


def _counts(boxes: Sequence[tuple[Tensor, Tensor]]) -> dict[str, int]:
    """Return the number of boxes before and after, and of those that stayed in their place."""
    return {
        "before": sum(len(before) for before, _ in boxes),
        "after": sum(len(after) for _, after in boxes),
        "matched": sum(yolo_net.matched_boxes(before, after) for before, after in boxes),
    }


def plot(rows: dict[str, Any], path: Path) -> None:
    """Draw the mean average precision against the measured speed-up of each form."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "yolo"  # the same text for the same figures
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    if ORIGINAL in rows:
        axes.axhline(rows[ORIGINAL]["map50"], linestyle="--", color="grey", label=ORIGINAL)
    for form in yolo_net.FORMS:
        some = [row for key, row in rows.items() if key.split(":")[0] == form]
        axes.plot([row["speedup"] for row in some], [row["map50"] for row in some], "o", label=f"outputs {form}")
    axes.set(xlabel="measured speed-up", ylabel="mAP50 on 400 held-out pictures", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def read(path: Path) -> dict[str, Any]:
    """Return a file of results, without rows where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    return found


def conditions() -> dict[str, Any]:
    """Return where and when a row is made."""
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: version(name) for name in LIBRARIES},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=yolo_net.FORMS, default=[*yolo_net.FORMS])
    parser.add_argument("--budgets", nargs="+", default=["1.25x", "1.5x"])
    parser.add_argument("--images", type=int, default=32, help="calibration images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, required=True, help="folder for pictures, weights, table and importance")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    wanted = [(form, budget) for form in options.forms for budget in options.budgets]
    for form, budget in [(ORIGINAL, ""), *wanted]:
        key = f"{form}:{budget}:{options.seed}" if budget else form
        if key in read(options.out)["rows"]:
            continue
        row = made(form, budget, options.cache, options.images, options.seed) | conditions()
        with locked(options.out, "results"):
            rows = read(options.out)["rows"] | {key: row}
            content = {"pictures": PARTS, "epochs": yolo_net.EPOCHS, "rows": rows}
            write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
            plot(rows, options.out.with_suffix(".svg"))
        print(f"{key}: mAP50 {row['map50']}, {row.get('speedup', 1)}x, {row.get('seconds', 0)} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
