"""The table that comes with the package is what it says it is."""

import math
from pathlib import Path

import pytest
import torch
import torchvision

import latency_tables
from depthcomp.preparation import needed_operators
from fx_passes.kinds import kinds
from latency_tables import LatencyTable
from latency_tables.tables.quality import quality_of

REWRITES = tuple(f"{kind.name} " for kind in kinds())
TABLE = Path(latency_tables.__file__).parent / "data" / "onnxruntime_epyc.json"


@pytest.fixture(scope="module")
def table():
    return LatencyTable.load(TABLE)


def test_nothing_failed_and_all_but_a_few_entries_are_steady(table):
    quality = quality_of(table)
    assert quality.n > 300
    assert not quality.failures
    assert not quality.free
    assert len(quality.unstable) <= 0.15 * quality.n  # single inferences, on a machine that others share
    assert len(quality.inversions) <= 0.01 * quality.pairs


def layers(name):
    """Return how often each operator is a layer of a network: which rewrites are offered may change, layers do not.

    The table has no linear layers.
    """
    model = torchvision.models.get_model(name, weights=None).eval()
    needed = needed_operators(model, torch.zeros(1, 3, 224, 224))
    counts = {
        signature: sum(not place.startswith(REWRITES) for place in places) for signature, places in needed.items()
    }
    return {signature: count for signature, count in counts.items() if count and signature.op != "linear"}


def test_it_prices_every_layer_of_the_networks(table):
    sums = {
        name: math.fsum(count * table.ms(signature) for signature, count in layers(name).items())
        for name in ("mobilenet_v2", "resnet18")
    }
    assert sums["resnet18"] > 2 * sums["mobilenet_v2"] > 0  # six times the multiply-adds, in larger kernels


def test_it_is_written_as_this_version_writes_it(table, tmp_path):
    table.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == TABLE.read_bytes()
