"""Every example in a docstring runs, and importing the package stays cheap."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import fx_passes

pytestmark = pytest.mark.whole

MODULES = sorted(info.name for info in pkgutil.walk_packages(fx_passes.__path__, "fx_passes."))


@pytest.mark.parametrize("name", ["fx_passes", *MODULES])
def test_the_examples_of_a_module_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 3


def test_public_names_exist_and_are_documented():
    for name in fx_passes.__all__:
        assert getattr(fx_passes, name).__doc__


def test_the_package_needs_torch_and_networkx_only():
    others = ["timm", "torchvision", "onnx", "onnxruntime", "matplotlib", "pydantic"]
    code = f"import sys, fx_passes; print([name for name in {others} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
