"""A segmentation network is compressed and tuned by the same calls."""

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import depthcomp
from depthcomp import FinetuneConfig, compress_depth

pytestmark = pytest.mark.whole


class SmallUNet(nn.Module):
    """One step down and one up, with a skip: scores of three classes for each pixel."""

    def __init__(self):
        super().__init__()
        self.one, self.two = self.block(1, 8), self.block(8, 12)
        self.up, self.last = nn.ConvTranspose2d(12, 8, 2, stride=2), self.block(16, 8)
        self.head = nn.Conv2d(8, 3, 1)

    @staticmethod
    def block(inputs, outputs):
        convolutions = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        return nn.Sequential(*(part for conv in convolutions for part in (conv, nn.BatchNorm2d(outputs), nn.ReLU())))

    def forward(self, x):
        skip = self.one(x)
        low = self.two(F.max_pool2d(skip, 2))
        return self.head(self.last(torch.cat([skip, self.up(low)], 1)))


def shapes(count, seed):
    """Return noisy pictures of bright and dark squares, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    pictures, masks = 0.3 * torch.randn(count, 1, 16, 16, generator=generator), torch.zeros(count, 16, 16).long()
    for picture, mask in zip(pictures, masks, strict=True):
        for kind in (1, 2):
            top, left = torch.randint(0, 10, (2,), generator=generator).tolist()
            mask[top : top + 6, left : left + 6] = kind
        picture[0] += (mask == 1).float() - (mask == 2).float()
    return pictures, masks


def pixel_loss(student, teacher, batch):
    pictures, masks = batch
    found = student(pictures)
    with torch.no_grad():
        wanted = teacher(pictures).log_softmax(1)
    return (
        F.cross_entropy(found, masks)
        + F.kl_div(found.log_softmax(1), wanted, log_target=True, reduction="none").sum(1).mean()
    )


def test_a_segmentation_network_goes_through_the_same_calls(arithmetic_backend, tmp_path):
    torch.manual_seed(0)
    net, (pictures, masks) = SmallUNet(), shapes(64, 0)
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for step in range(40):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        optimizer.zero_grad()
        F.cross_entropy(net(pictures[part]), masks[part]).backward()
        optimizer.step()
    result = compress_depth(
        net.eval(), "70%", data=list(zip(pictures.split(16), masks.split(16), strict=True)), val_data=[shapes(24, 1)],
        backend=arithmetic_backend(), output_dir=tmp_path, finetune=FinetuneConfig(epochs=4, loss=pixel_loss),
    )  # fmt: skip
    assert result.measured_ms <= result.budget_ms
    assert result.depth < result.original_depth
    assert result.finetuned.loss_after < result.finetuned.loss_before
    x, wanted = shapes(8, 2)
    with torch.no_grad():
        found, original = depthcomp.load(tmp_path)(x), net(x)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
    assert torch.allclose(torch.from_numpy(exported), found[:1], atol=1e-4)
    right, before = (float((scores.argmax(1) == wanted).float().mean()) for scores in (found, original))
    assert right > before - 0.05
