"""Misuses, drawn at random, end in a result or in an error of depthcomp."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import images, short_chain

from depthcomp import DepthCompError

pytestmark = pytest.mark.whole

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fuzz_misuses

    yield fuzz_misuses
    for name in ("fuzz_misuses", "misuses", "try_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("seed", range(2))
def test_misuses_end_in_results_or_in_errors_of_depthcomp(fuzz, seed):
    raw = []
    for misuse in fuzz.MISUSES:
        with warnings.catch_warnings(action="ignore"):
            row = fuzz.outcome(short_chain(), images(6), misuse, np.random.default_rng(seed))
        raw += [row] if row["outcome"] == "raw" else []
    assert not raw


def test_a_raw_exception_is_found(fuzz, monkeypatch):
    def failing(**arguments):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(fuzz, "compress_depth", failing)
    row = fuzz.outcome(short_chain(), images(6), "budget", np.random.default_rng(0))
    assert row["outcome"] == "raw"
    assert row["message"].startswith("ZeroDivisionError: a fault (")


def test_the_script_writes_all_outcomes(fuzz, tmp_path, monkeypatch):
    def refusing(**arguments):
        raise DepthCompError("not so")

    monkeypatch.setattr(fuzz, "compress_depth", refusing)
    state = torch.get_rng_state()
    assert fuzz.main(["--runs", "5", "--only", "Series", "--out", str(tmp_path / "misuses.json")]) == 0
    torch.set_rng_state(state)
    assert json.loads((tmp_path / "misuses.json").read_text())["outcomes"] == {"DepthCompError": 5}
