"""The module of an operator and its ONNX model are one function: latencies of both stand for the same operator."""

import numpy as np
import onnxruntime
import pytest
import torch
from fake_backend import ENVIRONMENT, FakeBackend, FakeRunner, conv
from test_operator_models import SIGNATURES

from latency_tables import OperatorSignature, as_backend, measure
from latency_tables.backends.protocol import ModuleBackend, runner_of
from latency_tables.operators.activations import ACTIVATIONS
from latency_tables.operators.models import operator_model
from latency_tables.operators.modules import ACTIVATION_MODULES, call_overhead_module, example_inputs, operator_module
from latency_tables.operators.subjects import CallOverhead, Operator

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.key)
def test_the_module_computes_what_the_onnx_model_computes(signature: OperatorSignature) -> None:
    generator = torch.Generator().manual_seed(7)
    inputs = [3 * torch.randn(zeros.shape, generator=generator) for zeros in example_inputs(signature)]
    session = onnxruntime.InferenceSession(operator_model(signature), providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        found = operator_module(signature)(*inputs).numpy()
    np.testing.assert_allclose(found, session.run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_every_operator_and_activation_is_compared() -> None:
    assert set(ACTIVATION_MODULES) == set(ACTIVATIONS)
    assert {signature.activation for signature in SIGNATURES} >= set(ACTIVATIONS)
    assert {signature.op for signature in SIGNATURES} == {"conv", "linear", "avg_pool", "scale"}


def test_no_random_numbers_are_drawn() -> None:
    state = torch.get_rng_state()
    for signature in SIGNATURES:
        operator_module(signature)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_operator_has_code_of_its_own() -> None:
    one, other = operator_module(conv()), operator_module(conv())
    assert one.forward.__code__ is not other.forward.__code__
    assert type(one) is not type(other)


def test_a_call_that_does_nothing_runs_no_kernel() -> None:
    module, (x,) = call_overhead_module()
    assert module(x).data_ptr() == x.data_ptr()


class OwnModuleBackend:
    """A user's backend that takes modules: it is slow in proportion to the weights."""

    name = "own"

    def __init__(self) -> None:
        self.built: list[tuple[torch.nn.Module, tuple[torch.Size, ...]]] = []

    def environment(self) -> object:
        return ENVIRONMENT

    def build_module(self, module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> FakeRunner:
        self.built.append((module, tuple(x.shape for x in example_inputs)))
        return FakeRunner("own", 0.01 + 1e-4 * sum(parameter.numel() for parameter in module.parameters()))


def test_a_backend_that_takes_modules_measures_a_table() -> None:
    backend, signature = OwnModuleBackend(), conv(3, 5, residual=True)
    assert isinstance(backend, ModuleBackend)
    assert as_backend(backend) is backend
    table = measure([signature], backend)
    assert table.ms(signature) == pytest.approx(1e-4 * (3 * 5 * 9 + 5))
    module, shapes = backend.built[-1]
    assert not module.training
    assert shapes == ((1, 3, 11, 7), (1, 5, *signature.out_size))


def test_a_backend_that_takes_onnx_is_given_no_module() -> None:
    backend = FakeBackend()
    assert not isinstance(backend, ModuleBackend)
    runner_of(Operator(conv()), backend)
    assert backend.built == [operator_model(conv())]
    assert CallOverhead().onnx() != backend.built[0]
