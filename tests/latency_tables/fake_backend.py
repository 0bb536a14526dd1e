"""A machine whose clock only the test moves, so that the timing protocol can be checked to the digit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from latency_tables import Environment, OperatorSignature
from latency_tables.operators.models import call_overhead_model, operator_model

ENVIRONMENT = Environment(
    backend="fake",
    backend_version="1.0",
    device="abacus",
    threads=1,
    precision="fp32",
    os="none",
    python="3.11",
    machine="wood",
    driver="0.1",
)


def conv(in_channels: int = 3, out_channels: int = 5, **fields: object) -> OperatorSignature:
    defaults = {"op": "conv", "batch": 1, "in_size": (11, 7), "kernel": (3, 3)}
    return OperatorSignature(in_channels=in_channels, out_channels=out_channels, **(defaults | fields))


def model_ms(onnx_model: bytes) -> float:
    return 0.01 + len(onnx_model) / 1e5


def net_ms(signature: OperatorSignature) -> float:
    return model_ms(operator_model(signature)) - model_ms(call_overhead_model())


@dataclass
class Machine:
    """A slowdown factor as a function of the time in ms; every run moves the time on."""

    slowdown: Callable[[float], float] = lambda now_ms: 1.0
    now_ms: float = 0.0
    calls: list[tuple[str, int, float]] = field(default_factory=list)  # (runner, inner, elapsed ms)


@dataclass
class FakeRunner:
    name: str
    true_ms: float
    machine: Machine = field(default_factory=Machine)
    on_close: Callable[[], None] = lambda: None

    def time_ms(self, inner: int) -> float:
        elapsed_ms = inner * self.true_ms * self.machine.slowdown(self.machine.now_ms)
        self.machine.now_ms += elapsed_ms
        self.machine.calls.append((self.name, inner, elapsed_ms))
        return elapsed_ms

    def close(self) -> None:
        self.on_close()


@dataclass
class FakeBackend:
    name: str = "fake"
    device: str = ENVIRONMENT.device
    machine: Machine = field(default_factory=Machine)
    built: list[bytes] = field(default_factory=list)
    live: int = 0
    most_live: int = 0
    before_build: Callable[[int], None] = lambda count: None  # called with the number of models built so far

    def environment(self) -> Environment:
        return replace(ENVIRONMENT, device=self.device)

    def build(self, onnx_model: bytes) -> FakeRunner:
        self.before_build(len(self.built))
        self.built.append(onnx_model)
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        return FakeRunner(str(len(self.built)), model_ms(onnx_model), self.machine, self._close)

    def _close(self) -> None:
        self.live -= 1
