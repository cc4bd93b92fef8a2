"""The slow truth about leaving a token out: the whole model runs, and its last attention does not see one key."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F


@contextmanager
def without_keys(missing, last):
    """Inside, call number `last` of torch's fused attention, or of softmax, does not see keys (tokens,) that are True.

    A written softmax may have more columns than there are tokens, behind them.
    """
    fused, softmax = F.scaled_dot_product_attention, F.softmax
    calls = {"fused": 0, "softmax": 0}

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        calls["fused"] += 1
        if last == ("fused", calls["fused"]):
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
            if is_causal:
                scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
            if attn_mask is not None and attn_mask.dtype is torch.bool:
                scores = torch.where(attn_mask, scores, -torch.inf)
            elif attn_mask is not None:
                scores = scores + attn_mask
            scores[..., missing] = -torch.inf
            weights = softmax(scores, -1).nan_to_num(0.0)
            return weights @ value
        return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def normalise(scores, dim=None, *args, **kwargs):
        calls["softmax"] += scores.dim() == 4  # and not those of a router
        if scores.dim() == 4 and last == ("softmax", calls["softmax"]):
            scores = scores.clone()
            scores[..., : len(missing)][..., missing] = -torch.inf
        return softmax(scores, dim, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        patch.setattr(F, "softmax", normalise)
        yield calls


def worth(model, inputs, score, missing, last):
    """The scores (batch,) of the whole model without some keys of its last attention."""
    with torch.no_grad(), without_keys(missing, last):
        return score(model(*inputs))


def last_call(model, inputs, kind="fused"):
    """Which call the last one is."""
    with torch.no_grad(), without_keys(torch.zeros(1, dtype=torch.bool), None) as calls:
        model(*inputs)
    assert calls[kind] > 0
    return kind, calls[kind]


def effects(model, inputs, score, count, kind="fused", number=None):
    """(batch, tokens): the score less the score without each token, the whole model run again for each.

    Left out of the last attention, or of the one with a number, counted from 1.
    """
    last = last_call(model, inputs, kind) if number is None else (kind, number)
    whole = worth(model, inputs, score, torch.zeros(count, dtype=torch.bool), None)
    parts = [worth(model, inputs, score, torch.arange(count) == one, last) for one in range(count)]
    return whole[:, None] - torch.stack(parts, 1)
