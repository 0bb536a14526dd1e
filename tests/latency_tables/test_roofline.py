import json
from pathlib import Path
from typing import Any

import pytest
from fake_backend import ENVIRONMENT, conv

from depthcomp_errors import TableError
from latency_tables import LatencyTable, Method
from latency_tables.operators.roofline import DEVICES, Device, RooflineEstimate, estimate_roofline, find_device
from latency_tables.operators.size import multiply_adds, traffic_bytes

METHOD = Method(
    estimator="by hand", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.0
)


def device(tflops: float = 1.0, gbytes_per_s: float = 1.0) -> Device:
    return Device(name="abacus", tflops=tflops, gbytes_per_s=gbytes_per_s, source="made up")


def test_a_bound_is_the_larger_of_arithmetic_and_memory() -> None:
    signature = conv()
    by_memory = estimate_roofline([signature], device(tflops=1e6)).bounds_ms[signature.key]
    assert by_memory == pytest.approx(traffic_bytes(signature) / 1e9 * 1e3)
    by_arithmetic = estimate_roofline([signature], device(gbytes_per_s=1e9)).bounds_ms[signature.key]
    assert by_arithmetic == pytest.approx(2 * multiply_adds(signature) / 1e12 * 1e3)
    both = estimate_roofline([signature], device()).bounds_ms[signature.key]
    assert both == pytest.approx(max(by_memory, by_arithmetic))


def test_every_known_device_says_where_its_figures_come_from() -> None:
    assert all(known.source for known in DEVICES.values())
    assert find_device("a100").name == "NVIDIA A100 80GB SXM"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(TableError, match=r"device 'abacus' is unknown; choose one of a100, h100, l4, t4, or give"):
        find_device("abacus")


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_peak_is_a_positive_number(value: float) -> None:
    with pytest.raises(TableError, match=r"tflops \(=.*\) of device 'abacus' must be a positive number"):
        device(tflops=value)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "estimate.json"
    estimate_roofline([conv(), conv(3, 6)], device()).save(path)
    return path


def test_an_estimate_comes_back_from_disk(written: Path) -> None:
    assert RooflineEstimate.load(written) == estimate_roofline([conv(3, 6), conv()], device())
    assert json.loads(written.read_text())["kind"] == "roofline estimate"


def test_an_estimate_is_no_table_and_a_table_no_estimate(written: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"holds a roofline estimate, and a latency table is needed; check the path"):
        LatencyTable.load(written)
    LatencyTable(ENVIRONMENT, METHOD, {}).save(tmp_path / "table.json")
    with pytest.raises(TableError, match=r"holds a latency table, and a roofline estimate is needed"):
        RooflineEstimate.load(tmp_path / "table.json")


def test_bounds_under_another_name_are_still_no_entries(written: Path) -> None:
    content: Any = json.loads(written.read_text())
    del content["kind"]
    written.write_text(json.dumps({**content, "schema_version": 2}))
    with pytest.raises(TableError, match="is no latency table"):
        LatencyTable.load(written)
