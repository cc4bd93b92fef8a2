"""
Attention in place of average pooling
=====================================

A convolutional network averages its last map, so that every place counts the same. ``CAStream`` lets a learned query
find the places that matter, on the frozen network: the class is then read from where the query looks. Its attention
is a map that costs nothing, set here beside a CAM of the same network.
"""

# %%
# A network that averages
# -----------------------
#
# Four convolutions learn scenes of one handwritten digit, in seconds.

import matplotlib.pyplot as plt
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from adapters import CAStream
from captum_ext import RawAttention
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
BATCH, BATCHES = 32, 32
train, test = make_scenes(BATCH * BATCHES, "train", digits=1, seed=0), make_scenes(200, "test", digits=1, seed=1)


def block(entering, channels, stride=2):
    """A convolution, halving the image if the stride is 2."""
    return nn.Sequential(nn.Conv2d(entering, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())


stages = nn.Sequential(block(1, 24), block(24, 48), block(48, 96), block(96, 96, 1))
network = nn.Sequential(stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def fit(model, epochs, rate):
    """Train what requires gradients; the share of test scenes that is named rightly."""
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=BATCHES)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.images)).split(BATCH):
            loss = F.cross_entropy(model.train()(train.images[rows]), train.labels[rows, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((model.eval()(test.images).argmax(1) == test.labels[:, 0]).float().mean())


images, labels, boxes = test.images, test.labels[:, 0], test.mask(0)[:, 0]
targets = [ClassifierOutputTarget(int(label)) for label in labels]


def cam(model, layer):
    """Grad-CAM's maps (scenes, 48, 48), each for the digit that is there."""
    with GradCAM(model, [layer]) as explain:
        return torch.from_numpy(explain(images, targets))


print(f"average pooling: {fit(network, 6, 1e-2):.1%} of test scenes")
averaged = cam(network, stages[-1])

# %%
# The same network, pooled by attention
# -------------------------------------
#
# Only the query and a linear map for each stage are learned; the network stays as it is.

stream = CAStream(network)
learned = sum(weight.numel() for weight in stream.parameters() if weight.requires_grad)
print(f"{learned} of {sum(weight.numel() for weight in stream.parameters())} weights are learned")
print(f"attention pooling: {fit(stream, 4, 1e-2):.1%} of test scenes")

# %%
# Raw attention and Grad-CAM
# --------------------------
#
# The raw attention comes with the forward pass and is one map for all classes. Grad-CAM asks for a class.


attention = F.interpolate(RawAttention(stream).attribute(images), images.shape[-2:], mode="bilinear")[:, 0].detach()
maps = {
    "Grad-CAM, average": averaged,
    "Grad-CAM, stream": cam(stream, stream.backbone[0][-1]),
    "raw attention": attention,
}
shares = {name: (heat * boxes).sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9) for name, heat in maps.items()}
for name, share in shares.items():
    print(
        f"{name}: {share.mean():.2f} of the map is in the digit's box, which has {boxes.float().mean():.2f} of the area"
    )

figure, axes = plt.subplots(3, 4, figsize=(7, 5.6), layout="constrained")
for row, (name, heat) in zip(axes, maps.items(), strict=True):
    for number, axis in enumerate(row):
        axis.imshow(1 - images[number, 0].clamp(0, 1), cmap="gray")
        axis.imshow(heat[number], cmap="cividis", alpha=0.65)
        axis.set_title(f"{shares[name][number]:.2f} in the box", fontsize=12)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name, fontsize=12)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The classifier of the stream reads the digit from where the query looks, so its attention is a part of the model and
# not a guess about it. It has no sign and no class: if the scene had two digits, it could not say which belongs to
# which answer. Here it has less in the box than both CAMs. A share in the box says where a map is, not whether it is
# faithful. A few epochs on tiny scenes are no benchmark; the page on CA-Stream has tables with seeds, on which the
# stream's maps are not always better.
