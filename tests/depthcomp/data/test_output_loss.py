"""How far two networks' outputs are apart, against scipy and against the formula."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch

from depthcomp.data.output_loss import OutputLoss, divergence
from depthcomp.data.output_spreads import LEAST_DEVIATION, spreads_of
from depthcomp.errors import DepthCompError


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


def test_other_outputs_are_compared_by_the_relative_error_of_each_channel():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    errors = ((a - b) ** 2).mean((0, 2, 3)) / a.var((0, 2, 3), correction=0)
    wanted = float(errors.mean())
    assert divergence(a, b) == pytest.approx(wanted, rel=1e-5)
    assert divergence((a, scores(0)), (b, scores(0))) == pytest.approx(wanted / 2, rel=1e-5)
    units = torch.tensor([1000.0, 1.0, 0.01])[:, None, None]
    assert divergence(units * a, units * b) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 6, 90), 1), ((4, 90, 6), 2), ((4, 6), 1), ((4, 6, 5, 7), 1), ((4, 6, 2, 3, 5), 1)]
)
def test_channels_are_where_the_units_differ(shape, axis):
    generator = torch.Generator().manual_seed(0)
    units = torch.tensor([300.0, 200.0, 100.0, 0.1, 0.2, 0.3]).reshape(
        [6 if d == axis else 1 for d in range(len(shape))]
    )
    batches = [units * (3 + torch.randn(shape, generator=generator)) for _ in range(3)]
    (found,) = spreads_of(batches)
    others = [d for d in range(len(shape)) if d != axis]
    wanted = torch.cat(batches).double().var(others, correction=0, keepdim=True)
    assert torch.allclose(found + torch.zeros_like(wanted), wanted, rtol=1e-3)


def test_probabilities_that_hardly_vary_do_not_decide():
    batch = torch.rand(64, 4, 5, 5) * torch.tensor([100.0, 1.0, 1e-4, 0.0])[:, None, None]
    (found,) = spreads_of(batch.split(16))
    wanted = [100**2 / 12, 1 / 12, LEAST_DEVIATION**2, LEAST_DEVIATION**2]
    assert found.flatten().tolist() == pytest.approx(wanted, rel=0.1)


def test_spreads_of_the_data_stand_in_for_those_of_a_batch():
    data, a, b = 5 * torch.randn(64, 7), torch.randn(3, 7), torch.randn(3, 7)
    loss = OutputLoss("values", spreads_of([data]))
    wanted = ((a - b) ** 2 / data.var(0, correction=0)).mean()
    assert float(loss.divergence(a, b)) == pytest.approx(float(wanted), rel=1e-4)
    assert loss.rise(a, a, torch.zeros(3, 1), None) == 0.0


def test_values_are_no_scores():
    assert OutputLoss().are_scores(scores(0))
    assert not OutputLoss("values").are_scores(scores(0))
    assert "scores of 7 classes" in OutputLoss().describe(scores(0))
    assert OutputLoss("values").describe([scores(0)] * 2).startswith("squared errors of 2 tensors, relative to")


def test_a_function_of_the_user_takes_the_place_of_the_divergence():
    def loss(original, outputs, batch):
        images, labels = batch
        return (outputs - original).abs().mean() + len(images) + labels.sum()

    found = OutputLoss(own=loss)
    assert found.rise(scores(0), scores(0) + 0.5, torch.zeros(2, 1), torch.ones(2)) == pytest.approx(0.5, rel=1e-5)
    assert found.describe(scores(0)).endswith(".loss")
    assert OutputLoss(own=lambda a, b, batch: len(batch)).rise(1, 2, torch.zeros(2, 1), None) == 0.0


@pytest.mark.parametrize("loss", [lambda a, b, batch: "much", lambda a, b: 1.0, lambda a, b, batch: a["boxes"]])
def test_a_function_that_fails_is_named(loss):
    with pytest.raises(DepthCompError, match=r"the function loss failed on the calibration images .*one number"):
        OutputLoss(own=loss).rise(scores(0), scores(1), torch.zeros(2, 1), None)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [(("probabilities", None), "outputs .='probabilities'. must be 'scores', 'values' or None"),
     ((None, 3), r"loss \(=3\) must be a function")],
)  # fmt: skip
def test_what_cannot_be_asked_for(asked, sentence):
    with pytest.raises(DepthCompError, match=sentence):
        OutputLoss.asked(*asked)


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
