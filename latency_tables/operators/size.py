"""Sizes of operators: multiply-adds and bytes moved."""

from math import prod

from latency_tables.operators.signature import OperatorSignature

__all__ = ["multiply_adds", "traffic_bytes"]

_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def multiply_adds(signature: OperatorSignature) -> int:
    """Return the multiply-adds of an operator; its activation and residual sum are not counted.

    Example:
        >>> multiply_adds(OperatorSignature.parse("conv 1x32x7x7 -> 64 k3x3 s1x1 p1,1,1,1 d1x1 g1 relu fp32"))
        903168
    """
    outputs = signature.batch * signature.out_channels * prod(signature.out_size)
    return outputs * prod(signature.kernel) * _channels_read(signature)


def traffic_bytes(signature: OperatorSignature) -> int:
    """Return the bytes of an operator's inputs, weights and output, each counted once.

    Example:
        >>> traffic_bytes(OperatorSignature.parse("scale 1x2x3x5 -> 2 k1x1 s1x1 p0,0,0,0 d1x1 g1 fp32"))
        256
    """
    inputs = signature.batch * signature.in_channels * prod(signature.in_size)
    outputs = signature.batch * signature.out_channels * prod(signature.out_size)
    numbers = inputs + outputs * (2 if signature.residual else 1) + _weights(signature)
    return _BYTES[signature.dtype] * numbers


def _channels_read(signature: OperatorSignature) -> int:
    """Return how many input channels each output reads."""
    return signature.in_channels // signature.groups if signature.op in ("conv", "linear") else 1


def _weights(signature: OperatorSignature) -> int:
    if signature.op == "avg_pool":
        return 0
    kernel = prod(signature.kernel) * _channels_read(signature)
    return signature.out_channels * (kernel + 1)  # a scale has a factor and a shift, other layers a bias
