"""Signatures: an operator with its shapes and epilogue, which a latency belongs to wherever the operator stands."""

import re
from dataclasses import astuple, dataclass
from functools import total_ordering
from typing import Any, Literal, cast, get_args

from depthcomp_errors import TableError
from latency_tables.operators.activations import ACTIVATIONS

__all__ = ["OperatorSignature"]

Op = Literal["conv", "linear", "avg_pool", "scale"]
Dtype = Literal["fp32"]

_KEY = re.compile(
    r"(?P<op>\w+) (?P<batch>\d+)x(?P<in_channels>\d+)x(?P<in_size>\d+(?:x\d+)?) -> (?P<out_channels>\d+)"
    r" k(?P<kernel>\d+(?:x\d+)?) s(?P<stride>\d+(?:x\d+)?) p(?P<padding>\d+,\d+(?:,\d+,\d+)?)"
    r" d(?P<dilation>\d+(?:x\d+)?)"
    r" g(?P<groups>\d+)(?P<residual> \+add)?(?: (?P<activation>\w+))? (?P<dtype>\w+)",
    re.ASCII,
)


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSignature:
    """One operator as it will really run: a convolution, linear layer, average pooling or lone per-channel affine.

    Batch normalisation is folded into a convolution, which always has a bias; `scale` is a batch
    normalisation that has no convolution to fold into. An average pooling counts its padding as zeros. Pairs
    are (height, width). An operator on signals (batch, channels, width) leaves the height of 1 as it is, and its key
    tells the width alone. A linear layer reads channels along the last axis: of one vector for each image where its
    `in_size` is (1, 1), else of each of its pixels.

    Attributes:
        op: "conv", "linear", "avg_pool" or "scale".
        batch: images per inference.
        in_channels: channels of the input.
        out_channels: channels of the output; equal to `in_channels` for "avg_pool" and "scale".
        in_size: (height, width) of the input before padding.
        kernel: window; (1, 1) for "linear" and "scale".
        stride: step of the window; (1, 1) for "linear" and "scale".
        padding: (top, bottom, left, right), maybe asymmetric, never negative; zeros for "linear" and "scale", smaller
            than the kernel for "avg_pool".
        dilation: spacing of the kernel's taps; (1, 1) unless `op` is "conv".
        groups: groups of the convolution; 1 for the other operators.
        activation: a name in `latency_tables.operators.activations.ACTIVATIONS`, or None.
        residual: whether a second input of the output's shape is added before the activation.
        dtype: type of weights and activations.
        signals: whether the operator, not "linear", is one-dimensional and reads signals.

    Raises:
        TableError: a field is out of its range, or the fields do not fit each other.

    Example:
        >>> stem = OperatorSignature(op="conv", batch=1, in_channels=3, out_channels=32, in_size=(224, 224),
        ...                          kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1), activation="relu6")
        >>> stem.key
        'conv 1x3x224x224 -> 32 k3x3 s2x2 p1,1,1,1 d1x1 g1 relu6 fp32'
        >>> OperatorSignature.parse(stem.key) == stem
        True
        >>> stem.out_size
        (112, 112)
        >>> OperatorSignature.parse("conv 1x1x4000 -> 16 k9 s4 p4,4 d1 g1 relu fp32").out_size
        (1, 1000)
    """

    op: Op
    batch: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str | None = None
    residual: bool = False
    dtype: Dtype = "fp32"
    signals: bool = False

    def __post_init__(self) -> None:
        self._check_names()
        self._check_integers()
        self._check_operator()
        if min(self.out_size) < 1:
            raise TableError(
                f"in_size (={self.in_size}) with padding (={self.padding}) is smaller than the dilated kernel"
                f" (={self.kernel}, dilation {self.dilation}); give a larger input or more padding."
            )

    def __lt__(self, other: "OperatorSignature") -> bool:
        return self._rank < other._rank

    @property
    def key(self) -> str:
        """The canonical text of this signature, the same in every version of the table format."""
        size, kernel, stride, dilation = (
            "x".join(map(str, self.along_axes(pair)))
            for pair in (self.in_size, self.kernel, self.stride, self.dilation)
        )
        pieces = [
            f"{self.op} {self.batch}x{self.in_channels}x{size} -> {self.out_channels}",
            f"k{kernel} s{stride} p{','.join(map(str, self.padding[2:] if self.signals else self.padding))}",
            f"d{dilation} g{self.groups}",
            *(["+add"] if self.residual else []),
            *([self.activation] if self.activation else []),
            self.dtype,
        ]
        return " ".join(pieces)

    @property
    def out_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        top, bottom, left, right = self.padding
        return self._out_length(0, top + bottom), self._out_length(1, left + right)

    def along_axes(self, pair: tuple[int, int]) -> tuple[int, ...]:
        """Return the numbers of a (height, width) along the axes that the operator's tensors have."""
        return pair[1:] if self.signals else pair

    @classmethod
    def parse(cls, key: str) -> "OperatorSignature":
        """Return the signature whose `key` is the given text.

        Raises:
            TableError: the text is not the key of a signature.
        """
        found = _KEY.fullmatch(key)
        if found is None:
            raise TableError(f"{key!r} is not an operator key; a key reads like {_EXAMPLE_KEY!r}.")
        signature = cls(**_fields(found.groupdict()))
        if signature.key != key:
            raise TableError(f"{key!r} is not in canonical form; write {signature.key!r}.")
        return signature

    @property
    def _rank(self) -> tuple[Any, ...]:
        return tuple("" if value is None else value for value in astuple(self))

    def _out_length(self, axis: int, padding: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.in_size[axis] + padding - reach) // self.stride[axis] + 1

    def _check_names(self) -> None:
        _check_choice("op", self.op, get_args(Op))
        _check_choice("dtype", self.dtype, get_args(Dtype))
        if self.activation is not None:
            _check_choice("activation", self.activation, ACTIVATIONS)

    def _check_integers(self) -> None:
        for name in ("batch", "in_channels", "out_channels", "groups"):
            _check_tuple(name, (getattr(self, name),), length=1, least=1)
        for name in ("in_size", "kernel", "stride", "dilation"):
            _check_tuple(name, getattr(self, name), length=2, least=1)
        _check_tuple("padding", self.padding, length=4, least=0)

    def _check_operator(self) -> None:
        if self.signals:
            self._check_signals()
        if self.op == "conv":
            self._check_groups()
            return
        if self.op != "linear":
            self._require("out_channels", self.in_channels)
        self._require("groups", 1)
        self._require("dilation", (1, 1))
        if self.op == "avg_pool":
            self._check_pool_padding()
        else:
            self._require("kernel", (1, 1))
            self._require("stride", (1, 1))
            self._require("padding", (0, 0, 0, 0))

    def _check_signals(self) -> None:
        along_height = (self.in_size[0], self.kernel[0], self.stride[0], self.dilation[0], *self.padding[:2])
        if self.op == "linear" or along_height != (1, 1, 1, 1, 0, 0):
            raise TableError(
                f"signals (=True) needs a height of 1 that {self.op!r} leaves as it is, not in_size (={self.in_size}), "
                f"kernel (={self.kernel}), stride (={self.stride}), dilation (={self.dilation}) and padding "
                f"(={self.padding}); 'linear' takes none."
            )

    def _check_groups(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise TableError(
                f"groups (={self.groups}) must divide in_channels (={self.in_channels})"
                f" and out_channels (={self.out_channels})."
            )

    def _check_pool_padding(self) -> None:
        top, bottom, left, right = self.padding
        if max(top, bottom) >= self.kernel[0] or max(left, right) >= self.kernel[1]:
            raise TableError(
                f"padding (={self.padding}) of 'avg_pool' must be smaller than its kernel (={self.kernel}) on"
                " every side, as runtimes refuse more; leave the rest to the operator before it."
            )

    def _require(self, name: str, needed: object) -> None:
        if getattr(self, name) != needed:
            raise TableError(f"{name} (={getattr(self, name)}) of {self.op!r} must be {needed}.")


_EXAMPLE_KEY = "conv 1x32x112x112 -> 64 k3x3 s1x1 p1,1,1,1 d1x1 g1 +add relu6 fp32"


def _fields(texts: dict[str, str | None]) -> dict[str, Any]:
    """The constructor's arguments from the named pieces of a key."""
    numbers = ("batch", "in_channels", "out_channels", "groups")
    along_height = {"in_size": (1,), "kernel": (1,), "stride": (1,), "padding": (0, 0), "dilation": (1,)}
    found = {name: tuple(map(int, re.split("[x,]", cast(str, texts[name])))) for name in along_height}
    signals = len(found["in_size"]) == 1
    return {
        **texts,
        **{name: int(cast(str, texts[name])) for name in numbers},
        **{name: (*along_height[name], *values) if signals else values for name, values in found.items()},
        "residual": texts["residual"] is not None,
        "signals": signals,
    }


def _check_choice(name: str, value: object, known: Any) -> None:
    if value not in known:
        raise TableError(f"{name} (={value!r}) is unknown; choose one of {', '.join(sorted(known))}.")


def _check_tuple(name: str, values: object, *, length: int, least: int) -> None:
    fits = isinstance(values, tuple) and len(values) == length
    if not fits or any(type(value) is not int or value < least for value in cast(tuple[object, ...], values)):
        shown = values[0] if length == 1 and isinstance(values, tuple) else values
        wanted = "an integer" if length == 1 else f"a tuple of {length} integers"
        raise TableError(f"{name} (={shown!r}) must be {wanted}, at least {least}.")
