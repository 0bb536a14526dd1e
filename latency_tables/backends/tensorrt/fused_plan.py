"""The kernels of an engine, as the log of its build lists them."""

import re
from dataclasses import dataclass

__all__ = ["FusedPlan", "Kernel", "KernelTensor", "read_plan"]

_HEADLINE = "Layers:\n"
_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\],"
    r"(?: Constants: \[.*?\],)? Outputs: \[(?P<outputs>.*?)\], (?:TacticName|StreamId|Metadata): .*$",
    re.MULTILINE,
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\].*?"
    r" Datatype: (?P<dtype>\w+), Format: \((?P<layout>.*?)\)"
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[^\]]?\[ONNX Layer|[^\]]*$)")
"""Names may hold brackets themselves, and a control character stands between two of them."""


@dataclass(frozen=True, slots=True)
class KernelTensor:
    """What a kernel reads or writes.

    Attributes:
        name: as the builder calls it.
        shape: sizes; -1 where they are dynamic.
        dtype: such as "Float", "Half" or "Int8".
        layout: such as "Linear" (NCHW) or "NHWC".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch on the GPU.

    Attributes:
        name: as the builder calls it.
        kind: such as "correlation" (a convolution), "gemm" or "kgen" (generated code).
        inputs: tensors read, constants not among them.
        outputs: tensors written.
        onnx_nodes: names of the ONNX nodes whose work it does.
    """

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    onnx_nodes: tuple[str, ...]

    @property
    def is_layout_change(self) -> bool:
        """Whether it does no node's work and only moves values into another layout."""
        layouts = {(tensor.layout, tensor.dtype) for tensor in (*self.inputs, *self.outputs)}
        return not self.onnx_nodes and len(layouts) > 1


@dataclass(frozen=True, slots=True)
class FusedPlan:
    """The kernels of an engine.

    Attributes:
        kernels: in the order of execution.
    """

    kernels: tuple[Kernel, ...]

    @property
    def layout_changes(self) -> int:
        """How many kernels only change a layout."""
        return sum(kernel.is_layout_change for kernel in self.kernels)


def read_plan(messages: list[str]) -> FusedPlan | None:
    """Return the plan that a build's log lists; None where it lists none in a form that is known.

    Args:
        messages: what the library logged, its verbose messages included, while it built with detailed profiling
            verbosity.
    """
    lists = [message.removeprefix(_HEADLINE) for message in messages if message.startswith(_HEADLINE)]
    entries = [_kernel(found) for text in lists for found in _KERNEL.finditer(text)]
    kernels = tuple(kernel for kernel in entries if kernel.outputs)  # the rest computes shapes on the CPU
    return FusedPlan(kernels) if kernels else None


def _kernel(found: re.Match[str]) -> Kernel:
    nodes = dict.fromkeys(_ONNX_NODE.findall(found[0]))
    return Kernel(found["name"], found["kind"], _tensors(found["inputs"]), _tensors(found["outputs"]), tuple(nodes))


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(found["name"], _shape(found["shape"]), found["dtype"], found["layout"])
        for found in _TENSOR.finditer(text)
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
