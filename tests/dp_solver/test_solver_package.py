import doctest
import importlib
import subprocess
import sys

import pytest

import dp_solver

pytestmark = pytest.mark.whole

MODULES = ["problem", "quantities", "pareto", "labels", "grid", "frontier", "solve", "brute_force"]
MODULES += ["kim23.two_stage", "kim23.tables", "kim23.key_order"]


@pytest.mark.parametrize("name", ["dp_solver", *(f"dp_solver.{module}" for module in MODULES)])
def test_docstring_examples(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert attempted > 0


def test_public_names_exist_and_are_documented() -> None:
    assert all(getattr(dp_solver, name).__doc__ for name in dp_solver.__all__)


def test_import_stays_lean() -> None:
    heavy = "{'torch', 'networkx', 'onnx', 'pydantic', 'scipy'}"
    code = f"import sys, dp_solver; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
