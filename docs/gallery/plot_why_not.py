"""
Why this class, and not that one
================================

"Why 3?" is often meant as "why 3 and not 8?". ``ContrastTarget`` explains the difference of two logits, and
``attribute_contrasts`` explains all pairs of classes from one forward pass.
"""

# %%
# A scene and its candidates
# --------------------------
#
# The bundled Vision Transformer reads scenes of real handwritten digits. This one shows three.

import matplotlib.pyplot as plt

from captum_ext import CDAM, ContrastTarget, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

model = digit_vit.load()
made = make_scenes(1, digits=3, seed=5)
image, digits = made.images, made.labels[0].tolist()
probabilities = model(image).softmax(1)[0]
print(f"shown: {digits}; the likeliest: {probabilities.topk(3).indices.tolist()}")

# %%
# One contrast
# ------------
#
# Red is what makes the first digit more likely than the second, blue what makes the second more likely. CDAM is
# linear in the score it explains, so the map is exactly the difference of the maps of both classes.

a, b = digits[:2]
contrast = CDAM(model).attribute(image, ContrastTarget(a, b))[0, 0]
one, other = CDAM(model).attribute_targets(image, [a, b])[0]
print(f"largest deviation from the difference of two maps: {(contrast - (one - other)).abs().max():.1e}")

# %%
# All pairs
# ---------
#
# In row ``a`` and column ``b`` stands why ``a`` and not ``b``. The diagonal shows why ``a``, without a comparison.

contrasts = CDAM(model).attribute_contrasts(image, digits)[0]  # (3, 3, 12, 12)
alone = CDAM(model).attribute_targets(image, digits)[0]  # (3, 12, 12)
inside = [made.mask(number)[0, 0, 2::4, 2::4] for number in range(3)]  # the boxes of the digits, on the map's grid

scale = 0.6 * float(contrasts.abs().max())  # beyond it the colour is full
paper = 1 - 0.5 * image[0].clamp(0, 1)  # grey ink on white paper, to see the colours over it
figure, axes = plt.subplots(3, 3, figsize=(6.5, 6.9), layout="constrained")
for row, a in enumerate(digits):
    for column, b in enumerate(digits):
        heat = alone[row] if row == column else contrasts[row, column]
        axes[row, column].imshow(signed_overlay(paper, heat, scale))
        axes[row, column].set_title(f"why {a}" if row == column else f"why {a}, not {b}", fontsize=13)
        axes[row, column].set_axis_off()
figure.suptitle("red: for the first digit   ·   blue: for the second, or against", fontsize=12)
plt.show()

# %%
# Does each contrast lie where it should? On the digit that it is for there should be more than on the digit that it
# is against, and the third should matter little.

for row, a in enumerate(digits):
    for column, b in enumerate(digits):
        if row < column:
            sums = {
                digit: float(contrasts[row, column][where].sum()) for digit, where in zip(digits, inside, strict=True)
            }
            print(f"why {a}, not {b}: " + ", ".join(f"{value:+.1f} on the {digit}" for digit, value in sums.items()))

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A contrast takes away what speaks for both classes alike, and what is left is what decides between them. It is a
# difference of logits, so it says nothing about a third class that may be likelier than both; `ContrastTarget(a, b,
# probabilities=True)` explains the difference of probabilities, which third classes do affect. As all maps of CDAM,
# this one is about the tokens that enter the last attention, which may have mixed before.
