"""Parts of MobileNetV2 as engines of their own, as latency tables measure them: fused, and without layout changes."""

from itertools import pairwise

import onnx
import pytest
import torch
import torchvision
from onnx.utils import Extractor

from depthcomp.export.onnx_model import to_onnx
from depthcomp.export.precision import in_half
from depthcomp.preparation import needed_operators
from fx_passes import capture
from latency_tables.backends.tensorrt import BuildSpec, build_engine
from latency_tables.operators.models import operator_model

pytestmark = pytest.mark.whole

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
SIZE = 64
BLOCKS = 19


class Blocks(torch.nn.Module):
    """The convolutional blocks of MobileNetV2; returns what each of them does."""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(num_classes=10).features

    def forward(self, x):
        found = []
        for block in self.features:
            x = block(x)
            found.append(x)
        return tuple(found)


@pytest.fixture(scope="module")
def blocks():
    """ONNX bytes of each block in float16, and of all of them as one network."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, SIZE, SIZE)
    model = onnx.load_from_string(to_onnx(in_half(capture(Blocks().eval(), x)), (x.half(),)))
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    extractor = Extractor(onnx.shape_inference.infer_shapes(model))
    parts = [extractor.extract_model([before], [after]) for before, after in pairwise(ends)]
    whole = extractor.extract_model(ends[:1], ends[-1:])
    return [part.SerializeToString() for part in parts], whole.SerializeToString()


def counts(models, *, channels_last):
    """Return the kernels and the layout changes of engines, summed."""
    spec = BuildSpec(precision="fp16", targets=(89,), aux_streams=0, channels_last_io=channels_last)
    plans = [build_engine(model, spec).plan for model in models]
    return sum(len(plan.kernels) for plan in plans), sum(plan.layout_changes for plan in plans)


def test_blocks_alone_are_built_like_blocks_within_the_network(blocks):
    parts, whole = blocks
    assert len(parts) == BLOCKS
    plain, plain_changes = counts(parts, channels_last=False)
    inner, inner_changes = counts(parts, channels_last=True)
    together, _ = counts([whole], channels_last=True)
    print(f"alone {plain} kernels, {plain_changes} of them layout changes")
    print(f"alone, channels last {inner}, {inner_changes}; together {together}")
    assert plain_changes > BLOCKS, "each block changes the layout once or more"
    assert inner_changes <= 1, "the image's"
    assert inner == plain - plain_changes + inner_changes
    assert inner - together <= 2, "kernels that no block has alone"


def test_operators_of_a_table_have_no_layout_change_and_are_one_kernel_with_their_epilogue():
    """All convolutions of MobileNetV2 with their real residuals and activations."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=10).eval()
    own = [s for s in needed_operators(model, torch.randn(1, 3, SIZE, SIZE)) if s.op == "conv" and s.in_channels > 4]
    with_residual = [signature for signature in own if signature.residual][:6]
    with_activation = [signature for signature in own if signature.activation is not None][:6]
    assert with_residual
    assert with_activation
    spec = BuildSpec(targets=(89,), aux_streams=0, channels_last_io=True)
    for signature in (*with_residual, *with_activation):
        plan = build_engine(operator_model(signature), spec).plan
        assert (len(plan.kernels), plan.layout_changes) == (1, 0), signature.key
