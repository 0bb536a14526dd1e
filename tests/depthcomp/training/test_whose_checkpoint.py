"""A checkpoint belongs to one training: its data, its teacher and its functions."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tuning import classifier, config, images, labelled, same_bits

from depthcomp.errors import ArtifactError
from depthcomp.training.finetune import finetune
from depthcomp.training.identity import function_hash
from depthcomp.training.processes import Processes
from depthcomp.training.sources import sources

pytestmark = pytest.mark.whole

HERE = Processes(0, 1, torch.device("cpu"))


class Noisy(Dataset):
    """Images with noise that is drawn anew each time; Python's, NumPy's and torch's numbers are alike in that."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        x, y = labelled(24)[index]
        return x + 0.1 * torch.randn(3, 7, 9), y


def interrupted(after, *arguments, **options):
    def stop(stage, done, total):
        if done == after:
            raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        finetune(*arguments, progress=stop, **options)


def other_labels():
    x, y = labelled().tensors
    return TensorDataset(x, (y + 1) % 4)


def without_activations():
    """A network with the tensors of another: plans that only merge are told apart by their graphs."""
    found = classifier()
    found[2] = torch.nn.Identity()
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": other_labels()}, "a training on other data; give another folder"),
        ({"train": TensorDataset(images(48, 5), labelled().tensors[1])}, "a training on other data"),
        ({"val": labelled(16, 3)}, "a training that was judged on other data"),
        ({"teacher": classifier(8)}, "a training with another teacher"),
        ({"teacher": None}, "a training with another teacher"),
        ({"student": without_activations()}, "a training of another network"),
    ],
)
def test_a_checkpoint_of_other_data_or_another_teacher_is_refused(tmp_path, changes, message):
    given = {"student": classifier(), "teacher": classifier(9), "train": labelled(), "val": labelled(16, 2)}
    options = config(batch_size=8, epochs=1, labels=0.0)
    interrupted(4, *given.values(), options, folder=tmp_path)
    with pytest.raises(ArtifactError, match=message):
        finetune(*(given | changes).values(), options, folder=tmp_path)


def test_a_finished_training_gives_way_to_one_on_other_data(tmp_path):
    options = config(batch_size=8, epochs=1)
    finetune(classifier(), None, labelled(), labelled(16, 2), options, folder=tmp_path)
    with pytest.warns(UserWarning, match="holds this training; it is finished and does not run again"):
        finetune(classifier(), None, labelled(), labelled(16, 2), options, folder=tmp_path)
    found = finetune(classifier(), None, other_labels(), labelled(16, 2), options, folder=tmp_path)
    assert same_bits(found.network, finetune(classifier(), None, other_labels(), labelled(16, 2), options).network)


def test_functions_are_told_apart_by_what_they_compute():
    def scaled(factor):
        return lambda student, teacher, batch: factor * student(batch)

    hashes = [function_hash(f) for f in (scaled(1), scaled(2), lambda s, t, b: s(b) + 1, lambda s, t, b: s(b) + 2)]
    assert len(set(hashes)) == 4
    assert function_hash(scaled(1)) == hashes[0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_have_one_hash_in_one_process_and_in_two(shuffle):
    def digests(seed):
        loader = DataLoader(Noisy(), 8, shuffle=shuffle)
        held = list(zip(images(16, seed).split(8), [torch.zeros(8)] * 2, strict=True))
        places = (HERE, Processes(0, 2, HERE.device), Processes(1, 2, HERE.device))
        return {tuple(source.digest() for source in sources(loader, held, config(), place)) for place in places}

    torch.manual_seed(1)
    (found,) = digests(1)
    torch.manual_seed(2)
    assert digests(1) == {found}
    ((train, val),) = digests(2)
    assert train == found[0]
    assert val != found[1]


def test_random_numbers_beyond_every_seed_do_not_make_data_others():
    generator = torch.Generator().manual_seed(0)

    class Wild(Noisy):
        def __getitem__(self, index):
            return torch.randn(3, 7, 9, generator=generator), 0

    train = sources(DataLoader(Wild(), 8), labelled(8), config(), HERE)[0]
    assert train.digest() == train.digest() == "3 drawn anew"


def test_streams_are_counted_by_reading_them():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(labelled(20))

    train = sources(DataLoader(Stream(), 8), labelled(8), config(), HERE)[0]
    assert len(train) == 3
    assert train.digest() == train.digest()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_the_same_after_an_interruption(tmp_path, persistent):
    def data():
        return DataLoader(Noisy(), 8, shuffle=True, num_workers=2, persistent_workers=persistent)

    given, options = (classifier(), classifier(9)), config(epochs=2, checkpoint_updates=1)
    torch.manual_seed(1)
    wanted = finetune(*given, data(), labelled(8, 2), options, folder=tmp_path / "whole")
    torch.manual_seed(2)
    interrupted(5, *given, data(), labelled(8, 2), options, folder=tmp_path / "parts")
    torch.manual_seed(3)
    found = finetune(*given, data(), labelled(8, 2), options, folder=tmp_path / "parts")
    states = [next((tmp_path / name).glob("state-*")).read_bytes() for name in ("whole", "parts")]
    assert states[0] == states[1]
    assert same_bits(found.network, wanted.network)
    serials = [json.loads((tmp_path / name / "checkpoint.json").read_text())["update"] for name in ("whole", "parts")]
    assert serials == [6, 6]


def test_generators_of_the_user_are_left_as_they_were():
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    finetune(classifier(), None, DataLoader(labelled(), 8, shuffle=True, generator=generator), None, config(epochs=1))
    assert torch.equal(generator.get_state(), before)


def test_a_part_of_the_data_is_told_the_epoch():
    told = []

    class Told(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    batches = Told(zip(images().split(8), labelled().tensors[1].split(8), strict=True))
    finetune(classifier(), None, batches, None, config(epochs=2))
    assert {0, 1} == set(told)
