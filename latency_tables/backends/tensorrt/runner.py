"""An engine on the GPU, timed by CUDA events around graphs of many inferences."""

from typing import Any

from depthcomp_errors import BackendUnavailableError
from latency_tables.backends.gpu import cuda
from latency_tables.backends.tensorrt.library import NO_GPU, gpu_is_visible, new_log

__all__ = ["TensorRtRunner", "load_engine"]

GRAPHS_KEPT = 2  # a timing run asks for one inference and for one inner count, in turns
_SEED = 0


def load_engine(trt: Any, data: bytes) -> tuple[Any, Any]:
    """Return a runtime and the engine that it loaded; the engine borrows from the runtime.

    Raises:
        BackendUnavailableError: there is no GPU or driver, or the engine is for another GPU or library.
    """
    log = new_log(trt)
    runtime = trt.Runtime(log)
    engine = None if runtime is None else runtime.deserialize_cuda_engine(data)
    if engine is not None:
        return runtime, engine
    reasons = [" ".join(text.split()).rstrip(".") for text in dict.fromkeys(log.texts("INTERNAL_ERROR", "ERROR"))]
    cause = "it was built for another GPU or by another version" if gpu_is_visible() else NO_GPU
    raise BackendUnavailableError(
        f"{trt.__name__} {trt.__version__} cannot load the engine: {cause}"
        f" ({'; '.join(reasons) or 'no reason is given'}); run it on the GPU that it was built for."
    )


class TensorRtRunner:
    """An engine whose inputs and outputs stay on the GPU.

    Args:
        trt: the library.
        data: the engine.
        batch: size of the first dimension of its inputs, where that is dynamic.

    Raises:
        BackendUnavailableError: there is no GPU, or the engine does not load on it or cannot be captured.
    """

    def __init__(self, trt: Any, data: bytes, batch: int | None = None) -> None:
        self._torch = cuda()
        self._trt = trt
        self._runtime, self._engine = load_engine(trt, data)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendUnavailableError(
                f"{trt.__name__} {trt.__version__} has no room on the GPU for the engine's tensors; free its memory."
            )
        self._stream = self._torch.cuda.Stream()
        self._set_batch(batch)
        self._buffers = self._bind()
        self._graphs: dict[int, Any] = {}
        self._run()  # outside of any capture: the first run compiles and allocates
        self._stream.synchronize()
        self._require_capturable()

    def time_ms(self, inner: int) -> float:
        """Return the time in ms of `inner` inferences, one right after the other, together, on the GPU.

        One replay is queued ahead, so that the GPU never waits for the CPU between the two events.
        """
        graph, events = self._graph(inner), [self._torch.cuda.Event(enable_timing=True) for _ in range(2)]
        with self._torch.cuda.stream(self._stream):
            graph.replay()
            events[0].record(self._stream)
            graph.replay()
            events[1].record(self._stream)
        events[1].synchronize()
        return float(events[0].elapsed_time(events[1]))

    def close(self) -> None:
        """Release the engine and its tensors."""
        self._stream.synchronize()
        del self._graphs, self._context, self._engine, self._runtime, self._buffers

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _set_batch(self, batch: int | None) -> None:
        for name in self._names():
            shape = tuple(self._engine.get_tensor_shape(name))
            if not self._is_input(name) or -1 not in shape:
                continue
            if batch is None:
                raise BackendUnavailableError(f"input {name!r} of the engine has a dynamic batch; say which to time.")
            if not self._context.set_input_shape(name, (batch, *shape[1:])):
                raise BackendUnavailableError(
                    f"the engine does not take batches of {batch}; choose one that it was built for, or build it anew."
                )

    def _bind(self) -> dict[str, Any]:
        generator = self._torch.Generator(device="cuda").manual_seed(_SEED)
        buffers = {}
        for name in self._names():
            buffers[name] = self._buffer(name, generator if self._is_input(name) else None)
            self._context.set_tensor_address(name, buffers[name].data_ptr())
        return buffers

    def _buffer(self, name: str, generator: Any) -> Any:
        """Return memory for a tensor, random where a generator is given: zeros would run faster."""
        shape = self._padded(name)
        kind = getattr(self._torch, self._trt.nptype(self._engine.get_tensor_dtype(name)).__name__)
        if generator is None or not kind.is_floating_point:
            return self._torch.zeros(shape, dtype=kind, device="cuda")
        return self._torch.randn(shape, generator=generator, dtype=kind, device="cuda")

    def _padded(self, name: str) -> tuple[int, ...]:
        """Return a shape with room for the tensor in its layout: HWC8 rounds the channels up to eight."""
        shape = list(self._context.get_tensor_shape(name))
        axis, step = self._engine.get_tensor_vectorized_dim(name), self._engine.get_tensor_components_per_element(name)
        if axis >= 0 and step > 1:
            shape[axis] = -(-shape[axis] // step) * step
        return tuple(shape)

    def _run(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendUnavailableError(f"{self._trt.__name__} {self._trt.__version__} cannot run the engine here.")

    def _require_capturable(self) -> None:
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.cuda_stream):
            raise BackendUnavailableError(
                "the engine cannot be captured into a CUDA graph, which timing needs; export the network with static"
                " shapes and without layers that wait for the CPU."
            )

    def _graph(self, inner: int) -> Any:
        if inner not in self._graphs:
            while len(self._graphs) >= GRAPHS_KEPT:
                del self._graphs[next(iter(self._graphs))]
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=self._stream):
                for _ in range(inner):
                    self._run()
            self._graphs[inner] = graph
        return self._graphs[inner]
