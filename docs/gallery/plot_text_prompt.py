"""
A text as the question
======================

Models such as CLIP compare images with texts, and have no classes. `TextTarget` makes the similarity of an image to a
text the thing that is explained: which part of this image is "a red circle"?
"""

# %%
# Images and captions
# -------------------
#
# An image shows two coloured shapes on grey. The texts name a colour and a shape: twelve captions.

import itertools

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from captum_ext import CDAM, TextTarget, overlay_figure

torch.manual_seed(0)
SIDE, SHAPE = 48, 16
COLOURS = {"red": (0.9, 0.2, 0.1), "green": (0.1, 0.7, 0.3), "blue": (0.2, 0.3, 0.9), "yellow": (0.95, 0.85, 0.2)}
SHAPES = ["circle", "square", "cross"]
CAPTIONS = [f"a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
WORDS = ["<start>", "a", *COLOURS, *SHAPES, "<end>"]

y, x = torch.meshgrid(*[torch.linspace(-1, 1, SHAPE)] * 2, indexing="ij")
stencils = torch.stack([(x**2 + y**2 < 0.9).float(), torch.ones_like(x), ((x.abs() < 0.3) | (y.abs() < 0.3)).float()])
paints = torch.tensor(list(COLOURS.values()))
corners = torch.tensor([(0, 0), (0, 16), (0, 32), (16, 0), (16, 32), (32, 0), (32, 16), (32, 32)])


def pictures(count):
    """Images of two things, which captions are true (count, 12), the captions of both things, and their corners."""
    images = 0.5 + 0.05 * torch.randn(count, 3, SIDE, SIDE)
    things = torch.rand(count, len(CAPTIONS)).argsort(1)[:, :2]
    places = corners[torch.rand(count, len(corners)).argsort(1)[:, :2]]
    for image, pair, both in zip(images, things.tolist(), places.tolist(), strict=True):
        for thing, (top, left) in zip(pair, both, strict=True):
            colour, stencil = paints[thing // 3].view(3, 1, 1), stencils[thing % 3]
            part = image[:, top : top + SHAPE, left : left + SHAPE]
            part += stencil * (colour - part)
    return images.clamp(0, 1), F.one_hot(things, len(CAPTIONS)).sum(1).float(), things, places


def tokenizer(text, **_):
    """Token ids of texts of three words; yours is the processor of the model."""
    return {"input_ids": torch.tensor([[0, *map(WORDS.index, one.split()), len(WORDS) - 1] for one in text])}


# %%
# A tiny CLIP
# -----------
#
# Both sides are trained from scratch. As an image has two true captions, each pair of image and caption is a question
# of its own, by the sigmoid loss of SigLIP.

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
config = CLIPConfig(
    text_config={**sizes, "num_hidden_layers": 1, "vocab_size": len(WORDS), "eos_token_id": len(WORDS) - 1},
    vision_config={**sizes, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8},
    projection_dim=32,
)
clip = CLIPModel(config)
bias = torch.nn.Parameter(torch.tensor(-2.0))
optimizer = torch.optim.AdamW([*clip.parameters(), bias], 1e-3)
for _ in range(300):
    images, true, _, _ = pictures(32)
    given = clip(pixel_values=images, **tokenizer(CAPTIONS))
    loss = F.binary_cross_entropy_with_logits(given.logits_per_image + bias, true)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

clip.eval()
images, true, things, places = pictures(100)
best = clip(pixel_values=images, **tokenizer(CAPTIONS)).logits_per_image.topk(2).indices
print(f"both captions of a new image on top: {(best.sort().values == things.sort().values).all(1).float().mean():.0%}")

# %%
# Explaining a similarity
# -----------------------
#
# The image side is the model that is explained, the texts are the targets; several come from one pass.

targets = [TextTarget(clip, tokenizer, caption) for caption in CAPTIONS]
maps = CDAM(clip.get_image_features).attribute_targets(images, targets)  # (100, 12, 6, 6)
shares = []
for number, (pair, both) in enumerate(zip(things.tolist(), (places // 8).tolist(), strict=True)):
    parts = [maps[number, pair[0]].clamp(min=0)[top : top + 2, left : left + 2].sum() for top, left in both]
    shares.append(float(parts[0] / sum(parts)))
print(f"of what is on the two things, {sum(shares) / len(shares):.2f} is on the one that the text names")

shown = {CAPTIONS[thing]: maps[0, thing] for thing in things[0].tolist()}
pair = TextTarget(clip, tokenizer, *shown)
shown[" rather than ".join(shown)] = CDAM(clip.get_image_features).attribute(images[:1], pair)[0, 0]
figure = overlay_figure(images[0], shown)
figure.set_size_inches(9, 2.9)
plt.figure(figure)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# It shows that a similarity is a target like any other, with a real text side; `against=` explains why one text and not
# another. This CLIP knows twelve captions and two things in a picture. The share above is a mean over 100 images: where
# it is near a half, the map does not tell the named thing from the other one.
