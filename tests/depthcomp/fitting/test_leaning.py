"""What solutions lean to: new layers to identity or nothing, kept ones to their own weights."""

from dataclasses import replace

import pytest
import torch

from depthcomp.fitting.leaning import KEPT_STRENGTHS, prior_of, strengths_of
from depthcomp.fitting.ridge import RidgeSystem, design_of, sample_positions
from fx_passes import Slot
from fx_passes.affine import AffineConv


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slot_of(*, kept, c_out=5):
    operator = AffineConv(normal(c_out, 5, 3, 3, seed=1), normal(c_out, seed=2), (1, 1), (1, 1, 1, 1), 1)
    return Slot("conv", "x", "conv", operator, kept=kept)


def test_a_new_layer_leans_to_identity_where_shapes_allow():
    x = normal(2, 5, 7, 11)
    assert torch.equal(prior_of(slot_of(kept=False))(x), x)
    assert not prior_of(slot_of(kept=False, c_out=7))(x).any()


def test_a_kept_layer_leans_to_its_own_weights():
    slot = slot_of(kept=True)
    assert prior_of(slot) is slot.operator


def test_a_kept_layer_may_lean_as_weakly_as_a_new_one_and_more_strongly():
    new, kept = (strengths_of(slot_of(kept=kept), torch.float32) for kept in (False, True))
    assert set(new) < set(kept)
    assert max(new) < min(set(kept) - set(new))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_layer_without_some_of_its_inputs_may_lean_more_weakly_than_any(precision):
    kept = slot_of(kept=True)
    narrow = strengths_of(replace(kept, widths=(("x", 3),)), precision)
    assert set(narrow) - set(strengths_of(kept, precision)) == {min(narrow)}
    assert torch.finfo(precision).eps < min(narrow) < min(KEPT_STRENGTHS)


@pytest.mark.parametrize(
    ("strength", "least", "most"), [(KEPT_STRENGTHS[0], 0.5, 2.0), (KEPT_STRENGTHS[-1], 0.0, 0.02)]
)
def test_the_strongest_leaves_a_kept_layer_all_but_as_it_was(strength, least, most):
    slot, x = slot_of(kept=True), normal(6, 5, 7, 11)
    other = AffineConv(normal(5, 5, 3, 3, seed=3), normal(5, seed=4), (1, 1), (1, 1, 1, 1), 1)
    system, target = RidgeSystem(design_of("x", slot.operator), (3, 3), 5), other(x)
    for fold, (entry, wanted) in enumerate(zip(x.chunk(2), target.chunk(2), strict=True)):
        positions = sample_positions(wanted, 10**6, torch.Generator())
        system.accumulate(entry, {"y": positions.pixels(wanted)}, positions, fold=fold)
    (found,) = system.solve(["y"], prior_of(slot), judges=(0,), match_variance=(), strengths=(strength,))
    own, aimed = slot.operator.weight, other.weight
    assert least <= float((found.weight - own).norm() / (aimed - own).norm()) <= most
