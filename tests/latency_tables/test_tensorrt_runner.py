"""The steps of timing on a GPU, with stand-ins for torch and TensorRT: what is called, how often, in which order."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from depthcomp_errors import BackendUnavailableError
from latency_tables.backends.tensorrt import runner as module
from latency_tables.backends.tensorrt.runner import TensorRtRunner

INPUT, OUTPUT = object(), object()


class Engine:
    """Reads `x`, which is vectorized over channels by eight, and writes `y`."""

    num_io_tensors = 2

    def __init__(self, context, shape=(1, 13, 7, 5)):
        self.create_execution_context = lambda: context
        self.shape = shape
        if context is not None:
            context.shape = shape

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return INPUT if name == "x" else OUTPUT

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_vectorized_dim(self, name):
        return 1 if name == "x" else -1

    def get_tensor_components_per_element(self, name):
        return 8 if name == "x" else -1

    def get_tensor_dtype(self, name):
        return name


class Context:
    def __init__(self):
        self.runs, self.works, self.capturable = 0, True, True
        self.largest_batch = 32

    def get_tensor_shape(self, name):
        return self.shape

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= self.largest_batch

    def set_tensor_address(self, name, address):
        pass

    def execute_async_v3(self, stream):
        self.runs += 1
        return self.works

    def is_stream_capturable(self, stream):
        return self.capturable


@pytest.fixture
def machine(monkeypatch):
    """A context to run on, the calls to torch, and a function that makes a runner."""
    torch, context, replays = MagicMock(), Context(), []
    torch.cuda.stream = lambda _: nullcontext()
    torch.cuda.graph = lambda graph, stream: nullcontext()
    torch.cuda.CUDAGraph = lambda: SimpleNamespace(replay=lambda: replays.append("replay"))
    torch.cuda.Event = lambda enable_timing: SimpleNamespace(
        record=lambda _: replays.append("event"), synchronize=lambda: None, elapsed_time=lambda end: 1.5
    )
    trt = SimpleNamespace(
        __name__="tensorrt",
        __version__="11.4.0",
        nptype=lambda _: np.float32,
        TensorIOMode=SimpleNamespace(INPUT=INPUT),
    )
    monkeypatch.setattr(module, "cuda", lambda: torch)
    monkeypatch.setattr(module, "load_engine", lambda trt, data: (object(), Engine(context)))
    return SimpleNamespace(
        torch=torch, context=context, replays=replays, make=lambda batch=None: TensorRtRunner(trt, b"engine", batch)
    )


def test_a_replay_is_queued_before_the_first_event_and_one_is_timed(machine):
    runner = machine.make()
    assert runner.time_ms(10) == 1.5
    assert machine.replays == ["replay", "event", "replay", "event"]
    assert machine.context.runs == 1 + 10, "one outside of the graph, then those captured"


def test_graphs_are_kept_for_the_latest_counts(machine):
    runner = machine.make()
    for inner in (1, 10, 1, 10):
        runner.time_ms(inner)
    assert machine.context.runs == 1 + 1 + 10
    runner.time_ms(20)
    runner.time_ms(1)
    assert machine.context.runs == 1 + 1 + 10 + 20 + 1
    runner.close()


def test_inputs_are_random_and_vectorized_layouts_have_room(machine):
    machine.make()
    assert machine.torch.randn.call_args.args == ((1, 16, 7, 5),)
    assert machine.torch.zeros.call_args.args == ((1, 13, 7, 5),)


def test_what_does_not_run_or_cannot_be_captured_is_said(machine):
    machine.context.capturable = False
    with pytest.raises(BackendUnavailableError, match="cannot be captured into a CUDA graph"):
        machine.make()
    machine.context.works = False
    with pytest.raises(BackendUnavailableError, match=r"tensorrt 11\.4\.0 cannot run the engine here"):
        machine.make()


def test_a_gpu_without_room_is_said(machine, monkeypatch):
    monkeypatch.setattr(module, "load_engine", lambda trt, data: (object(), Engine(None)))
    with pytest.raises(BackendUnavailableError, match="has no room on the GPU for the engine's tensors"):
        machine.make()


def test_a_dynamic_batch_is_the_one_asked_for(machine, monkeypatch):
    monkeypatch.setattr(module, "load_engine", lambda trt, data: (object(), Engine(machine.context, (-1, 13, 7, 5))))
    machine.make(batch=4)
    assert machine.torch.randn.call_args.args == ((4, 16, 7, 5),)
    with pytest.raises(BackendUnavailableError, match=r"does not take batches of 64; choose one that it was built for"):
        machine.make(batch=64)
    with pytest.raises(BackendUnavailableError, match=r"input 'x' of the engine has a dynamic batch; say which"):
        machine.make()
