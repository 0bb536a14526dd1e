"""What `depthcomp finetune` trains and judges on."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from depthcomp.commands import finetune
from depthcomp.commands.data_specs import load_data
from depthcomp.commands.main import app
from depthcomp.errors import DataError
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes
from depthcomp.training.sources import sources

pytestmark = pytest.mark.whole

EXAMPLE = torch.zeros(1, 3, 20, 20)
COUNT = 20


@pytest.fixture
def folder(tmp_path):
    """Images of noise in two classes."""
    for number, pixels in enumerate(torch.randint(256, (COUNT, 25, 31, 3), dtype=torch.uint8)):
        kind = tmp_path / "photos" / str(number % 2)
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(kind / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def given(monkeypatch):
    """What the training was given, as (train, val); it is not run."""
    found = []
    result = SimpleNamespace(trainable=nn.Conv2d(3, 2, 3), example_inputs=(EXAMPLE,), original=None, seconds={})

    def stop(result, teacher, train, val, *_, **__):
        found.append((train, val))
        raise DataError("far enough")

    monkeypatch.setattr(finetune, "load_result", lambda directory: result)
    monkeypatch.setattr(finetune, "_ready_to_measure", lambda result, report: (result, None))
    monkeypatch.setattr(finetune, "tuned", stop)
    return found


@pytest.mark.parametrize("workers", [2, 0])
def test_the_configuration_says_how_many_workers_load_images(tmp_path, folder, given, workers):
    (tmp_path / "config.json").write_text(FinetuneConfig(workers=2, distillation=0.0).to_json())
    command = ["finetune", str(tmp_path), "--data", f"folder:{folder}", "--config", str(tmp_path / "config.json")]
    found = CliRunner().invoke(app, [*command, *([] if workers else ["--workers", "0"])])
    assert "far enough" in found.output
    ((train, _),) = given
    assert train.num_workers == workers


def test_a_part_that_is_set_apart_is_judged_uncropped(tmp_path, folder, given):
    config = FinetuneConfig(distillation=0.0, val_share=0.4, batch_size=4)
    with pytest.raises(DataError, match="far enough"):
        finetune.run(finetune.TuningRequest(directory=tmp_path, data=f"folder:{folder}", val_data=None, config=config))
    parts = sources(*given[0], config, Processes(0, 1, torch.device("cpu")))
    train, val = (torch.cat([batch.images.held for batch in part.epoch(0)]) for part in parts)
    plain = load_data(f"folder:{folder}", nn.Conv2d(3, 2, 3), EXAMPLE, training=False)
    whole = torch.cat([images for images, _ in plain])
    assert [sum(torch.equal(image, other) for other in whole) for image in val] == [1] * 8
    assert [sum(torch.equal(image, other) for other in whole) for image in train] == [0] * 12
