"""
Can this map be trusted?
========================

A map always looks like an explanation. ``check`` explains the same image again in other ways, with other seeds and
with random weights, and says in numbers and words what speaks against the map. This page checks four maps, one of
which explains nothing.
"""

# %%
# A scene and four maps
# ---------------------
#
# The scene shows two handwritten digits; the first of them is asked for, so that its box is the right place.

import textwrap

import matplotlib.pyplot as plt
import torch

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, check, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
model = digit_vit.load()
made = make_scenes(1, seed=1)
image, digit = made.images, int(made.labels[0, 0])


class Noise:
    """Random numbers with Captum's interface: the control that must fail."""

    forward_func = model

    def attribute(self, inputs, target=None, additional_forward_args=None):
        """Numbers that know neither the image nor the model."""
        return torch.randn(len(inputs), 1, 12, 12)


methods = {
    "Integrated CDAM": IntegratedCDAM(model),
    "CDAM": CDAM(model),
    "attention map": AttentionMap(model),
    "random numbers": Noise(),
}

# %%
# The checks
# ----------
#
# Each verdict comes with its reasons. ``print(trust)`` shows all of the numbers.

trusts = {name: check(method, image, digit) for name, method in methods.items()}
for name, trust in trusts.items():
    print(f"{name}: {trust}\n")

# %%
# Is the verdict worth anything? Here the right place is known, so the share of positive relevance in the digit's box
# can be set beside it.

inside = made.mask(0)[0, 0, 2::4, 2::4]
figure, axes = plt.subplots(2, 2, figsize=(7, 8.6), layout="constrained")
for axis, (name, method) in zip(axes.flat, methods.items(), strict=True):
    heat = method.attribute(image, target=digit)[0, 0]
    positive = heat.clamp(min=0)
    share = float(positive[inside].sum() / positive.sum())
    axis.imshow(signed_overlay(1 - 0.5 * image[0].clamp(0, 1), heat, 0.5 * float(heat.abs().max())))
    top, left = made.boxes[0, 0].tolist()
    axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), 16, 16, fill=False, linewidth=2))
    verdict, reasons = trusts[name].verdicts[0], trusts[name].reasons[0]
    words = textwrap.fill(reasons[0], 42) if reasons else "Nothing speaks against it."
    axis.set_title(f"{name}: {verdict}\n{share:.2f} in the box of the {digit}", fontsize=13)
    axis.set_xlabel(words, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The check finds maps that depend on no model, on no question, or on a seed alone. A map that passes can still be
# wrong: agreement is measured with the exact effects of tokens in the last attention, and what earlier layers moved
# from one patch to another stays unseen. That the attention map does not depend on the question is a fault only
# because a question was asked. One scene is an anecdote; the page on trust has the numbers of 100 maps.
