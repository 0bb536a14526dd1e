"""Backends that a measuring process can make by name; each behaves badly in its own way."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from fake_backend import FakeBackend, FakeRunner

from depthcomp_errors import TableError
from latency_tables.operators.models import call_overhead_model

BUILD_SECONDS = 0.002
FOREVER_SECONDS = 3600


@dataclass
class SlowBackend(FakeBackend):
    """Takes a few ms for each build, and writes down how many operators were built where a variable names a file."""

    threads: int = 1

    def build(self, onnx_model: bytes) -> FakeRunner:
        time.sleep(BUILD_SECONDS)
        counter = os.environ.get("BUILD_COUNTER")
        if counter and onnx_model != call_overhead_model():
            with Path(counter).open("a") as file:
                file.write(f"{out_channels(onnx_model)}\n")
        return super().build(onnx_model)


def out_channels(onnx_model: bytes) -> int:
    return onnx.load_from_string(onnx_model).graph.output[0].type.tensor_type.shape.dim[1].dim_value


@dataclass
class DeadlyRunner(FakeRunner):
    def time_ms(self, inner: int) -> float:
        raise RuntimeError("an illegal memory access was encountered")


@dataclass
class TreacherousBackend(SlowBackend):
    """What it does depends on the output channels: 5 refuses, 7 kills, 8 raises, 9 raises when it is timed."""

    chatter: list[str] = field(default_factory=list)

    def build(self, onnx_model: bytes) -> FakeRunner:
        print("chatter of a library")
        channels = out_channels(onnx_model)
        if channels == 5:
            raise TableError("no kernel takes five channels.")
        if channels == 7:
            os.write(2, b"driver: unspecified launch failure\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        if channels == 8:
            raise ZeroDivisionError("eight")
        if channels == 9:
            return DeadlyRunner("deadly", 1.0)
        return super().build(onnx_model)


@dataclass
class HangingBackend(SlowBackend):
    """The build of an operator with seven output channels never ends; one with nine hangs when it is timed."""

    def build(self, onnx_model: bytes) -> FakeRunner:
        channels = out_channels(onnx_model)
        if channels == 7:
            time.sleep(FOREVER_SECONDS)
        if channels == 9:
            return HangingRunner("hanging", 1.0)
        return super().build(onnx_model)


@dataclass
class HangingRunner(FakeRunner):
    def time_ms(self, inner: int) -> float:
        time.sleep(FOREVER_SECONDS)
        return super().time_ms(inner)


def hanging(threads: int) -> HangingBackend:
    return HangingBackend()


def stuck(threads: int) -> SlowBackend:
    time.sleep(FOREVER_SECONDS)
    return SlowBackend()


def slow(threads: int) -> SlowBackend:
    return SlowBackend()


def treacherous(threads: int) -> TreacherousBackend:
    return TreacherousBackend()


def dead(threads: int) -> SlowBackend:
    if os.environ.get("BUILD_COUNTER"):
        os._exit(3)
    return SlowBackend()


def broken(threads: int) -> SlowBackend:
    raise OSError("no such device")
