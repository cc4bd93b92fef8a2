"""Models small enough to explain by hand."""

import torch
from torch import nn


class PairModel(nn.Module):
    """Tokens (batch, 3, 2) pass `tokens` unchanged; `f_c = sum_i W_ci T_i0 T_i1`.

    By hand: `df_c/dT_i = W_ci (T_i1, T_i0)`, so CDAM is `S_i = 2 W_ci T_i0 T_i1`, twice token i's share of `f_c`.
    From a zero baseline the n-step right Riemann sum is `W_ci T_i0 T_i1 (n + 1) / n`.
    """

    def __init__(self):
        super().__init__()
        self.tokens = nn.Identity()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.0, 5.0]]))

    def forward(self, x):
        tokens = self.tokens(x)
        return tokens.prod(-1) @ self.weight.T


class PatchModel(nn.Module):
    """Images (batch, 1, height, width) as 2 x 2 patches behind a class token.

    Tokens are (patch mean, 1) for patches and (0, 1) for the class token; `f_c = (c + 1) sum_patches mean^2`, so CDAM
    of a patch is `2 (c + 1) mean^2`, of the class token 0.
    """

    def __init__(self):
        super().__init__()
        self.patches = nn.AvgPool2d(2)
        self.tokens = nn.Identity()

    def forward(self, x):
        means = self.patches(x).flatten(1)
        means = torch.cat([torch.zeros_like(means[:, :1]), means], dim=1)
        tokens = self.tokens(torch.stack([means, torch.ones_like(means)], dim=-1))
        score = tokens[..., 0].square().sum(1)
        return torch.stack([score, 2 * score], dim=1)


PAIR_TOKENS = torch.tensor([[[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 1.0], [-1.0, 3.0]]])


def tiny_vit(**options):
    from timm.models.vision_transformer import VisionTransformer

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5} | options
    return VisionTransformer(**options).eval()
