"""MHEX on blocks inside blocks and on maps with channels last, against the formulas written out."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from adapters import MHEX
from captum_ext import MHEXCAM


class Block(nn.Module):
    """A residual block of maps (batch, channels, height, width), or with channels last."""

    def __init__(self, channels, last=False):
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, channels, 3, padding=1), last

    def forward(self, x):
        if not self.last:
            return (self.conv(x) + x).relu()
        return (self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x).relu()


class Branches(nn.Module):
    """Two rows of blocks whose results are added, as a module of HRNet; a block itself."""

    def __init__(self, channels):
        super().__init__()
        self.one, self.other = (nn.Sequential(Block(channels), Block(channels)) for _ in range(2))

    def forward(self, x):
        return (self.one(x) + self.other(0.5 * x)).relu()


class Net(nn.Module):
    def __init__(self, blocks, last=False):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Sequential(*blocks), nn.Linear(6, 4)
        self.last = last

    def forward(self, x):
        x = self.stem(x)
        x = self.blocks(x.permute(0, 2, 3, 1) if self.last else x)
        return self.head(x.mean((1, 2) if self.last else (2, 3)))


def gated(gates, x, r, logits):
    """x' + r, and the block's logits are noted."""
    s = gates.gate((x + r).mean((2, 3)).relu())
    logits.append(gates.head(s))
    return s.sigmoid()[:, :, None, None] * x + r


@pytest.mark.parametrize("placement", ["all", ["blocks.0"], ["blocks.0", "blocks.0.other.1", "blocks.1"]])
def test_blocks_inside_blocks_equal_the_formulas(placement):
    torch.manual_seed(0)
    model, x = Net([Branches(6), Block(6)]).double().eval(), torch.randn(2, 3, 16, 20, dtype=torch.float64)
    wrapper = MHEX(model, num_classes=3, placement=placement).eval()
    by_name, logits = dict(zip(wrapper.names, wrapper.mhex_blocks, strict=True)), []

    def block(name, x):
        r = model.get_submodule(name).conv(x)
        return (gated(by_name[name], x, r, logits) if name in by_name else r + x).relu()

    y = model.stem(x)
    one = block("blocks.0.one.1", block("blocks.0.one.0", y))
    other = block("blocks.0.other.1", block("blocks.0.other.0", 0.5 * y))
    # the second term is the identity branch where neither is what entered
    y = block("blocks.1", gated(by_name["blocks.0"], other, one, logits).relu())
    assert len(logits) == len(wrapper.names) == (6 if placement == "all" else len(placement))
    for found, expected in zip(wrapper.deep_forward(x), logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    original = MHEX(model, num_classes=3, placement=placement, prediction="original").eval()
    original.blocks = wrapper.blocks
    torch.testing.assert_close(original(x), model.head(y.mean((2, 3))), rtol=1e-9, atol=1e-12)


def test_maps_with_channels_last_are_gated_by_channels():
    torch.manual_seed(0)
    first = Net([Block(6), Block(6)]).double().eval()
    last = Net([Block(6, last=True), Block(6, last=True)], last=True).double().eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 16, 20, dtype=torch.float64)
    wrappers = [MHEX(model, num_classes=3).eval() for model in (first, last)]
    wrappers[1].blocks.load_state_dict(wrappers[0].blocks.state_dict())
    assert [[block.gate.in_features for block in one.blocks] for one in wrappers] == [[6, 6], [6, 6]]
    for one, other in zip(*(wrapper.deep_forward(x) for wrapper in wrappers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    maps = [MHEXCAM(wrapper).attribute(x, 2, activation=kind) for kind in ("all", "gated") for wrapper in wrappers]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maps[3], maps[2], rtol=1e-9, atol=1e-12)
    assert F.cosine_similarity(maps[0].flatten(1), maps[2].flatten(1)).max() < 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("name", "widths"), [("maxvit_tiny_rw_224", {64, 128, 256, 512}), ("hrnet_w18_small", None)])
def test_gates_are_as_wide_as_the_networks_channels(name, widths):
    model = timm.create_model(name, num_classes=4).eval()
    wrapper = MHEX(model).eval()
    found = {block.gate.in_features for block in wrapper.mhex_blocks}
    channels = {m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert found == widths if widths else found <= channels
    x = torch.randn(1, 3, 224, 224)
    assert len(wrapper.deep_forward(x)) == len(wrapper.names) > 8
