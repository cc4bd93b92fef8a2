"""Comparisons of data of all kinds on models that take no time."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import to_dtype, to_image

from xai_compare import compare

LABELS = ["cat", "dog", "fox"]


def net(channels=3, classes=3):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    return nn.Sequential(*layers).eval()


def plain(image):
    """Floats in which white is 1."""
    return to_dtype(to_image(image), torch.float32, scale=True)


def save(path, pixels=None, seed=0, size=(12, 12)):
    """A picture of random or given pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(random if pixels is None else pixels).save(path)
    return path


def compared(data, out, model=None, **settings):
    few = {"methods": ["ixg"], "metrics": ["compactness"], "gallery": 0, "resamples": 100}
    few |= {"transform": plain} if not isinstance(model, str) else {}
    return compare(net() if model is None else model, data, out=out, **(few | settings))


def targets(run):
    """The class that was explained of each sample, by its name."""
    return run.explanations().drop_duplicates("sample").set_index("name").target.to_dict()
