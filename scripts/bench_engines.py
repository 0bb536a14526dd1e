"""Count the kernels of TensorRT engines, original against compressed, for every target. No GPU is needed.

    python scripts/bench_engines.py            # needs `pip install tensorrt-rtx-cu13`

Builds MobileNetV2 and EfficientNet-Lite0 with tensorrt-rtx in fp32, fp16 and int8, at batch 1 and with a profile
for batches of 1 to 32, and writes docs/engines.json. Weights are random, and the compressed networks follow plans
that are drawn at random: kernels are counted, nothing is timed, and no accuracy is meant. int8 ranges come from
random images.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import fx, nn

from depthcomp.export.precision import onnx_in_precision
from fx_passes import capture, linearize, merge, random_plan
from fx_passes.depth import convolution_depth
from latency_tables.backends.tensorrt import BuildSpec, build_engine

TARGET = Path(__file__).parents[1] / "docs" / "engines.json"
NETWORKS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0"),
}
TARGETS = {"fp32": (80, 86, 89, 120), "fp16": (75, 80, 86, 89, 120), "int8": (80, 86, 89, 120)}
PROFILES = {"1": None, "1-32": (1, 8, 32)}
SEED = 0
CALIBRATION_IMAGES = 8


def main() -> None:
    """Build all engines, print a line for each and write the file."""
    rows = [row for name, create in NETWORKS.items() for row in rows_of(name, create().eval())]
    import tensorrt_rtx

    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "what": "kernels of engines built without a GPU; random weights, plans drawn at random with this seed",
        "seed": SEED,
        "versions": {
            "tensorrt_rtx": tensorrt_rtx.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "engines": rows,
    }
    TARGET.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {TARGET}")


def rows_of(name: str, model: nn.Module) -> Iterator[dict[str, Any]]:
    """Build a network and its compressed form for all precisions, profiles and targets."""
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    original = capture(model, example)
    plan = random_plan(original, np.random.default_rng(SEED))
    compressed = merge(linearize(original, plan), plan)
    for precision, targets in TARGETS.items():
        for batch, profile in PROFILES.items():
            models = [exported(gm, example, precision, profile) for gm in (original, compressed)]
            for target in targets:
                spec = BuildSpec(precision=precision, targets=(target,), batch=profile)
                before, after = (counts(onnx_model, spec) for onnx_model in models)
                row = {"network": name, "precision": precision, "batch": batch, "target": f"SM{target}"}
                depths = {"original": convolution_depth(original), "compressed": convolution_depth(compressed)}
                print(
                    f"{name:20} {precision} batch {batch:5} SM{target:<4} {before['kernels']:4} -> {after['kernels']}"
                )
                yield {**row, "depth": depths, "original": before, "compressed": after}


def exported(gm: fx.GraphModule, example: torch.Tensor, precision: str, profile: tuple[int, int, int] | None) -> bytes:
    """Return a network as ONNX."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(CALIBRATION_IMAGES, *example.shape[1:], generator=generator)
    return onnx_in_precision(gm, (example,), precision, batch=profile, data=images if precision == "int8" else None)


def counts(onnx_model: bytes, spec: BuildSpec) -> dict[str, int]:
    """Return how many kernels an engine has, and how many of them only change a layout."""
    plan = build_engine(onnx_model, spec).plan
    if plan is None:
        raise SystemExit("this version of tensorrt-rtx lists its kernels in a form that is not known")
    return {"kernels": len(plan.kernels), "layout_changes": plan.layout_changes}


if __name__ == "__main__":
    main()
