"""PyTorch, eager or compiled, on the CPU or on an NVIDIA GPU.

Importing this loads torch, so it is imported only where one of its backends is asked for.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from time import perf_counter_ns

import numpy as np
import torch
from torch import Tensor, nn

from depthcomp_errors import BackendUnavailableError, TableError
from latency_tables.backends.gpu import gpu_driver, gpu_name
from latency_tables.backends.tensors import Measurable, require_measurable
from latency_tables.tables.environment import Environment, cpu_name

__all__ = ["TorchBackend", "TorchRunner"]

DEVICES = ("cpu", "cuda")
_ROUNDING = ("cudnn.conv", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul")  # of torch.backends: TF32 or bf16 for fp32
_INPUT_SEED = 0


class TorchBackend:
    """Runs modules with PyTorch in inference mode, in the default memory layout, without autocast, in true fp32.

    TF32 and bf16 inside fp32 operators (`torch.backends`) are off while it runs, whatever the process has chosen, and
    so is the number of threads its own; both are put back after each sample. Layouts stay as the module has them:
    weights and images are contiguous, not channels_last.

    `compiled` runs `torch.compile(module, fullgraph=True, dynamic=False)`, otherwise as it is by default. It needs a
    C++ compiler on a CPU, and some seconds for each operator that its cache does not know.

    Args:
        threads: threads that one inference may use; 1 on a GPU, which does the work.
        compiled: whether modules are compiled.
        device: "cpu" or "cuda"; by default "cuda" where torch sees a GPU and one thread is asked for, else "cpu".

    Raises:
        BackendUnavailableError: `threads` is below 1, or not 1 on a GPU; there is no such device; or torch is too old
            to be told to compute in fp32.
    """

    def __init__(self, threads: int = 1, *, compiled: bool = False, device: str | None = None) -> None:
        if threads < 1:
            raise BackendUnavailableError(f"threads (={threads}) must be at least 1.")
        if not hasattr(torch.backends, "fp32_precision"):
            raise BackendUnavailableError(
                f"torch {torch.__version__} cannot be told to compute in fp32; install torch 2.9 or later."
            )
        self.name = "torch_compile" if compiled else "torch"
        self.threads = threads
        self.device = device or ("cuda" if threads == 1 and torch.cuda.is_available() else "cpu")
        self._compiled = compiled
        self._require_device()

    def _require_device(self) -> None:
        if self.device not in DEVICES:
            raise BackendUnavailableError(f"device (={self.device!r}) must be one of {', '.join(DEVICES)}.")
        if self.device == "cuda":
            gpu_name()  # there is one
            if self.threads != 1:
                raise BackendUnavailableError(
                    f"threads (={self.threads}) must be 1 with the device 'cuda': the GPU does the work."
                )

    def environment(self) -> Environment:
        """Return where this backend measures.

        Raises:
            BackendUnavailableError: the GPU is gone.
        """
        return Environment.here(
            backend=self.name,
            backend_version=torch.__version__,  # names the CUDA version that it is built for
            device=gpu_name() if self.device == "cuda" else cpu_name(),
            threads=self.threads,
            driver=gpu_driver() if self.device == "cuda" else None,
        )

    def build_module(self, module: nn.Module, example_inputs: tuple[Tensor, ...]) -> "TorchRunner":
        """Return a runner for a copy of a module, in evaluation mode; the module is not changed.

        Args:
            module: what to run; torch.compile must take it in one graph.
            example_inputs: tell the shapes and types; the values are random, integers 0.

        Raises:
            TableError: an input is a floating-point tensor of another type than float32, or torch cannot compile or run
                the module.
        """
        inputs = [
            require_measurable(f"input {index}", str(tensor.dtype).removeprefix("torch."), tensor.shape)
            for index, tensor in enumerate(example_inputs)
        ]
        try:
            runner = TorchRunner(self._callable(module), inputs, self.device, self.threads)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # they are off on purpose
                runner.time_ms(1)  # compiles
        except Exception as error:  # torch raises whatever its compilers and kernels do
            remedy = "install a C++ compiler if that is what it lacks, or choose the backend 'torch'"
            raise TableError(
                f"{self.name} {torch.__version__} refuses the module: {_words(error)};"
                f" {remedy if self._compiled else 'choose another backend'}."
            ) from error
        return runner

    def _callable(self, module: nn.Module) -> Callable[..., object]:
        own = copy.deepcopy(module).eval().to(self.device)
        if not self._compiled:
            return own
        compiled: Callable[..., object] = torch.compile(own, fullgraph=True, dynamic=False)
        if compiled is own:
            raise RuntimeError("torch.compile leaves it as it is, as TORCHDYNAMO_DISABLE makes it do")
        return compiled


class TorchRunner:
    """A module with inputs on its device.

    Args:
        run: the module.
        inputs: shapes and types of its inputs.
        device: "cpu" or "cuda".
        threads: threads that one inference may use on a CPU.
    """

    def __init__(self, run: Callable[..., object], inputs: list[Measurable], device: str, threads: int) -> None:
        rng = np.random.default_rng(_INPUT_SEED)
        self._inputs = [torch.from_numpy(each.drawn(rng)).to(device) for each in inputs]
        self._run = run
        self._device = device
        self._threads = threads

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together.

        On a GPU they are queued one behind the other, and the time ends when the last of them does.
        """
        run, inputs = self._run, self._inputs
        with _settings(self._device, self._threads):
            self._synchronize()
            start = perf_counter_ns()
            for _ in range(inner):
                run(*inputs)
            self._synchronize()
            return (perf_counter_ns() - start) / 1e6

    def close(self) -> None:
        """Release the module and its inputs."""
        del self._run, self._inputs

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _settings(device: str, threads: int) -> Iterator[None]:
    """Let this process compute as it is measured; what it was set to before is put back."""
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        for name in _ROUNDING:
            operators = attrgetter(name)(torch.backends)
            undo.callback(setattr, operators, "fp32_precision", operators.fp32_precision)
            operators.fp32_precision = "ieee"
        undo.enter_context(torch.autocast(device, enabled=False))
        undo.enter_context(torch.inference_mode())
        yield


def _words(error: Exception) -> str:
    """Return the first sentence of an error; a line that ends with a colon leads to the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    words = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return words.rstrip(".")
