"""Norms after fitted convolutions: nothing changes when they come, and the merge takes them back, trained or not."""

import numpy
import pytest
import torch
from torch import nn

from depthcomp_errors import PlanError
from fx_passes import (
    Fit,
    Plan,
    capture,
    enumerate_spans,
    insert_norms,
    linearize,
    merge,
    solved_without_norm,
)
from fx_passes.operators import Role, role
from fx_passes.spans import random_plan


class Kinds(nn.Module):
    """Depthwise, grouped, strided, bare and residual convolutions, with an activation after each but some last ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.grouped = nn.Sequential(
            nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=4), nn.ReLU()
        )
        self.strided = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 7, 1))
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.grouped(x + self.depthwise(x))
        return self.head(self.strided(x).mean((2, 3)))


def images(count=6, seed=1):
    return torch.randn(count, 3, 17, 19, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    model = Kinds().double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return capture(model, images(1))


def moments(linearized, plan, seed=2):
    """Return any mean and variance for each fitted convolution: the function must not depend on them."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(channels):
        mean = torch.randn(channels, generator=generator)
        return mean, torch.rand(channels, generator=generator) + 0.01

    return {name: drawn(conv.out_channels) for name, conv in solved_without_norm(linearized, plan).items()}


def train(network):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        network(images(8, 10 + step)).square().mean().backward()
        optimizer.step()
    return network.eval()


def difference(one, other):
    with torch.no_grad():
        return float((one(images()) - other(images())).abs().max())


@pytest.fixture(scope="module")
def plans(captured):
    """Return some fits by themselves, of each kind of end, and random plans of all kinds of choices."""
    fits = [choice for span in enumerate_spans(captured) for choice in span.choices if choice.kind == "fit"]
    chosen = {(c.exit, c.end): c for c in fits if c.kernel == (3, 3)}
    return [
        *(Plan((c,)) for c in chosen.values()),
        *(random_plan(captured, numpy.random.default_rng(s)) for s in range(5)),
    ]


def test_nothing_changes_before_training_and_the_merge_is_exact_after(captured, plans):
    seen = set()
    for plan in plans:
        linearized = linearize(captured, plan)
        found = insert_norms(linearized, plan, moments(linearized, plan))
        added = sum(isinstance(m, nn.BatchNorm2d) for m in found.modules())
        added -= sum(isinstance(m, nn.BatchNorm2d) for m in linearized.modules())
        assert added == len(solved_without_norm(linearized, plan))
        assert difference(found, linearized) < 1e-9
        assert difference(merge(found, plan), merge(linearized, plan)) < 1e-9
        if added:
            trained = train(found)
            assert difference(trained, linearized) > 1e-4
            assert difference(merge(trained, plan), trained) < 1e-9
        seen |= {(conv.groups, conv.stride) for conv in solved_without_norm(linearized, plan).values()}
    assert {(8, (1, 1)), (4, (1, 1)), (1, (2, 2))} <= seen


def test_the_merged_network_has_the_same_layers_with_and_without(captured, plans):
    plan = next(plan for plan in plans if len(plan) == 1 and plan.choices[0].kernel == (3, 3))
    linearized = linearize(captured, plan)
    found = merge(insert_norms(linearized, plan, moments(linearized, plan)), plan)
    wanted = merge(linearized, plan)
    assert found.code == wanted.code
    assert [tuple(p.shape) for p in found.parameters()] == [tuple(p.shape) for p in wanted.parameters()]


def test_the_statistics_stand_in_the_norm(captured, plans):
    """In training mode on the very images that the moments come from, the function is nearly the same."""
    plan = next(plan for plan in plans if len(plan) == 1 and plan.choices[0].kernel == (3, 3))
    linearized = linearize(captured, plan)
    ((name, conv),) = solved_without_norm(linearized, plan).items()
    outputs = []
    handle = conv.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    with torch.no_grad():
        linearized(images())
    handle.remove()
    mean, variance = outputs[0].mean((0, 2, 3)), outputs[0].var((0, 2, 3), correction=0)
    found = insert_norms(linearized, plan, {name: (mean, variance)})
    next(m for n, m in found.named_modules() if n.startswith("norm_")).train()
    assert difference(found, linearized) < 1e-6


def test_norms_that_are_there_stay_and_are_not_doubled(captured, plans):
    """Also where one fit has its norm and another has none."""
    plan = next(plan for plan in plans if len(solved_without_norm(linearize(captured, plan), plan)) > 1)
    linearized = linearize(captured, plan)
    first = Plan.of([next(choice for choice in plan if choice.kind == "fit")])
    known = moments(linearized, plan)
    some = train(insert_norms(linearized, first, known))
    assert len(solved_without_norm(some, plan)) == len(solved_without_norm(linearized, plan)) - 1
    found = insert_norms(some, plan, known)
    assert solved_without_norm(found, plan) == {}
    assert difference(found, some) < 1e-9
    again = insert_norms(found, plan, {})
    assert again.code == found.code
    assert all(map(torch.equal, again.state_dict().values(), found.state_dict().values()))


def test_a_graph_of_another_plan_is_refused(captured, plans):
    plan = next(plan for plan in plans if solved_without_norm(linearize(captured, plan), plan))
    with pytest.raises(PlanError, match="is no convolution of"):
        insert_norms(captured, Plan((Fit("x", captured_sum(captured), (1, 1)),)), {})
    with pytest.raises(PlanError, match="is not in the graph"):
        insert_norms(linearize(captured, plan), Plan((Fit("x", "nowhere", (1, 1)),)), {})


def captured_sum(captured):
    return next(node.name for node in captured.graph.nodes if role(captured, node) is Role.ADD)
