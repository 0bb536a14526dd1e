"""The specification of an engine: all that decides what the builder makes, except the network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from depthcomp_errors import EngineError
from latency_tables.backends.tensorrt.library import FLAVOURS

__all__ = ["PRECISIONS", "BuildSpec", "shapes_option"]

PRECISIONS = ("fp32", "fp16", "int8")
TIMING_ITERATIONS = 8  # trtexec's default
_SPELLINGS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}  # the command-line tool of each flavour


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """How to build an engine.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx".
        precision: "fp32", "fp16" or "int8", a property that the ONNX model must have; the builder changes no types.
        targets: compute capabilities that the engine is for, such as (86, 89); tensorrt_rtx only. Empty: the GPU
            here for tensorrt, every GPU from Ampere on for tensorrt_rtx.
        batch: smallest, typical and largest batch of a model with a dynamic first dimension; None for a static one.
        timing_iterations: runs that each tactic is timed for while building; tensorrt_rtx chooses its tactics on
            the machine that runs the engine and does not use them.
        aux_streams: streams that one inference may use beside its own; None leaves it to the library. 0 makes
            the latencies of parts add up.
        tf32: whether fp32 convolutions may round their inputs to TF32 on Ampere and later, as they do by default
            everywhere in TensorRT.
        channels_last_io: whether feature maps enter and leave as kernels like them (HWC, or HWC8 in fp16) instead
            of NCHW, so that a part of a network is built without the layout changes that the whole does not have.
            Tensors of at most four channels, images, stay NCHW.

    Raises:
        EngineError: a value is out of its range, or the flavour cannot build for the targets.
    """

    flavour: str = "tensorrt_rtx"
    precision: str = "fp32"
    targets: tuple[int, ...] = ()
    batch: tuple[int, int, int] | None = None
    timing_iterations: int = TIMING_ITERATIONS
    aux_streams: int | None = None
    tf32: bool = True
    channels_last_io: bool = False

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise EngineError(f"flavour (={self.flavour!r}) must be one of {', '.join(FLAVOURS)}.")
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision (={self.precision!r}) must be one of {', '.join(PRECISIONS)}.")
        if self.targets and self.flavour == "tensorrt":
            raise EngineError(
                f"targets (={self.targets}) can be named with tensorrt-rtx only: tensorrt builds for the GPU that"
                " it runs on; leave them out, or choose tensorrt-rtx."
            )
        if len(set(self.targets)) < len(self.targets):
            raise EngineError(f"targets (={self.targets}) must name each compute capability once.")
        if self.batch is not None and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise EngineError(f"batch (={self.batch}) must be smallest, typical, largest with 1 <= smallest, in order.")
        if self.timing_iterations < 1:
            raise EngineError(f"timing_iterations (={self.timing_iterations}) must be at least 1.")
        if self.aux_streams is not None and self.aux_streams < 0:
            raise EngineError(f"aux_streams (={self.aux_streams}) must be at least 0, or None.")

    def sha256(self) -> str:
        """Return a hash over all fields; two builds of one model by one library and specification do the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def command(
        self, onnx: str, engine: str, shapes: dict[str, tuple[int | str, ...]], *, inference: bool = False
    ) -> str:
        """Return the line for NVIDIA's own tool that builds such an engine; the layouts of its ends are left out.

        Args:
            onnx: name of the ONNX file.
            engine: name of the engine file.
            shapes: shape of each input; a name stands for the batch.
            inference: whether the tool times the engine, too.
        """
        words = [_SPELLINGS[self.flavour], f"--onnx={onnx}", f"--saveEngine={engine}"]
        words += [] if inference else ["--skipInference"]
        if self.flavour == "tensorrt":
            words += ["--stronglyTyped", f"--avgTiming={self.timing_iterations}"]
        if self.targets:
            words.append(f"--computeCapabilities={','.join(map(str, self.targets))}")
        if self.batch is not None:
            names = ("minShapes", "optShapes", "maxShapes")
            words += [shapes_option(name, shapes, n) for name, n in zip(names, self.batch, strict=True)]
        if self.aux_streams is not None:
            words.append(f"--maxAuxStreams={self.aux_streams}")
        if not self.tf32:
            words.append("--noTF32")
        return " ".join(words)


def shapes_option(option: str, shapes: Mapping[str, Sequence[int | str]], batch: int = 1) -> str:
    """Return an option of NVIDIA's tool that tells shapes, with `batch` in place of sizes that are names.

    Example:
        >>> shapes_option("shapes", {"x": ("batch", 3, 224, 224)}, 8)
        '--shapes=x:8x3x224x224'
    """
    sizes = {name: "x".join(str(n if isinstance(n, int) else batch) for n in shape) for name, shape in shapes.items()}
    return f"--{option}={','.join(f'{name}:{size}' for name, size in sizes.items())}"
