"""
Two classes in one photograph
=============================

A photograph shows a cat and a cup of coffee. Which part of it speaks for "cat", and which for "coffee"? ``CDAM``
answers both questions from one forward pass, with signs: red speaks for the class, blue against it.
"""

# %%
# Four photographs, cut into scenes
# ---------------------------------
#
# The photographs come with scikit-image: Chelsea the cat by Stefan van der Walt (CC0), coffee by Rachel Michetti
# (CC0), a rocket by SpaceX (CC0), and Eileen Collins by NASA (public domain). A training scene is two random crops of
# two different photographs, side by side.
#
# .. warning::
#    A model that has only seen four photographs tells these four apart, and nothing else. It does not know cats. It is
#    trained in seconds here so that the page needs no download; replace it by your own.

from functools import partial

import matplotlib.pyplot as plt
import torch
from skimage import data
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resize, resized_crop

from captum_ext import CDAM, AttentionMap, overlay_figure

torch.manual_seed(0)
SIDE, NAMES = 48, ["cat", "coffee", "rocket", "astronaut"]
photos = [
    torch.tensor(photo()).movedim(2, 0) / 255 for photo in (data.chelsea, data.coffee, data.rocket, data.astronaut)
]
smaller = [resize(photo, 96) for photo in photos]
crop = RandomResizedCrop(SIDE, scale=(0.3, 1.0), ratio=(0.9, 1.1))
pieces = torch.stack([torch.stack([crop(photo) for _ in range(100)]) for photo in smaller])  # (4, 100, 3, 48, 48)


def scenes(count):
    """Two crops side by side, and which classes are shown."""
    classes = torch.rand(count, 4).argsort(1)[:, :2]
    chosen = pieces[classes, torch.randint(100, (count, 2))]
    return torch.cat(chosen.unbind(1), -1), F.one_hot(classes, 4).sum(1).float()


# %%
# A small Vision Transformer
# --------------------------
#
# It has one logit for each photograph, and says which two are there. Two convolutions in front of the patches make it
# learn in seconds.

stem = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.GELU()),
    *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.GELU()),
)
sizes = {"img_size": (SIDE, 2 * SIDE), "patch_size": 2, "embed_dim": 64, "depth": 1, "num_heads": 4}
model = VisionTransformer(**sizes, num_classes=4, embed_layer=partial(HybridEmbed, backbone=stem))
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
for _ in range(120):
    images, shown = scenes(32)
    loss = F.binary_cross_entropy_with_logits(model(images), shown)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
images, shown = scenes(200)
right = (model(images).topk(2).indices.sort().values == shown.topk(2).indices.sort().values).all(1)
print(f"both photographs named in {right.float().mean():.0%} of new scenes")

# %%
# Two maps from one pass
# ----------------------
#
# ``attribute_targets`` takes a list of classes. The maps share one colour scale, so that they can be compared.


def scene(side):
    """The cat's face and the cup, as no training scene shows them: fixed crops."""
    left = resized_crop(photos[0], 0, 90, 300, 300, [side, side])
    right = resized_crop(photos[1], 0, 150, 400, 400, [side, side])
    return torch.cat([left, right], -1).clamp(0, 1)


maps = CDAM(model).attribute_targets(scene(SIDE)[None], [0, 1])[0]  # (2, 6, 12)
attention = AttentionMap(model).attribute(scene(SIDE)[None])[0, 0]
for name, heat, half in zip(NAMES, maps, (slice(0, 6), slice(6, 12)), strict=False):
    positive = heat.clamp(min=0)
    print(f"{name}: {positive[:, half].sum() / positive.sum():.2f} of the positive relevance is on its own half")
print(f"attention: {attention[:, :6].sum() / attention.sum():.2f} on the cat's half, whichever class is asked for")

figure = overlay_figure(scene(300), {"for “cat”": maps[0], "for “coffee”": maps[1]})
figure.set_size_inches(9, 2.2)
plt.figure(figure)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# It shows what signed maps look like: the two classes exchange their colours, where an attention map would be the
# same for both. It does not show that the model sees a cat: it was trained on one photograph of one cat, and any part
# of that photograph, also its background, tells it apart from the three others.
