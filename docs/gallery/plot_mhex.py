"""
Maps from one pass: gates and heads
===================================

``MHEX`` puts a gate and a classifier at each residual addition of a network. Each block then predicts the class
itself, and the product of its two weight matrices says what each channel contributes to each class: a map for any
class from one forward pass, without gradients.
"""

# %%
# A ResNet with MHEX
# ------------------
#
# The network learns scenes of one handwritten digit, by the losses of all of its blocks.

import matplotlib.pyplot as plt
import torch
from timm.models.resnet import BasicBlock, ResNet

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXCAM, signed_overlay
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
train, test = make_scenes(1024, "train", digits=1, seed=0), make_scenes(200, "test", digits=1, seed=1)
sizes = {"channels": (16, 32, 64, 96), "stem_type": "deep", "stem_width": 8, "output_stride": 8}
network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10, in_chans=1, **sizes)
model = MHEX(network, num_classes=10)
EPOCHS, BATCH, BATCHES = 5, 32, 32
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=EPOCHS, steps_per_epoch=BATCHES)
for _ in range(EPOCHS):
    for rows in torch.randperm(len(train.images)).split(BATCH):
        loss = deep_supervision_loss(model.train().deep_forward(train.images[rows]), train.labels[rows, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

model.eval()
with torch.no_grad():
    for name, logits in zip(model.names, model.deep_forward(test.images), strict=True):
        right = (logits.argmax(1) == test.labels[:, 0]).float().mean()
        print(f"{name}: {right:.1%} of test scenes named by its own head")

# %%
# What each block says
# --------------------
#
# ``MHEXCAM`` adds the maps of all blocks, later ones with more weight. With a tiny ``alpha`` only the last block is
# left.

images, labels, boxes = test.images, test.labels[:, 0], test.mask(0)
maps = {
    "all blocks": MHEXCAM(model).attribute(images, target=labels),
    "last block": MHEXCAM(model).attribute(images, target=labels, alpha=1e-6),
}
other = MHEXCAM(model).attribute(images, target=(labels + 1) % 10)
shares = {}
for name, heat in maps.items():
    positive = heat.clamp(min=0)
    shares[name] = (positive * boxes).sum((1, 2, 3)) / positive.sum((1, 2, 3)).clamp(min=1e-9)
    print(
        f"{name}: {shares[name].mean():.2f} of the positive evidence is in the digit's box, "
        f"which has {boxes.float().mean():.2f} of the area"
    )

rows = {
    "for its class,\nall blocks": maps["all blocks"],
    "last block\nalone": maps["last block"],
    "for the next\ndigit": other,
}
figure, axes = plt.subplots(3, 4, figsize=(7, 5.4), layout="constrained")
for line, (name, heat) in zip(axes, rows.items(), strict=True):
    for number, axis in enumerate(line):
        axis.imshow(signed_overlay(1 - 0.5 * images[number].clamp(0, 1), heat[number, 0]))
        asked = int(labels[number]) if "next" not in name else int(labels[number] + 1) % 10
        axis.set_title(f"why {asked}?", fontsize=12)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name, fontsize=12)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The heads are part of the trained network, so a map is read off and not computed afterwards. That costs a training
# with heads at each block, and the first blocks, which see little of the image, name few digits, as the list above
# shows; their evidence is in the sum all the same. Each map is on its own colour scale. A share in the box says where
# evidence is, not that it is right: a deep block sees more of the image than the place that it marks.
