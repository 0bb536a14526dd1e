"""Fine-tuning: what it learns, what it keeps, and that an interrupted run ends with the same bits."""

import json
import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tuning import (
    CLASSES,
    classifier,
    config,
    images,
    killed_at,
    killed_at_replacement,
    labelled,
    loader,
    same_bits,
)

from depthcomp.errors import ArtifactError, DataError, DepthCompError, TrainingError
from depthcomp.training import checkpoint
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import finetune
from depthcomp.training.processes import Processes
from depthcomp.training.sources import sources

pytestmark = pytest.mark.whole


def test_it_comes_closer_to_the_teacher_without_labels():
    student, teacher = classifier(), classifier(9)
    before, x = [p.clone() for p in student.state_dict().values()], images(64)
    found = finetune(student, teacher, x, images(32, 2), config(batch_size=16, epochs=5))
    record = found.record
    assert record.metric == "loss"
    assert record.loss_after < 0.8 * record.loss_before
    with torch.no_grad():
        wanted, now = (n(images(32, 2)).log_softmax(1) for n in (teacher, found.network))
        kl = nn.functional.kl_div(now, wanted, log_target=True, reduction="batchmean")
    assert float(kl) == pytest.approx(record.loss_after, rel=1e-4)
    assert not found.network.training
    assert all(map(torch.equal, before, student.state_dict().values()))
    assert len(record.history) == 5


def test_labels_alone_are_enough():
    found = finetune(classifier(), None, loader(), labelled(32, 2), config(epochs=6))
    assert found.record.metric == "accuracy"
    assert found.record.metric_after >= found.record.metric_before
    x, y = labelled(32, 2).tensors
    with torch.no_grad():
        assert float((found.network(x).argmax(1) == y).float().mean()) == pytest.approx(found.record.metric_after)


def test_the_untrained_network_is_returned_where_training_only_harms():
    student = classifier(9)
    found = finetune(student, classifier(9), images(), images(16, 2), config(learning_rate=0.5, ema_decay=None))
    assert found.record.best == "untrained"
    assert found.record.loss_after == found.record.loss_before == pytest.approx(0, abs=1e-6)
    assert same_bits(found.network, student)


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "ema_decay": None}, {"accumulate": 4, "clip_norm": 0.5}])
def test_three_kills_change_nothing(tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = finetune(classifier(), classifier(9), loader(), labelled(16, 2), config(**options), folder=whole)
    for done in (4, 10, 16):
        killed_at(done, parts, **options)
    found = finetune(classifier(), classifier(9), loader(), labelled(16, 2), config(**options), folder=parts)
    assert same_bits(found.network, wanted.network)
    for name in ("state", "best"):
        files = [next(folder.glob(f"{name}-*")).read_bytes() for folder in (whole, parts)]
        assert files[0] == files[1]
    assert _without_seconds(parts) == _without_seconds(whole)


def _without_seconds(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("replacement", range(1, 6))
def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(tmp_path, replacement):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = finetune(classifier(), None, loader(), labelled(16, 2), config(epochs=2), folder=whole)

    killed_at_replacement(replacement, parts)
    found = finetune(classifier(), None, loader(), labelled(16, 2), config(epochs=2), folder=parts)
    assert same_bits(found.network, wanted.network)
    assert len(list(parts.glob("*.safetensors"))) == len(list(whole.glob("*.safetensors")))


def test_a_finished_training_is_not_run_again(tmp_path):
    wanted = finetune(classifier(), None, loader(), labelled(16, 2), config(), folder=tmp_path)
    calls = []
    with pytest.warns(UserWarning, match="holds this training; it is finished and does not run again") as caught:
        found = finetune(
            classifier(), None, loader(), labelled(16, 2), config(), folder=tmp_path,
            progress=lambda *call: calls.append(call),
        )  # fmt: skip
    assert calls == []
    assert [warning.filename for warning in caught] == [__file__]
    assert same_bits(found.network, wanted.network)
    assert found.record == wanted.record


def test_an_unfinished_training_of_another_kind_is_refused_or_begun_anew(tmp_path):
    killed_at(8, tmp_path)
    arguments = (classifier(), classifier(9), loader(), labelled(16, 2))
    with pytest.raises(ArtifactError, match=r"a training with epochs=3, not 2; give another folder"):
        finetune(*arguments, config(epochs=2), folder=tmp_path)
    with pytest.raises(ArtifactError, match="of another network"):
        finetune(classifier(5), *arguments[1:], config(), folder=tmp_path)
    with pytest.warns(UserWarning, match="starts anew") as caught:
        found = finetune(*arguments, config(epochs=2), folder=tmp_path, anew=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert same_bits(found.network, finetune(*arguments, config(epochs=2)).network)


def test_a_broken_checkpoint_is_named(tmp_path):
    killed_at(8, tmp_path)
    next(tmp_path.glob("state-*")).write_bytes(b"half")
    with pytest.raises(ArtifactError, match=r"state-\d+.safetensors cannot be read"):
        finetune(classifier(), classifier(9), loader(), labelled(16, 2), config(), folder=tmp_path)
    (tmp_path / checkpoint.FILE).write_text("{")
    with pytest.raises(ArtifactError, match="is not a checkpoint of this release"):
        finetune(classifier(), classifier(9), loader(), labelled(16, 2), config(), folder=tmp_path)


def test_accumulated_batches_are_one_large_batch():
    """Without norms and dropout, four batches of 8 make the update that one batch of 32 makes."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    x, y = labelled(60, dtype=torch.float64).tensors
    student, options = student.double(), {"optimizer": "sgd", "epochs": 2, "ema_decay": None}
    small = list(zip(x.split(8), y.split(8), strict=True))
    large = list(zip(x.split(32), y.split(32), strict=True))
    one, other = (
        finetune(student, None, data, large, config(accumulate=count, **options))
        for data, count in ((small, 4), (large, 1))
    )
    assert one.record.updates == other.record.updates == 4
    losses = [[epoch["train_loss"] for epoch in found.record.history] for found in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_a_loss_and_a_metric_of_the_users_own():
    def loss(student, teacher, batch):
        return (student(batch["picture"]) - batch["height"]).square().mean()

    def nearness(student, teacher, batch):
        return -(student(batch["picture"]) - batch["height"]).abs().mean()

    x = images(32)
    data = [{"picture": part, "height": part.mean((1, 2, 3))[:, None].expand(-1, CLASSES)} for part in x.split(8)]
    found = finetune(classifier(), None, data, data, config(loss=loss, metric=nearness, epochs=8))
    assert found.record.metric == "nearness"
    assert found.record.metric_after > found.record.metric_before
    assert found.record.loss_after < found.record.loss_before


@pytest.mark.parametrize(("precision", "channels_last"), [("bf16", False), ("fp32", True)])
def test_other_number_types_and_layouts_learn(precision, channels_last):
    options = config(precision=precision, channels_last=channels_last, epochs=5, batch_size=16)
    found = finetune(classifier(), classifier(9), images(64), images(32, 2), options)
    assert found.record.loss_after < 0.9 * found.record.loss_before
    assert {p.dtype for p in found.network.parameters()} == {torch.float32}


def test_frozen_norms_keep_their_statistics():
    found = finetune(classifier(), None, loader(), loader(), config(freeze_norms=True))
    assert torch.equal(found.network[1].running_mean, classifier()[1].running_mean)


def test_the_callers_random_numbers_are_left_alone():
    def drawn():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    wanted = drawn()
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    finetune(_SMALL, None, DataLoader(_DATA, 8, shuffle=True), None, config())
    torch_now, python_now, numpy_now = drawn()
    assert (torch_now, python_now, numpy_now) == wanted


_SMALL = classifier()
_DATA = labelled()


def bad_labels():
    x, y = labelled().tensors
    return DataLoader(TensorDataset(x, y.index_fill(0, torch.tensor([40]), 12)), 8)


class Shrinking:
    """A loader that gives a batch less each time that it is read."""

    def __init__(self):
        self.batches = list(zip(images().split(8), labelled().tensors[1].split(8), strict=True))

    def __iter__(self):
        yield from self.batches
        if len(self.batches) > 3:
            self.batches.pop()


def test_first_batches_are_those_of_the_first_epoch_and_the_rest_is_not_read():
    read = []

    class Noting:
        def __iter__(self):
            for item in Shrinking().batches:
                read.append(item)
                yield item

    here = Processes(0, 1, torch.device("cpu"))
    source = sources(Noting(), labelled(16, 2), config(), here)[0]
    first = source.first(2)
    assert len(read) < len(Shrinking().batches)
    epoch = list(source.epoch(0))
    assert all(torch.equal(one.images.held, other.images.held) for one, other in zip(first, epoch, strict=False))
    assert len(first) == 2 < len(epoch)
    with pytest.raises(DataError, match="data holds no batch of 2 images or more"):
        sources([], labelled(16, 2), config(), here)[0].first(2)


def mixed_shapes():
    return [
        *zip(images().split(8), labelled().tensors[1].split(8), strict=True),
        (torch.zeros(4, 3, 5, 5), torch.zeros(4).long()),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_labels, r"the label 12, but the network has 4 classes, 0 to 3; correct the labels.*; nothing was"),
        (Shrinking, r"data ended after \d batches in epoch \d, but an epoch has 6"),
        (mixed_shapes, r"images of shape \(3, 5, 5\) after images of \(3, 7, 9\)"),
        (list, "data holds no batch of 2 images or more"),
        (lambda: iter([(images(), 0)]), "which can be read once, but fine-tuning reads it every epoch"),
        (lambda: [images()[0]] * 3, r"has shape \(3, 7, 9\), but fine-tuning needs batches"),
        (lambda: 3, "data is a int; pass a DataLoader"),
        (lambda: [(images(), torch.zeros(48))], "do not fit outputs of shape"),
    ],
)  # fmt: skip
def test_bad_data_are_said_in_a_sentence(data, message):
    with pytest.raises(DataError, match=message):
        finetune(classifier(), None, data(), labelled(16, 2), config())


def test_what_was_reached_stays_where_data_or_loss_fail(tmp_path):
    calls = 0

    def loss(student, teacher, batch):
        nonlocal calls
        calls += student.training
        return nn.functional.cross_entropy(student(batch[0]), batch[1]) * (float("nan") if calls > 8 else 1)

    options = config(loss=loss)
    place = rf"the checkpoint after 8 updates stays in {tmp_path}, with the best network so far \(.*\)"
    with pytest.raises(TrainingError, match=rf"the loss is nan in epoch 2, batch 3; lower.*; {place}"):
        finetune(classifier(), None, loader(), labelled(16, 2), options, folder=tmp_path)
    calls = -100
    found = finetune(classifier(), None, loader(), labelled(16, 2), options, folder=tmp_path)
    calls = -100
    assert same_bits(found.network, finetune(classifier(), None, loader(), labelled(16, 2), options).network)


def test_a_network_that_gives_nan_is_refused():
    student = classifier()
    student[0].weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss of the untrained network on the validation data is nan"):
        finetune(student, None, loader(), labelled(16, 2), config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "abacus"}, "optimizer .='abacus'. is unknown to timm"),
        ({"precision": "fp16", "device": "cpu"}, "precision='fp16' needs a GPU"),
        ({"device": "abacus"}, "device .='abacus'. of FinetuneConfig cannot be used"),
        ({"labels": 0.0}, "there is nothing to train by"),
        ({"loss": lambda *_: torch.zeros(3)}, r"the function loss returned a tensor of shape \(3,\)"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(TrainingError, match=message):
        finetune(classifier(), None, loader(), labelled(16, 2), config(**options))


def test_frozen_networks_are_refused():
    with pytest.raises(TrainingError, match="no parameter of the network has requires_grad"):
        finetune(classifier().requires_grad_(False), None, loader(), labelled(16, 2), config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs .=0. of FinetuneConfig must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate .=nan. of FinetuneConfig must be a number above 0"),
        ({"schedule": "plateau"}, "must be one of cosine"),
        ({"warmup": 1.0}, "warmup .=1.0. of"),
        ({"loss": 3}, "loss .=3. of"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(DepthCompError, match=message):
        FinetuneConfig(**options)


def test_a_configuration_is_json_both_ways():
    chosen = FinetuneConfig(epochs=3, clip_norm=1.0, ema_decay=None, loss=max)
    with pytest.raises(DepthCompError, match="names the function builtins:max; pass it as loss="):
        FinetuneConfig.from_json(chosen.to_json())
    assert FinetuneConfig.from_json(chosen.to_json(), loss=max) == chosen
    with pytest.raises(DepthCompError, match="unknown field 'epoch'"):
        FinetuneConfig.from_json('{"schema_version": 1, "epoch": 3}')
