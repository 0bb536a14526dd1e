"""Shards of an importance from the command line."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_network import tiny_net
from typer.testing import CliRunner

from depthcomp import compress_depth
from depthcomp.commands.data_specs import calibration_data
from depthcomp.commands.main import app
from depthcomp.commands.models import load_model
from depthcomp.preparation import needed_operators
from latency_tables import LatencyTable, measure

pytestmark = pytest.mark.whole

NETS = """
from tiny_network import tiny_net

def net():
    model = tiny_net()
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    return model
"""
SPEC = "some_importance_nets:net"


@pytest.fixture
def here(tmp_path, monkeypatch, arithmetic_backend):
    """A folder with a model, images and a complete table."""
    (tmp_path / "some_importance_nets.py").write_text(NETS)
    (tmp_path / "photos").mkdir()
    for number, noise in enumerate(torch.randint(0, 255, (6, 32, 32, 3), dtype=torch.uint8)):
        Image.fromarray(noise.numpy()).save(tmp_path / "photos" / f"{number}.png")
    needed = needed_operators(tiny_net(), torch.zeros(1, 3, 32, 32))
    measure(sorted(needed), arithmetic_backend()).save(tmp_path / "table.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("some_importance_nets", None)


def run(*arguments):
    return CliRunner().invoke(app, ["importance", SPEC, "--table", "table.json", "--out", "out", *arguments])


def test_shards_of_one_folder_are_all_that_a_compression_needs(here, arithmetic_backend):
    counts = []
    for shard in ("1/2", "0/2"):
        found = run("--data", "photos", "--importance", "calibrated", "--shard", shard, "--json")
        assert found.exit_code == 0, found.output
        content = json.loads(found.stdout)
        assert (content["shard"], content["file"]) == (shard, str(Path("out", "importance.jsonl")))
        counts.append(content["entries"])
    assert Path("out/importance.jsonl").read_text().count("\n") == sum(counts)
    model, example = load_model(SPEC, None)
    stages = []
    compress_depth(
        model, "80%", example_inputs=example.held, data=calibration_data("photos", model, example), table="table.json",
        backend=arithmetic_backend(), importance="calibrated", output_dir="out",
        progress=lambda what, done, total: stages.append(what),
    )  # fmt: skip
    assert "scoring" in stages
    assert not [what for what in stages[: stages.index("searching")] if what.startswith("fitting")]


@pytest.mark.usefixtures("here")
def test_a_sentence_says_what_was_done():
    found = run("--data", "photos", "--shard", "2/9")
    assert found.exit_code == 0
    count = Path("out/importance.jsonl").read_text().count("\n")
    assert found.stdout == f"out/importance.jsonl has the {count} scores of shard 2/9\n"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard", "3/3"], "shard 3/3 does not exist; they count from zero"),
        (["--table", "none.json"], "cannot read the latency table none.json"),
        (["--data", "none"], "the image folder none does not exist"),
        (
            ["--importance", "best"],
            "importance (='best') must be one of 'calibrated', 'curvature', 'kim23', 'layermerge'",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(arguments, sentence):
    found = run(*arguments)
    assert found.exit_code == 2
    assert sentence in " ".join(found.stderr.split())
    assert "Traceback" not in found.output


@pytest.mark.usefixtures("here")
def test_a_table_that_lacks_operators_is_refused():
    table = LatencyTable.load("table.json")
    replace(table, entries=dict(list(table.entries.items())[3:])).save("table.json")
    found = run("--data", "photos")
    assert found.exit_code == 2
    assert f"the latency table lacks 3 of {len(table)} operators, for example" in " ".join(found.stderr.split())
    assert not Path("out/importance.jsonl").exists()
