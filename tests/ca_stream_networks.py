"""Small networks for CA-Stream, and the stream by its formulas."""

import copy
import functools
import math

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from adapters import CAStream

CLASSES = 7


class Custom(nn.Module):
    """A small network of this file: convolutions a, b and c, then an average taken by any expression."""

    def __init__(self, pool, relu=F.relu, gate=None):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 5, 3, 2), nn.Conv2d(5, 8, 3)
        self.norm, self.gate, self.fc = nn.BatchNorm2d(5), gate or nn.Identity(), nn.Linear(8, CLASSES)
        self.pool, self.relu = pool, relu

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.relu(self.norm(self.b(x)))
        x = self.gate(self.c(x))
        return self.fc(self.pool(x).flatten(1))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width=8):
        super().__init__()
        self.fc = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


def randomised(model, size, seed=0, channels=3):
    """Weights and statistics at random, so that no term of a formula is zero or one, and images differ in logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(normal(parameter) * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.2 * normal(parameter))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.randn(4, channels, *size, generator=generator, dtype=torch.float64))
        for norm in norms:
            norm.running_mean += 0.2 * normal(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= 1 + 0.5 * torch.rand(norm.running_var.shape, generator=generator)
    return model.eval()


def derived_stream(stream, maps, queries):
    """Equations 4, 6, 10 and 11, image by image and with the keys and values of every position."""
    attentions, out = [[] for _ in maps], []
    for i, query in enumerate(queries):
        q = query
        for level, feature in enumerate(maps):
            keys = values = feature[i]
            if len(stream.keys):
                keys = keys @ stream.keys[level].weight.T + stream.keys[level].bias
                values = values @ stream.values[level].weight.T + stream.values[level].bias
            scores = (keys * q).sum(1) / math.sqrt(keys.shape[1])
            weights = (scores - scores.max()).exp()
            weights = weights / weights.sum()
            attentions[level].append(weights)
            mean = (weights[:, None] * values).sum(0)
            q = stream.projections[level].weight @ mean + stream.projections[level].bias
        out.append(q)
    return torch.stack(out), [torch.stack(a) for a in attentions]


STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4")
GAP = functools.partial(torch.mean, dim=(2, 3))


@functools.cache
def _resnet():
    torch.manual_seed(0)
    return randomised(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), (64, 96))


def resnet():
    return copy.deepcopy(_resnet())


def stream_on(model, **options):
    torch.manual_seed(2)
    return CAStream(model, **options).eval()


def images(count=2):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def small(**options):
    torch.manual_seed(0)
    return randomised(Custom(GAP, **options), (24, 32))
