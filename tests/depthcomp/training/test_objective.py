"""What is trained by and judged by, and the sentence where that cannot be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from tuning import CLASSES, classifier, config, images, labelled, same_bits

from depthcomp.errors import DataError, TrainingError
from depthcomp.training.batches import Batch
from depthcomp.training.finetune import finetune, rehearse
from depthcomp.training.objective import Objective, difference
from depthcomp.training.processes import Processes
from fx_passes import capture

SHORT = {"epochs": 1, "batch_size": 16}


def shifted():
    x, y = labelled().tensors
    return TensorDataset(x, (y + 1) % CLASSES)


def test_labels_of_another_numbering_are_not_used():
    given = (classifier(), classifier(9))
    with pytest.warns(UserWarning, match=r"predicts the labels of 0.0% of the images.*so the labels are not used"):
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


def test_a_wanted_tensor_without_variance_weighs_by_its_size():
    """As in a divergence: a dead layer inside must not outweigh the outputs."""
    wanted = torch.ones(2, 3, 4, 4)
    assert float(difference(wanted, 1.01 * wanted)) == pytest.approx(1e-4, rel=1e-3)


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
        (None, labelled(), {"loss": detached}, "depends on no trained weight"),
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
        ({"loss": detached}, "depends on no trained weight"),
        (
            {"loss": lambda s, t, b: s(b[0]).sum() * float("nan")},
            "on the first batch is nan before any training",
        ),
        (
            {"loss": lambda s, t, b: (s - t).sum()},
            "your own is given the two networks, not their outputs",
        ),
    ],
)
def test_a_rehearsal_finds_what_training_would(options, message):
    network = classifier()
    with pytest.raises(TrainingError, match=message):
        rehearse(network, labelled(), None, config(**SHORT, **options))
    rehearse(network, labelled(), None, config(**SHORT))
    assert same_bits(network, classifier())


@pytest.mark.parametrize("options", [{}, {"labels": 0.0, "distillation": 0.0}])
def test_a_rehearsal_compares_tensors_inside(options):
    network = capture(classifier(), images(2))
    rehearse(network, labelled(), None, config(features=1.0, **SHORT, **options))
    with pytest.raises(TrainingError, match=r"compare tensors of two captured networks .* a Sequential lacks"):
        rehearse(classifier(), labelled(), None, config(features=1.0, **SHORT))


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (1, torch.ones(48, 1)),
        (CLASSES, torch.randn(48, CLASSES).softmax(1) + 0.01),
        (CLASSES, torch.tensor([2.0, -1.0, 0.0, 0.0]).repeat(48, 1)),
    ],
)
def test_numbers_that_are_no_shares_of_classes_are_refused(outputs, labels):
    student = nn.Sequential(*classifier()[:-1], nn.Linear(8, outputs))
    with pytest.raises(DataError, match=r"float32 do not fit outputs of shape .* sum to 1; give a loss of"):
        finetune(student, None, TensorDataset(images(), labels), None, config(**SHORT))


def test_shares_of_classes_are_labels():
    shares = F.one_hot(labelled().tensors[1], CLASSES) * 0.8 + 0.2 / CLASSES
    data = TensorDataset(images(), shares)
    smoothed = finetune(classifier(), None, labelled(), None, config(label_smoothing=0.2, **SHORT)).record
    found = finetune(classifier(), None, data, None, config(**SHORT)).record
    assert found.metric == "accuracy"
    assert found.loss_before == pytest.approx(smoothed.loss_before, rel=1e-5)


class Brighter(nn.Module):
    def forward(self, x):
        return x + 5


def test_channels_of_pixels_are_scores_only_beside_masks():
    x = images(6)
    objective = Objective(config(labels=0.0), nn.Identity())

    def loss(item):
        with torch.no_grad():
            return float(objective.loss(Brighter(), Batch.of(item, "data")))

    relative = float((25 / x.var((0, 2, 3), correction=0)).mean())
    assert loss(x) == loss((x, x)) == pytest.approx(relative, rel=1e-5)
    assert loss((x, torch.zeros(6, 7, 9, dtype=torch.long))) == pytest.approx(0, abs=1e-5)


def partly_labelled(dtype=torch.float32):
    """Of eight images, and some others, nobody knows the class."""
    x, y = labelled(33, dtype=dtype).tensors
    y[:8], y[10], y[14:19], y[32] = -100, -100, -100, -100
    return x, y


def test_what_has_no_label_counts_nowhere():
    x, y = partly_labelled()
    known, net = y != -100, classifier(9)
    y = torch.where(known, torch.arange(33) % CLASSES, y)
    batches = [Batch.of(item, "data") for item in zip(x.split(8), y.split(8), strict=True)]
    here = Processes(0, 1, torch.device("cpu"))
    with torch.no_grad():
        found = Objective(config(), None).judge(net, batches, "accuracy", here)
        scores = net(x)[known]
    assert found.loss == pytest.approx(float(F.cross_entropy(scores, y[known])), rel=1e-5)
    assert found.metric == pytest.approx(float((scores.argmax(1) == y[known]).float().mean()), rel=1e-5)
    assert 0 < found.metric < 1


def test_labels_weigh_alike_in_small_batches_and_in_large_ones():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    x, y = partly_labelled(torch.float64)
    small, large = list(zip(x.split(8), y.split(8), strict=True)), [(x, y)]
    one, other = (
        finetune(
            student.double(), classifier(9, torch.float64), data, large,
            config(accumulate=count, optimizer="sgd", epochs=2, ema_decay=None),
        )
        for data, count in ((small, 5), (large, 1))
    )  # fmt: skip
    losses = [[epoch["train_loss"] for epoch in found.record.history] for found in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)  # the teacher's part is computed in single precision


def test_without_a_label_that_counts_there_is_no_accuracy():
    x, y = partly_labelled()
    with pytest.raises(TrainingError, match="metric accuracy of the untrained network on the validation data is nan"):
        finetune(classifier(), None, labelled(), [(x[:8], y[:8])], config(**SHORT))
    early = list(zip(x.split(8), y.split(8), strict=True))[:1] * 8
    data = [*early, (x[8:], y[8:])]  # the labels that tell of the numbering come last
    found = finetune(classifier(), classifier(9), data, labelled(16, 2), config(**SHORT))
    assert found.record.metric == "accuracy"
