import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import ENVIRONMENT, conv

from depthcomp_errors import TableError
from latency_tables.measuring.import_trtexec import import_trtexec


def inference(compute_ms: float, start_ms: float = 0.0) -> dict[str, float]:
    """As trtexec writes it: points in time, and what lies between them."""
    names = (
        "startEnqMs",
        "endEnqMs",
        "startInMs",
        "endInMs",
        "startComputeMs",
        "endComputeMs",
        "startOutMs",
        "endOutMs",
    )
    spans = {"inMs": 0.02, "computeMs": compute_ms, "outMs": 0.01, "latencyMs": compute_ms + 0.03}
    return {**dict.fromkeys(names, start_ms), **spans}


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "times.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_median_of_the_compute_times_counts(tmp_path: Path) -> None:
    path = written(tmp_path, [inference(ms) for ms in (*[0.25] * 11, 0.26, 9.0)])
    table = import_trtexec(path, conv(), ENVIRONMENT)
    entry = table.entries[conv().key]
    assert (entry.ms, entry.n, entry.unstable) == (0.25, 13, False)
    assert table.environment == ENVIRONMENT
    assert table.method.estimator == "median of trtexec's computeMs"


def test_restless_times_are_flagged(tmp_path: Path) -> None:
    times = np.random.default_rng(0).normal(1, 0.2, 50)
    entry = import_trtexec(written(tmp_path, [inference(ms) for ms in times]), conv(), ENVIRONMENT).entries[conv().key]
    assert entry.unstable
    assert entry.spread == pytest.approx(0.2, rel=0.4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", r"times.json is not what trtexec --exportTimes writes: Invalid JSON"),
        ({"computeMs": 1.0}, "is not what trtexec --exportTimes writes: Input should be a valid"),
        ([{"latencyMs": 1.0}], "0.computeMs: Field required; a list of objects with computeMs is needed"),
        ([inference(-1.0)] * 20, "0.computeMs: Input should be greater than 0"),
        ([inference(1.0)] * 9, "holds 9 inferences, and a latency needs at least 10; run trtexec with --iterations=10"),
    ],
)
def test_what_trtexec_did_not_write_is_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(TableError, match=sentence):
        import_trtexec(written(tmp_path, content), conv(), ENVIRONMENT)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot read the times .*absent.json: No such file"):
        import_trtexec(tmp_path / "absent.json", conv(), ENVIRONMENT)
