"""
Scoring maps with a second model
================================

A score that hides pixels asks the model that was explained how much it minds. It may mind for reasons of its own,
such as the hole. A judge, a second model that was trained apart, minds only if what is hidden matters for the class.
"""

# %%
# The model that is explained, and a judge
# ----------------------------------------
#
# The bundled Vision Transformer is explained. The judge is a small convolutional network, trained here in seconds on
# the same scenes of two handwritten digits.

import matplotlib.pyplot as plt
import torch
from captum.attr import IntegratedGradients
from torch import nn
from torch.nn import functional as F

from captum_ext import CDAM, AttentionMap
from quantus_metrics import removal_drop
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
model = digit_vit.load()


def block(entering, channels, stride):
    """A convolution, halving the image if the stride is 2."""
    return nn.Sequential(nn.Conv2d(entering, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())


features = [block(1, 16, 2), block(16, 32, 2), block(32, 64, 1)]
judge = nn.Sequential(*features, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10))
train, test = make_scenes(960, "train", seed=0), make_scenes(60, "test", seed=1)
optimizer = torch.optim.AdamW(judge.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=6, steps_per_epoch=30)
for _ in range(6):
    for rows in torch.randperm(len(train.images)).split(32):
        wanted = F.one_hot(train.labels[rows], 10).sum(1).float()
        loss = F.binary_cross_entropy_with_logits(judge(train.images[rows]), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
judge.eval()
for name, one in {"model": model, "judge": judge}.items():
    print(f"{name}: both digits on top in {digit_vit.top_digits_found(one, test).float().mean():.0%}")

# %%
# The same maps, scored twice
# ---------------------------
#
# ``removal_drop`` hides pixels whose value is above a threshold, and says which part of the class's probability is
# lost. Its first argument is whoever judges; the maps are the same. With ranks in place of values each map hides a
# tenth of the pixels.

images, targets = test.images, test.labels[:, 0]


def enlarged(heat):
    """Scores of patches on the pixels."""
    return F.interpolate(heat, images.shape[-2:], mode="bilinear").detach()


maps = {
    "CDAM": enlarged(CDAM(model).attribute(images, targets)),
    "attention": enlarged(AttentionMap(model).attribute(images)),
    "Integrated Gradients": IntegratedGradients(model).attribute(images, target=targets, n_steps=8).detach(),
    "random": torch.randn(images.shape),
}
ranks = {name: heat.flatten(1).argsort(1).argsort(1).view(images.shape).float() for name, heat in maps.items()}
drops = {
    name: [removal_drop(one, images, targets, rank, threshold=0.9) for one in (model, judge)]
    for name, rank in ranks.items()
}
for name, (own, others) in drops.items():
    print(f"{name}: {own.mean():.3f} by the model explained, {others.mean():.3f} by the judge")

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for shift, colour, label, number in (
    (0.18, "tab:blue", "by the model explained", 0),
    (-0.18, "tab:orange", "by the judge", 1),
):
    means = [float(pair[number].mean()) for pair in drops.values()]
    errors = [1.96 * float(pair[number].std()) / len(images) ** 0.5 for pair in drops.values()]
    axis.barh([place + shift for place in range(len(drops))], means, 0.34, xerr=errors, color=colour, label=label)
axis.set_yticks(range(len(drops)), drops, fontsize=12)
axis.invert_yaxis()
axis.set_xlabel("loss of the class's probability, higher is better", fontsize=12)
axis.legend(fontsize=11)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# Where both bars of a method differ much, what was hidden mattered to one model more than to the other: either it is
# no evidence for the class at all, or the two read the class from other places. A judge cannot tell these apart. It
# does not say whether a map is true to the model it explains, either; that is what the blue bars are for. The bars
# have 95 % intervals of the mean over 60 scenes, by the normal approximation.
