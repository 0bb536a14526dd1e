"""How far two networks' outputs are apart, against scipy and against the formula."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch

from depthcomp.fitting.divergence import divergence


def scores(seed):
    return torch.randn(11, 7, generator=torch.Generator().manual_seed(seed)) * 3


def test_equal_outputs_have_no_divergence():
    for output in (scores(0), torch.randn(2, 3, 5, 5), [scores(0), torch.randn(2, 3, 5, 5)], {"a": torch.zeros(3)}):
        assert divergence(output, copy.deepcopy(output)) == pytest.approx(0.0, abs=1e-12)


def test_class_scores_are_compared_by_kl():
    p, q = (torch.softmax(scores(seed).double(), 1).numpy() for seed in (0, 1))
    wanted = np.mean([scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert divergence(scores(0), scores(1)) == pytest.approx(wanted, rel=1e-9)


def test_class_scores_may_be_shifted():
    assert divergence(scores(0), scores(0) + 5) == pytest.approx(0.0, abs=1e-6)


def test_other_outputs_are_compared_by_their_relative_error():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    wanted = ((a - b) ** 2).mean() / ((a - a.mean()) ** 2).mean()
    assert divergence(a, b) == pytest.approx(float(wanted), rel=1e-5)
    assert divergence((a, scores(0)), (b, scores(0))) == pytest.approx(float(wanted) / 2, rel=1e-5)
    assert divergence(a, 3 * a) == pytest.approx(divergence(10 * a, 30 * a), rel=1e-5)


def test_outputs_that_do_not_vary_are_compared_by_their_mean_square():
    assert divergence(torch.full((1, 1), 2.0), torch.full((1, 1), 2.5)) == pytest.approx(0.25 / 4)
    assert divergence(torch.full((3, 1), 2.0), torch.full((3, 1), 2.5)) == pytest.approx(0.25 / 4)


def test_what_is_no_floating_point_tensor_is_passed_over():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    assert divergence((a, torch.zeros(2, dtype=torch.long), 3), (b, torch.ones(2, dtype=torch.long), 4)) == (
        divergence(a, b)
    )
    assert divergence(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)) == 0.0


def test_a_single_score_is_no_class():
    a, b = torch.randn(9, 1), torch.randn(9, 1)
    assert divergence(a, b) > 0
