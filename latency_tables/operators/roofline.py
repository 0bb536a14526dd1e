"""Roofline estimates: a lower bound on latency for a device that is not at hand, never a measurement.

An operator takes at least the time that its arithmetic needs at the device's peak, and at least the time that its
tensors need through the device's memory (Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009).
Real kernels are slower, by factors that differ from operator to operator, so an estimate tells which operators are
bound by memory and what cannot be reached, and not what a network will take. It is a type and a kind of file of its
own, which no table takes in.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from depthcomp_errors import TableError
from depthcomp_files import JsonFormat
from latency_tables.operators.signature import OperatorSignature
from latency_tables.operators.size import multiply_adds, traffic_bytes

__all__ = ["DEVICES", "Device", "RooflineEstimate", "estimate_roofline", "find_device"]

ESTIMATE_VERSION = 1
_FLOP_PER_MULTIPLY_ADD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The peaks of a processor, as its maker publishes them.

    Attributes:
        name: what it is called.
        tflops: peak of its arithmetic in 1e12 floating-point operations a second, in the precision of the operators.
        gbytes_per_s: peak of its memory in 1e9 bytes a second.
        source: where the figures come from.

    Raises:
        TableError: a peak is not a positive number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    tflops: float
    gbytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        for name in ("tflops", "gbytes_per_s"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise TableError(f"{name} (={value}) of device {self.name!r} must be a positive number.")


DEVICES = {
    "t4": Device(name="NVIDIA T4", tflops=8.1, gbytes_per_s=320.0, source="NVIDIA T4 product page: fp32, GDDR6"),
    "a100": Device(
        name="NVIDIA A100 80GB SXM", tflops=19.5, gbytes_per_s=2039.0, source="NVIDIA A100 data sheet: fp32, HBM2e"
    ),
    "l4": Device(name="NVIDIA L4", tflops=30.3, gbytes_per_s=300.0, source="NVIDIA L4 data sheet: fp32, GDDR6"),
    "h100": Device(
        name="NVIDIA H100 SXM", tflops=67.0, gbytes_per_s=3350.0, source="NVIDIA H100 data sheet: fp32, HBM3"
    ),
}
"""Devices by short name, in fp32 without tensor cores: TF32, which TensorRT uses unless told not to, can be faster."""


@dataclass(frozen=True, slots=True)
class RooflineEstimate:
    """Lower bounds on latencies, computed from a device's peaks; nothing here was measured.

    Attributes:
        device: the peaks.
        bounds_ms: least latency in ms of each operator, by its key.
    """

    device: Device
    bounds_ms: Mapping[str, float]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RooflineEstimate":
        """Return the estimate in a file.

        Raises:
            TableError: the file cannot be read, or holds something else than an estimate.
        """
        content = _FORMAT.read(Path(path))
        return cls(content.device, content.bounds_ms)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimate to a file that no reader takes for a table, all of it or nothing.

        Raises:
            TableError: the path cannot be written, or holds something else.
        """
        _FORMAT.write(Path(path), asdict(self))


class _EstimateFile(BaseModel):
    """The file format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["roofline estimate"]
    estimate_version: Literal[1]
    device: Device
    bounds_ms: dict[str, float]


_FORMAT = JsonFormat(
    "roofline estimate", _EstimateFile, "estimate_version", ESTIMATE_VERSION, "estimate anew", TableError
)


def find_device(name: str) -> Device:
    """Return the device of that short name.

    Raises:
        TableError: it is not in `DEVICES`.
    """
    if name not in DEVICES:
        raise TableError(
            f"device {name!r} is unknown; choose one of {', '.join(sorted(DEVICES))}, or give its peaks in TFLOP/s and"
            " GB/s."
        )
    return DEVICES[name]


def estimate_roofline(signatures: Iterable[OperatorSignature], device: Device) -> RooflineEstimate:
    """Return the least latency of each operator on a device.

    Example:
        >>> slow = Device(name="slow", tflops=1e-3, gbytes_per_s=1e3, source="made up")
        >>> conv = OperatorSignature(op="conv", batch=1, in_channels=10, out_channels=10, in_size=(10, 10))
        >>> round(estimate_roofline([conv], slow).bounds_ms[conv.key], 6)  # 10 000 multiply-adds at 1e9 flop/s
        0.02
    """
    return RooflineEstimate(device, {signature.key: _bound_ms(signature, device) for signature in sorted(signatures)})


def _bound_ms(signature: OperatorSignature, device: Device) -> float:
    compute_s = _FLOP_PER_MULTIPLY_ADD * multiply_adds(signature) / (device.tflops * 1e12)
    memory_s = traffic_bytes(signature) / (device.gbytes_per_s * 1e9)
    return 1e3 * max(compute_s, memory_s)
