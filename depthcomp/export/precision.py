"""ONNX models in a chosen precision, which is a property of the graph, not of a build."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from depthcomp.data.batches import calibration_batches
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import ArtifactError, DataError
from depthcomp.export.onnx_model import require_sound, to_onnx
from fx_passes import fold_batch_norms

__all__ = ["PRECISIONS", "in_half", "onnx_in_precision", "quantized", "random_inputs"]

PRECISIONS = ("fp32", "fp16", "int8")
_QUANTIZED = ["Conv", "Gemm", "MatMul"]  # operators with int8 kernels; the rest stays in float32
_TRIAL_SEED = 0


def onnx_in_precision(
    gm: nn.Module,
    example_inputs: tuple[Tensor, ...],
    precision: str = "fp32",
    *,
    batch: tuple[int, int, int] | None = None,
    data: Iterable[Any] | None = None,
) -> bytes:
    """Return a network as a checked ONNX model. `gm` is not changed.

    The model is compared with torch on random inputs, before it is quantised to int8. For the error of a lower
    precision see `depthcomp.export.onnx_model.relative_error`.

    Args:
        gm: the network, in float32.
        example_inputs: inputs that give the shapes.
        precision: "fp32"; "fp16", with norms folded in float64 first; or "int8", symmetric and per channel.
        batch: smallest, typical and largest batch, for a dynamic first dimension; None for the example's size.
        data: images for the ranges of int8, as for `compress_depth`.

    Raises:
        ArtifactError: the network cannot be exported, a weight leaves the range of float16, or the model's outputs
            differ.
        DataError: int8 was requested without data, or the data do not fit.
    """
    if precision not in PRECISIONS:
        raise ArtifactError(f"precision (={precision!r}) must be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and data is None:
        raise DataError(
            "int8 needs images to find the ranges of its tensors; pass data= (on the command line --data DIR) with a "
            "few dozen typical images"
        )
    network = in_half(gm) if precision == "fp16" else gm
    inputs = tuple(_as_half(tensor) if precision == "fp16" else tensor for tensor in example_inputs)
    model = to_onnx(network, inputs, dynamic_batch=batch is not None)
    sizes = sorted({batch[0], batch[1]}) if batch is not None else [len(inputs[0])]
    require_sound(model, network, [random_inputs(inputs, size) for size in sizes])
    if precision != "int8" or data is None:
        return model
    return quantized(model, Inputs.of(example_inputs), data, InputNames.of(gm, example_inputs))


def in_half(gm: nn.Module) -> nn.Module:
    """Return a copy in float16 and evaluation mode, with norms folded in float64 before rounding.

    Raises:
        ArtifactError: a weight leaves the range of float16.
    """
    network = copy.deepcopy(gm).eval().double()
    if isinstance(network, fx.GraphModule):
        fold_batch_norms(network)
        network.delete_all_unused_submodules()
    network = network.half()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"{name!r} leaves the range of float16 (largest value {torch.finfo(torch.float16).max:g}); "
                "export in fp32"
            )
    return network


def quantized(model: bytes, example: Tensor | Inputs, data: Iterable[Any], names: InputNames = ONE_IMAGE) -> bytes:
    """Return a float32 model with QuantizeLinear and DequantizeLinear around the inputs of its heavy operators.

    Scales are symmetric, per channel for weights and per tensor for activations; TensorRT takes no other form.

    Args:
        model: the model; its first dimension may be dynamic.
        example: tensors with the shapes of the model's inputs.
        data: images; the range of a tensor is its largest magnitude on them.
        names: names of the inputs in the data.

    Raises:
        DataError: the data are empty or do not fit the model.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    batches = calibration_batches(data, example, names=names)
    inputs = [value.name for value in onnx.load_from_string(model).graph.input]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_static(
            source, target, _Reader(inputs, _of_size(Inputs.joined(batches), len(Inputs.of(example)))),
            quant_format=QuantFormat.QDQ, op_types_to_quantize=_QUANTIZED, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": _QUANTIZED,
            },
        )  # fmt: skip
        return target.read_bytes()


def random_inputs(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """Return `batch` normal random inputs with the shapes and types of `inputs`, from a fixed seed; integers repeat."""
    generator = torch.Generator().manual_seed(_TRIAL_SEED)
    return tuple(
        torch.randn((batch, *x.shape[1:]), generator=generator).to(x.device, x.dtype)
        if x.is_floating_point()
        else x[:1].expand(batch, *x.shape[1:])
        for x in inputs
    )


class _Reader:
    """Source of batches for quantize_static."""

    def __init__(self, names: Sequence[str], batches: Iterable[Inputs]) -> None:
        self._names, self._batches = names, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {name: t.detach().cpu().numpy() for name, t in zip(self._names, batch.tensors, strict=True)}


def _of_size(images: Inputs, size: int) -> Iterator[Inputs]:
    """Yield the images in batches of exactly `size`, the last one filled with the first images."""
    count = -(-len(images) // size)
    order = torch.arange(count * size) % len(images)
    for start in range(0, len(order), size):
        yield images[order[start : start + size]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's advice on preprocessing, which the exporter has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _as_half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
