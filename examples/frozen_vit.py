"""A pretrained DINOv2 with a linear head on its class token, fitted here; the backbone stays as it is."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, Dinov2Config, Dinov2Model


class WithHead(nn.Module):
    """Images (batch, 3, height, width) to the outputs (batch, outputs) of a linear head on the class token."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """The head's outputs."""
        outputs: Tensor = self.head(self.backbone(images).last_hidden_state[:, 0])
        return outputs


def load_backbone(name: str) -> Any:
    """A DINOv2 by name or folder; "random" is a small one with random weights, to try a script.

    Its attention is computed in the open, as attention maps and relevance propagation need its weights.
    """
    if name == "random":
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
        return Dinov2Model(Dinov2Config(**sizes, attn_implementation="eager")).eval()
    return AutoModel.from_pretrained(name, attn_implementation="eager").eval()


@torch.no_grad()
def class_tokens(backbone: nn.Module, images: Tensor, cache: Path) -> Tensor:
    """(images, channels), what a head reads of images; kept in a file."""
    key = hashlib.sha256(images.numpy().tobytes())
    for weight in backbone.state_dict().values():
        key.update(weight.numpy().tobytes())
    file = cache / f"tokens-{key.hexdigest()[:16]}.pt"
    if file.exists():
        known: Tensor = torch.load(file, weights_only=True)
        return known
    parts = [backbone(part).last_hidden_state[:, 0] for part in tqdm(images.split(8), desc="looking", unit="batch")]
    cache.mkdir(parents=True, exist_ok=True)
    tokens = torch.cat(parts)
    torch.save(tokens, file)
    return tokens


def logistic_head(tokens: Tensor, labels: Tensor) -> nn.Linear:
    """One logistic regression for each class that is there; a class that is not there has the logit -1 everywhere.

    Args:
        tokens: (images, channels).
        labels: (images, classes), booleans.
    """
    head = nn.Linear(tokens.shape[1], labels.shape[1])
    mean, deviation = tokens.mean(0), tokens.std(0).clamp(min=1e-6)
    standard = ((tokens - mean) / deviation).numpy()
    with torch.no_grad():
        for number, present in enumerate(labels.T.numpy()):
            weight, bias = np.zeros(tokens.shape[1]), -1.0
            if 0 < present.sum() < len(present):
                fitted = LogisticRegression(C=0.01, max_iter=2000).fit(standard, present)
                weight, bias = fitted.coef_[0], fitted.intercept_[0]
            head.weight[number] = torch.from_numpy(weight).float() / deviation
            head.bias[number] = float(bias) - (head.weight[number] * mean).sum()
    return head
