import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from fake_backend import conv
from torch import nn

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables import OperatorSignature, create_backend, measure, time_interleaved
from latency_tables.backends.tensorrt import gpu_is_visible
from latency_tables.backends.torch import TorchBackend
from latency_tables.measuring.measure import measured_method
from latency_tables.operators.modules import example_inputs, operator_module

pytestmark = pytest.mark.whole

ROUNDING = (
    torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul,
)  # fmt: skip
gpu = pytest.mark.skipif(not gpu_is_visible(), reason="no NVIDIA GPU with a working driver is visible here")

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler is installed here"
)


class Witness(nn.Module):
    """Writes down what the process is set to while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[object, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(settings())
        return self.weight * x

    def __deepcopy__(self, memo: object) -> "Witness":
        twin = Witness()
        twin.seen = self.seen
        return twin


def settings() -> tuple[object, ...]:
    rounding = tuple(operators.fp32_precision for operators in ROUNDING)
    return torch.get_num_threads(), rounding, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


@pytest.fixture
def loose_process() -> Iterator[None]:
    """A process that is set to round, to autocast and to use two threads."""
    threads, before = torch.get_num_threads(), [operators.fp32_precision for operators in ROUNDING]
    torch.set_num_threads(2)
    for operators, precision in zip(ROUNDING, ("tf32", "tf32", "bf16", "bf16"), strict=True):
        operators.fp32_precision = precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    for operators, precision in zip(ROUNDING, before, strict=True):
        operators.fp32_precision = precision
    torch.set_num_threads(threads)


@pytest.fixture
def backend() -> TorchBackend:
    return TorchBackend(device="cpu")


def test_a_table_is_measured(backend: TorchBackend) -> None:
    small, large = conv(16, 16, in_size=(31, 29)), conv(128, 128, in_size=(31, 29), residual=True, activation="relu")
    table = measure([small, large], backend)
    assert 0 < table.ms(small) < table.ms(large)
    assert table.method.overhead_ms > 0


def test_the_process_is_set_for_each_sample_and_put_back(loose_process: None, backend: TorchBackend) -> None:
    witness, before = Witness(), settings()
    runner = backend.build_module(witness, (torch.zeros(2, 3),))
    assert settings() == before
    assert runner.time_ms(2) > 0
    assert settings() == before
    assert set(witness.seen) == {(1, ("ieee",) * 4, True, False)}


def test_the_process_is_put_back_after_an_error(loose_process: None, backend: TorchBackend) -> None:
    before = settings()
    with pytest.raises(TableError, match="refuses the module"):
        backend.build_module(nn.Linear(3, 5), (torch.zeros(2, 4),))
    assert settings() == before


def test_threads_are_those_asked_for() -> None:
    witness = Witness()
    TorchBackend(2, device="cpu").build_module(witness, (torch.zeros(2, 3),))
    assert {seen[0] for seen in witness.seen} == {2}


def test_the_module_is_not_changed(backend: TorchBackend) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout()).train()
    before = copy.deepcopy(model.state_dict())
    backend.build_module(model, (torch.zeros(2, 3, 7, 7),)).time_ms(3)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_inputs_are_random_and_not_the_examples(backend: TorchBackend) -> None:
    seen = []

    class Reader(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return x

    state = torch.get_rng_state()
    backend.build_module(Reader(), (torch.zeros(4, 64),))
    assert seen[0].std() == pytest.approx(1, abs=0.2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_types_are_not_measured(backend: TorchBackend, dtype: torch.dtype) -> None:
    with pytest.raises(TableError, match=r"tensor 'input 0' of the model is .* needs float32, integers or booleans"):
        backend.build_module(nn.ReLU(), (torch.zeros(2, 3, dtype=dtype),))


class Looks(nn.Module):
    """Multiplies images by a mask and by rows that integers look up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 4)

    def forward(self, images: torch.Tensor, mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = images * mask * self.rows(index)
        return found


def test_integers_and_booleans_are_inputs(backend: TorchBackend) -> None:
    inputs = (torch.randn(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.ones(2, dtype=torch.long))
    assert backend.build_module(Looks(), inputs).time_ms(2) > 0


def test_the_environment_tells_the_backend_the_device_and_the_version() -> None:
    environment = TorchBackend(2).environment()
    assert (environment.backend, environment.threads, environment.precision) == ("torch", 2, "fp32")
    assert environment.backend_version == torch.__version__
    assert TorchBackend(compiled=True).environment().backend == "torch_compile"


def test_names_make_backends() -> None:
    assert create_backend("torch").name == "torch"
    assert create_backend("torch_compile", threads=2).name == "torch_compile"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, r"threads \(=0\) must be at least 1"),
        ({"device": "tpu"}, r"device \(='tpu'\) must be one of cpu, cuda"),
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(BackendUnavailableError, match=message):
        TorchBackend(**given)


@pytest.mark.skipif(gpu_is_visible(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(BackendUnavailableError, match="torch sees no NVIDIA GPU"):
        TorchBackend(device="cuda")


def test_a_torch_that_rounds_as_it_likes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.backends.torch.torch.backends", object())
    with pytest.raises(BackendUnavailableError, match=r"install torch 2\.9 or later"):
        TorchBackend()


def test_a_missing_package_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "latency_tables.backends.torch")
    monkeypatch.delattr("latency_tables.backends.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match="pip install torch"):
        create_backend("torch")


def test_torch_is_loaded_when_it_is_used() -> None:
    program = (
        "import sys, latency_tables; from latency_tables.backends import BACKEND_NAMES; print('torch' in sys.modules);"
        "latency_tables.create_backend('torch'); print('torch' in sys.modules, *BACKEND_NAMES)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert (before, after.split()[0]) == ("False", "True")
    assert {"torch", "torch_compile"} <= set(after.split())


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@compiler
def test_operators_are_compiled_each_by_itself_and_once() -> None:
    """Ten modules, two more than torch.compile keeps forms of one piece of code; samples compile nothing again."""
    backend = TorchBackend(compiled=True, device="cpu")
    pool = OperatorSignature(op="avg_pool", batch=1, in_channels=2, out_channels=2, in_size=(7, 5), kernel=(2, 2))
    before = compiled_graphs()
    runners = [backend.build_module(operator_module(pool), example_inputs(pool)) for _ in range(10)]
    assert compiled_graphs() == before + 10
    assert all(runner.time_ms(3) > 0 for runner in runners)
    assert compiled_graphs() == before + 10
    for runner in runners:
        runner.close()


@compiler
def test_a_compiled_call_that_does_nothing_is_measured() -> None:
    before = compiled_graphs()
    assert measured_method(TorchBackend(compiled=True, device="cpu")).overhead_ms > 0
    assert compiled_graphs() == before + 1


def test_a_missing_compiler_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    signature = conv(2, 3, activation="tanh")
    with pytest.raises(TableError, match=r"torch_compile .* refuses the module: .*install a C\+\+ compiler") as caught:
        TorchBackend(compiled=True, device="cpu").build_module(operator_module(signature), example_inputs(signature))
    assert "\n" not in str(caught.value)


def test_a_module_that_breaks_into_several_graphs_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(
        TableError, match=r"torch_compile .* refuses the module: .*choose the backend 'torch'"
    ) as caught:
        TorchBackend(compiled=True, device="cpu").build_module(Branching(), (torch.zeros(2, 3),))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_left_uncompiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(TableError, match=r"torch\.compile leaves it as it is"):
        TorchBackend(compiled=True, device="cpu").build_module(nn.ReLU(), (torch.zeros(2, 3),))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_is_measured(compiled: bool) -> None:
    backend = TorchBackend(compiled=compiled)
    assert backend.device == "cuda"
    assert torch.cuda.get_device_name(0) in backend.environment().device
    signatures = {str(n): conv(n, n, in_size=(56, 56)) for n in (16, 512)}
    runners = {name: backend.build_module(operator_module(s), example_inputs(s)) for name, s in signatures.items()}
    timings = time_interleaved(runners)
    assert timings["16"].ms < timings["512"].ms


@gpu
@pytest.mark.gpu
def test_a_gpu_takes_no_threads() -> None:
    with pytest.raises(BackendUnavailableError, match="must be 1 with the device 'cuda'"):
        TorchBackend(2, device="cuda")
