"""Small networks of signals as people write them, and signals for them."""

import torch
from torch import nn
from torch.nn import functional as F


def _ready(net, shape):
    """Return a network in evaluation mode, its norms with the statistics of its own signals."""
    net.pretrained_cfg = {"input_size": shape}
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d)):
        norm.momentum = None
    with torch.no_grad():
        net.train()(signals(shape))
    return net.eval()


def signals(shape, count=24, seed=1):
    """Return random walks (count, *shape), as recordings are smooth."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    walks = noise.cumsum(-1)
    return (walks - walks.mean(-1, keepdim=True)) / walks.std()


def _layer(c_in, c_out, kernel, **options):
    conv = nn.Conv1d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm1d(c_out), nn.ReLU())


def audio():
    """A classifier of waveforms: a wide first kernel, pools, a global head."""
    torch.manual_seed(0)
    body = [_layer(1, 8, 41, stride=4), nn.MaxPool1d(4), _layer(8, 16, 3), _layer(16, 8, 3), nn.AvgPool1d(2)]
    head = [_layer(8, 12, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 5)]
    return _ready(nn.Sequential(*body, *head), (1, 400))


class _Block(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.layers = nn.Sequential(_layer(c_in, c_out, 7), _layer(c_out, c_out, 3))
        self.last, self.norm = nn.Conv1d(c_out, c_out, 3, padding=1), nn.BatchNorm1d(c_out)
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.down, self.up = nn.Linear(c_out, 4), nn.Linear(4, c_out)

    def forward(self, x):
        y = self.norm(self.last(self.layers(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(y.mean(-1)))))
        return F.relu(y * gate.unsqueeze(-1) + self.skip(x))


def series():
    """A residual classifier of time series with squeeze-and-excitation."""
    torch.manual_seed(1)
    blocks = [_Block(9, 16), _Block(16, 16)]
    return _ready(nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4)), (9, 64))


class _Wavenet(nn.Module):
    def __init__(self, channels=12, dilations=(1, 2, 4)):
        super().__init__()
        self.dilations, self.start = dilations, nn.Conv1d(1, channels, 1)
        filters = [[nn.Conv1d(channels, channels, 2, dilation=d) for d in dilations] for _ in "fg"]
        self.filters, self.gates = map(nn.ModuleList, filters)
        self.ends = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in dilations)
        layers = [_layer(channels, channels, 3), _layer(channels, channels, 1)]
        self.head = nn.Sequential(*layers, nn.Conv1d(channels, 6, 1))

    def forward(self, x):
        x, total = self.start(x), 0
        for dilation, signal, gate, end in zip(self.dilations, self.filters, self.gates, self.ends, strict=True):
            padded = F.pad(x, (dilation, 0))
            y = end(torch.tanh(signal(padded)) * torch.sigmoid(gate(padded)))
            x, total = x + y, total + y
        return self.head(total)


def wavenet():
    """A causal stack of dilated convolutions with gates; it returns scores at each time."""
    torch.manual_seed(2)
    return _ready(_Wavenet(), (1, 96))


def short():
    """Four convolutions in a row; compressions need few operators, and merging the two in the middle pays."""
    torch.manual_seed(0)
    sizes = [(2, 6, 3), (6, 24, 1), (24, 6, 1), (6, 8, 3)]
    layers = [layer for c_in, c_out, k in sizes for layer in (nn.Conv1d(c_in, c_out, k, padding=k // 2), nn.ReLU())]
    return _ready(nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)), (2, 400))


NETWORKS = {"audio": audio, "series": series, "wavenet": wavenet}
