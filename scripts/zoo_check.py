"""Checks of one network of the zoo."""

from __future__ import annotations

import gc
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from zoo_narrow import narrow_errors, reasons
from zoo_nets import Net
from zoo_pieces import error_in_pieces, largest_error, recorded, shared_nodes, tensors_in

from fx_passes import CapturedNetwork, Span, capture, enumerate_spans, linearize, merge, random_plan

CAPTURE_TOLERANCE, MERGE_TOLERANCE = 1e-5, 1e-9  # relative to the largest output; in the model's type, in float64
SLOWEST_S = {"torchvision:mobilenet_v2": 3.0, "timm:mobilenetv2_035": 3.0}
SLOWEST_ELSE_S = 10.0  # for capturing a network and enumerating its spans, on the cores that it has for itself

_FUNCTIONS = ("call_function", "call_method")  # what is no layer in a captured graph

Record = dict[str, Any]


def check(net: Net, seeds: int) -> Record:
    """Return what became of one network: figures, and `cause` where a check failed (empty where none did)."""
    record: Record = {"key": net.key, "cause": "", "threads": torch.get_num_threads()}
    stage = "build"
    try:
        model = net.build()
        x = net.images(model, seed=1)
        record |= _describe(model, x)
        record["input"] = list(x.shape)
        record["symbolic_trace"] = _symbolic_trace(model)
        stage = "capture"
        network, spans = _capture(model, x, record)
        stage = "compare"
        record["capture_error"] = largest_error(_outputs(network.gm, _fresh(x)), _outputs(model, _fresh(x)))
        record["unshaped"] = [name for name, node in network.nodes.items() if not _has_shape(node)]
        if record["captured_norms"] < record["running_norms"]:
            missing = record["running_norms"] - record["captured_norms"]
            record["cause"] = f"{missing} norms are no nn.BatchNorm2d once captured"
        stage = "plans"
        del model
        record["kinds"] = Counter(choice.kind for span in spans for choice in span.choices)
        record["plans"] = []
        if any(span.choices for span in spans):
            for seed in range(seeds):
                record["plans"].append(_carry_out(network, seed, x))
                gc.collect()  # graphs refer to themselves
        stage = "narrow"
        network.gm.double()
        record["channels_stay"] = reasons(network)
        record["narrow_errors"] = narrow_errors(network, x.double()) if record["kinds"]["narrow"] else {}
    except Exception as error:
        record["cause"] = f"{stage}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    record["cause"] = record["cause"] or _verdict(record)
    record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


def _describe(model: nn.Module, x: Tensor) -> Record:
    """Return how many convolutions and norms there are, and how many of the norms run: training heads hold more."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    running: set[nn.Module] = set()
    hooks = [norm.register_forward_hook(lambda norm, args, output: running.add(norm)) for norm in norms]
    _outputs(model, x)
    for hook in hooks:
        hook.remove()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return {"convolutions": convolutions, "norms": len(norms), "running_norms": len(running)}


def _symbolic_trace(model: nn.Module) -> bool:
    """Say whether torch.fx traces the network as it is, for comparison."""
    try:
        fx.symbolic_trace(model)
    except Exception:
        return False
    return True


def _capture(model: nn.Module, x: Tensor, record: Record) -> tuple[CapturedNetwork, list[Span]]:
    started = time.perf_counter()
    gm = capture(model, x)
    captured = time.perf_counter()
    network = CapturedNetwork(gm)
    spans = enumerate_spans(network)
    record["capture_s"] = round(captured - started, 3)
    record["enumerate_s"] = round(time.perf_counter() - captured, 3)
    record["captured_norms"] = sum(isinstance(module, nn.BatchNorm2d) for module in gm.modules())
    record["functions"] = Counter(_title(node.target) for node in gm.graph.nodes if node.op in _FUNCTIONS)
    record["spans"] = len(spans)
    record["candidates"] = sum(bool(span.choices) for span in spans)
    record["choices"] = sum(len(span.choices) for span in spans)
    return network, spans


def _title(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _carry_out(network: CapturedNetwork, seed: int, x: Tensor) -> Record:
    """Return how a random plan went in float64: its length, the convolutions left, the merged network's error.

    A plan may replace a squeeze-and-excitation gate by the pooled image that it reads. Its block then squares its
    values; a row of such blocks overflows even float64. So the two are compared in pieces where their outputs differ.
    """
    plan = random_plan(network, np.random.default_rng(seed))
    linearized, x = linearize(network, plan).double(), x.double()
    merged = merge(linearized, plan)
    error = largest_error(_outputs(merged, x), _outputs(linearized, x))
    in_pieces = not error <= MERGE_TOLERANCE
    if in_pieces:
        shared = shared_nodes(merged, linearized)
        error = error_in_pieces(merged, x, recorded(linearized, x, shared), shared)
    left = sum(isinstance(module, nn.Conv2d) for module in merged.modules())
    return {
        "seed": seed, "choices": len(plan), "convolutions": left, "merge_error": error, "in_pieces": in_pieces,
    }  # fmt: skip


def _outputs(module: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(module(x))


def _fresh(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(2))


def _has_shape(node: fx.Node) -> bool:
    return node.op == "output" or "tensor_meta" in node.meta or not issubclass(node.meta.get("type", Tensor), Tensor)


def _verdict(record: Record) -> str:
    """Return the first check that the figures fail, as a clause; nothing where all pass."""
    if not record["capture_error"] <= CAPTURE_TOLERANCE:
        return f"captured differs from the original by {record['capture_error']:.1e}"
    if record["unshaped"]:
        return f"{len(record['unshaped'])} nodes have no known shape, {record['unshaped'][0]} among them"
    for plan in record["plans"]:
        if not plan["merge_error"] <= MERGE_TOLERANCE:
            return f"merged differs from linearized by {plan['merge_error']:.1e} (seed {plan['seed']})"
    for what, error in record["narrow_errors"].items():
        if not error <= MERGE_TOLERANCE:
            return f"without {what} the output differs by {error:.1e}"
    limit = SLOWEST_S.get(record["key"], SLOWEST_ELSE_S)
    seconds = record["capture_s"] + record["enumerate_s"]
    return f"capture and enumeration took {seconds:.1f} s, and {limit:g} s are allowed" if seconds > limit else ""
