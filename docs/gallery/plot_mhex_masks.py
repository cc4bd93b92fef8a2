"""
Maps of a mask: what speaks for one object
==========================================

A network that segments predicts a class at each pixel, so a map can be asked for a class everywhere, for one object, or
for one pixel. With ``MHEX`` each of these is read off in one forward pass, without gradients.
"""

# %%
# Discs and rings
# ---------------
#
# Grey discs and rings on noise: classes 1 and 2 of the masks, 0 is the paper.

import matplotlib.pyplot as plt
import torch
from monai.networks.nets import UNet
from scipy import ndimage

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXCAM, signed_overlay

torch.manual_seed(0)
SIDE = 64


def pictures(count):
    """Images (count, 1, side, side) with four objects each, and their masks (count, side, side)."""
    images, masks = 0.15 * torch.randn(count, 1, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for image, mask in zip(images, masks, strict=True):
        for number in range(4):
            kind, size = int(torch.randint(1, 3, ())), torch.randint(7, 12, ())
            left, top = (16 + 32 * (number // part % 2) + int(torch.randint(-4, 5, ())) for part in (1, 2))
            far = ((x - left) ** 2 + (y - top) ** 2).sqrt()
            inside = (far <= size) & ((far > size - 3) | (kind == 1)) & (mask == 0)
            image[0][inside] += 0.6 + 0.3 * torch.rand(())
            mask[inside] = kind
    return images, masks


images, masks = pictures(512)
test, truth = pictures(32)

# %%
# A U-Net with MHEX
# -----------------
#
# The U-Net of MONAI learns the masks and is frozen. ``gate=False, prediction="original"`` leaves it as it is: at its
# additions and skips MHEX adds heads, each of which learns to predict the mask at its own resolution.

network = UNet(
    spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="batch"
)


def learn(model, outputs, steps):
    """Steps of AdamW on the mean loss of all masks that the model predicts."""
    learned = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        rows = torch.arange(16 * step, 16 * step + 16) % len(images)
        loss = deep_supervision_loss(outputs(images[rows]), masks[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


learn(network.train(), lambda x: [network(x)], 160)
model = MHEX(network.eval().requires_grad_(False), task="segmentation", gate=False, prediction="original")
learn(model, model.deep_forward, 64)


def overlap(logits):
    """The intersection over union of discs and of rings."""
    found = logits.argmax(1)
    return [float(((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum()) for c in (1, 2)]


with torch.no_grad():
    predicted = model.eval()(test).argmax(1)
    print("the network: discs {:.2f}, rings {:.2f}".format(*overlap(model(test))))
    for name, logits in zip(model.names, model.deep_forward(test), strict=True):
        whole = torch.nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear")
        print("head of {}: discs {:.2f}, rings {:.2f}".format(name or "the network", *overlap(whole)))

# %%
# A class, one object, one pixel
# ------------------------------
#
# The target is a class, or a class and a region of booleans, or a class, a row and a column.

image, mask = test[:1], predicted[0]
objects, count = ndimage.label(mask == 1)
one = torch.from_numpy(objects == 1 + int(torch.bincount(torch.from_numpy(objects[objects > 0])).argmax() - 1))
row, column = (int(places.float().median()) for places in one.nonzero(as_tuple=True))
explain = MHEXCAM(model).attribute
maps = {
    "discs, everywhere": explain(image, target=1),
    "rings, everywhere": explain(image, target=2),
    "one disc": explain(image, target=(1, one)),
    "one pixel of it": explain(image, target=(1, row, column)),
}
inside = float(maps["one disc"][0, 0][one].clamp(min=0).sum() / maps["one disc"].clamp(min=0).sum())
area = float(one.float().mean())
print(f"{inside:.0%} of the positive evidence for the one disc is inside it, which has {area:.0%} of the area")

figure, axes = plt.subplots(1, 5, figsize=(10, 2.6), layout="constrained")
grey = 1 - image[0].clamp(0, 1)
axes[0].imshow(grey[0], cmap="gray", vmin=0, vmax=1)
axes[0].set_title("picture", fontsize=12)
for axis, (name, heat) in zip(axes[1:], maps.items(), strict=True):
    axis.imshow(signed_overlay(0.5 + 0.5 * grey, heat[0, 0]))
    axis.set_title(name, fontsize=12)
for axis in axes:
    axis.set_axis_off()
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The map of a region holds what the heads read there, and needs no gradient. It is made of the masks of all blocks, and
# the list shows that those of shallow ones are poor: they see too little, and take the rim of a disc for a ring. The
# network itself is as good as before, since it was frozen; if it learns on with gates, its masks get worse: the page on
# MHEX of masks has numbers for digits and blood cells.
