"""Which batches there are, without reading more than that takes, and which are set apart to validate on."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler
from tuning import classifier, config, images, labelled

from depthcomp.errors import DataError
from depthcomp.training.finetune import finetune
from depthcomp.training.processes import Processes
from depthcomp.training.sources import sources

HERE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("options", [{"replacement": True}, {"num_samples": 16}])
def test_data_that_are_drawn_in_parts_cannot_be_split(options):
    loader = DataLoader(labelled(), 8, sampler=RandomSampler(labelled(), **options))
    with pytest.raises(DataError, match=r"drawn by a RandomSampler that does not take each image once.*pass val_data"):
        sources(loader, None, config(), HERE)
    assert len(sources(loader, labelled(16, 2), config(), HERE)[0]) == len(loader)


@pytest.mark.parametrize("batch", [4, 9])
def test_every_image_judges_however_many_processes_share_it(batch):
    judging = [
        sources(labelled(), DataLoader(labelled(11), batch), config(), Processes(rank, 8, HERE.device))[1]
        for rank in range(8)
    ]
    shares = [[item.images.held for item in source.epoch(0)] for source in judging]
    assert {len(source) for source in judging} == {-(-11 // batch)}
    found = torch.cat([torch.cat(share) for share in shares])
    wanted = {image.sum().item() for image in images(11)}
    assert len(found) == 11
    assert {image.sum().item() for image in found} == wanted


class Told:
    """Batches that tell how many they are; `read` counts those that were taken."""

    def __init__(self, *sizes):
        self.sizes, self.read = sizes, 0

    def __len__(self):
        return len(self.sizes)

    def __iter__(self):
        for size in self.sizes:
            self.read += 1
            yield labelled(size).tensors


@pytest.mark.parametrize("count", [2, 21, 22])
def test_data_that_tell_their_length_are_not_read_to_count(count):
    data = Told(*[8] * count)
    parts = sources(data, None, config(), HERE)
    lengths = [len(part) for part in parts]
    assert data.read == 0
    assert lengths == [sum(1 for _ in part.epoch(0)) for part in parts]
    assert sum(lengths) == count


def test_what_is_passed_over_is_not_missed():
    found = finetune(classifier(), None, Told(8, 1, 8, 8, 1), labelled(16, 2), config(epochs=2))
    assert found.record.updates == 6
    with pytest.raises(DataError, match="data holds no batch of 2 images or more"):
        finetune(classifier(), None, Told(1, 1), labelled(16, 2), config(epochs=1))
