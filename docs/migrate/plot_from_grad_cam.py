"""
From pytorch-grad-cam
=====================

A script that runs GradCAM on a Vision Transformer: you write a `reshape_transform` and choose `target_layers`. Below it
the same map with both found by running the model, and CDAM, which needs neither.
"""

import numpy as np
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from adapters import reshape_transform_for, target_layer_for
from captum_ext import CDAM, overlay_figure
from xai_compare import digit_scenes, digit_vit

model = digit_vit.load()  # a Vision Transformer of timm; any model of yours
scene = digit_scenes.make_scenes(1, digits=2, seed=3)
images = scene.images
left, right = scene.labels[0].tolist()
targets = [ClassifierOutputTarget(left)]

# %%
# Before
# ------


def reshape_transform(tokens):
    """The patches as a feature map: without the class token, on a grid whose side you know."""
    side = model.patch_embed.grid_size[0]
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


with GradCAM(model, [model.blocks[-1].norm1], reshape_transform) as cam:
    before = cam(images, targets)

# %%
# After
# -----

with GradCAM(model, [target_layer_for(model)], reshape_transform_for(model, images.shape[2:])) as cam:
    after = cam(images, targets)

np.testing.assert_allclose(after, before, atol=1e-6)
print("largest difference:", np.abs(after - before).max())

# %%
# What you gain
# -------------
# GradCAM cuts off what speaks against the class, and scales each map to [0, 1], so maps of two classes cannot be
# compared. CDAM keeps sign and unit, and costs one forward pass for both.

maps = CDAM(model).attribute_targets(images, [left, right])[0]
figure = overlay_figure(images.clamp(0, 1), {f"CDAM, {left}": maps[0], f"CDAM, {right}": maps[1]})
figure
