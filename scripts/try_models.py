"""Try networks of many libraries as their users hold them: compressed, saved, loaded, exported and run.

Each network of `try_nets.py` is compressed to 90 % on ONNX Runtime with one thread, on random images. A row tells the
latencies, whether the loaded network equals the compressed one, whether the exported ONNX file equals PyTorch (1e-4),
and whether the library's own pipeline runs. The results are written after each network; a killed run goes on from
there, and `--only` makes rows anew:

    python scripts/try_models.py --out docs/models.json
    python scripts/try_models.py --out docs/models.json --only "yolo*"

The libraries are those of requirements-models.txt.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from try_nets import NETS, Net

import depthcomp
from depthcomp import CompressionResult, DepthCompError, compress_depth
from depthcomp.sources.onnx_file import read_onnx
from depthcomp_files import write_atomically
from fx_passes.outputs import tensors_of
from latency_tables import create_backend
from latency_tables.tables.environment import cpu_name

BUDGET = "90%"
LIBRARIES = ("torch", "torchvision", "timm", "onnxruntime")


def tried(net: Net) -> dict[str, Any]:
    """Return the row of a network: figures where all steps worked, else the sentence of the error."""
    torch.manual_seed(0)
    held, start = net.build(), time.perf_counter()
    model = held.eval() if isinstance(held, torch.nn.Module) else held
    data = net.data()
    example = data[0][0][:1] if net.as_lists else data[0][:1]
    try:
        result = compress_depth(
            model, BUDGET, module=net.module, example_inputs=example, data=data,
            backend=create_backend("onnxruntime", threads=1),
        )  # fmt: skip
    except DepthCompError as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": round(time.perf_counter() - start)}
    seconds = round(time.perf_counter() - start)
    original = model if isinstance(model, torch.nn.Module) else read_onnx(model, example)[0]
    return {**_figures(result), **_steps(net, original, result), "seconds": seconds}


def _figures(result: CompressionResult) -> dict[str, Any]:
    return {
        "original_ms": round(result.original_ms, 4),
        "predicted_ms": round(result.predicted_ms, 4),
        "measured_ms": round(result.measured_ms, 4),
        "loss": float(f"{result.loss:.4g}"),
        "judged_by": result.judged_by,
        "choices": [f"{span.choice.kind} {span.modules}" for span in result.spans],
        "refusals": len(result.refusals),
        "warnings": list(result.warnings),
    }


def _steps(net: Net, original: Any, result: CompressionResult) -> dict[str, Any]:
    """Save, load, export and run; a step that fails is told by its error."""
    images = torch.rand(2, *net.shape, generator=torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "onnx": _outcome(lambda: result.export_onnx(Path(folder) / "model.onnx")),
            "loaded": _outcome(lambda: _require_loaded(result, Path(folder) / "saved")),
        }
    if net.run is not None:
        run = net.run
        found["pipeline"] = _outcome(lambda: run(original, result, images))
    return found


def _require_loaded(result: CompressionResult, folder: Path) -> None:
    result.save(folder)
    with torch.no_grad():
        wanted, found = (tensors_of(model(*result.example_inputs)) for model in (result.model, depthcomp.load(folder)))
        if not all(torch.equal(*pair) for pair in zip(wanted, found, strict=True)):
            raise ValueError("the loaded network computes something else")


def _outcome(step: Any) -> str:
    try:
        with torch.no_grad():
            step()
    except Exception as error:  # a row tells what users would see
        return f"{type(error).__name__}: {error}"
    return "ok"


def works(row: dict[str, Any]) -> bool:
    """Say whether every step of a row worked."""
    return all(row.get(step, "ok") == "ok" for step in ("onnx", "loaded", "pipeline")) and "error" not in row


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the networks that have no row yet, or that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all rows")
    parser.add_argument("--only", action="append", default=[], help="names of networks, with * for any")
    options = parser.parse_args(arguments)
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    for name, net in NETS.items():
        if any(fnmatchcase(name, each) for each in options.only) if options.only else name not in known["rows"]:
            row = {"library": net.library, **tried(net), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            known["rows"][name] = row
            known["machine"] = f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"
            known["versions"] = {library: version(library) for library in LIBRARIES}
            known["works"] = sum(map(works, known["rows"].values()))
            write_atomically(options.out, (json.dumps(known, indent=1) + "\n").encode())
            print(f"{name}: {'works' if works(row) else row}", flush=True)
    print(f"{known.get('works', 0)} of {len(known['rows'])} work")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main()
