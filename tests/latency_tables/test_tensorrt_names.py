"""Every name of TensorRT that the code uses exists in every supported version, or stands on the guarded list."""

import ast
import json
from pathlib import Path

import pytest

import latency_tables.backends.tensorrt as package

pytestmark = pytest.mark.whole

NAMES = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "parser_error": "ParserError", "profile": "IOptimizationProfile", "tensor": "ITensor", "layer": "ILayer",
    "runtime": "Runtime", "_engine": "ICudaEngine", "_context": "IExecutionContext",
    "cache": "ITimingCache",
}  # fmt: skip
GUARDED = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
"""Behind `spec.targets`, which are refused for tensorrt."""
WITH_HASATTR = {"IExecutionContext.is_stream_capturable"}
PYTHONS_OWN = {"__name__", "__version__", "__members__", "messages", "texts"}
USERS = ("build.py", "library.py", "monitor.py", "onnx_check.py", "runner.py", "timing_cache.py", "backend.py")


def versions_with(name):
    owner, _, member = name.rpartition(".")
    return {
        version
        for group in NAMES["groups"]
        if member in group["names"].get(owner, "").split()
        for version in group["versions"]
    }


def chain(node):
    """Return a.b.c as its parts, outermost last; nothing where the root is no plain name or attribute of self."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)]


def api_name(parts):
    parts = parts[1:] if parts[0] == "self" else parts
    if parts[0] in ("trt", "_trt"):
        own = parts[1:3]
    elif parts[0] in CLASSES:
        own = [CLASSES[parts[0]], *parts[1:2]]
    else:
        return None
    kept = [part for part in own if part not in PYTHONS_OWN]
    is_known_class = kept and kept[0] and len(kept) == len(own)
    return ".".join(kept) if is_known_class or (len(kept) == 1 and own[0] == kept[0]) else None


def used_names():
    found = {}
    for file in USERS:
        tree = ast.parse((Path(package.__path__[0]) / file).read_text())
        for node in ast.walk(tree):
            parts = chain(node)
            name = api_name(parts) if len(parts) > 1 and parts[0] else None
            if name is not None:
                found.setdefault(name, f"{file}:{node.lineno}")
    return found


def test_the_versions_are_10_to_11_and_rtx():
    assert set(NAMES["packages"]) >= {"tensorrt 10.0", "tensorrt 11.4", "tensorrt_rtx 1.4", "tensorrt_rtx 1.7"}


def test_names_are_found_at_all():
    assert {"Builder", "BuilderFlag.TF32", "INetworkDefinition.num_layers", "ICudaEngine.get_tensor_shape"} <= set(
        used_names()
    )


@pytest.mark.parametrize(("name", "place"), sorted(used_names().items()))
def test_a_name_exists_in_every_supported_version(name, place):
    if name in GUARDED:
        assert versions_with(name) == {version for version in NAMES["packages"] if version.startswith("tensorrt_rtx")}
    else:
        assert versions_with(name) == set(NAMES["packages"]), f"{place} uses it unguarded"


@pytest.mark.parametrize("name", sorted(WITH_HASATTR))
def test_what_is_asked_for_with_getattr_exists_somewhere(name):
    assert versions_with(name)
    assert name not in used_names()


def test_the_guarded_list_holds_what_is_used_only():
    assert set(used_names()) >= GUARDED


@pytest.mark.parametrize(
    "gone", ["BuilderFlag.FP16", "BuilderFlag.INT8", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"]
)
def test_what_went_away_is_not_used(gone):
    assert "tensorrt 11.4" not in versions_with(gone)
    assert gone not in used_names()


@pytest.mark.parametrize(("class_name", "base"), [("Monitor", "IProgressMonitor"), ("Log", "ILogger")])
def test_methods_that_the_library_calls_are_called_so_everywhere(class_name, base):
    trees = [ast.parse((Path(package.__path__[0]) / file).read_text()) for file in USERS]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (defined,) = [node for node in classes if node.name == class_name]
    methods = {node.name for node in defined.body if isinstance(node, ast.FunctionDef)} - {"__init__", "texts"}
    assert methods
    for method in methods:
        assert versions_with(f"{base}.{method}") == set(NAMES["packages"])
