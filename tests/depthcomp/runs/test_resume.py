"""Which compressions may stand for each other."""

from tiny_network import EXAMPLE, images, tiny_net

from depthcomp.budget import Budget
from depthcomp.importance.registry import PRESETS
from depthcomp.methods.registry import find_method
from depthcomp.preparation import prepare
from depthcomp.runs.resume import settings_hash


def test_all_that_decides_is_in_the_hash(arithmetic_backend):
    def prepared(scale=1.0, seed=1):
        net = tiny_net()
        net[0].weight.data.mul_(scale)
        return prepare(net, EXAMPLE, [images(6, seed)], None, seed=0)

    usual = prepared()

    def found(prepared=usual, budget="70%", method=("depthcomp",), importance="kim23", seed=0, device="abacus"):
        environment = arithmetic_backend(device=device).environment()
        chosen = find_method(*method)
        return settings_hash(prepared, Budget.parse(budget), chosen, PRESETS[importance], seed, environment)

    others = [
        {"prepared": prepared(scale=2.0)}, {"prepared": prepared(seed=2)}, {"budget": "1.4x"}, {"method": ("random",)},
        {"method": ("depthcomp", ["narrow"])}, {"importance": "calibrated"}, {"seed": 1}, {"device": "fingers"},
    ]  # fmt: skip
    assert found() == found(prepared=prepared())
    assert len({found(), *(found(**other) for other in others)}) == 1 + len(others)
