from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from fake_backend import conv
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import TableError
from latency_tables import OperatorSignature
from latency_tables.operators.activations import ACTIVATIONS

small = st.integers(1, 7)
pairs = st.tuples(small, small)
sizes = st.tuples(st.integers(50, 300), st.integers(50, 300))
pads = st.tuples(*[st.integers(0, 9)] * 4)
tails = {"activation": st.none() | st.sampled_from(sorted(ACTIVATIONS)), "residual": st.booleans()}


@st.composite
def signatures(draw: st.DrawFn) -> OperatorSignature:
    op = draw(st.sampled_from(["conv", "linear", "avg_pool", "scale"]))
    groups, signals = draw(small) if op == "conv" else 1, op != "linear" and draw(st.booleans())
    in_channels = groups * draw(small)
    fields = {name: draw(strategy) for name, strategy in tails.items()}
    if op == "conv":
        fields |= {"padding": draw(pads), "dilation": draw(pairs), "groups": groups}
    if op not in ("linear", "scale"):
        fields |= {"kernel": draw(pairs), "stride": draw(pairs)}
    if signals:
        fields |= {name: (1, fields[name][1]) for name in ("kernel", "stride", "dilation") if name in fields}
        fields |= {"padding": (0, 0, *fields["padding"][2:])} if "padding" in fields else {}
    height, width = draw(sizes)
    out_channels = groups * draw(small) if op in ("conv", "linear") else in_channels
    return OperatorSignature(
        op=op,
        batch=draw(small),
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=(1 if signals else height, width),
        signals=signals,
        **fields,
    )


@given(signatures())
def test_a_key_parses_back(signature: OperatorSignature) -> None:
    assert OperatorSignature.parse(signature.key) == signature


@given(st.lists(signatures(), max_size=8))
def test_signatures_sort_and_equal_ones_share_a_key(several: list[OperatorSignature]) -> None:
    assert all(a <= b for a, b in pairwise(sorted(several)))
    assert len(set(several)) == len({signature.key for signature in several})


def test_the_key_is_readable() -> None:
    signature = conv(32, 64, in_size=(112, 112), padding=(1, 1, 1, 1), activation="relu6", residual=True)
    assert signature.key == "conv 1x32x112x112 -> 64 k3x3 s1x1 p1,1,1,1 d1x1 g1 +add relu6 fp32"


def test_the_key_of_a_convolution_of_signals_tells_its_one_axis() -> None:
    signature = conv(1, 16, in_size=(1, 4000), kernel=(1, 9), stride=(1, 4), padding=(0, 0, 4, 4), signals=True)
    assert signature.key == "conv 1x1x4000 -> 16 k9 s4 p4,4 d1 g1 fp32"
    assert replace(signature, signals=False).key == "conv 1x1x1x4000 -> 16 k1x9 s1x4 p0,0,4,4 d1x1 g1 fp32"


def test_out_size_follows_the_convolution_formula() -> None:
    signature = conv(in_size=(23, 17), kernel=(3, 5), stride=(2, 3), padding=(0, 1, 2, 3), dilation=(2, 1))
    assert signature.out_size == (10, 6)


def test_no_activation_sorts_before_one() -> None:
    assert conv() < conv(activation="relu")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"activation": "swishy"}, r"activation \(='swishy'\) is unknown; choose one of celu, elu"),
        ({"dtype": "fp16"}, r"dtype \(='fp16'\) is unknown; choose one of fp32"),
        ({"batch": 0}, r"batch \(=0\) must be an integer, at least 1"),
        ({"batch": True}, r"batch \(=True\) must be an integer"),
        ({"kernel": [3, 3]}, r"kernel \(=\[3, 3\]\) must be a tuple of 2 integers, at least 1"),
        ({"stride": (1, 0)}, r"stride \(=\(1, 0\)\) must be a tuple of 2 integers, at least 1"),
        (
            {"padding": (0, -1, 0, 0)},
            r"padding \(=\(0, -1, 0, 0\)\) must be a tuple of 4 integers, at least 0",
        ),
        ({"groups": 2}, r"groups \(=2\) must divide in_channels \(=3\) and out_channels \(=5\)"),
        ({"in_size": (2, 7)}, r"in_size \(=\(2, 7\)\) .* is smaller than the dilated kernel"),
        ({"op": "avg_pool"}, r"out_channels \(=5\) of 'avg_pool' must be 3"),
        (
            {"op": "avg_pool", "out_channels": 3, "padding": (0, 0, 0, 3)},
            r"padding .* smaller than its kernel",
        ),
        ({"op": "scale", "out_channels": 3}, r"kernel \(=\(3, 3\)\) of 'scale' must be \(1, 1\)"),
        ({"signals": True}, r"signals \(=True\) needs a height of 1 .*in_size \(=\(11, 7\)\)"),
        ({"op": "linear", "kernel": (1, 1), "in_size": (1, 7), "signals": True}, "'linear' takes none"),
        ({"op": "max_pool"}, r"op \(='max_pool'\) is unknown; choose one of avg_pool, conv, linear, scale"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TableError, match=sentence):
        conv(**fields)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("conv 3x3", "'conv 3x3' is not an operator key; a key reads like 'conv 1x32"),
        (conv().key.replace("g1", "g01"), "is not in canonical form; write 'conv 1x3x11x7"),
        ("conv 1x3x41 -> 5 k3x3 s1 p0,0 d1 g1 fp32", r"kernel \(=\(1, 3, 3\)\) must be a tuple of 2 integers"),
        (conv().key + " ", "is not an operator key"),
        (conv().key.replace("fp32", "gone fp32"), r"activation \(='gone'\) is unknown"),
    ],
)
def test_other_text_is_no_key(key: str, sentence: str) -> None:
    with pytest.raises(TableError, match=sentence):
        OperatorSignature.parse(key)
