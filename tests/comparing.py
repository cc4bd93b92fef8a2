"""Are results the same, or do they differ?"""

import torch


def same(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert torch.isfinite(actual).all()
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def all_same(actual, expected):
    for ours, wanted in zip(actual, expected, strict=True):
        same(ours, wanted)


def differ(actual, before):
    assert all((a - b).abs().max() > 1e-6 * b.abs().max() for a, b in zip(actual, before, strict=True))
