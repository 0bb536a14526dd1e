"""TensorRT engines of compressed networks, each with a file beside it that describes it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from depthcomp.data.batches import calibration_batches
from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import EngineError
from depthcomp.export.onnx_model import relative_error
from depthcomp.export.precision import onnx_in_precision, random_inputs
from depthcomp.progress import Progress, silent
from depthcomp_files import write_atomically

if TYPE_CHECKING:
    from latency_tables.backends.tensorrt import Engine

__all__ = ["export_engine", "sidecar_of", "with_batch"]

SIDECAR_SCHEMA_VERSION = 1
_EXPORTING, _BUILDING = "exporting", "building the engine"


def export_engine(
    gm: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    to: str = "tensorrt-rtx",
    precision: str = "fp32",
    targets: Iterable[int] = (),
    batch: int | Sequence[int] | None = None,
    data: Iterable[Any] | None = None,
    tf32: bool = True,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build a TensorRT engine of a network, write it and return its path.

    PATH.onnx, the source of the engine, and PATH.json are written beside it. PATH.json holds targets or GPU, versions,
    precision, shapes, hashes of the ONNX model and of the build specification, the number of kernels, and a command
    for NVIDIA's tool that builds an equal engine. All three are written after the build, each whole.

    Args:
        gm: the network, in float32; it is not changed.
        example_inputs: inputs that give the shapes.
        path: path of the engine, for example "model.engine".
        to: "tensorrt", which builds for the GPU of this machine, or "tensorrt-rtx", which needs none.
        precision: "fp32", "fp16" or "int8".
        targets: compute capabilities for tensorrt-rtx, for example (86, 89); empty for every GPU from Ampere on.
        batch: a fixed batch size, or (smallest, typical, largest) for an engine that takes any size between; None for
            the example's.
        data: images for the ranges of int8.
        tf32: whether fp32 convolutions round their inputs to TF32 on Ampere and later, TensorRT's default.
        timing_cache: for `to` "tensorrt", a file with timings of earlier builds on this GPU; new ones are added.
        progress: called as (stage, done, total).

    Raises:
        MissingPackageError: the TensorRT package is not installed; the message has the pip command.
        BackendUnavailableError: `to` is "tensorrt", and this machine has no GPU.
        EngineError: the arguments contradict each other, or TensorRT refuses the network; the message has the reason.
        ArtifactError: the network cannot be exported, or a file cannot be written.
        DataError: int8 was requested without data, or the data do not fit.
    """
    from latency_tables.backends.tensorrt import BuildSpec, build_engine, flavour_of, require_buildable

    report, path = progress or silent, Path(path)
    spec = BuildSpec(
        flavour=flavour_of(to),
        precision=precision,
        targets=tuple(targets),
        batch=_profile(batch),
        tf32=tf32,
    )
    if timing_cache is not None and spec.flavour != "tensorrt":
        raise EngineError(f"timing_cache (={timing_cache!s}) goes with tensorrt only: {to} times nothing; leave it out")
    require_buildable(spec)  # report a missing package before the network is exported
    example = with_batch(example_inputs, batch) if isinstance(batch, int) else example_inputs
    names = InputNames.of(gm, example)
    images = None if data is None else calibration_batches(data, Inputs.of(example), names=names)
    report(_EXPORTING, 0, 1)
    model = onnx_in_precision(gm, example, precision, batch=spec.batch, data=images)
    report(_EXPORTING, 1, 1)
    cache = None if timing_cache is None else Path(timing_cache)
    engine = build_engine(model, spec, lambda done, total, _: report(_BUILDING, done, total), timing_cache=cache)
    judged = (
        random_inputs(example, len(example[0])) if images is None else with_batch(images[0].tensors, len(example[0]))
    )
    judge = "random inputs" if images is None else "calibration images"
    content = {
        **_sidecar(engine, path),
        "relative_error": relative_error(model, gm, judged),
        "relative_error_on": judge,
    }
    _write(path, engine, model, content)
    report(_BUILDING, 1, 1)
    return path


def sidecar_of(path: Path) -> dict[str, Any]:
    """Return the content of the JSON file beside an engine."""
    content: dict[str, Any] = json.loads(_beside(path, ".json").read_bytes())
    return content


def with_batch(example_inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """Return inputs with `batch` in their first dimension, repeated or cut."""
    return tuple(x[torch.arange(batch, device=x.device) % len(x)] for x in example_inputs)


def _profile(batch: int | Sequence[int] | None) -> tuple[int, int, int] | None:
    if batch is None or (isinstance(batch, int) and batch >= 1):
        return None
    if isinstance(batch, int) or len(batch) != 3:
        raise EngineError(f"batch (={batch}) must be a size, or smallest, typical and largest, as (1, 8, 32)")
    return batch[0], batch[1], batch[2]


def _sidecar(engine: Engine, path: Path) -> dict[str, Any]:
    import onnx

    from latency_tables.backends.gpu import gpu_name
    from latency_tables.backends.gpu_state import read_device_state

    plan, on_gpu = engine.plan, engine.spec.flavour == "tensorrt"
    return {
        "schema_version": SIDECAR_SCHEMA_VERSION,
        "engine": path.name,
        "onnx": _beside(path, ".onnx").name,
        "library": f"{engine.spec.flavour} {engine.version}",
        "gpu": gpu_name() if on_gpu else None,
        "gpu_state": read_device_state() if on_gpu else None,  # the state in which tactics were timed
        "spec": asdict(engine.spec),
        "spec_sha256": engine.spec.sha256(),
        "onnx_sha256": engine.onnx_sha256,
        "inputs": {name: list(shape) for name, shape in engine.inputs.items()},
        "outputs": {name: list(shape) for name, shape in engine.outputs.items()},
        "kernels": None if plan is None else len(plan.kernels),
        "layout_changes": None if plan is None else plan.layout_changes,
        "size_bytes": len(engine.data),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "python": platform.python_version()},
        "warnings": list(engine.warnings),
        "command": engine.spec.command(_beside(path, ".onnx").name, path.name, engine.inputs),
    }


def _write(path: Path, engine: Engine, model: bytes, content: dict[str, Any]) -> None:
    write_atomically(_beside(path, ".onnx"), model)
    write_atomically(_beside(path, ".json"), (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(path, engine.data)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
