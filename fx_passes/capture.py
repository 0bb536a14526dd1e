"""Capture of an nn.Module as a canonical GraphModule: evaluation mode, layers as modules, shapes at every node.

The model is copied first and never changed. The graph's outputs are compared with the model's on random inputs of the
example's shapes, or on the example itself if the model does not take random inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase

from depthcomp_errors import CaptureError
from depthcomp_errors.first_line import first_line
from fx_passes.examples import Examples, called, in_order, like
from fx_passes.exported import plain
from fx_passes.graph_edit import preserve_attributes, tidy
from fx_passes.normalise.additions import UnifyAdditions
from fx_passes.normalise.arguments import PositionalInputs
from fx_passes.normalise.asserts import DropAsserts
from fx_passes.normalise.aten_calls import AtenCalls
from fx_passes.normalise.casts import DropCasts, DropCopies
from fx_passes.normalise.channel_arithmetic import ChannelArithmetic
from fx_passes.normalise.functional import FunctionalNorms, FunctionalToModules
from fx_passes.normalise.inplace import DropInplace
from fx_passes.normalise.layer_constants import FoldLayerConstants
from fx_passes.normalise.modules import CloneSharedModules, CloneSharedTensors, DropIdentities, PlainNorms
from fx_passes.normalise.pixel_layers import PixelLinears
from fx_passes.normalise.shared_branches import BatchSharedBranches, shares_layers
from fx_passes.normalise.written_activations import WrittenActivations
from fx_passes.outputs import noise_like, require_comparable, require_equal, tensors_of
from fx_passes.parametrizations import remove_parametrizations
from fx_passes.parts import suggest_part
from fx_passes.preconditions import as_tensors, require_capturable
from fx_passes.shapes import propagate_shapes, run_with_shapes
from fx_passes.tracing import ROADS, Road, TraceError, trace

__all__ = ["capture"]

_PASSES = (
    AtenCalls(),
    DropAsserts(),
    PositionalInputs(),
    DropIdentities(),  # before DropInplace, as an identity returns its input itself, which may be overwritten
    DropInplace(),
    UnifyAdditions(),
    FoldLayerConstants(),
    FunctionalToModules(),
)
_SHAPED_PASSES = (
    WrittenActivations(),
    FunctionalNorms(),
    PlainNorms(),
    DropCasts(),
    DropCopies(),
    ChannelArithmetic(),
    PixelLinears(),
    CloneSharedTensors(),
)  # these passes read the shapes and types at the nodes
_TOLERANCE = 1e-5  # relative to the largest output; most of the graph runs the same kernels in the same order
_LARGEST_ROUNDING = 1e-3  # of single precision in a deep network; autocast rounds more
_ROUNDINGS = 8  # in eps of the type: layers that changed kind round differently, in half precision by 1.3 eps


def capture(model: nn.Module, example_inputs: Tensor | Examples) -> fx.GraphModule:
    """Return the canonical graph of `model` in evaluation mode; the model itself is not changed.

    Args:
        model: any network whose forward proxies can follow, or a run on the example can record.
        example_inputs: one input tensor, a tuple with one tensor per argument of the model's forward, or a dict of
            arguments. All other arguments keep their defaults. The graph takes its inputs in this order.

    Raises:
        CaptureError: the model is a wrapper or has no finite weights, the example inputs do not fit, the model
            cannot be traced, or the captured graph does not reproduce the model's output.

    Example:
        >>> gm = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(1, 3, 8, 8))
        >>> [node.op for node in gm.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    model = plain(model)
    require_capturable(model)
    inputs: Examples = as_tensors(example_inputs)
    if isinstance(example_inputs, Mapping):
        inputs = like(example_inputs, in_order(inputs))
    failures: list[CaptureError] = []
    for road in ROADS:
        try:
            return _captured_by(road, model, inputs)
        except CaptureError as error:
            failures.append(error)
    raise next((error for error in failures if not isinstance(error, TraceError)), failures[-1]) from failures[0]


def _captured_by(road: Road, model: nn.Module, inputs: Examples) -> fx.GraphModule:
    """Return the canonical graph of a model, traced by a road; shared branches run as one where that is possible."""
    try:
        return _captured(_copy(model).eval(), inputs, road, together=True)
    except TraceError:
        raise
    except CaptureError:
        return _captured(_copy(model).eval(), inputs, road, together=False)


def _captured(model: nn.Module, inputs: Examples, road: Road, *, together: bool) -> fx.GraphModule:
    """Return the canonical graph of a model that may be changed, traced by a road.

    Where `together` is set, shared branches run as one; operators in them that mix examples make this fail.
    """
    remove_parametrizations(model)
    checked, expected = _reference(model, inputs)
    gm = trace(model, inputs, road)
    _normalise(gm, _PASSES)
    if together and shares_layers(gm):
        propagate_shapes(tidy(gm).eval(), in_order(inputs))
        _normalise(gm, (BatchSharedBranches(),))
    _normalise(gm, (CloneSharedModules(),))
    preserve_attributes(model, gm)
    propagate_shapes(tidy(gm).eval(), in_order(inputs))
    _normalise(gm, _SHAPED_PASSES)
    found, name = run_with_shapes(tidy(gm), in_order(checked)), type(model).__name__
    try:
        require_equal(name, expected, found, _tolerance(gm))
    except CaptureError:
        require_equal(name, expected, found, _LARGEST_ROUNDING)
        if not _agree_in_double(model, gm, checked):
            raise
    return gm


def _agree_in_double(model: nn.Module, gm: fx.GraphModule, inputs: Examples) -> bool:
    """Say whether a graph computes what its model does but for rounding, which grows in deep networks."""
    doubles = [x.double() if x.is_floating_point() else x for x in in_order(inputs)]
    try:
        expected = tensors_of(called(copy.deepcopy(model).double(), like(inputs, doubles)))
        found = tensors_of(copy.deepcopy(gm).double()(*doubles))
        require_equal(type(model).__name__, expected, found, _TOLERANCE)
    except Exception:  # a forward may cast, or a type may be missing
        return False
    return True


def _reference(model: nn.Module, inputs: Examples) -> tuple[Examples, list[Tensor]]:
    """Return inputs to compare the graph on, and the model's outputs for them.

    The inputs are random if the model takes random ones, because an example of zeros would agree with any graph.
    """
    noise = like(inputs, noise_like(in_order(inputs)))
    try:
        return noise, _comparable_outputs(model, noise)
    except CaptureError:
        return inputs, _comparable_outputs(model, inputs)


def _comparable_outputs(model: nn.Module, inputs: Examples) -> list[Tensor]:
    outputs = _run(model, inputs)
    require_comparable(type(model).__name__, outputs)
    return outputs


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: "
            f"{first_line(error, empty='no message')}); remove hooks that compute its weights, as "
            "torch.nn.utils.remove_weight_norm does, and keep only parameters and buffers as its tensors"
        ) from error


def _normalise(gm: fx.GraphModule, passes: Sequence[PassBase]) -> None:
    """Run passes over a graph in place, in their order."""
    for normalise in passes:
        try:
            normalise(gm)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"{type(gm).__name__} was traced, but {type(normalise).__name__} could not bring its graph to the "
                f"canonical form ({type(error).__name__}: {first_line(error, empty='no message')}); "
                "this is a fault of depthcomp, so please report it with the model; capturing a part of the network "
                "that leaves out the layer concerned gets around it"
            ) from error


def _run(module: nn.Module, inputs: Examples) -> list[Tensor]:
    try:
        with torch.no_grad():  # a forward may overwrite what it is given
            output = called(module, like(inputs, [x.clone() for x in in_order(inputs)]))
    except Exception as error:
        _require_tensors_taken(module, in_order(inputs))
        shapes = ", ".join(str(tuple(x.shape)) for x in in_order(inputs))
        raise CaptureError(
            f"example_inputs of shape {shapes} do not fit {type(module).__name__}: its forward raised "
            f"{type(error).__name__} ({first_line(error, empty='no message')}); "
            "pass one tensor per forward argument, of the shape, dtype and device that the model takes"
        ) from error
    return tensors_of(output)


def _require_tensors_taken(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse a forward that takes a list of images instead of a batch."""
    try:
        with torch.no_grad():
            module([x.clone() for x in inputs])
    except Exception:
        return  # the cause is another
    raise CaptureError(
        f"the forward of {type(module).__name__} takes a list of tensors, and capture needs one that takes tensors; "
        f"write one that does{suggest_part(module)}"
    )


def _tolerance(gm: fx.GraphModule) -> float:
    """Return the allowed difference of outputs, relative to the largest value, for the coarsest type in `gm`."""
    found = [getattr(node.meta.get("tensor_meta"), "dtype", torch.bool) for node in gm.graph.nodes]
    return max([_TOLERANCE, *(_ROUNDINGS * torch.finfo(dtype).eps for dtype in found if dtype.is_floating_point)])
