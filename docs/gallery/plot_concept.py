"""
A concept instead of a class
============================

The digit model has ten classes, and none of them means "has a closed loop". A handful of examples is enough to ask
for it all the same: ``ConceptTarget.from_examples`` averages what the model's head reads of them, and CDAM explains
how near an image is to that average.
"""

# %%
# Examples with the concept, and without
# --------------------------------------
#
# Single digits: 0, 6 and 8 have a loop, 1, 3 and 5 have none. The digits 9 (loop), 2, 4 and 7 (none) are kept for the
# test: whether the concept is more than the three digits it was made from is a question, not a given.

import matplotlib.pyplot as plt
import torch

from captum_ext import CDAM, ConceptTarget, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

model = digit_vit.load()
examples = make_scenes(300, "train", digits=1, seed=0)
classes = examples.labels[:, 0]
has_loop = torch.isin(classes, torch.tensor([0, 6, 8]))
has_none = torch.isin(classes, torch.tensor([1, 3, 5]))
looped = ConceptTarget.from_examples(model, examples.images[has_loop])
plain = ConceptTarget.from_examples(model, examples.images[has_none])

# %%
# The mean of examples also holds what all digits share, such as ink. The difference of both means does not.

loop = ConceptTarget(looped.vector - plain.vector, similarity="cosine", latent="head")
print(f"{int(has_loop.sum())} examples with a loop, {int(has_none.sum())} without; {loop}")

# %%
# Where is the loop?
# ------------------
#
# New scenes show two digits, one with a loop and one without. The map is right if its sum on the digit with the loop
# is larger than on the other one; a map that cannot tell is right in half of the scenes.


def measured(with_loop, without):
    """Scenes of one digit of each kind, their digits and maps, and in which scenes the map is right."""
    made = make_scenes(2000, "test", digits=2, seed=3)
    kinds = torch.isin(made.labels, torch.tensor(with_loop))
    others = torch.isin(made.labels, torch.tensor(without))
    chosen = (kinds.flip(1) & others).any(1).nonzero()[:100, 0]
    maps = CDAM(model).attribute(made.images[chosen], target=loop)[:, 0]
    sums = torch.stack([(maps * made.mask(slot)[chosen, 0, 2::4, 2::4]).sum((1, 2)) for slot in range(2)], 1)
    right = sums.argmax(1) == kinds[chosen].int().argmax(1)
    return made.images[chosen], made.labels[chosen], maps, right


known, new = measured([0, 6, 8], [1, 3, 5]), measured([9], [2, 4, 7])
print(f"digits of the examples: the map is right in {known[3].float().mean():.0%} of {len(known[3])} scenes")
print(f"9 beside 2, 4 or 7, which no example showed: in {new[3].float().mean():.0%} of {len(new[3])}")

# %%
# The first scenes of both kinds, as they come.

figure, axes = plt.subplots(2, 4, figsize=(7.5, 4.4), layout="constrained")
for row, (images, labels, maps, right) in zip(axes, (known, new), strict=True):
    for number, axis in enumerate(row):
        axis.imshow(signed_overlay(1 - 0.5 * images[number].clamp(0, 1), maps[number]))
        axis.set_title(
            f"{labels[number, 0]} and {labels[number, 1]}: {'right' if right[number] else 'wrong'}", fontsize=12
        )
        axis.set_xticks([])
        axis.set_yticks([])
axes[0, 0].set_ylabel("digits of examples", fontsize=12)
axes[1, 0].set_ylabel("other digits", fontsize=12)
figure.suptitle("“Has a loop”: red for it, blue against it", fontsize=13)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A concept needs examples and no training, and its maps are those of a class: signed, from one pass. The second
# number above is the test of the concept: the farther it is below the first, the more the vector means "one of the
# digits 0, 6, 8" rather than "loop". A concept made of examples means whatever the examples share in the eyes of the
# model, as here also what sets 1, 3 and 5 apart; always try it on things that the examples did not contain.
