"""Backward elimination of a layer's input channels, against exhaustive search and exact least squares."""

import pytest
import torch

from depthcomp.fitting.elimination import RIDGE, eliminate


def drawn(inputs, outputs, samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64) @ mix
    x -= x.mean(0)
    return x, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def least_error(x, weight, kept):
    """Return the error, summed over outputs, of the best layer that reads only some inputs; a ridge is added to x."""
    moment = x.T @ x / len(x)
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    change = -weight
    change[:, kept] += torch.linalg.solve(moment[kept][:, kept], moment[kept] @ weight.T).T
    return float((change @ moment * change).sum())


@pytest.mark.parametrize("size", [1, 4])
def test_each_step_removes_what_costs_least(size):
    x, weight = drawn(24, 5, 400)
    blocks = 24 // size
    found = eliminate(x.T @ x / len(x), weight, blocks)
    assert sorted(found.order) == list(range(blocks))
    left = list(range(blocks))
    total = 0.0
    for number, rise in zip(found.order, found.rises, strict=False):
        errors = {b: least_error(x, weight, inputs_of([c for c in left if c != b], size)) for b in left}
        assert errors[number] == pytest.approx(min(errors.values()))
        left.remove(number)
        total += rise
        assert found.kept(len(left)) == left
        assert total == pytest.approx(errors[number])


def inputs_of(blocks, size):
    return [block * size + k for block in blocks for k in range(size)]


def test_dead_inputs_and_copies_go_first_and_cost_nothing():
    x, weight = drawn(64, 3, 600)
    x[:, 4], weight[:, 9], x[:, 7], x[:, 30] = 0, 0, x[:, 2], x[:, 2]
    found = eliminate(x.T @ x / len(x), weight, 64)
    assert {4, 9} < set(found.order[:4])
    assert len({2, 7, 30} & set(found.order[:4])) == 2
    assert sum(found.rises[:4]) < 1e-3 * sum(found.rises)


def test_many_at_a_time_cost_about_what_one_by_one_does(monkeypatch):
    x, weight = drawn(200, 20, 1000)
    moment = x.T @ x / len(x)
    fast = eliminate(moment, weight, 200)
    monkeypatch.setattr("depthcomp.fitting.elimination.AT_ONCE", 200)
    slow = eliminate(moment, weight, 200)
    for count in (150, 100, 50):
        rise, least = (sum(found.rises[: 200 - count]) for found in (fast, slow))
        assert rise == pytest.approx(least, rel=0.06)


def test_a_layer_that_reads_one_block_keeps_it():
    x, weight = drawn(6, 2, 100)
    assert eliminate(x.T @ x / len(x), weight, 1).order == (0,)
    weight[:, [0, 1, 3, 4, 5]] = 0
    assert eliminate(x.T @ x / len(x), weight, 6).order[-1] == 2


def test_a_moment_that_rounding_made_indefinite_takes_a_larger_ridge():
    x, weight = drawn(16, 3, 400)
    moment = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(moment)
    values[0] = -1e-5 * float(moment.diagonal().mean())
    indefinite = vectors @ values.diag() @ vectors.T
    found = eliminate(indefinite, weight, 16, ridge=1e-6)
    assert sorted(found.order) == list(range(16))
    assert all(rise >= 0 for rise in found.rises)
