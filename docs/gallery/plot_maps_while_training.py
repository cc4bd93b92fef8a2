"""
Maps while a model learns
=========================

Where does a model look before it can read, and when does that change? The same image is explained after each epoch, in
the training loop. The evidence often moves to the right place well before the accuracy is at its end, or never does.
"""

# %%
# A Vision Transformer from random weights
# ----------------------------------------
#
# It learns scenes of one handwritten digit. `build` makes the architecture of the bundled digit model.

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from captum_ext import CDAM, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
train, test = make_scenes(2000, "train", digits=1, seed=0), make_scenes(100, "test", digits=1, seed=1)
labels, boxes = test.labels[:, 0], test.mask(0)[:, 0, 2::4, 2::4]
model = digit_vit.build()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

# %%
# Explain in the loop
# -------------------
#
# CDAM runs the model in evaluation mode, puts its mode back, and touches neither its weights nor their gradients, so
# it can be called anywhere in a training loop.


def watched(epoch):
    """The first image's map, the accuracy, and the share of positive relevance in the digit's box."""
    maps = CDAM(model).attribute(test.images, target=labels)[:, 0]
    with torch.no_grad():
        accuracy = (model.eval()(test.images).argmax(1) == labels).float().mean()
    positive = maps.clamp(min=0)
    share = ((positive * boxes).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-9)).mean()
    print(f"epoch {epoch}: accuracy {accuracy:.2f}, share in the box {share:.2f} (by chance {boxes.float().mean():.2f})")
    return maps[0], float(accuracy), float(share)


history = [watched(0)]
for epoch in range(1, 8):
    for rows in torch.randperm(len(train.images)).split(50):
        loss = F.cross_entropy(model.train()(train.images[rows]), train.labels[rows, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    history.append(watched(epoch))

# %%
# The film
# --------
#
# Each map has a colour scale of its own, as logits grow during training.

figure = plt.figure(figsize=(7.5, 6.2), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
for epoch, axis in enumerate(above.subplots(2, 4).flat):
    axis.imshow(signed_overlay(1 - 0.5 * test.images[0].clamp(0, 1), history[epoch][0]))
    axis.set_title(f"epoch {epoch}", fontsize=12)
    axis.set_axis_off()
axis = below.subplots()
axis.plot([one[1] for one in history], "o-", color="tab:blue", label="accuracy")
axis.plot([one[2] for one in history], "s--", color="tab:orange", label="share of the map in the digit's box")
axis.set_xlabel("epoch", fontsize=12)
axis.set_ylim(0, 1)
axis.legend(fontsize=11)
axis.grid(alpha=0.3)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A map in the loop shows what the accuracy does not: whether what is learned is read from the digit. With
# `transformers.Trainer` a `TrainerCallback` whose `on_evaluate` draws the same maps does it. A map of an untrained model
# is no explanation of anything, but it shows what the architecture prefers; and a share near that of chance late in the
# training is a reason to look closer, not a proof that the model is wrong.
