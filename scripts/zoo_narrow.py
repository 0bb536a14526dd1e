"""Checks of the kind `narrow` on one network: what is not needed goes without a loss.

A plan with all channels is the identity. Channels that no layer reads with weights other than zero, and channels that
are exact copies of others, can go without a change of the output.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from zoo_pieces import error_in_pieces, recorded

from fx_passes import CapturedNetwork, Narrow, Plan, SpanLimits, linearize, random_plan
from fx_passes.channels.layout import Layout
from fx_passes.channels.makers import maker_of
from fx_passes.inner_channels import InnerFamily
from fx_passes.kinds import kinds

__all__ = ["narrow_errors", "reasons"]

ONLY = SpanLimits(kinds=("narrow",))

Removed = list[tuple[InnerFamily, dict[int, int]]]
"""Families with the ids that go, each with one that stays."""


def reasons(network: CapturedNetwork) -> dict[str, int]:
    """Return why channels of layers stay, each with the number of layers."""
    (kind,) = kinds(ONLY.kinds)
    return dict(Counter(why for _, why in kind.left_out(network, ONLY)))


def narrow_errors(network: CapturedNetwork, x: Tensor) -> dict[str, float]:
    """Return how much each layer's output changes without channels that are not needed, by what is removed.

    Args:
        network: the network, in float64; its weights change, and come back.
        x: images (n, c, h, w).
    """
    plan, removed = _drawn_plan(network, np.random.default_rng(0))
    gm, weights = network.gm, _weights_of(network, removed)
    errors = {"nothing": error_in_pieces(linearize(network, _with_all_channels(network, plan)), x, recorded(gm, x))}
    for family, copies in removed:
        for name in family.nodes:
            _copy_channels(network, name, copies)
    doubled = recorded(gm, x)
    for family, copies in removed:
        for name in family.readers:
            _read_elsewhere(network, name, copies)
    several = (error_in_pieces(each, x, doubled) for each in (gm, linearize(network, plan)))
    errors["copies"] = max(several)
    _restore(network, weights)
    for family, copies in removed:
        for name in family.readers:
            _read_elsewhere(network, name, dict.fromkeys(copies))
    errors["channels that nothing reads"] = error_in_pieces(linearize(network, plan), x, recorded(gm, x))
    _restore(network, weights)
    return errors


def _weights_of(network: CapturedNetwork, removed: Removed) -> dict[str, dict[str, Tensor]]:
    """Return copies of the weights that a check changes, by module."""
    names = {name for family, _ in removed for name in (*family.nodes, *family.readers)}
    targets = {str(network.nodes[name].target) for name in names if network.nodes[name].op == "call_module"}
    return {target: copy.deepcopy(network.gm.get_submodule(target).state_dict()) for target in targets}


def _restore(network: CapturedNetwork, weights: Mapping[str, dict[str, Tensor]]) -> None:
    for target, state in weights.items():
        network.gm.get_submodule(target).load_state_dict(state)


def _drawn_plan(network: CapturedNetwork, rng: np.random.Generator) -> tuple[Plan, Removed]:
    """Return a plan of random spans, widths and channels, and what it removes."""
    choices, removed = list[Narrow](), Removed()
    for choice in random_plan(network, rng, ONLY):
        assert isinstance(choice, Narrow)
        known = _families(network, choice)
        gone = [_drawn(known[name], count, rng) for name, count in choice.widths]
        kept = (tuple(k for k, label in enumerate(family.ids) if label not in copies) for family, copies in gone)
        choices.append(replace(choice, kept=tuple(kept)))
        removed += gone
    return Plan.of(choices), removed


def _drawn(family: InnerFamily, count: int, rng: np.random.Generator) -> tuple[InnerFamily, dict[int, int]]:
    """Return a family with the ids that go where it keeps `count` channels."""
    mixed = rng.permutation(sorted(set(family.ids) - {-1})).tolist()
    lost = (len(family.ids) - count) // family.step
    return family, {label: int(rng.choice(mixed[lost:] or mixed)) for label in mixed[:lost]}


def _with_all_channels(network: CapturedNetwork, plan: Plan) -> Plan:
    """Return the plan with the widths that its tensors have."""
    widths = {
        choice: tuple((name, network.channels.width(name)) for name, _ in choice.widths)
        for choice in plan
        if isinstance(choice, Narrow)
    }
    return Plan.of(replace(choice, widths=several, kept=()) for choice, several in widths.items())


def _families(network: CapturedNetwork, choice: Narrow) -> dict[str, InnerFamily]:
    return {family.tensor: family for family in network.inner_channels[choice.entry, choice.exit].families}


def _places(network: CapturedNetwork, name: str, label: int) -> Tensor:
    """Return the numbers of the channels of one id in the tensor at a node."""
    layout = network.channels.made[name]
    assert isinstance(layout, Layout)
    return torch.from_numpy((layout.ids == label).nonzero()[0])


def _copy_channels(network: CapturedNetwork, name: str, copies: Mapping[int, int]) -> None:
    """Let a layer make copies of some channels in the place of others."""
    node = network.nodes[name]
    if node.op != "call_module" or not isinstance(network.channels.made.get(name), Layout):
        return
    layer = network.gm.get_submodule(str(node.target))
    made_axis = getattr(maker_of(layer), "made_axis", 0) if maker_of(layer) is not None else None
    for tensor in [*layer.parameters(), *layer.buffers()]:
        sizes = list(tensor.shape)
        one = made_axis if made_axis is not None and tensor.ndim > 1 else None
        width = network.channels.width(name)
        axis = one if one is not None else sizes.index(width) if width in sizes else None
        for label, other in copies.items() if axis is not None else ():
            source = tensor.data.index_select(axis, _places(network, name, other))
            tensor.data.index_copy_(axis, _places(network, name, label), source)


def _read_elsewhere(network: CapturedNetwork, name: str, copies: Mapping[int, int | None]) -> None:
    """Let a layer read no channel of some ids, but those that they are copies of, if any."""
    node = network.nodes[name]
    entry, weight = node.all_input_nodes[0].name, network.gm.get_submodule(str(node.target)).weight
    assert isinstance(weight, Tensor)
    for label, other in copies.items():
        columns = _places(network, entry, label)
        if other is not None:
            weight.data[:, _places(network, entry, other)] += weight.data[:, columns]
        weight.data[:, columns] = 0
