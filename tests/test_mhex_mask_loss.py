"""The loss of masks against sums over pixels, what it refuses, training, and what else wrappers of masks promise."""

import copy
import itertools
import math

import pytest
import torch
from contracts import Breaks, in_threads, left_as_found
from mask_networks import images_of, plain_unet, wrap
from mhex_networks import close
from torch import nn
from torch.nn import functional as F

from adapters import MHEX, collaboration, deep_supervision_loss
from captum_ext import MHEXCAM

IGNORED = 255


def small(**options):
    return MHEX(plain_unet(), num_classes=3, task="segmentation", **options).eval()


def images(count=2):
    return torch.randn(count, 2, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masks(count=2):
    drawn = torch.randint(3, (count, 12, 20), generator=torch.Generator().manual_seed(2))
    drawn[0, :4] = IGNORED
    return drawn


def by_pixels(y, t, dice=0.0):
    """Cross entropy and soft Dice, one pixel after the other."""
    loss, count, overlap, sizes = 0.0, 0, [1.0] * y.shape[1], [1.0] * y.shape[1]
    for sample in range(len(t)):
        for place in itertools.product(*(range(n) for n in t.shape[1:])):
            cls = int(t[(sample, *place)])
            if cls == IGNORED:
                continue
            logits = y[(sample, slice(None), *place)].tolist()
            total = sum(math.exp(v) for v in logits)
            shares = [math.exp(v) / total for v in logits]
            loss, count = loss - math.log(shares[cls]), count + 1
            for c, share in enumerate(shares):
                overlap[c] += 2 * share * (c == cls)
                sizes[c] += share + (c == cls)
    scores = [o / s for o, s in zip(overlap, sizes, strict=True)]
    return loss / count + dice * (1 - sum(scores) / len(scores))


@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_losses_equal_sums_over_pixels(dice):
    coarse, fine, t = torch.randn(2, 3, 3, 5).double(), torch.randn(2, 3, 12, 20).double(), masks()
    large = F.interpolate(coarse, (12, 20), mode="bilinear")
    options = {"ignore_index": IGNORED, "dice": dice}
    found = deep_supervision_loss([coarse, fine], t, **options)
    assert float(found) == pytest.approx(by_pixels(large, t, dice) + by_pixels(fine, t, dice))
    found = deep_supervision_loss([coarse, fine], t, mode="pretrain", **options)
    assert float(found) == pytest.approx(by_pixels(0.5 * large + fine, t, dice))


def test_volumes_and_signals_have_losses_too():
    t = torch.randint(3, (2, 4, 6, 2))
    y = torch.randn(2, 3, 4, 6, 2).double()
    assert float(deep_supervision_loss([y], t, dice=1)) == pytest.approx(by_pixels(y, t, 1.0))
    y, t = torch.randn(2, 3, 8).double(), torch.randint(3, (2, 8))
    assert float(deep_supervision_loss([y], t)) == pytest.approx(by_pixels(y, t))


def test_a_batch_that_is_ignored_whole_costs_nothing():
    y = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = deep_supervision_loss([y], torch.full((1, 4, 4), IGNORED), ignore_index=IGNORED)
    loss.backward()
    assert (float(loss.detach()), float(y.grad.abs().sum())) == (0, 0)


Y = torch.zeros(2, 3, 6, 10)
WRONG = [
    (masks().float(), {}, TypeError, "masks as a tensor of integers.*got torch.float32"),
    (masks()[:, None], {}, ValueError, r"got shape \(2, 1, 12, 20\). Take.*`masks.squeeze\(1\)`"),
    (masks(3), {}, ValueError, r"of 2 samples.*got shape \(3, 12, 20\)"),
    (
        masks().flip(1).transpose(1, 2),
        {"ignore_index": IGNORED},
        ValueError,
        r"got shape \(2, 20, 12\), which has other",
    ),
    (masks()[:, 0], {}, ValueError, r"2 axes of places.*got shape \(2, 20\)"),
    (masks(), {}, ValueError, r"classes 0 to 2, or ignore_index=-100.*got \[255\]. Pass that value as `ignore_index`"),
    (masks() - 1, {"ignore_index": 254}, ValueError, r"got \[-1\]"),
    (masks(), {"ignore_index": IGNORED, "dice": -1}, ValueError, "`dice` of at least 0"),
    (masks(), {"ignore_index": IGNORED, "dice": float("nan")}, ValueError, "`dice` of at least 0"),
]


@pytest.mark.parametrize(("given", "options", "error", "words"), WRONG)
def test_masks_say_what_is_wrong(given, options, error, words):
    with pytest.raises(error, match=words):
        deep_supervision_loss([Y], given, **options)


def test_dice_is_of_masks_only():
    with pytest.raises(ValueError, match="of masks only"):
        deep_supervision_loss([torch.zeros(2, 3)], torch.tensor([0, 1]), dice=1)


def test_forward_with_labels_is_the_loss_of_all_blocks():
    wrapper, t = small(), masks().clamp(max=2)
    output = wrapper(images(), labels=t)
    close(output["loss"], deep_supervision_loss(wrapper.deep_forward(images()), t))
    assert torch.equal(output["logits"], wrapper(images()))
    with pytest.raises(ValueError, match=r"images' size \(12, 20\), got shape \(2, 6, 10\)"):
        wrapper(images(), labels=t[:, ::2, ::2])


def test_segformer_takes_labels_as_its_own_and_ignores_what_it_ignores():
    wrapper, x = wrap("SegFormer"), images_of("SegFormer")
    t = torch.randint(4, (2, 64, 96))
    t[:, :30] = wrapper.backbone.config.semantic_loss_ignore_index
    output = wrapper(pixel_values=x, labels=t)
    assert type(output) is type(wrapper.backbone(x))
    close(output.loss, deep_supervision_loss(wrapper.deep_forward(x), t, ignore_index=255))


@pytest.mark.slow
def test_it_learns_masks():
    torch.manual_seed(0)
    wrapper, x = MHEX(plain_unet(), num_classes=3, task="segmentation", kernel_size=3).train(), images(4)
    t = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    optimizer = torch.optim.Adam(wrapper.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = deep_supervision_loss(wrapper.deep_forward(x), t, dice=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (wrapper.eval()(x).argmax(1) == t).double().mean() > 0.8
    idle = [name for name, p in wrapper.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith(("backbone.merge", "backbone.head")) for name in idle)  # behind the last block


@pytest.mark.slow
def test_strip_keeps_the_prediction():
    wrapper, x = wrap("smp.Unet", kernel_size=3), images_of("smp.Unet")
    stripped = wrapper.strip()
    assert torch.equal(stripped(x), wrapper(x))
    removed = sum(block.head.weight.numel() for block in wrapper.mhex_blocks[:-1])
    count = [sum(p.numel() for p in one.parameters()) for one in (wrapper, stripped)]
    assert count[0] - count[1] == removed
    for call in (lambda: stripped.deep_forward(x), lambda: MHEXCAM(stripped).attribute(x, 1)):
        with pytest.raises(ValueError, match=r"stripped|removed by"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smp.Unet", "SegFormer"])
def test_it_is_saved_and_loaded(name, tmp_path):
    wrapper, x = wrap(name, kernel_size=3), images_of(name)
    wrapper.save_pretrained(tmp_path)
    fresh = copy.deepcopy(wrapper.backbone)
    for p in fresh.parameters():
        p.data.zero_()
    loaded = MHEX.from_pretrained(tmp_path, model=fresh)
    assert (loaded.task, loaded.names) == ("segmentation", wrapper.names)
    close(loaded(x), wrapper(x))
    close(MHEXCAM(loaded).attribute(x, 1), MHEXCAM(wrapper).attribute(x, 1))


def test_one_pass_that_leaves_everything_as_found():
    wrapper, x, calls = small(kernel_size=3).train(), images(), []
    wrapper.backbone.blocks.eval()
    before, expected = x.clone(), MHEXCAM(copy.deepcopy(wrapper)).attribute(x, (1, 3, 4))
    wrapper.backbone.down.register_forward_hook(lambda *_: calls.append(1))
    with left_as_found(wrapper):
        maps = MHEXCAM(wrapper).attribute(x, (1, 3, 4))
    assert torch.equal(maps, expected)
    assert torch.equal(x, before)
    assert calls == [1]
    assert not maps.requires_grad
    with torch.inference_mode():
        assert torch.equal(MHEXCAM(wrapper).attribute(images(), (1, 3, 4)), expected)


def test_a_network_that_fails_is_left_as_found():
    wrapper = small().train()
    wrapper.backbone.down = nn.Sequential(wrapper.backbone.down, Breaks(RuntimeError("broken")))
    with left_as_found(wrapper), pytest.raises(RuntimeError, match="broken"):
        MHEXCAM(wrapper).attribute(images(), 1)
    net = plain_unet()
    net.up = nn.Sequential(net.up, Breaks(RuntimeError("broken")))
    with left_as_found(net), pytest.raises(ValueError, match=r"could not be run on an empty input.*broken"):
        MHEX(net, task="segmentation")


def test_threads_and_copies_do_not_meet():
    wrapper, x = small(kernel_size=3).train(), images()
    alone = [MHEXCAM(wrapper).attribute(x, c) for c in range(3)]
    with left_as_found(wrapper):
        together = in_threads([lambda c=c: [MHEXCAM(wrapper).attribute(x, c) for _ in range(4)] for c in range(3)])
    assert all(torch.equal(m, one) for maps, one in zip(together, alone, strict=True) for m in maps)
    twin = copy.deepcopy(wrapper)
    twin.blocks[1].head.weight.data *= -1
    last = [MHEXCAM(one).attribute(x, 1, per_layer=True, gamma_pos=0, gamma_neg=0)[:, 1] for one in (wrapper, twin)]
    close(last[1], -last[0], 1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.08)])
def test_other_precisions_give_float32(dtype, error):
    wrapper, x = small(kernel_size=3), images()
    exact = MHEXCAM(wrapper).attribute(x, (1, 3, 4), gamma_pos=0, gamma_neg=0)
    maps = MHEXCAM(wrapper.to(dtype)).attribute(x.to(dtype), (1, 3, 4), gamma_pos=0, gamma_neg=0)
    assert maps.dtype == torch.float32
    assert 0 < (maps - exact).abs().max() < error * exact.abs().max()


class Straight(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


class Twice(nn.Module):
    """Runs a block two times."""

    def __init__(self):
        super().__init__()
        self.net = plain_unet()

    def forward(self, x):
        return self.net(self.net.head.weight.new_zeros(()) + x) + self.net(x)


def test_networks_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Straight has no residual additions and no skips: expected blocks"):
        MHEX(Straight(), task="segmentation")
    from torchvision.models.resnet import BasicBlock, ResNet

    with pytest.raises(
        ValueError, match=r"logits \(batch, classes, height, width\).*returns \(1, 5\).*'classification'"
    ):
        MHEX(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), task="segmentation")
    for options, words in [
        ({"kernel_size": 2}, "odd `kernel_size`"),
        ({"kernel_size": -1}, "odd `kernel_size`"),
        ({"kernel_size": 1.0}, "`kernel_size` to be an int"),
        ({"num_classes": 1}, "at least 2 for masks.*num_classes=2"),
        ({"task": "masks"}, "`task` to be one of.*got 'masks'"),
        ({"task": "classification", "kernel_size": 3}, "`kernel_size` for task='segmentation' only|no residual"),
        ({"residual": True}, "`residual` for task='graph' or 'node' only"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            MHEX(plain_unet(), **{"task": "segmentation"} | options)
    with pytest.raises(ValueError, match="'classification', whose gates read averages; got 'segmentation'"):
        collaboration(small(), images(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="runs several times in one pass"):
        MHEX(Twice(), task="segmentation", num_classes=3)(images())


def test_a_block_that_was_extended_after_wrapping_is_noticed():
    wrapper = small()

    class Adapted(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv, self.more = conv, copy.deepcopy(conv)

        def forward(self, x):
            return self.conv(x) + self.more(x)

    wrapper.backbone.blocks[0].conv = Adapted(wrapper.backbone.blocks[0].conv)
    with pytest.raises(ValueError, match=r"'blocks.0' adds 2 pairs of branches, not 1.*Wrap it again"):
        wrapper(images())
