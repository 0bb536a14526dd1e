"""The accuracy benchmark on a tiny network, a few made-up images and a machine whose latencies are arithmetic."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.whole

SCRIPTS = Path(__file__).parents[2] / "scripts"
KEY = "tiny:uniform:1.05x:0"


def write_idx(path, values):
    """Write an array of bytes as the data set's files hold it: a magic number, the sizes, the bytes."""
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes(), 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("train", 5300), ("t10k", 300)):
        labels = rng.integers(10, size=count)
        images = labels[:, None, None] * 20 + rng.integers(60, size=(28, 28))
        images[:, 0, :2] = np.stack([np.arange(count) // 256, np.arange(count) % 256], axis=1)  # no two alike
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
    return folder


@pytest.fixture
def bench(monkeypatch, arithmetic_backend):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_accuracy

    monkeypatch.setattr(bench_accuracy, "create_backend", lambda name, threads: arithmetic_backend())
    yield bench_accuracy
    for name in ("bench_accuracy", "accuracy_rows", "accuracy_report", "fashion_data", "fashion_nets"):
        sys.modules.pop(name, None)


def test_the_parts_do_not_share_images(bench, data):
    parts = bench.fashion_mnist(data)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [300, 5000, 300]
    assert len({image.numpy().tobytes() for part in (parts.train, parts.validation) for image in part.images}) == 5300


def test_batches_come_from_the_seed_and_the_pass(bench, data):
    from fashion_data import Batches

    part = bench.fashion_mnist(data).train
    first, again, other = Batches(part, 64, 1), Batches(part, 64, 1), Batches(part, 64, 2)
    one = [images for images, _ in first]
    assert len(one) == len(first) == 4
    assert all((a == b).all() for a, (b, _) in zip(one, again, strict=True))
    assert not all((a == b).all() for a, (b, _) in zip(one, first, strict=True))
    assert not all((a == b).all() for a, (b, _) in zip(one, other, strict=True))
    again.set_epoch(0)
    assert all((a == b).all() for a, (b, _) in zip(one, again, strict=True))


def test_a_row_that_is_there_is_not_made_again_unless_it_is_named(bench):
    keys = bench.keys(["tiny"], ["1.25x", "1.5x"])
    assert {key.seed for key in keys if key.budget == "1.5x"} == {0, 1, 2}
    assert {key.seed for key in keys if key.budget == "1.25x"} == {0}
    assert [str(key) for key in keys if key.method == "control"] == [f"tiny:control:1x:{seed}" for seed in range(3)]
    done = ["tiny:kim23:1.5x:0"]
    assert len(bench.wanted(keys, [], done)) == len(keys) - 1
    assert [str(key) for key in bench.wanted(keys, ["tiny:kim23:1.5x:*"], done)] == [
        "tiny:kim23:1.5x:1", "tiny:kim23:1.5x:2",
    ]  # fmt: skip
    assert [str(key) for key in bench.wanted(keys, done, done)] == done


def test_a_row_from_training_to_the_table(bench, data, tmp_path, capsys):
    arguments = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--quick", "--out", str(tmp_path / "a.json")]
    bench.main([*arguments, "--only", KEY])
    results = json.loads((tmp_path / "a.json").read_text())
    row = results["rows"][KEY]
    assert results["networks"]["tiny"]["ms"] > row["ms"]
    assert row["speedup"] >= 1.05
    assert row["importance_s"] == 0
    assert 0 <= row["untrained_test"] <= 1
    assert 0 <= row["test"] <= 1
    assert results["conditions"][row["conditions"]]["images"] == {"train": 256, "validation": 256, "test": 256}
    assert row["timed"] == results["networks"]["tiny"]["timed"] == f"{bench._machine()}, {row['date']}"
    assert (tmp_path / "a.svg").read_text().count("uniform") == 1
    assert f"{100 * row['test']:.2f}" in capsys.readouterr().out
    assert not list((tmp_path / "cache" / "unfinished").iterdir())

    bench.main([*arguments, "--only", "tiny:uniform:*"])
    assert "(1 of" not in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["rows"][KEY] == row

    bench.main([*arguments, "--only", "tiny:control:*:0"])
    results = json.loads((tmp_path / "a.json").read_text())
    control = results["rows"]["tiny:control:1x:0"]
    assert control["untrained_test"] == results["networks"]["tiny"]["test"]
    assert {control["conditions"], row["conditions"]} == {*results["conditions"]}
    assert "tiny        1x     control         1 of 1" in capsys.readouterr().out
