"""What is trained by and judged by, and the sentence where that cannot be."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from tuning import CLASSES, classifier, config, images, labelled, same_bits

from depthcomp.errors import DataError, TrainingError
from depthcomp.training.finetune import finetune, rehearse

SHORT = {"epochs": 1, "batch_size": 16}


def shifted():
    x, y = labelled().tensors
    return TensorDataset(x, (y + 1) % CLASSES)


def test_labels_of_another_numbering_are_not_used():
    given = (classifier(), classifier(9))
    with pytest.warns(UserWarning, match=r"gives 0.0% of the images their label.*so the labels are not used"):
        found = finetune(*given, shifted(), shifted(), config(**SHORT))
    wanted = finetune(*given, shifted(), shifted(), config(labels=0.0, **SHORT))
    assert found.record.metric == wanted.record.metric == "loss"
    assert same_bits(found.network, wanted.network)


def test_labels_in_the_teachers_numbering_are_used():
    assert finetune(classifier(), classifier(9), labelled(), None, config(**SHORT)).record.metric == "accuracy"


@pytest.mark.parametrize("labels", [torch.randn(48, 3), torch.full((48,), 37), torch.zeros(48, 1, 1).long()])
def test_labels_of_no_weight_are_not_looked_at(labels):
    data = TensorDataset(images(), labels)
    assert finetune(classifier(), classifier(9), data, None, config(labels=0.0, **SHORT)).record.metric == "loss"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integers_of_any_kind_are_labels(dtype):
    x, y = labelled().tensors
    one, other = (finetune(classifier(), None, TensorDataset(x, t), None, config(**SHORT)) for t in (y, y.to(dtype)))
    assert same_bits(one.network, other.network)


def test_images_take_the_type_of_the_weights():
    x, y = labelled().tensors
    one, other = (finetune(classifier(), None, TensorDataset(t, y), None, config(**SHORT)) for t in (x, x.double()))
    assert same_bits(one.network, other.network)


def detached(student, teacher, batch):
    return student(batch[0]).mean().detach()


def broken(student, teacher, batch):
    raise LookupError("no such key")


@pytest.mark.parametrize(
    ("teacher", "data", "options", "message"),
    [
        (None, TensorDataset(torch.randn(48, 2, 7, 9), labelled().tensors[1]), {}, r"\(16, 2, 7, 9\).*to have 3 chan"),
        (nn.Sequential(*classifier()[:-1], nn.Linear(8, 5)), images(), {}, "tensor a .5. must match.*of one shape"),
        (None, labelled(), {"loss": lambda s, b: s(b[0]).mean()}, "TypeError: .*takes 2 positional arguments but 3"),
        (None, labelled(), {"loss": broken}, "LookupError: no such key"),
        (None, labelled(), {"loss": detached}, "depends on no weight that is trained"),
        (None, labelled(), {"metric": lambda s, t, b: float("nan")}, "the metric <lambda> of the untrained .* is nan"),
    ],
)  # fmt: skip
def test_what_fails_is_said_in_a_sentence(teacher, data, options, message):
    with pytest.raises(TrainingError, match=message):
        finetune(classifier(), teacher, data, data, config(**SHORT, **options))


def test_one_image_at_a_time_trains_networks_without_norms():
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    single = config(epochs=1, batch_size=1)
    assert finetune(student, None, labelled(8), labelled(8), single).record.updates == 8
    with pytest.raises(DataError, match="data holds no batch of 2 images or more"):
        finetune(classifier(), None, labelled(8), labelled(8), single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamz"}, "optimizer .='adamz'. is unknown to timm"),
        ({"loss": detached}, "depends on no weight that is trained"),
    ],
)
def test_a_rehearsal_finds_what_training_would(options, message):
    network = classifier()
    with pytest.raises(TrainingError, match=message):
        rehearse(network, labelled(), None, config(**SHORT, **options))
    rehearse(network, labelled(), None, config(**SHORT))
    assert same_bits(network, classifier())
