"""PyTorch's own encoder."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .cases import CLASSES, LENGTH, VOCABULARY, Case, Entry, built, case, token_ids


def torch_entries() -> Iterator[Entry]:
    for norm_first in (False, True):
        for batch_first in (True, False):
            for pooling in ("mean", "class"):
                order = "norm first" if norm_first else "norm last"
                name = f"TransformerEncoder, {order}, {'batch' if batch_first else 'tokens'} first, {pooling}"
                yield Entry("nn.TransformerEncoder", name, partial(_encoder_case, norm_first, batch_first, pooling))


def _encoder_case(norm_first: bool, batch_first: bool, pooling: str) -> Case:
    model = built(lambda: TextEncoder(norm_first, batch_first, pooling))
    padding = torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[1, -3:] = True
    return case(model, token_ids(), 1, (padding,))


class TextEncoder(nn.Module):
    """A text classifier as in PyTorch's tutorials; the first word is its class token."""

    def __init__(self, norm_first: bool, batch_first: bool, pooling: str):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.positions = nn.Parameter(torch.zeros(LENGTH, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, norm_first=norm_first, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)
        self.batch_first = batch_first
        self.pooling = pooling

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.embedding(ids) + self.positions
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        if self.pooling == "class":
            return self.head(tokens[:, 0])
        if padding is None:
            return self.head(tokens.mean(1))
        words = (~padding).to(tokens.dtype)[..., None]
        return self.head((tokens * words).sum(1) / words.sum(1))
