"""List the names in the Python bindings of each supported version of TensorRT, for the contract test.

The bindings' wheels (about 1.3 MB each) come from PyPI. They import without the libraries and without a GPU when
stand-ins with the symbols that they need are on the library path: nothing is called, only names are listed.
The stand-ins are compiled with `cc`.

    python scripts/tensorrt_names.py

writes tests/latency_tables/tensorrt_names.json: names in groups, each with the versions that have all its names and
nothing about the others; in a group, members by their class, and "" for classes and functions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TARGET = Path(__file__).parents[1] / "tests" / "latency_tables" / "tensorrt_names.json"
VERSIONS = {
    "tensorrt 10.0": ("tensorrt-cu12-bindings", "10.0.1"),
    "tensorrt 10.3": ("tensorrt-cu12-bindings", "10.3.0"),
    "tensorrt 10.7": ("tensorrt-cu12-bindings", "10.7.0"),
    "tensorrt 10.16": ("tensorrt-cu13-bindings", "10.16.1.11"),
    "tensorrt 11.0": ("tensorrt-cu13-bindings", "11.0.0.114"),
    "tensorrt 11.4": ("tensorrt-cu13-bindings", "11.4.0.106"),
    "tensorrt_rtx 1.4": ("tensorrt-rtx-cu13-bindings", "1.4.0.76"),
    "tensorrt_rtx 1.7": ("tensorrt-rtx-cu13-bindings", "1.7.1.116"),
}
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIST_NAMES = """
import importlib, inspect, json, sys
module = importlib.import_module(sys.argv[1])
names = set()
for name, value in vars(module).items():
    if name.startswith("_") or inspect.ismodule(value):
        continue
    names.add(name)
    if inspect.isclass(value):
        names |= {f"{name}.{member}" for member in dir(value) if not member.startswith("_")}
print(json.dumps(sorted(names)))
"""


def main() -> None:
    """Fetch, list and write."""
    found = {version: names_of(*wheel) for version, wheel in VERSIONS.items()}
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in sorted(set.union(*found.values())):
        owner, _, member = name.rpartition(".")
        where = tuple(version for version in found if name in found[version])
        groups.setdefault(where, {}).setdefault(owner, []).append(member)
    content = {
        "packages": {version: "==".join(wheel) for version, wheel in VERSIONS.items()},
        "groups": [
            {"versions": list(where), "names": {owner: " ".join(members) for owner, members in names.items()}}
            for where, names in sorted(groups.items(), key=lambda item: -len(item[0]))
        ],
    }
    TARGET.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {TARGET}")


def names_of(package: str, version: str) -> set[str]:
    """Return the names in the bindings of one version."""
    with tempfile.TemporaryDirectory() as folder:
        fetch(package, version, Path(folder))
        (binding,) = Path(folder).glob("*_bindings/*.so")
        make_stand_ins(binding, Path(folder))
        command = [sys.executable, "-c", LIST_NAMES, binding.parent.name]
        environment = {**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return set(json.loads(done.stdout))


def fetch(package: str, version: str, folder: Path) -> None:
    """Download a wheel and unpack it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(folder), f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)


def make_stand_ins(binding: Path, folder: Path) -> None:
    """Compile a library without content for each one of TensorRT's that a binding asks for."""
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    needed = set(re.findall(rb"lib(?:nv|tensorrt_)\w+\.so\.\d+", binding.read_bytes()))
    for name in map(bytes.decode, needed):
        output = str(folder / name)
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", output, str(source)], check=True)


if __name__ == "__main__":
    main()
