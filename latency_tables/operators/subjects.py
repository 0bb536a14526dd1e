"""Subjects of a latency table, in the form that a backend takes: ONNX model or PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency_tables.operators.models import call_overhead_model, operator_model
from latency_tables.operators.signature import OperatorSignature

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CallOverhead", "Operator"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator with its epilogue and random weights, the same in both forms."""

    signature: OperatorSignature

    def onnx(self) -> bytes:
        """Return it as a serialised ONNX model."""
        return operator_model(self.signature)

    def module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return it as a module with example inputs; this loads torch."""
        from latency_tables.operators.modules import example_inputs, operator_module

        return operator_module(self.signature), example_inputs(self.signature)


class CallOverhead:
    """Next to nothing: its latency is what a call costs by itself."""

    def onnx(self) -> bytes:
        """Return it as a serialised ONNX model."""
        return call_overhead_model()

    def module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return it as a module with an example input; this loads torch."""
        from latency_tables.operators.modules import call_overhead_module

        return call_overhead_module()
