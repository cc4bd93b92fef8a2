"""
A frozen backbone with a head of your own
=========================================

Often the backbone is given and only the head is yours: a linear layer on averaged patches, or a small network. CDAM
explains such models without any adaptation, as it looks at the pass itself. An attention map explains the backbone,
so it is the same for every class of every head.
"""

# %%
# One backbone, two heads
# -----------------------
#
# The bundled digit model without its head is the backbone. Its patches are averaged. The first head is linear and
# says which digits are there; the second, a network of two layers, says whether the sum of both digits is large (10
# or more).

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from captum_ext import CDAM, AttentionMap, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)


class WithHead(nn.Module):
    """Patches of a frozen backbone, averaged, and a head of its own."""

    def __init__(self, head):
        super().__init__()
        self.backbone, self.head = digit_vit.load().requires_grad_(False), head

    def pooled(self, images):
        """What the head reads: the mean of the patches, without the class token."""
        return self.backbone.forward_features(images)[:, 1:].mean(1)

    def forward(self, images):
        """The head's logits."""
        return self.head(self.pooled(images))


def fit(model, images, wanted):
    """Train the head alone, on features that are computed once."""
    with torch.no_grad():
        features = torch.cat([model.pooled(part) for part in images.split(100)])
    optimizer = torch.optim.AdamW(model.head.parameters(), 1e-2)
    for _ in range(300):
        loss = F.binary_cross_entropy_with_logits(model.head(features), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def questions(made):
    """Which digits are there (scenes, 10), and whether their sum is at least 10 (scenes, 1)."""
    return F.one_hot(made.labels, 10).sum(1).float(), (made.labels.sum(1, keepdim=True) >= 10).float()


train, test = make_scenes(500, "train", seed=0), make_scenes(100, "test", seed=1)
digits = fit(WithHead(nn.Linear(96, 10)), train.images, questions(train)[0])
large = fit(WithHead(nn.Sequential(nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 1))), train.images, questions(train)[1])
with torch.no_grad():
    top = digits(test.images).topk(2).indices.sort().values == test.labels.sort().values
    right = (large(test.images) > 0) == questions(test)[1].bool()
print(f"both digits on top in {top.all(1).float().mean():.0%} of test scenes")
print(f"the sum rightly judged in {right.float().mean():.0%}")

# %%
# What CDAM says of both heads
# ----------------------------
#
# ``path`` says how the maps are computed. Averaged patches read all rows of the attention, so what follows the tokens
# runs forward and backward; with a class token a closed form would do.

print(CDAM(digits).path(test.images[:1]))

one = int(top.all(1).nonzero()[0])  # the first scene that the first head reads rightly
image, (a, b) = test.images[one : one + 1], test.labels[one].tolist()
maps = CDAM(digits).attribute_targets(image, [a, b])[0]
shown = {
    f"linear head: {a}": maps[0],
    f"linear head: {b}": maps[1],
    "two layers: large sum": CDAM(large).attribute(image, target=0)[0, 0],
    "attention: the same for all": AttentionMap(digits).attribute(image)[0, 0],
}
same = torch.equal(shown["attention: the same for all"], AttentionMap(large).attribute(image)[0, 0])
print(f"the attention maps of both models are {'the same' if same else 'different'}")

figure, axes = plt.subplots(2, 2, figsize=(6.5, 7), layout="constrained")
for axis, (title, heat) in zip(axes.flat, shown.items(), strict=True):
    axis.imshow(signed_overlay(1 - 0.5 * image[0].clamp(0, 1), heat))
    axis.set_title(title, fontsize=13)
    axis.set_axis_off()
plt.show()

# %%
# Over all test scenes the map for a digit can be compared with the digit's box.

maps = torch.cat([CDAM(digits).attribute(test.images, target=test.labels[:, slot]) for slot in range(2)])[:, 0]
boxes = torch.cat([test.mask(slot)[:, 0, 2::4, 2::4] for slot in range(2)])
shares = (maps.clamp(min=0) * boxes).sum((1, 2)) / maps.clamp(min=0).sum((1, 2))
attention = AttentionMap(digits).attribute(test.images)[:, 0].repeat(2, 1, 1)
print(
    f"positive share in the box of the digit asked for: CDAM {shares.mean():.2f}, attention "
    f"{((attention * boxes).sum((1, 2)) / attention.sum((1, 2))).mean():.2f}, by chance {boxes.float().mean():.2f}"
)

# %%
# What this shows, and what it does not
# -------------------------------------
#
# Pooling and head need no registration, no layer name and no reshape: the pass shows them. With an average, each
# patch also reaches the head along its own residual path, and CDAM counts only what goes through the last attention.
# So the map of an average-pooled model leaves more out than that of a class token. A map for "large sum" shows which
# patches push that logit, not how the network adds: nothing here tells addition from a table of pairs.
