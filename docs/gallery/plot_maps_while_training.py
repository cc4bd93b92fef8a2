"""
Maps while a model learns
=========================

Where does a model look before it can read, and when does that change? The same image is explained again and again in
the training loop, so that you see the evidence move.
"""

# %%
# Circles, squares, crosses and others
# ------------------------------------
#
# An image shows two of five shapes, in any colour. A small Vision Transformer learns to say which.

from functools import partial

import matplotlib.pyplot as plt
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from captum_ext import TokenAblation, signed_overlay

torch.manual_seed(0)
SIDE, SHAPE, NAMES = 48, 16, ["circle", "square", "cross", "ring", "bars"]
y, x = torch.meshgrid(*[torch.linspace(-1, 1, SHAPE)] * 2, indexing="ij")
radius = (x**2 + y**2).sqrt()
cross, ring, bars = (x.abs() < 0.3) | (y.abs() < 0.3), (radius < 0.95) & (radius > 0.5), (2.5 * x).round() % 2 == 0
stencils = torch.stack([radius < 0.95, radius > -1, cross, ring, bars]).float()
corners = torch.tensor([(row, column) for row in (0, 16, 32) for column in (0, 16, 32)])


def pictures(count):
    """Images of two shapes, which shapes (count, 2), and the corners where they are."""
    images = 0.5 + 0.1 * torch.randn(count, 3, SIDE, SIDE)
    shapes = torch.rand(count, 5).argsort(1)[:, :2]
    places = corners[torch.rand(count, len(corners)).argsort(1)[:, :2]]
    for image, pair, both in zip(images, shapes, places.tolist(), strict=True):
        for shape, (top, left) in zip(pair, both, strict=True):
            part = image[:, top : top + SHAPE, left : left + SHAPE]
            paint = 0.3 * torch.rand(3, 1, 1) + 0.7 * torch.rand(1).round()  # bright or dark
            part += stencils[shape] * (paint - part)
    return images.clamp(0, 1), shapes, places


stem = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.GELU()),
    *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.GELU()),
)
sizes = {"img_size": SIDE, "patch_size": 2, "embed_dim": 64, "depth": 1, "num_heads": 4}
model = VisionTransformer(**sizes, num_classes=5, embed_layer=partial(HybridEmbed, backbone=stem))
test, shapes, places = pictures(100)
grid = torch.zeros(2, 100, 6, 6)  # where both shapes of each image are
for slot in range(2):
    for number, (top, left) in enumerate((places[:, slot] // 8).tolist()):
        grid[slot, number, top : top + 2, left : left + 2] = 1

# %%
# Explain in the loop
# -------------------
#
# ``TokenAblation`` says what the logit loses without a patch in the last attention, exactly and in about one pass.
# Like all explainers it runs the model in evaluation mode and puts its mode back, and it touches neither weights nor
# gradients, so that it can be called anywhere in a training loop.


def watched(step):
    """The first image's map, the accuracy, and which part of what is on both shapes is on the one asked for."""
    maps = TokenAblation(model).attribute(test, target=shapes[:, 0])[:, 0]
    with torch.no_grad():
        best = model.eval()(test).topk(2).indices
    right = float((best.sort().values == shapes.sort().values).all(1).float().mean())
    on, off = ((maps.clamp(min=0) * one).sum((1, 2)) for one in grid)
    share = float((on / (on + off)).nanmean())
    print(f"step {step}: {right:.2f} of images named rightly, {share:.2f} of the relevance on the shape asked for")
    return step, maps[0], right, share


history = [watched(0)]
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
for step in range(1, 106):
    images, shown, _ = pictures(32)
    loss = F.binary_cross_entropy_with_logits(model.train()(images), F.one_hot(shown, 5).sum(1).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 15 == 0:
        history.append(watched(step))

# %%
# The film
# --------
#
# Each map has a colour scale of its own, as logits grow during training.

figure = plt.figure(figsize=(7.5, 6.4), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
for axis, (step, heat, _, _) in zip(above.subplots(2, 4).flat, history, strict=True):
    axis.imshow(signed_overlay(0.4 + 0.6 * test[0], heat))
    axis.set_title(f"step {step}", fontsize=12)
    axis.set_axis_off()
above.suptitle(f"Why “{NAMES[shapes[0, 0]]}”?", fontsize=13)
steps, _, right, shares = zip(*history, strict=True)
axis = below.subplots()
axis.plot(steps, right, "o-", color="tab:blue", label="images named rightly (chance 0.1)")
axis.plot(steps, shares, "s--", color="tab:orange", label="relevance on the shape asked for (chance 0.5)")
axis.set_xlabel("training step", fontsize=12)
axis.set_ylim(0, 1.03)
axis.legend(fontsize=11, loc="lower right")
axis.grid(alpha=0.3)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A map in the loop shows what the accuracy does not: from where an answer is read. With ``transformers.Trainer``,
# draw the same maps in the ``on_evaluate`` of a ``TrainerCallback``. A map of an untrained model explains nothing,
# though it may look like an explanation. And a share near that of chance late in the training is a reason to look
# closer, not a proof that the model is wrong.
