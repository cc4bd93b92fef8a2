"""
Outlier tokens and registers
============================

Large Vision Transformers come to use a few patches of plain background as scratch paper: their tokens get enormous
norms, and attention maps light up where there is nothing (Darcet et al. 2023, arXiv:2309.16588). Registers, extra
tokens that are no patches, take over that role. This page plants such tokens by hand and shows what ``check`` says of
the maps.
"""

# %%
# A model in which outliers are planted
# -------------------------------------
#
# .. note::
#    The outliers of this page are constructed. The bundled digit model is small and has none; in front of its last
#    block a large vector is added to five background patches. It points to where the last attention looks, as the
#    artefacts of large models do.

import matplotlib.pyplot as plt
import torch
from torch import nn

from captum_ext import CDAM, AttentionMap, check, signed_overlay
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

torch.manual_seed(0)
made = make_scenes(1, seed=2)
image, digit = made.images, int(made.labels[0, 0])
inside = made.mask(0)[0, 0, 2::4, 2::4]
empty = ~(inside | made.mask(1)[0, 0, 2::4, 2::4]).flatten()
chosen = empty.nonzero()[:, 0][torch.randperm(int(empty.sum()))[:5]]


def looked_for(model):
    """The direction of a token that the class token's queries in the last block are most drawn to."""
    seen = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda module, given, out: seen.append(out[:, 0]))
    model(image)
    hook.remove()
    queries, keys, _ = model.blocks[-1].attn.qkv.weight.detach().chunk(3)
    direction = (seen[0][0].detach() @ queries.T) @ keys
    return direction / direction.norm()


class Registers(nn.Module):
    """Puts empty tokens behind the class token, which are no patches."""

    def forward(self, tokens):
        """Tokens (batch, 1 + patches, channels), with as many registers as there are outliers."""
        return torch.cat([tokens[:, :1], torch.zeros_like(tokens[:, : len(chosen)]), tokens[:, 1:]], 1)


class Outliers(nn.Module):
    """Adds a large vector to some tokens."""

    def __init__(self, vector, places):
        super().__init__()
        self.vector, self.places = nn.Parameter(vector), places

    def forward(self, tokens):
        """The same tokens, some of them of enormous norm."""
        where = torch.zeros(tokens.shape[1], 1).index_fill_(0, self.places, 1)
        return tokens + where * self.vector


def planted(registers):
    """The digit model with outliers in front of its last block, on patches or on registers."""
    model = digit_vit.load()
    size = 8 * model.forward_intermediates(image, indices=[2], output_fmt="NLC")[1][0].norm(dim=-1).median().detach()
    places = 1 + torch.arange(len(chosen)) if registers else 1 + chosen
    model.blocks.insert(len(model.blocks) - 1, Outliers(size * looked_for(model), places))
    if registers:
        model.norm_pre = Registers()
    return model.eval()


models = {"as it is": digit_vit.load(), "outliers": planted(False), "registers": planted(True)}

# %%
# Norms, attention, and CDAM
# --------------------------
#
# ``check`` takes the norms of the tokens on the residual path: ``outlier_tokens`` is the share of patches whose norm
# is above three times the median, ``outlier_relevance`` the share of the map that lies on them.

test = make_scenes(200, seed=3)
figure, axes = plt.subplots(2, 3, figsize=(7, 5.6), layout="constrained")
for column, (name, model) in zip(axes.T, models.items(), strict=True):
    print(f"{name}: both digits on top in {digit_vit.top_digits_found(model, test).float().mean():.0%} of scenes")
    for axis, method in zip(column, (AttentionMap(model), CDAM(model)), strict=True):
        title = type(method).__name__.replace("Map", "")
        heat = method.attribute(image, target=digit)
        trust = check(method, image, digit)
        relevance = float(trust.outlier_relevance[0])
        print(
            f"  {title}: {float(trust.outlier_tokens[0]):.3f} of the patches are outliers, with {relevance:.2f} of the "
            f"map; {float(trust.prefix_relevance[0]):.2f} is on tokens that are no patches; {trust.verdicts[0]}"
        )
        axis.imshow(signed_overlay(1 - 0.5 * image[0].clamp(0, 1), heat[0, 0]))
        for patch in chosen.tolist() if name == "outliers" else []:
            axis.add_patch(
                plt.Rectangle((4 * (patch % 12) - 0.5, 4 * (patch // 12) - 0.5), 4, 4, fill=False, linewidth=2)
            )
        axis.set_title(f"{name}: {relevance:.2f}", fontsize=12)
        axis.set_xticks([])
        axis.set_yticks([])
for axis, title in zip(axes[:, 0], ("attention", f"CDAM, why {digit}?"), strict=True):
    axis.set_ylabel(title, fontsize=12)
figure.suptitle("Share of each map on outlier tokens (framed)", fontsize=13)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# Outliers draw attention to places where nothing is, and ``outlier_relevance`` counts how much of a map lies there.
# With registers the same vectors sit on tokens that are no patches, and the patches are clean. As they were planted,
# this says nothing about whether your model has outliers, and how it reacts to them: run ``check`` on it, or look at
# ``CDAM(model).tokens(images)``.
