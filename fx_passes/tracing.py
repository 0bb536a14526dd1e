"""Tracing of an nn.Module to a raw fx graph: by proxies, or by a run on the example."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import fx, nn

from depthcomp_errors import CaptureError
from fx_passes.examples import Examples, given_by
from fx_passes.parts import suggest_part
from fx_passes.recorded_batches import recorded
from fx_passes.recording import ReadsValuesError
from fx_passes.symbolic import SymbolicTracer

__all__ = ["ROADS", "Road", "TraceError", "trace"]


class TraceError(CaptureError):
    """A road does not lead to a graph."""


Road = Callable[[nn.Module, Examples], fx.GraphModule]


def _symbolic(model: nn.Module, example_inputs: Examples) -> fx.GraphModule:
    return fx.GraphModule(model, SymbolicTracer(given_by(example_inputs)).trace(model), type(model).__name__)


ROADS: tuple[Road, ...] = (_symbolic, recorded)
"""The ways to trace a network, in the order in which they are tried.

Proxies come first, as they keep every size symbolic. A recorded run takes what proxies cannot follow.
"""


def trace(model: nn.Module, example_inputs: Examples, road: Road = _symbolic) -> fx.GraphModule:
    """Return the fx graph of `model`, its modules shared with the model.

    Raises:
        TraceError: this road fails; the message names the line of the model that it cannot follow.
    """
    try:
        return road(model, example_inputs)
    except Exception as error:
        raise TraceError(_explain(model, error)) from error


def _explain(model: nn.Module, error: Exception) -> str:
    """Say which line of the model's own code could not be traced, and what to do."""
    homes = tuple(f"{Path(file).parent}/" for file in (torch.__file__, __file__))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((*homes, "<"))
    ]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
    reason = str(error).strip().split("\n")[0]
    values = "The forward must not branch on values of images; rewrite that line with torch.where, or wrap"
    advice = values if isinstance(error, ReadsValuesError) else "Rewrite that line, wrap"
    return (
        f"{type(model).__name__} cannot be traced{where} ({type(error).__name__}: {reason}). {advice} "
        f"it in a function marked with torch.fx.wrap{suggest_part(model)}."
    )
