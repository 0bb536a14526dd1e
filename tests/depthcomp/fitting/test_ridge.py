"""The closed-form convolution, against numpy's least squares on unfolded patches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthcomp.fitting import ridge, scatter
from depthcomp.fitting.ridge import RidgeSystem, design_of, patterns, sample_positions, starting_point
from fx_passes.affine import AffineConv

GEOMETRIES = {
    "3x3": {"kernel": (3, 3), "padding": (1, 1, 1, 1)},
    "1x1": {"kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "strided": {"kernel": (3, 3), "padding": (1, 1, 1, 1), "stride": (2, 2), "c_out": 4},
    "oblong": {"kernel": (3, 5), "padding": (1, 1, 2, 2), "stride": (1, 2), "c_out": 5},
    "asymmetric": {"kernel": (3, 3), "padding": (0, 1, 2, 1), "stride": (2, 1)},
    "cropping": {"kernel": (1, 3), "padding": (-1, -2, 0, 1), "c_out": 7},
    "grouped": {"kernel": (3, 3), "padding": (1, 1, 1, 1), "groups": 3, "c_out": 3},
    "depthwise": {"kernel": (5, 5), "padding": (2, 2, 2, 2), "groups": 6, "c_out": 12},
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(kernel, padding, stride=(1, 1), groups=1, c_in=6, c_out=6):
    weight = normal(c_out, c_in // groups, *kernel, seed=1)
    return AffineConv(weight, normal(c_out, seed=2), stride, padding, groups)


def summed(entry, targets, shape, *, count=10**6, folds=1, seed=0):
    """Return the system of `shape` from `entry` to named targets, summed over equal folds."""
    system = RidgeSystem(design_of("x", shape), shape.kernel, shape.in_channels)
    generator = torch.Generator().manual_seed(seed)
    parts = [target.chunk(folds) for target in targets.values()]
    for fold, (x, *ys) in enumerate(zip(entry.chunk(folds), *parts, strict=True)):
        positions = sample_positions(ys[0], count, generator)
        pixels = {name: positions.pixels(y) for name, y in zip(targets, ys, strict=True)}
        system.accumulate(x, pixels, positions, fold=fold)
    return system


def solved(entry, target, shape, *, folds=1, judges=None, matched=False, **options):
    """Return the convolution of `shape` from `entry` to `target`; the last of several folds judges unless told."""
    system = summed(entry, {"y": target}, shape, folds=folds, **options)
    judges = range(folds)[1:][-1:] if judges is None else judges
    return system.solve(["y"], starting_point(shape), judges=judges, match_variance={"y"} if matched else set())[0]


def patches(entry, operator):
    """Return (groups, samples, unknowns) in the order of the output's pixels, by torch's own unfold."""
    top, bottom, left, right = operator.padding
    padded = F.pad(entry, (left, right, top, bottom))
    columns = F.unfold(padded, operator.kernel, stride=operator.stride)  # (n, c_in * kh * kw, pixels)
    rows = columns.transpose(1, 2).reshape(-1, operator.groups, columns.shape[1] // operator.groups)
    return rows.transpose(0, 1).numpy()


def ridge_by_lstsq(entry, target, operator, strength):
    """min mean |y - W x|^2 + strength mean |x_i|^2 |W - W0|^2 as one least-squares problem with more rows."""
    prior = starting_point(operator).weight.reshape(operator.groups, -1, operator.weight[0].numel()).numpy()
    pixels = target.permute(0, 2, 3, 1).reshape(-1, operator.groups, target.shape[1] // operator.groups).numpy()
    weights, biases = [], []
    for group, x in enumerate(patches(entry, operator)):
        y, w0 = pixels[:, group], prior[group].T
        centred, goal = x - x.mean(0), y - y.mean(0)
        pull = np.sqrt(strength * len(x) * (centred**2).mean())
        rows = np.concatenate([centred, pull * np.eye(x.shape[1])])
        w = np.linalg.lstsq(rows, np.concatenate([goal, pull * w0]), rcond=None)[0]
        weights.append(w.T)
        biases.append(y.mean(0) - x.mean(0) @ w)
    return np.concatenate(weights).reshape(operator.weight.shape), np.concatenate(biases)


def by_lstsq(entry, target, shape, strength):
    weight, bias = (torch.from_numpy(part) for part in ridge_by_lstsq(entry, target, shape, strength))
    return AffineConv(weight, bias, shape.stride, shape.padding, shape.groups)


def mean_square_error(operator, entry, target):
    return float((operator(entry) - target).square().mean())


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_known_convolution_is_recovered(geometry):
    operator, entry = known(**geometry), normal(8, 6, 17, 19)
    target = operator(entry)
    found = solved(entry, target, operator, folds=2)
    assert (found.stride, found.padding, found.groups) == (operator.stride, operator.padding, operator.groups)
    assert torch.allclose(found.weight, operator.weight, atol=0.02)  # the ridge pulls a little
    assert torch.allclose(found.bias, operator.bias, atol=0.02)
    assert mean_square_error(found, entry, target) < 1e-4 * float(target.var())


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_solution_is_that_of_numpys_least_squares(geometry):
    shape, entry = known(**geometry), normal(3, 6, 13, 11) + 0.3
    target = shape(entry).relu() + 0.5 * normal(*shape(entry).shape, seed=3)
    found = solved(entry, target, shape)
    wanted = [ridge_by_lstsq(entry, target, shape, strength) for strength in ridge.STRENGTHS]
    errors = [np.abs(found.weight.numpy() - w).max() + np.abs(found.bias.numpy() - b).max() for w, b in wanted]
    assert min(errors) < 1e-9


def is_ridge(found, entry, target, shape, strength, atol=1e-9):
    """Return whether `found` is the solution on these images at this strength."""
    weight, bias = ridge_by_lstsq(entry, target, shape, strength)
    return np.allclose(found.weight.numpy(), weight, atol=atol) and np.allclose(found.bias.numpy(), bias, atol=atol)


def without(fold, *tensors):
    """Return three images' worth of tensors without one image."""
    return [torch.cat([tensor[:fold], tensor[fold + 1 :]]) for tensor in tensors]


SHAPE = known((3, 3), (1, 1, 1, 1))


@pytest.fixture(scope="module")
def folds():
    """Three images, a fold each, with more and more noise."""
    entry = normal(3, 6, 9, 7)
    noise = normal(3, 6, 9, 7, seed=3) * torch.tensor([0.1, 3.0, 10.0])[:, None, None, None]
    return entry, SHAPE(entry) + noise


def best_strength(entry, target, judges):
    """Return the strength of least error, summed over the judges, of solutions that have not seen the judge."""

    def error(strength):
        held_out = (slice(judge, judge + 1) for judge in judges)
        solutions = (by_lstsq(*without(judge, entry, target), SHAPE, strength) for judge in judges)
        return sum(mean_square_error(s, entry[one], target[one]) for s, one in zip(solutions, held_out, strict=True))

    return min(ridge.STRENGTHS, key=error)


JUDGES = [(0,), (1,), (2,), (0, 1), (2, 0), (0, 1, 2)]


@pytest.mark.parametrize("judges", JUDGES)
def test_the_strength_is_the_one_of_least_error_over_the_judges(folds, judges):
    assert is_ridge(solved(*folds, SHAPE, folds=3, judges=judges), *folds, SHAPE, best_strength(*folds, judges))


def test_the_judges_of_these_images_disagree(folds):
    """Or the tests around this one would not tell who judged."""
    assert len({best_strength(*folds, judges) for judges in [(0,), (2,), (2, 0)]}) == 3


def test_each_target_has_its_own_strength(folds):
    entry, noisy = folds
    targets = {"noisy": noisy, "clear": SHAPE(entry)}
    system = summed(entry, targets, SHAPE, folds=3)
    found = system.solve(["clear", "noisy"], starting_point(SHAPE), judges=(0, 1, 2), match_variance=())
    strengths = [best_strength(entry, targets[name], (0, 1, 2)) for name in ("clear", "noisy")]
    assert strengths[0] < strengths[1]
    assert is_ridge(found[0], entry, targets["clear"], SHAPE, strengths[0])
    assert is_ridge(found[1], entry, noisy, SHAPE, strengths[1])


@pytest.mark.parametrize("count", [1, 3])
def test_without_judges_the_strength_is_fixed(folds, count):
    assert is_ridge(solved(*folds, SHAPE, folds=count, judges=()), *folds, SHAPE, ridge.UNJUDGED_STRENGTH)


@pytest.mark.parametrize("unseen", JUDGES)
def test_a_solution_without_a_fold_is_that_on_the_others(folds, unseen):
    system = summed(folds[0], {"y": folds[1]}, SHAPE, folds=3)
    found = system.solve_without(unseen, ["y"], starting_point(SHAPE), match_variance=())
    strength = best_strength(*folds, unseen[:1])  # the first judges for all
    assert list(found) == list(unseen)
    for fold, (solution,) in found.items():
        assert is_ridge(solution, *without(fold, *folds), SHAPE, strength)


def test_a_matched_solution_without_a_fold_has_the_others_variance(folds):
    system = summed(folds[0], {"y": folds[1]}, SHAPE, folds=3)
    found = system.solve_without((0, 1, 2), ["y"], starting_point(SHAPE), match_variance={"y"})
    for fold, (solution,) in found.items():
        entry, target = without(fold, *folds)
        plain = by_lstsq(entry, target, SHAPE, best_strength(*folds, (0,)))
        gain = (target.var((0, 2, 3)) / plain(entry).var((0, 2, 3))).sqrt().clamp(max=scatter.LARGEST_GAIN)
        assert torch.allclose(solution.weight, gain[:, None, None, None] * plain.weight, atol=1e-9)


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_what_was_not_seen_does_not_show(folds, monkeypatch, unseen, dtype, matched):
    """To the bit, where one strength leaves nothing to judge."""
    monkeypatch.setattr(ridge, "STRENGTHS", (0.03,))
    changed = [tensor.clone() for tensor in folds]
    for tensor in changed:
        tensor[unseen] = 100 * tensor[unseen].square() + 7
    one, other = (
        summed(entry.to(dtype), {"y": target.to(dtype)}, SHAPE, folds=3).solve_without(
            (0, 1, 2), ["y"], starting_point(SHAPE), match_variance={"y"} if matched else ()
        )
        for entry, target in (folds, changed)
    )
    for fold in range(3):
        same = [torch.equal(getattr(one[fold][0], part), getattr(other[fold][0], part)) for part in ("weight", "bias")]
        assert same == [fold == unseen] * 2


def test_a_lone_fold_cannot_be_left_out(folds):
    system = summed(folds[0], {"y": folds[1]}, SHAPE)
    with pytest.raises(ValueError, match="the system is empty; accumulate batches before solving it"):
        system.solve_without((0,), ["y"], starting_point(SHAPE), match_variance=())


def test_several_targets_share_one_system():
    shape, entry = known((3, 3), (1, 1, 1, 1)), normal(4, 6, 9, 11)
    targets = {"a": shape(entry).relu(), "b": -2 * shape(entry).abs() + 1, "c": entry.square()}
    system = summed(entry, targets, shape, folds=2)
    together = system.solve(["c", "a"], starting_point(shape), judges=(1,), match_variance={"a"})
    for name, found in zip(["c", "a"], together, strict=True):
        alone = solved(entry, targets[name], shape, folds=2, matched=name == "a")
        assert torch.equal(found.weight, alone.weight)  # whatever the other targets are
        assert torch.equal(found.bias, alone.bias)


def test_a_matched_fit_has_its_targets_mean_and_variance():
    shape, entry = known((3, 3), (1, 1, 1, 1)), normal(6, 6, 15, 13)
    target = shape(entry) + 8 * normal(6, 6, 15, 13, seed=3) + 2  # half of the variance is noise
    plain, matched = (solved(entry, target, shape, folds=2, matched=choice)(entry) for choice in (False, True))
    wanted = target.var((0, 2, 3), correction=0)
    assert (plain.var((0, 2, 3), correction=0) < 0.9 * wanted).all()
    assert torch.allclose(matched.var((0, 2, 3), correction=0), wanted, rtol=1e-6)
    for found in (plain, matched):
        assert torch.allclose(found.mean((0, 2, 3)), target.mean((0, 2, 3)), atol=1e-9)


def test_noise_is_not_blown_up_without_limit():
    shape, entry = known((1, 1), (0, 0, 0, 0), c_out=2), normal(6, 6, 15, 13)
    target = normal(6, 2, 15, 13, seed=3)  # nothing to explain
    plain, matched = (solved(entry, target, shape, folds=2, matched=choice) for choice in (False, True))
    assert float(matched.weight.norm()) <= 3.001 * float(plain.weight.norm())


def test_scarce_data_lean_to_identity():
    """30 pixels for 54 unknowns: least squares would interpolate the noise; the fit stays near identity."""
    shape = known((3, 3), (1, 1, 1, 1))
    entry, fresh = normal(2, 6, 5, 3), normal(20, 6, 9, 9, seed=5)
    target = entry + 0.5 * normal(2, 6, 5, 3, seed=3)
    found = solved(entry, target, shape, folds=2)
    interpolating = by_lstsq(entry, target, shape, strength=1e-9)
    distance, other = (float((op.weight - starting_point(shape).weight).norm()) for op in (found, interpolating))
    assert distance < 0.5 * other
    assert mean_square_error(found, fresh, fresh) < 0.3 * mean_square_error(interpolating, fresh, fresh)


def test_a_dead_entry_gives_the_prior_and_the_targets_mean():
    shape, entry = known((3, 3), (1, 1, 1, 1)), torch.zeros(2, 6, 7, 5, dtype=torch.float64)
    target = normal(2, 6, 7, 5) + 3
    found = solved(entry, target, shape, folds=2)
    assert torch.allclose(found.weight, starting_point(shape).weight)
    assert torch.allclose(found(entry).mean((0, 2, 3)), target.mean((0, 2, 3)))


@pytest.mark.parametrize("matched", [True, False])
def test_a_constant_target_and_dead_channels_stay_finite(matched):
    shape, entry = known((3, 3), (1, 1, 1, 1)), normal(2, 6, 7, 5)
    entry[:, 1] = 0
    target = torch.full((2, 6, 7, 5), 4.0, dtype=torch.float64)
    found = solved(entry, target, shape, folds=2, matched=matched)
    assert torch.isfinite(found.weight).all()
    assert torch.isfinite(found.bias).all()


DYING = {
    "depthwise 1x1": {"kernel": (1, 1), "padding": (0, 0, 0, 0), "groups": 97, "c_in": 97, "c_out": 97},
    "depthwise 3x3": {"kernel": (3, 3), "padding": (1, 1, 1, 1), "groups": 29, "c_in": 29, "c_out": 29},
    "1x1": {"kernel": (1, 1), "padding": (0, 0, 0, 0), "c_in": 29, "c_out": 5},
    "3x3": {"kernel": (3, 3), "padding": (1, 1, 1, 1), "c_in": 53, "c_out": 5},
}


def dying(shape, value, alive, count):
    """Return fits without each fold in single precision, of channels that take one value after the first batch."""
    system = RidgeSystem(design_of("x", shape), shape.kernel, shape.in_channels)
    for fold in range(3):
        entry = normal(8, shape.in_channels, 17, 16, seed=fold).float()
        if fold:
            entry[:, alive:] = value
        target = normal(8, shape.out_channels, 17, 16, seed=10 + fold).float()
        positions = sample_positions(target, count, torch.Generator().manual_seed(fold))
        system.accumulate(entry, {"y": positions.pixels(target)}, positions, fold=fold)
    found = system.solve_without(range(3), ["y"], starting_point(shape), match_variance={"y"})
    return [solution for (solution,) in found.values()]


def all_finite(solutions):
    return all(torch.isfinite(part).all() for solution in solutions for part in (solution.weight, solution.bias))


@pytest.mark.parametrize("geometry", DYING.values(), ids=DYING)
def test_channels_that_die_after_the_first_batch(geometry):
    for value in (0.0, 1.7, -300.0):
        for alive in (0, 1):
            assert all_finite(dying(known(**geometry), value, alive, count=2053))


def test_few_pixels_of_flat_channels():
    shape = known(**DYING["depthwise 1x1"])
    assert all_finite(dying(shape, 1.7, 0, count=200))


@pytest.mark.parametrize(
    ("channels", "groups", "kernel"), [(6, 1, (3, 3)), (6, 3, (1, 5)), (6, 6, (3, 3)), (6, 1, (1, 1))]
)
def test_the_starting_point_is_identity_where_shapes_allow(channels, groups, kernel):
    sides = (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2)
    operator = starting_point(known(kernel, sides, groups=groups, c_in=channels, c_out=channels))
    entry = normal(2, channels, 7, 9)
    assert torch.equal(operator(entry), entry)


def test_the_starting_point_is_zero_where_shapes_forbid_identity():
    assert not starting_point(known((3, 3), (1, 1, 1, 1), stride=(2, 2))).weight.any()
    assert not starting_point(known((3, 3), (1, 1, 1, 1), c_out=4)).weight.any()


@pytest.mark.parametrize("count", [1, 17, 2 * 5 * 7, 1000])
def test_sampled_positions(count):
    target = torch.arange(2 * 5 * 7).reshape(2, 1, 5, 7)
    positions = sample_positions(target, count, torch.Generator().manual_seed(3))
    assert positions.size == (5, 7)
    drawn = positions.pixels(torch.cat([target, -target], 1))  # of two channels
    assert torch.equal(drawn[:, 0], target[positions.image, 0, positions.row, positions.column])
    assert torch.equal(drawn[:, 1], -drawn[:, 0])
    assert len(drawn) == len(drawn[:, 0].unique()) == min(count, 70)
    again = sample_positions(target, count, torch.Generator().manual_seed(3))
    assert torch.equal(drawn[:, 0], again.pixels(target)[:, 0])


def test_sampling_fewer_pixels_changes_little():
    shape, entry = known((3, 3), (1, 1, 1, 1)), normal(8, 6, 31, 29)
    target = shape(entry).relu()
    everything, some = (solved(entry, target, shape, folds=2, count=count) for count in (10**6, 1500))
    assert mean_square_error(some, entry, target) < 1.1 * mean_square_error(everything, entry, target)


@pytest.mark.parametrize("offset", [1000.0])
def test_a_large_mean_in_single_precision(offset):
    """A channel that is all but constant: its square must not drown the variance of the others."""
    shape = known((1, 1), (0, 0, 0, 0))
    entry, target = 0.5 * normal(8, 6, 16, 16), normal(8, 6, 16, 16, seed=3)
    entry[:, 2] = 1.2345 * offset
    wanted = solved(entry, target, shape, folds=2)
    found = solved(entry.float(), target.float(), shape, folds=2)
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(found.weight[:, others], wanted.weight[:, others], atol=1e-3)


KERNELS = [(1, 1), (3, 3), (3, 5), (2, 4), (1, 7), (7, 7)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_patterns_are_orthonormal_and_hold_the_centre(kernel):
    """The prior, identity or nothing, is among them whatever their number."""
    pixels = kernel[0] * kernel[1]
    centre = (kernel[0] - 1) // 2 * kernel[1] + (kernel[1] - 1) // 2
    for count in range(1, pixels + 1):
        found = patterns(kernel, count)
        assert found.shape == (pixels, count)
        assert torch.allclose(found.T @ found, torch.eye(count, dtype=torch.float64), atol=1e-12)
        assert float(found[centre].square().sum()) == pytest.approx(1)
    assert torch.equal(found, torch.eye(pixels, dtype=torch.float64))


@pytest.mark.parametrize("count", [0, 10])
def test_there_are_as_many_patterns_as_pixels(count):
    with pytest.raises(ValueError, match=rf"count \(={count}\) of patterns must be from 1 to 9, the kernel's pixels"):
        patterns((3, 3), count)


def test_two_patterns_are_the_centre_and_the_mean():
    found = patterns((3, 3), 2)
    together = found @ found.T
    assert torch.allclose(together @ torch.ones(9, dtype=torch.float64), torch.ones(9, dtype=torch.float64))


def of_patterns(entry, target, shape, count, strength):
    """Return the ridge solution among kernels of `count` patterns, by numpy's least squares."""
    basis = np.kron(np.eye(shape.weight.shape[1]), patterns(shape.kernel, count).numpy())
    x, y = patches(entry, shape)[0] @ basis, target.permute(0, 2, 3, 1).reshape(-1, target.shape[1]).numpy()
    w0 = starting_point(shape).weight.reshape(len(shape.weight), -1).numpy() @ basis
    centred, goal = x - x.mean(0), y - y.mean(0)
    pull = np.sqrt(strength * len(x) * (centred**2).mean())
    rows = np.concatenate([centred, pull * np.eye(x.shape[1])])
    w = np.linalg.lstsq(rows, np.concatenate([goal, pull * w0.T]), rcond=None)[0]
    return (basis @ w).T.reshape(shape.weight.shape), y.mean(0) - x.mean(0) @ w


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ["3x3", "strided", "asymmetric"])
def test_fewer_patterns_are_fitted_as_well_as_they_can_be(name, count, monkeypatch):
    monkeypatch.setattr(ridge, "UNJUDGED_STRENGTH", 0.03)
    shape, entry = known(**GEOMETRIES[name]), normal(3, 6, 13, 11) + 0.3
    target = shape(entry).relu()
    system = RidgeSystem(design_of("x", shape), shape.kernel, shape.in_channels, count=count)
    everywhere = sample_positions(target, 10**6, torch.Generator().manual_seed(0))
    system.accumulate(entry, {"y": everywhere.pixels(target)}, everywhere)
    assert system.unknowns == 6 * count
    (found,) = system.solve(["y"], starting_point(shape), judges=(), match_variance=())
    weight, bias = of_patterns(entry, target, shape, count, 0.03)
    assert np.allclose(found.weight.numpy(), weight, atol=1e-9)
    assert np.allclose(found.bias.numpy(), bias, atol=1e-9)


def test_fewer_patterns_of_grouped_kernels():
    shape, entry = known(**GEOMETRIES["depthwise"]), normal(3, 6, 13, 11)
    system = RidgeSystem(design_of("x", shape), shape.kernel, shape.in_channels, count=4)
    target = shape(entry)
    everywhere = sample_positions(target, 10**6, torch.Generator().manual_seed(0))
    system.accumulate(entry, {"y": everywhere.pixels(target)}, everywhere)
    (found,) = system.solve(["y"], starting_point(shape), judges=(), match_variance={"y"})
    assert found.weight.shape == shape.weight.shape
    assert int(torch.linalg.matrix_rank(found.weight.flatten(1), rtol=1e-9)) == 4
    assert mean_square_error(found, entry, target) < 2 * float(target.var())
