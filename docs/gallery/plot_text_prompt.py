"""
A text as the question
======================

Models such as CLIP compare images with texts, and have no classes. ``TextTarget`` makes the similarity of an image to
a text the thing that is explained: which part of this image is "a seven"?
"""

# %%
# An image side that is locked
# ----------------------------
#
# A CLIP takes weeks to train. Here the image side is the bundled digit model without its head, which stays as it is,
# and only a text side is learned, until captions lie near their images (locked-image tuning, Zhai et al. 2022). With
# a CLIP or SigLIP of transformers you skip this: ``CDAM(clip.get_image_features)`` and `TextTarget(clip, processor,
# "a dog")`.

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from captum_ext import CDAM, TextTarget, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
image_side = digit_vit.load().requires_grad_(False)
image_side.reset_classifier(0)  # returns the embedding (images, 96)
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = ["a", "and", *DIGITS]


def tokenizer(texts):
    """(texts, words), how often each word is there: order does not matter to this text side."""
    numbers = [torch.tensor([WORDS.index(word) for word in text.split()]) for text in texts]
    return torch.stack([torch.bincount(one, minlength=len(WORDS)) for one in numbers]).float()


def captions(labels):
    """What might be written about scenes of two digits: both of them in either order, or one."""
    written = []
    for pair in labels[:, torch.randperm(2)].tolist():
        named = pair[: int(torch.randint(1, 3, ()))]
        written.append(" and ".join(f"a {DIGITS[digit]}" for digit in named))
    return written


# %%
# Images and texts of a batch are compared with each other, and each should be most alike to its own.

train, test = make_scenes(800, "train", seed=0), make_scenes(100, "test", seed=1)
with torch.no_grad():
    seen = torch.cat([image_side(part) for part in train.images.split(100)])
text_side = nn.Sequential(nn.Linear(len(WORDS), 128), nn.GELU(), nn.Linear(128, seen.shape[1]))
optimizer = torch.optim.AdamW(text_side.parameters(), 3e-3)
for _ in range(300):
    rows = torch.randperm(len(seen))[:64]
    texts = text_side(tokenizer(captions(train.labels[rows])))
    alike = 10 * F.normalize(seen[rows], dim=1) @ F.normalize(texts, dim=1).T
    own = torch.arange(len(rows))
    loss = F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

single = [f"a {digit}" for digit in DIGITS]
with torch.no_grad():
    texts = F.normalize(text_side(tokenizer(single)), dim=1)
    best = (F.normalize(image_side(test.images), dim=1) @ texts.T).topk(2).indices
right = (best.sort().values == test.labels.sort().values).all(1).float().mean()
print(f"the two texts most alike to a test scene name its digits in {right:.0%}")

# %%
# Explaining a similarity
# -----------------------
#
# The image side is the model that is explained, the texts are the targets; several of them come from one pass.

targets = [TextTarget(text_side, tokenizer, text) for text in single]
maps = CDAM(image_side).attribute_targets(test.images, targets)  # (100, 10, 12, 12)
boxes = torch.stack([test.mask(slot)[:, 0, 2::4, 2::4] for slot in range(2)], 1)
asked = maps[torch.arange(100), test.labels[:, 0]].clamp(min=0)
on, off = ((asked * boxes[:, slot]).sum((1, 2)) for slot in range(2))
print(f"of the positive relevance on both digits, {(on / (on + off)).nanmean():.2f} is on the one that the text names")

image, (a, b) = test.images[:1], (DIGITS[label] for label in test.labels[0].tolist())
questions = {
    f"a {a}": TextTarget(text_side, tokenizer, f"a {a}"),
    f"a {b}": TextTarget(text_side, tokenizer, f"a {b}"),
    f"a {a} and a {b}": TextTarget(text_side, tokenizer, f"a {a} and a {b}"),
    f"a {a}, and not a {b}": TextTarget(text_side, tokenizer, f"a {a}", against=f"a {b}"),
}
found = CDAM(image_side).attribute_targets(image, list(questions.values()))[0]
figure, axes = plt.subplots(2, 2, figsize=(6.5, 7), layout="constrained")
for axis, text, heat in zip(axes.flat, questions, found, strict=True):
    axis.imshow(signed_overlay(1 - 0.5 * image[0].clamp(0, 1), heat, 0.7 * float(found.abs().max())))
    axis.set_title(f"“{text}”", fontsize=13)
    axis.set_axis_off()
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# It shows that a similarity to a text is a target like any other: signed, from the same pass, and ``against=`` says
# why one text and not another. The image side never learned to read texts, and this text side knows twelve words; a
# real CLIP is less tidy, and its similarity to a text may come from what usually surrounds the thing.
