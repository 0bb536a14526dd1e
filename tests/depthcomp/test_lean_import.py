"""`import depthcomp` is cheap: what is heavy or optional, or grabs a device, waits until it is needed."""

import json
import subprocess
import sys

import pytest

import depthcomp

pytestmark = pytest.mark.whole

HEAVY = ("onnxruntime", "onnxscript", "matplotlib", "tensorrt", "tensorrt_rtx", "openvino", "timm", "jinja2")
CODE = f"""
import json, sys
import depthcomp, depthcomp.commands.main
early = "torch" in sys.modules
from depthcomp import *
import torch
loaded = ["torch"] * early + [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps([loaded, torch.cuda.is_initialized(), depthcomp.__all__]))
"""


def test_import_loads_nothing_heavy():
    finished = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    loaded, cuda, names = json.loads(finished.stdout)
    assert loaded == []
    assert not cuda
    assert {"compress_depth", "Budget", "CompressionResult", "load", "errors"} <= set(names)


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="module 'depthcomp' has no attribute 'absent'"):
        depthcomp.absent  # noqa: B018
