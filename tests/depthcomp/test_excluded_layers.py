"""Layers that a user excludes: no choice, refit or training changes them."""

import json
import textwrap
from importlib import import_module

import pytest
import torch
from branched_network import Branched
from PIL import Image
from tiny_network import images, tiny_net
from torch import nn
from typer.testing import CliRunner

import depthcomp
from depthcomp import compress_depth
from depthcomp.commands.main import app
from depthcomp.errors import CaptureError, PlanError
from depthcomp.preparation import prepare
from depthcomp.results.loading import load_result
from depthcomp.runs.resume import settings_hash
from depthcomp.runs.task import CompressionTask
from depthcomp.sources.module_names import matched_modules
from depthcomp.training.config import FinetuneConfig
from fx_passes import Plan, linearize

EXCLUDED = ("3.conv.0", "4", "10")
"""An expansion with its norm, a whole residual block, the classifier."""


def own_tensors(model, names):
    """Return the parameters and buffers of modules by their path."""
    state = model.state_dict().items()
    return {name: tensor for name, tensor in state if any(name.startswith(f"{each}.") for each in names)}


def strayed(student, teacher, batch):
    """Prefer the network that is farthest from the original, which is a trained one at so high a rate."""
    return (student(batch) - teacher(batch)).square().mean()


@pytest.fixture(scope="module")
def tuned(arithmetic_backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("excluded")
    result = compress_depth(
        tiny_net(), "90%", data=images().split(8), backend=arithmetic_backend(), exclude=EXCLUDED, output_dir=folder,
        finetune=FinetuneConfig(epochs=1, learning_rate=0.05, ema_decay=None, metric=strayed),
    )  # fmt: skip
    return result, folder


def test_nothing_of_them_changes(tuned):
    result, folder = tuned
    assert result.plan
    assert result.finetuned.best != "untrained"
    wanted = own_tensors(tiny_net(), EXCLUDED)
    for network in (result.model, result.trainable, load_result(folder).trainable):
        modules = dict(network.named_modules())
        for name, tensor in wanted.items():
            owner, _, kind = name.rpartition(".")
            assert torch.equal(getattr(modules[owner], kind), tensor), name


def test_the_result_tells_them(tuned):
    result, folder = tuned
    assert result.excluded == EXCLUDED
    assert load_result(folder).excluded == EXCLUDED
    assert json.loads((folder / "result.json").read_text())["excluded"] == list(EXCLUDED)
    assert "you excluded 4" in (folder / "report.html").read_text()


def prepared(exclude=(), model=None):
    return prepare(model or tiny_net(), None, [images(8)], None, seed=0, exclude=exclude)


def touched_by(found, candidate):
    return [str(found.network.nodes[name].target) for name in candidate.span.nodes]


def touched(found):
    """Return the paths of the modules that candidates may change."""
    return {path for each in found.candidates for path in touched_by(found, each)}


def test_no_choice_of_any_kind_is_for_them():
    free, bound = prepared(), prepared(EXCLUDED)
    kinds = {"drop", "fit", "merge", "narrow"}
    assert {each.choice.kind for each in free.candidates} >= kinds - {"drop"}
    assert any(target.startswith("4.") for target in touched(free))
    assert touched(bound)
    assert not any(f"{target}.".startswith(f"{each}.") for target in touched(bound) for each in EXCLUDED)
    reasons = {refusal.why for refusal in bound.refusals}
    assert "you excluded 4" in reasons
    assert "its channels stay, as you excluded 3.conv.0" in reasons
    assert not any("excluded" in refusal.why for refusal in free.refusals)


def narrowed(found):
    return {str(each.choice) for each in found.candidates if each.choice.kind == "narrow"}


@pytest.mark.parametrize("name", ["6", "10"])
def test_channels_beside_them_stay(name):
    """Module 6 makes the channels that module 10 reads."""
    lost = narrowed(prepared()) - narrowed(prepared((name,)))
    assert lost == {"narrow (_5 -> _10] to 8 channels at _9"}


@pytest.mark.parametrize(("name", "kinds"), [("4", {"drop", "fit", "merge"}), ("6", {"narrow"})])
def test_a_plan_for_them_is_refused(name, kinds):
    free, bound = prepared(), prepared((name,))
    within = {
        each.choice for each in free.candidates if any(f"{t}.".startswith(f"{name}.") for t in touched_by(free, each))
    }
    assert {choice.kind for choice in within} >= kinds
    for choice in within:
        with pytest.raises(PlanError, match=f"you excluded {name}"):
            linearize(bound.captured, Plan.of([choice]))


def test_free_merges_leave_them():
    linear = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).eval()
    assert len(prepare(linear, None, [images(8)], None, seed=0).free) == 1
    assert not prepare(linear, None, [images(8)], None, seed=0, exclude="0").free


def test_patterns():
    model = Branched()
    assert matched_modules(model, ("long.*", "head"), "exclude") == ("long.0", "long.1", "long.2", "head")
    assert matched_modules(model, ("*.conv.0.0", "inverted"), "exclude") == ("inverted",)
    model.twin = model.long
    assert matched_modules(model, "twin.0", "exclude") == ("long.0",)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ("haed", r"exclude \(='haed'\) is no part of Branched; give the path of one, such as 'head'"),
        (("head", "blocks.*"), r"exclude \(='blocks.\*'\) is no part of Branched"),
        ((3,), r"exclude \(=3\) is no part of Branched"),
        (3, r"exclude \(=3\) is no part of Branched"),
        ("idle", "exclude names idle, which computes nothing in the forward of Branched; leave it out"),
    ],
)
def test_what_is_no_part_is_refused(exclude, message):
    model = Branched().eval()
    model.idle = nn.Conv2d(3, 3, 1)
    with pytest.raises(CaptureError, match=message):
        compress_depth(model, "80%", data=[images(8)], exclude=exclude)


def test_a_run_with_other_exclusions_is_another_run(arithmetic_backend):
    task = CompressionTask.of(tiny_net(), "depthcomp", "curvature")
    environment = arithmetic_backend().environment()
    hashes = {
        settings_hash(prepared(exclude), None, task.method, task.importance, 0, environment)
        for exclude in ((), ("10",), ("4",), ("4", "10"))
    }
    part = prepare(tiny_net(), None, [images(8)], None, seed=0, part="4")
    hashes.add(settings_hash(part, None, task.method, task.importance, 0, environment))
    assert len(hashes) == 5


def test_they_are_named_as_in_the_whole():
    whole = nn.Sequential()
    whole.add_module("body", Branched())
    with pytest.raises(CaptureError, match=r"exclude names body, and module \(='body'\) is to be compressed; give one"):
        compress_depth(whole, "80%", module="body", exclude="body", data=[images(8)])


NET = """
    from torch import nn

    def net():
        sizes = [(3, 6, 3), (6, 24, 1), (24, 6, 1), (6, 24, 1), (24, 6, 1)]
        layers = [layer for i, o, k in sizes for layer in (nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU())]
        model = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
        model.pretrained_cfg = {"input_size": (3, 12, 12)}
        return model
"""


def test_the_shell_compresses_a_part_without_the_excluded_layers(tmp_path, monkeypatch, arithmetic_backend):
    (tmp_path / "some_excluding_net.py").write_text(textwrap.dedent(NET))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("latency_tables.create_backend", lambda name, threads: arithmetic_backend())
    for number, picture in enumerate(images(12)):
        shown = (picture * 60 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(shown).save(tmp_path / f"{number}.png")
    options = ["--budget", "85%", "--data", str(tmp_path), "--module", "0", "--exclude", "0.0", "--exclude", "0.8"]
    refused = CliRunner().invoke(app, ["compress", "some_excluding_net:net", *options, "--exclude", "0.tail.*"])
    assert refused.exit_code == 2
    assert "exclude (='0.tail.*') is no part of Sequential" in " ".join(refused.stderr.split())
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compress", "some_excluding_net:net", *options, "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "the whole network around 0" in done.stdout
    whole = import_module("some_excluding_net").net()
    whole.set_submodule("0", depthcomp.load(out))
    assert whole(torch.zeros(2, 3, 12, 12)).shape == (2, 5)
    numbers = json.loads((out / "result.json").read_text())
    assert (numbers["excluded"], numbers["part"]["module"]) == (["0.0", "0.8"], "0")
    assert {"you excluded 0.0", "you excluded 0.8"} <= {group["reason"] for group in numbers["refusals"]}
