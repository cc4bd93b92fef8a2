"""
From Captum
===========

A script that explains a Vision Transformer with Captum's layer attribution: you name the layer, drop the class token
and fold the patches into a grid. Below it the same map by `CDAM`, which finds all three by running the model.
"""

import torch
from captum.attr import LayerGradientXActivation

from captum_ext import CDAM, ContrastTarget, IntegratedCDAM, overlay_figure
from xai_compare import digit_scenes, digit_vit

model = digit_vit.load()  # a Vision Transformer of timm; any model of yours
scene = digit_scenes.make_scenes(1, digits=2, seed=3)
images = scene.images
left, right = scene.labels[0].tolist()

# %%
# Before
# ------
# The layer, the number of prefix tokens and the shape of the grid are yours to know, for each model.

layer = LayerGradientXActivation(model, model.blocks[-1].norm1)
tokens = layer.attribute(images, target=left).sum(-1)  # (1, 1 + patches)
side = model.patch_embed.grid_size[0]
before = tokens[:, 1:].reshape(1, 1, side, side)

# %%
# After
# -----
# The arguments of `attribute` are Captum's, under Captum's names.

after = CDAM(model).attribute(images, target=left)

torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
print("largest difference:", (after - before).abs().max().item())

# %%
# What you gain
# -------------
# Several targets from one pass, one class against another, and integrated gradients from baseline *tokens*, which
# `LayerIntegratedGradients` cannot express: its baselines are images.

maps = CDAM(model).attribute_targets(images, [left, right, ContrastTarget(left, right)])[0]
integrated, delta = IntegratedCDAM(model).attribute(images, target=left, return_convergence_delta=True)
print("convergence delta of Integrated CDAM:", delta.item())

titles = (f"CDAM, {left}", f"CDAM, {right}", f"CDAM, {left}, not {right}")
named = dict(zip(titles, maps, strict=True)) | {f"Integrated CDAM, {left}": integrated[0, 0]}
figure = overlay_figure(images.clamp(0, 1), named)
figure
