"""The algebra against torch running the modules themselves, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from toy_nets import relative_error

from fx_passes import affine
from fx_passes.affine import AffineConv, NotAffineError

EXACT = 1e-12
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**16)
SIZE = (17, 19)


def random_image(channels, size=SIZE):
    return torch.randn(2, channels, *size, dtype=torch.float64)


@st.composite
def convs(draw, in_channels=None, *, stride=True, bordered=True):
    """Any zero-padded convolution: grouped, depthwise with multiplier, dilated, even kernels, strided."""
    torch.manual_seed(draw(seeds))
    in_channels = in_channels or draw(st.sampled_from([1, 3, 6]))
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if in_channels % g == 0]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    conv = nn.Conv2d(
        in_channels,
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        stride=draw(pair) if stride else 1,
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) if bordered else 0,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return conv.double()


@st.composite
def sides(draw, least=-2, most=3):
    return tuple(draw(st.integers(least, most)) for _ in range(4))


def random_operator(in_channels=6, out_channels=6, kernel=(3, 4), stride=(1, 1), padding=(0, 0, 0, 0), groups=1):
    weight = torch.randn(out_channels, in_channels // groups, *kernel, dtype=torch.float64)
    return AffineConv(weight, torch.randn(out_channels, dtype=torch.float64), stride, padding, groups)


@few
@given(convs())
def test_a_convolution_is_its_operator(conv):
    x = random_image(conv.in_channels)
    operator = affine.from_conv(conv)
    assert relative_error(operator(x), conv(x).detach()) < EXACT
    assert operator.out_size(SIZE) == tuple(conv(x).shape[2:])
    assert (operator.in_channels, operator.out_channels) == (conv.in_channels, conv.out_channels)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (4, 4)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_by_name_is_understood(kernel, padding):
    conv = nn.Conv2d(3, 5, kernel, padding=padding, dilation=(1, 3)).double()
    x = random_image(3)
    assert relative_error(affine.from_conv(conv)(x), conv(x).detach()) < EXACT


@few
@given(sides(), seeds)
def test_padding_may_be_asymmetric_and_negative_padding_crops(padding, seed):
    torch.manual_seed(seed)
    top, bottom, left, right = padding
    x = random_image(3)
    assert torch.equal(affine.from_padding(3, padding)(x), F.pad(x, (left, right, top, bottom)))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.7}, {"eps": 1e-3}])
def test_a_norm_is_folded_with_its_own_eps(options):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, **options).double().train()
    norm(3 + 2 * random_image(5))
    norm.eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = random_image(5)
    assert relative_error(affine.from_batch_norm(norm)(x), norm(x).detach()) < EXACT


def test_a_norm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="without running statistics"):
        affine.from_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3),
        nn.AvgPool2d((2, 5), stride=(3, 1), padding=(1, 2)),
        nn.AvgPool2d(4, 1, divisor_override=7),
    ],
)
def test_average_pooling_is_a_depthwise_convolution(pool):
    x = random_image(5)
    operator = affine.from_avg_pool(pool, 5)
    assert operator.groups == 5
    assert relative_error(operator(x), pool(x)) < EXACT


@few
@given(convs(in_channels=6), st.data())
def test_composition_of_an_unpadded_second_operator_is_exact(first, data):
    second = data.draw(convs(in_channels=first.out_channels, bordered=False))
    x = random_image(6, (29, 31))
    composed = affine.compose(affine.from_conv(first), affine.from_conv(second))
    assert relative_error(composed(x), second(first(x)).detach()) < EXACT


@few
@given(convs(in_channels=6), st.data())
def test_composition_moves_all_padding_to_the_entry(first, data):
    second = data.draw(convs(in_channels=first.out_channels))
    x = random_image(6, (29, 31))
    total = [p + s * q for p, s, q in zip(first.padding, first.stride, second.padding, strict=True)]
    first_bare, second_bare = (affine.from_conv(conv) for conv in (first, second))
    composed = affine.compose(first_bare, second_bare)
    first.padding = second.padding = (0, 0)
    padded = F.pad(x, (total[1], total[1], total[0], total[0]))
    assert relative_error(composed(x), second(first(padded)).detach()) < EXACT
    assert composed.padding == (total[0], total[0], total[1], total[1])


@few
@given(convs(in_channels=6), st.data())
def test_geometry_follows_the_papers_rule(first, data):
    second = data.draw(convs(in_channels=first.out_channels))
    composed = affine.compose(affine.from_conv(first), affine.from_conv(second))
    kernel = tuple(
        d1 * (k1 - 1) + s1 * d2 * (k2 - 1) + 1
        for k1, d1, s1, k2, d2 in zip(
            first.kernel_size, first.dilation, first.stride, second.kernel_size, second.dilation, strict=True
        )
    )
    assert composed.kernel == kernel
    assert composed.stride == tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    assert composed.groups == math.gcd(first.groups, second.groups)


@few
@given(sides(), sides(), seeds)
def test_composition_with_cropping_and_asymmetric_padding(entry_sides, inner_sides, seed):
    torch.manual_seed(seed)
    first = random_operator(kernel=(2, 3), stride=(2, 1), padding=entry_sides)
    crop = tuple(min(side, 0) for side in inner_sides)
    second = random_operator(kernel=(1, 2), padding=crop)
    x = random_image(6, (23, 29))
    assert relative_error(affine.compose(first, second)(x), second(first(x))) < EXACT


def test_depthwise_stays_depthwise_also_with_a_multiplier():
    torch.manual_seed(0)
    first = affine.from_conv(nn.Conv2d(5, 15, 3, groups=5).double())
    second = affine.from_conv(nn.Conv2d(15, 15, 3, groups=15).double())
    assert affine.compose(first, second).groups == 5
    assert tuple(affine.compose(first, second).weight.shape) == (15, 1, 5, 5)


def test_a_one_channel_stem_is_not_taken_for_depthwise():
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 7, 3, bias=False).double()  # in_channels == groups == 1
    mixing = nn.Conv2d(7, 5, 3).double()
    x = random_image(1)
    composed = affine.compose(affine.from_conv(stem), affine.from_conv(mixing))
    assert composed.groups == 1
    assert relative_error(composed(x), mixing(stem(x)).detach()) < EXACT


@few
@given(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6]), st.integers(1, 2), sides(-1, 4), seeds)
def test_a_sum_is_aligned_by_padding(groups, other_groups, stride, padding, seed):
    torch.manual_seed(seed)
    one = random_operator(kernel=(3, 5), stride=(stride, stride), padding=padding, groups=groups)
    top, bottom, left, right = padding
    shifted = (top - 1, bottom, left, right - 1)  # a kernel one smaller, and another tap in its middle
    other = random_operator(kernel=(2, 4), stride=(stride, stride), padding=shifted, groups=other_groups)
    x = random_image(6)
    total = affine.add([one, other, one])
    assert relative_error(total(x), one(x) + other(x) + one(x)) < EXACT
    assert total.groups == math.gcd(groups, other_groups)


@few
@given(st.integers(0, 4), st.integers(0, 3), seeds)
def test_the_skip_tap_stands_at_the_padding_and_not_in_the_middle(top, left, seed):
    torch.manual_seed(seed)
    conv = random_operator(kernel=(5, 4), padding=(top, 4 - top, left, 3 - left))
    x = random_image(6)
    assert relative_error(affine.add([affine.identity(6), conv])(x), x + conv(x)) < EXACT


def test_a_cropped_skip_is_added_where_it_belongs():
    torch.manual_seed(0)
    conv = random_operator(kernel=(5, 3))
    skip = affine.from_padding(6, (-2, -2, -1, -1))
    x = random_image(6)
    assert relative_error(affine.add([skip, conv])(x), x[:, :, 2:-2, 1:-1] + conv(x)) < EXACT


def test_terms_of_one_output_size_but_different_slack_are_added():
    torch.manual_seed(0)
    wide = random_operator(kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    narrow = random_operator(kernel=(1, 1), stride=(2, 2))
    for size in ((17, 19), (11, 7)):
        x = random_image(6, size)
        assert relative_error(affine.add([wide, narrow])(x), wide(x) + narrow(x)) < EXACT


@few
@given(st.sampled_from([1, 2, 3]), sides(0, 3), seeds)
def test_concatenation_keeps_the_order_of_channels(groups, padding, seed):
    torch.manual_seed(seed)
    one = random_operator(kernel=(3, 3), padding=padding, groups=groups)
    smaller = tuple(p - 1 for p in padding)
    other = random_operator(out_channels=5, kernel=(1, 1), padding=smaller)
    x = random_image(6)
    joined = affine.concat([one, other, affine.from_padding(6, smaller)])
    assert relative_error(joined(x), torch.cat([one(x), other(x), F.pad(x, _torch_order(smaller))], 1)) < EXACT


def _torch_order(padding):
    top, bottom, left, right = padding
    return left, right, top, bottom


@pytest.mark.parametrize("join", [affine.add, affine.concat])
def test_different_strides_cannot_be_joined(join):
    with pytest.raises(NotAffineError, match=r"different strides \(1, 1\) and \(2, 1\)"):
        join([random_operator(), random_operator(stride=(2, 1))])


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), sides(0, 3))
def test_cropping_a_kernel_keeps_the_output_size(height, width, rows, columns, stride, padding):
    assume(rows <= height)
    assume(columns <= width)
    operator = random_operator(kernel=(height, width), stride=(stride, stride), padding=padding)
    cropped = affine.crop_kernel(operator, (rows, columns))
    assert cropped.kernel == (rows, columns)
    assert cropped.out_size(SIZE) == operator.out_size(SIZE)
    assert tuple(cropped(random_image(6)).shape[2:]) == cropped.out_size(SIZE)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_the_middle_of_a_dilated_kernel_is_what_cropping_leaves_of_it(size, dilation, largest, padding):
    conv = nn.Conv2d(2, 6, size, 2, padding, dilation, groups=2)
    whole, middle = affine.from_conv(conv), affine.from_conv(conv, largest_kernel=largest)
    if dilation == (1, 1):
        assert middle.kernel == size
        return
    kernel = tuple(min(pair) for pair in zip(whole.kernel, largest, strict=True))
    wanted = affine.crop_kernel(whole, kernel)
    assert torch.equal(middle.weight, wanted.weight)
    assert (middle.padding, middle.stride, middle.groups) == (wanted.padding, wanted.stride, wanted.groups)


@few
@given(seeds, convs(in_channels=6), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_composing_only_the_middle_is_cropping_what_was_composed(seed, second, largest):
    torch.manual_seed(seed)
    first = random_operator(kernel=(3, 4), stride=(2, 1), padding=(1, 0, 2, 1), groups=3)
    whole = affine.compose(first, affine.from_conv(second))
    wanted = affine.crop_kernel(whole, tuple(map(min, largest, whole.kernel)))
    for device in ("cpu", "meta"):
        found = affine.compose(first, affine.from_conv(second, device=device), largest_kernel=largest)
        assert (found.padding, found.weight.shape) == (wanted.padding, wanted.weight.shape)
    found = affine.compose(first, affine.from_conv(second), largest_kernel=largest)
    x = random_image(6)
    assert relative_error(found(x), wanted(x)) < EXACT


def test_cropping_drops_only_the_outer_taps():
    operator = random_operator(kernel=(5, 5), padding=(2, 2, 2, 2))
    inner = torch.zeros_like(operator.weight)
    inner[:, :, 1:-1, 1:-1] = operator.weight[:, :, 1:-1, 1:-1]
    masked = AffineConv(inner, operator.bias, operator.stride, operator.padding, operator.groups)
    x = random_image(6)
    assert relative_error(affine.crop_kernel(operator, (3, 3))(x), masked(x)) < EXACT


def test_a_kernel_cannot_grow_by_cropping():
    with pytest.raises(ValueError, match=r"kernel \(5, 3\) does not fit inside the operator's kernel \(3, 4\)"):
        affine.crop_kernel(random_operator(), (5, 3))


@few
@given(convs(in_channels=6), st.data())
def test_the_meta_device_gives_the_same_shapes(first, data):
    second = data.draw(convs(in_channels=first.out_channels))
    real, shapes = (
        affine.compose(affine.from_conv(first, device=device), affine.from_conv(second, device=device))
        for device in ("cpu", "meta")
    )
    assert shapes.weight.is_meta
    assert shapes.weight.shape == real.weight.shape
    assert shapes.bias.shape == real.bias.shape
    assert (shapes.stride, shapes.padding, shapes.groups) == (real.stride, real.padding, real.groups)


def test_the_meta_device_knows_sums_concatenations_norms_and_pools():
    def build(device):
        norm = affine.from_batch_norm(nn.BatchNorm2d(6), device=device)
        pool = affine.from_avg_pool(nn.AvgPool2d(3, stride=1, padding=1), 6, device=device)
        return affine.concat([affine.add([norm, pool]), affine.identity(6, device=device)])

    assert build("meta").weight.shape == build("cpu").weight.shape
    assert build("meta").padding == build("cpu").padding


def test_arguments_are_never_modified():
    torch.manual_seed(0)
    operators = [random_operator(kernel=(3, 3), groups=3), random_operator(kernel=(3, 3))]
    before = [operator.weight.clone() for operator in operators]
    affine.compose(*operators)
    affine.add(operators)
    affine.concat(operators)
    assert all(torch.equal(operator.weight, kept) for operator, kept in zip(operators, before, strict=True))


def test_multiply_adds_are_counted_per_image():
    operator = random_operator(kernel=(3, 5), stride=(2, 1), padding=(1, 1, 2, 2), groups=2)
    assert operator.macs((11, 13)) == 6 * 13 * 6 * 3 * 3 * 5
