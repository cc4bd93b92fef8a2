"""What the maps of MHEX and CAStream take and refuse, and what a wrapped backbone keeps."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from adapters import MHEX, CAStream, RawAttentionCAM
from captum_ext import MHEXCAM, RawAttention

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mhex():
    torch.manual_seed(0)
    model = MHEX(torchvision.models.resnet18(), num_classes=8, placement="downsample").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def stream():
    torch.manual_seed(0)
    return CAStream(torchvision.models.resnet18()).eval()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([1, 2, 3, 1], dtype=torch.uint8),
        torch.tensor([1, 2, 3, 1], dtype=torch.int16),
        [np.uint8(1), np.uint8(2), np.uint8(3), np.uint8(1)],
        np.array([1, 2, 3, 1], dtype=np.uint8),
        (1, 2, 3, 1),
    ],
)
def test_classes_of_any_integer_type_are_the_same(mhex, target):
    assert torch.equal(MHEXCAM(mhex).attribute(IMAGES, target), MHEXCAM(mhex).attribute(IMAGES, [1, 2, 3, 1]))
    assert torch.equal(MHEXCAM(mhex).attribute(IMAGES, np.int64(3)), MHEXCAM(mhex).attribute(IMAGES, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((IMAGES, [True] * 4), {}, TypeError, "Expected classes as `target`"),
        ((IMAGES, "cat"), {}, TypeError, "Expected classes as `target`.*got 'cat'"),
        ((IMAGES, 2**70), {}, ValueError, "classes from 0 to 7, got"),
        ((IMAGES, [1, 2]), {}, ValueError, "one target for each of 4 samples"),
        ((IMAGES[:0], 1), {}, ValueError, r"at least one sample, got shape \(0, 3, 64, 64\)"),
        ((IMAGES * torch.nan, 1), {}, ValueError, r"NaN or infinity in sample\(s\) \[0, 1, 2, 3\]"),
        (([IMAGES], 1), {}, TypeError, "Expected `inputs` to be a tensor or a tuple of tensors"),
        ((IMAGES, 1), {"alpha": "a"}, TypeError, "`alpha` to be a number, got 'a'"),
        ((IMAGES, 1), {"gamma_pos": "a"}, TypeError, "`gamma_pos` to be a number, got 'a'"),
    ],
)
def test_maps_of_mhex_say_what_is_wrong(mhex, arguments, options, error, words):
    with pytest.raises(error, match=words):
        MHEXCAM(mhex).attribute(*arguments, **options)


def test_both_forms_of_raw_attention_say_what_is_wrong(stream):
    for ask in (RawAttention(stream).attribute, RawAttentionCAM(stream)):
        with pytest.raises(ValueError, match=r"NaN or infinity in sample\(s\) \[0, 1, 2, 3\]"):
            ask(IMAGES * torch.inf)
        with pytest.raises(ValueError, match="at least one sample"):
            ask(IMAGES[:0])
    with pytest.raises(TypeError, match="`stage` to be an int, got 'last'"):
        RawAttention(stream).attribute(IMAGES, stage="last")


def test_models_spread_over_devices_are_unwrapped(mhex, stream):
    spread = MHEXCAM(nn.DataParallel(mhex)).attribute(IMAGES, 1)
    assert torch.equal(spread, MHEXCAM(mhex).attribute(IMAGES, 1))
    assert torch.equal(RawAttention(nn.DataParallel(stream)).attribute(IMAGES), RawAttention(stream).attribute(IMAGES))


class Counting(nn.Module):
    """Keeps count, and its last output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.step, self.last = torchvision.models.resnet18(num_classes=8), 0, None

    def forward(self, x):
        self.step += 1
        self.last = self.net(x)
        return self.last


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda backbone: MHEX(backbone, num_classes=8), CAStream])
def test_what_a_backbone_stores_on_itself_stays(wrap):
    backbone = Counting()
    model = wrap(backbone).train()
    before, modules = backbone.step, dict(backbone.named_modules())
    for _ in range(3):
        model(IMAGES)
    assert backbone.step == before + 3
    assert backbone.last.shape == (4, 8)
    assert "forward" not in vars(backbone)
    assert all(module is modules[name] for name, module in backbone.named_modules())
    with pytest.raises((ValueError, RuntimeError)):
        model(IMAGES[..., :0])
    assert backbone.step == before + 4
