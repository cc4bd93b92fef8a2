"""
Your own model, method and metric
=================================

``compare`` takes any model of yours, any function that explains, and any metric of Quantus. This page writes one of
each: a network, a method that slides a grey square over the image, and a metric that asks whether a map lies on the
mask.
"""

# %%
# A model
# -------
#
# Any module from images to logits will do. This one sees which of two patterns is there, stripes or dots, somewhere
# in noise; where it is, is the mask.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import quantus
import torch
from torch import nn
from torch.nn import functional as F

from captum_ext import signed_overlay
from xai_compare import compare

torch.manual_seed(0)
PATTERN = 12
grid = torch.arange(PATTERN)
stripes = (grid // 2 % 2).float().expand(PATTERN, PATTERN)
dots = ((grid[:, None] // 2 + grid // 2) % 2).float()


def pictures(count):
    """Images (count, 1, 32, 32), classes, and masks of where the pattern is."""
    images, masks = 0.5 + 0.15 * torch.randn(count, 1, 32, 32), torch.zeros(count, 1, 32, 32)
    labels, corners = torch.randint(2, (count,)), torch.randint(32 - PATTERN, (count, 2)).tolist()
    for number, (top, left) in enumerate(corners):
        where = (number, 0, slice(top, top + PATTERN), slice(left, left + PATTERN))
        images[where] = 0.7 * (stripes, dots)[labels[number]] + 0.3 * images[where]
        masks[where] = 1
    return images.clamp(0, 1), labels, masks


features = [nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
model = nn.Sequential(*features, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(150):
    images, labels, _ = pictures(32)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
images, labels, masks = pictures(16)
print(f"{(model(images).argmax(1) == labels).float().mean():.0%} of new images are named rightly")

# %%
# A method
# --------
#
# A class with ``attribute(inputs, target)``, as Captum's are: made with the model, called with images and classes.


class GreySquare:
    """What the logit loses under a grey square, which slides over the image."""

    def __init__(self, model, size=8, step=4):
        self.model, self.size, self.step = model, size, step

    @torch.no_grad()
    def attribute(self, inputs, target):
        """(batch, 1, height, width), the mean loss over the squares that cover a pixel."""
        before, maps, counts = self._logits(inputs, target), torch.zeros_like(inputs), torch.zeros_like(inputs)
        for top in range(0, inputs.shape[2] - self.size + 1, self.step):
            for left in range(0, inputs.shape[3] - self.size + 1, self.step):
                where = (slice(None), slice(None), slice(top, top + self.size), slice(left, left + self.size))
                covered = inputs.clone()
                covered[where] = 0.5
                maps[where] += (before - self._logits(covered, target)).view(-1, 1, 1, 1)
                counts[where] += 1
        return maps / counts

    def _logits(self, inputs, target):
        return self.model(inputs).gather(1, torch.as_tensor(target)[:, None])[:, 0]


# %%
# A metric
# --------
#
# A class of Quantus, here made from its pointing game, whose arguments it keeps. ``evaluate_batch`` gets maps and
# masks, and returns a number for each sample.


class TopInside(quantus.PointingGame):
    """The share of the 5 % highest pixels that lie on the mask."""

    name = "Top Inside"

    def evaluate_batch(self, a_batch, s_batch, **_):
        """Scores of maps and masks (batch, 1, height, width)."""
        flat, masks = a_batch.reshape(len(a_batch), -1), s_batch.reshape(len(a_batch), -1)
        top = np.argsort(flat, axis=1)[:, -flat.shape[1] // 20 :]
        return np.take_along_axis(masks, top, axis=1).mean(1).tolist()


# %%
# All three together
# ------------------

data = [
    {"image": image, "label": int(label), "mask": mask}
    for image, label, mask in zip(images, labels, masks, strict=True)
]
results = compare(
    model,
    data,
    out=tempfile.mkdtemp() + "/run",
    methods={
        "grey square": GreySquare,
        "smaller square": lambda model: GreySquare(model, 4, 2),
        "saliency": "saliency",
        "random": "random",
    },
    metrics={"top inside": TopInside(disable_warnings=True)},
    targets="label",
    resamples=200,
    gallery=0,
)
summary = results.summary()
print(summary[["method", "mean", "ci_low", "ci_high"]].round(2).to_string(index=False))

figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), layout="constrained")
for number, axis in enumerate(axes):
    heat = GreySquare(model).attribute(images, labels)[number, 0]
    axis.imshow(signed_overlay(0.3 + 0.7 * images[number], heat))
    axis.contour(masks[number, 0], [0.5], colors="black", linewidths=2)
    axis.set_title(f"{('stripes', 'dots')[int(labels[number])]}", fontsize=13)
    axis.set_axis_off()
figure.suptitle("The method of this page; the line is the mask", fontsize=13)
plt.show()

# %%
# On the command line
# -------------------
#
# A package of yours offers both by entry points, in its ``pyproject.toml``, and ``xai-compare --list`` shows them:
#
# .. code-block:: toml
#
#     [project.entry-points."xai_compare.methods"]
#     grey-square = "my_package:GreySquare"
#     [project.entry-points."xai_compare.metrics"]
#     top-inside = "my_package:TopInside"
#
# A model needs no package: ``--model python:my_file.py:make_model`` calls a function of a file.
#
# What this shows, and what it does not
# -------------------------------------
#
# What you bring is treated as what is built in: tried on one sample before the work, resumable, and tested against
# the others. The numbers are of one small network and sixteen images. That a map lies on the mask is not what the
# model used: here we know that nothing else tells the classes apart, on photographs we do not.
