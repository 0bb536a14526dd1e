"""Closed lists of the functions, tensor methods and attributes that a stored graph may call.

All of them only compute: none reads or writes files, or takes code.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from fx_passes.output_records import OutputRecord, OutputTuple
from fx_passes.written_index import write_index

__all__ = ["METHODS", "READABLE_ATTRIBUTES", "function_called", "function_name"]

_OPERATORS = """
    abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imod imul invert ior ipow isub itruediv
    ixor le lt matmul mod mul ne neg not_ or_ pos pow sub truediv xor
"""
_FUNCTIONALS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear
    celu celu_ channel_shuffle conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
    conv_transpose3d cosine_similarity dropout dropout1d dropout2d dropout3d elu elu_ embedding
    embedding_bag feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink hardsigmoid
    hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu leaky_relu_ linear
    local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d
    max_pool3d max_unpool1d max_unpool2d max_unpool3d mish normalize one_hot pad pairwise_distance
    pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ rms_norm rrelu rrelu_
    scaled_dot_product_attention selu selu_ sigmoid silu softmax softmin softplus softshrink softsign
    tanh tanhshrink threshold threshold_ unfold upsample upsample_bilinear upsample_nearest
"""
_TORCH_FUNCTIONS = """
    abs absolute acos acosh adaptive_avg_pool1d add addbmm addcdiv addcmul addmm addmv addr all allclose
    amax amin any arange argmax argmin argsort asin asinh atan atan2 atanh atleast_1d atleast_2d
    atleast_3d avg_pool1d baddbmm batch_norm bilinear bincount bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm broadcast_to bucketize
    cartesian_prod cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip clone
    column_stack concat concatenate constant_pad_nd conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d cos cosh cosine_similarity count_nonzero cross cummax cummin cumprod cumsum deg2rad
    detach diagonal diff div divide dot dropout dsplit dstack einsum embedding empty empty_like eq erf
    erfc exp exp2 expm1 eye flatten flip fliplr flipud floor floor_divide fmod frac full full_like
    gather ge greater greater_equal group_norm gt hardshrink heaviside hsplit hstack index_add
    index_copy index_fill index_put index_select instance_norm isclose isfinite isin isinf isnan
    isneginf isposinf kthvalue layer_norm le lerp less less_equal linspace log log10 log1p log2
    log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit
    logspace logsumexp lt masked_fill masked_scatter masked_select matmul max max_pool1d max_pool2d
    maximum mean median meshgrid min minimum mm mode moveaxis movedim mul multiply mv nan_to_num nanmean
    nansum narrow ne neg negative nonzero norm ones ones_like outer pairwise_distance permute
    pixel_shuffle pixel_unshuffle pow prelu prod quantile rad2deg reciprocal relu relu_ remainder
    repeat_interleave reshape rms_norm roll rot90 round rsqrt rsub scalar_tensor scatter scatter_add
    scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign signbit sin sinc sinh
    slice_scatter softmax sort split split_with_sizes sqrt square squeeze stack std std_mean sub
    subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split tensordot tile topk trace
    transpose tril triu true_divide trunc unbind unflatten unique_consecutive unsqueeze var var_mean
    vsplit vstack where xlogy zeros zeros_like
"""
_TORCHVISION_OPS = "deform_conv2d drop_block2d stochastic_depth"
_LINEAR_ALGEBRA = "cross det matrix_norm norm vector_norm"
_SPECIAL = "erf erfc exp2 expit log_softmax logit logsumexp round sinc softmax"
_METHOD_NAMES = """
    abs absolute acos acosh add add_ addbmm addcdiv addcmul addmm addmv addr all allclose amax amin any
    argmax argmin argsort asin asinh atan atan2 atanh baddbmm bfloat16 bincount bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm bool broadcast_to ceil
    chunk clamp clamp_ clamp_max clamp_min clip clone contiguous copy_ cos cosh count_nonzero cross
    cummax cummin cumprod cumsum deg2rad detach diag diagonal diff dim div div_ divide dot double eq erf
    erfc exp exp2 expand expand_as expm1 fill_ flatten flip fliplr flipud float float_power floor
    floor_divide fmod frac gather ge greater greater_equal gt half hardshrink heaviside index_add
    index_copy index_fill index_put index_put_ index_select int is_floating_point isclose isfinite isinf
    isnan isneginf isposinf kthvalue le lerp less less_equal log log10 log1p log2 log_softmax logaddexp
    logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp long lt
    masked_fill masked_fill_ masked_scatter masked_select matmul max maximum mean median min minimum mm
    mode moveaxis movedim mul mul_ multiply mv nan_to_num nanmean nansum narrow ndimension ne neg
    negative new_empty new_full new_ones new_tensor new_zeros nonzero norm numel outer permute pow prelu
    prod quantile rad2deg ravel reciprocal relu relu_ remainder repeat repeat_interleave reshape
    reshape_as roll rot90 round rsqrt scatter scatter_add scatter_reduce select select_scatter sgn short
    sigmoid sigmoid_ sign signbit sin sinc sinh size slice_scatter softmax sort split split_with_sizes
    sqrt square squeeze squeeze_ std stride sub sub_ subtract sum swapaxes swapdims t take_along_dim tan
    tanh tanh_ tensor_split tile to topk trace transpose tril triu true_divide trunc type_as unbind
    unflatten unfold unique_consecutive unsqueeze unsqueeze_ var view view_as where xlogy zero_
"""
METHODS = frozenset(_METHOD_NAMES.split())
READABLE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """The functions of torch and Python that a graph may call, by their names in the file."""
    rooms: dict[str, tuple[object, str]] = {
        "torch.nn.functional": (nn.functional, _FUNCTIONALS),
        "torch": (torch, _TORCH_FUNCTIONS),
        "torch.linalg": (torch.linalg, _LINEAR_ALGEBRA),
        "torch.special": (torch.special, _SPECIAL),
        "operator": (operator, _OPERATORS),
    }
    listed = {name: function for room, content in rooms.items() for name, function in _listed(room, *content)}
    own = {f"depthcomp.{each.__name__}": each for each in (OutputRecord, OutputTuple, write_index)}
    return {**listed, **own, "builtins.getattr": builtins.getattr}


@cache
def _torchvision_functions() -> dict[str, Callable[..., Any]]:
    """The functions of torchvision that a graph may call, by their names in the file."""
    import torchvision.ops  # slow, as it imports all of torchvision; so only where a network needs it

    return dict(_listed("torchvision.ops", torchvision.ops, _TORCHVISION_OPS))


def _listed(room: str, module: object, names: str) -> list[tuple[str, Callable[..., Any]]]:
    return [(f"{room}.{name}", getattr(module, name)) for name in names.split() if hasattr(module, name)]


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function in files.

    Raises:
        ValueError: the function is not on the lists.
    """
    foreign = getattr(function, "__module__", None) or ""
    known = _torchvision_functions() if foreign.startswith("torchvision.") else _functions()
    for name, candidate in known.items():
        if candidate is function:
            return name
    raise ValueError("the function is not on the list; express it by layers or functions of torch")


def function_called(name: str) -> Callable[..., Any]:
    """Return the function of a name in a file.

    Raises:
        ValueError: the function is not on the lists.
    """
    known = _torchvision_functions() if name.startswith("torchvision.") else _functions()
    if name not in known:
        raise ValueError(f"a call of {name}, which is not on the list")
    return known[name]
