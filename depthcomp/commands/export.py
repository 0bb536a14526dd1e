"""Command `depthcomp export`: makes an ONNX file or an engine from a folder of results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from depthcomp.errors import EngineError
from depthcomp.export.precision import PRECISIONS, onnx_in_precision
from depthcomp.results.loading import saved_inputs
from depthcomp.results.stored_network import load
from depthcomp_files import require_writable_file, write_atomically

__all__ = ["Request", "run"]

FORMATS = ("onnx", "tensorrt", "tensorrt-rtx")
_ELSEWHERE = "choose another or change its mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Request of an export.

    Attributes:
        directory: the folder of results.
        to: "onnx", "tensorrt" or "tensorrt-rtx".
        targets: compute capabilities to build for.
        precision: "fp32", "fp16" or "int8".
        batch: a fixed batch size, or smallest, typical and largest; None for the saved one.
        data: a folder of images; None for no images.
        out: the file to write.
        tf32: whether fp32 convolutions may round to TF32.
        timing_cache: file with timings of earlier builds on this GPU; None for no file.
    """

    directory: Path
    to: str
    targets: tuple[int, ...]
    precision: str
    batch: tuple[int, int, int] | int | None
    data: Path | None
    out: Path
    tf32: bool
    timing_cache: Path | None = None

    @classmethod
    def parse(
        cls,
        directory: Path,
        to: str,
        sm: str,
        precision: str,
        batch: str,
        data: Path | None,
        out: Path | None,
        tf32: bool,
        timing_cache: Path | None = None,
    ) -> Request:
        """Return the request from the options of the command line.

        Raises:
            EngineError: an option is malformed, or contradicts another.
        """
        if to not in FORMATS:
            raise EngineError(f"--to {to} is unknown; choose {', '.join(FORMATS)}")
        if precision not in PRECISIONS:
            raise EngineError(f"--precision {precision} is unknown; choose {', '.join(PRECISIONS)}")
        targets, sizes = _numbers("--sm", sm, "86,89"), _numbers("--batch", batch, "8, or 1,8,32")
        if targets and to != "tensorrt-rtx":
            raise EngineError(f"--sm {sm} goes with --to tensorrt-rtx only; {to} has no targets")
        if len(sizes) not in (0, 1, 3) or 0 in sizes or list(sizes) != sorted(sizes):
            raise EngineError(f"--batch {batch} must be a size, or smallest,typical,largest in order, as 1,8,32")
        if timing_cache is not None and to != "tensorrt":
            raise EngineError(f"--timing-cache {timing_cache} goes with --to tensorrt only; leave it out")
        if data is not None and precision != "int8":
            raise EngineError(f"--data {data} goes with --precision int8 only; leave it out")
        return cls(
            directory=directory, to=to, targets=targets, precision=precision, batch=_batch(sizes), data=data,
            out=out or directory / _file_name(to, precision, sizes), tf32=tf32, timing_cache=timing_cache,
        )  # fmt: skip


def run(request: Request) -> list[str]:
    """Export a network, and return lines on what was written.

    Raises:
        ArtifactError: the folder holds no compressed network, it cannot be exported, or a file cannot be written.
        DataError: int8 was requested without images, or the folder of images is unusable.
        EngineError: TensorRT refuses the network.
        MissingPackageError: the TensorRT package is not installed.
        BackendUnavailableError: TensorRT needs a GPU to build, and there is none.
    """
    network = load(request.directory)
    require_writable_file(request.out, "exported network", _ELSEWHERE)  # before a build that takes minutes
    example = saved_inputs(request.directory)
    data = _images(request.data, network, example)
    with redirect_stdout(sys.stderr):  # stdout carries the result alone
        if request.to == "onnx":
            return _write_onnx(request, network, example, data)
        return _write_engine(request, network, example, data)


def _numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise EngineError(
            f"{option} {text} must be whole numbers with commas between them, for example {example}"
        ) from error
    return numbers


def _batch(sizes: tuple[int, ...]) -> tuple[int, int, int] | int | None:
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    return sizes[0] if sizes else None


def _file_name(to: str, precision: str, sizes: tuple[int, ...]) -> str:
    """Return a file name other than the folder's model.onnx."""
    batch = f".batch{'-'.join(map(str, sizes))}" if sizes else ""
    return f"model.{precision}{batch}.{'onnx' if to == 'onnx' else to + '.engine'}"


def _images(directory: Path | None, network: fx.GraphModule, example: tuple[Tensor, ...]) -> Iterator[Tensor] | None:
    from depthcomp.data.images import image_batches
    from depthcomp.data.pictures import normalization

    return None if directory is None else image_batches(directory, example[0], *normalization(network))


def _write_onnx(request: Request, network: fx.GraphModule, example: tuple[Tensor, ...], data: Any) -> list[str]:
    from depthcomp.export.engine import with_batch

    profile = request.batch if isinstance(request.batch, tuple) else None
    inputs = with_batch(example, request.batch) if isinstance(request.batch, int) else example
    model = onnx_in_precision(network, inputs, request.precision, batch=profile, data=data)
    return [f"wrote {write_atomically(request.out, model)}"]


def _write_engine(request: Request, network: fx.GraphModule, example: tuple[Tensor, ...], data: Any) -> list[str]:
    from depthcomp.commands.console import Progress
    from depthcomp.export.engine import export_engine, sidecar_of

    with Progress() as progress:
        path = export_engine(
            network, example, request.out, to=request.to, precision=request.precision, targets=request.targets,
            batch=request.batch, data=data, tf32=request.tf32, timing_cache=request.timing_cache, progress=progress,
        )  # fmt: skip
    written = sidecar_of(path)
    lines = [f"wrote {path}", f"wrote {path.with_name(written['onnx'])}", f"wrote {path}.json"]
    if written["kernels"] is not None:
        lines.append(f"{written['kernels']} kernels, {written['layout_changes']} of them layout changes")
    error, judge = written["relative_error"], written["relative_error_on"]
    lines.append(f"relative error {error:.2g} of the ONNX model against the network in float32, on {judge}")
    return [*lines, f"command for NVIDIA's tool: {written['command']}"]
