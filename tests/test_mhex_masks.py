"""MHEX of masks against the specification, written out for small networks and place by place for real ones."""

import copy

import pytest
import torch
from contracts import left_as_found
from mask_networks import CLASSES, HEADLESS, NETS, by_loops, each_net, images_of, plain_unet, seen_at_blocks, wrap
from mhex_networks import close
from small_unet import SmallUNet
from torch import nn
from torch.nn import functional as F

from adapters import MHEX
from adapters.wrappers.mhex_block import MHEXBlock, equivalent
from adapters.wrappers.resizing import resized
from captum_ext import MHEXCAM

NO_SHARPNESS = {"beta": 1.0, "gamma_pos": 0, "gamma_neg": 0}
kernels = pytest.mark.parametrize("kernel", [1, 3, 5])


@pytest.mark.sampled(6)
@kernels
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("reads", [5, 8])
def test_the_equivalent_convolution_gives_the_heads_logits(kernel, axes, reads):
    torch.manual_seed(kernel)
    block = MHEXBlock(5, CLASSES, reads=reads, axes=axes, kernel=kernel).double()
    z = torch.randn(2, reads, *(7, 6, 4)[:axes], dtype=torch.float64).relu()
    matrix = block.equivalent_matrix()
    assert matrix.shape == (CLASSES, reads, *[kernel] * axes)
    _, y = block(z)
    for c in range(CLASSES):
        for one, logits in zip(z, y[:, c], strict=True):
            torch.testing.assert_close(by_loops(matrix[c], one), logits, rtol=0, atol=1e-12)


def test_the_block_of_classes_is_that_of_maps_of_one_place():
    torch.manual_seed(0)
    of_classes, of_masks = MHEXBlock(5, 3).double(), MHEXBlock(5, 3, axes=2, kernel=3).double()
    middle = torch.zeros_like(of_masks.gate.weight)
    middle[:, :, 1, 1] = of_classes.gate.weight.detach()
    of_masks.gate.weight.data, of_masks.head.weight.data = middle, of_classes.head.weight.data[:, :, None, None]
    z = torch.randn(4, 5, dtype=torch.float64)
    for one, other in zip(of_classes(z), of_masks(z[:, :, None, None]), strict=True):
        close(one, other[:, :, 0, 0], 1e-13)
    close(of_classes.equivalent_matrix(), of_masks.equivalent_matrix()[:, :, 1, 1], 1e-13)
    classes, options = torch.tensor([0, 2, 1, 1]), (0.7, 0.3, 0.2)
    close(of_classes.evidence(classes, *options), of_masks.evidence(classes, *options)[:, :, 1, 1], 1e-13)
    product = torch.einsum("cm,mj->cj", of_classes.head.weight, of_classes.gate.weight)
    close(equivalent(of_classes.head.weight, of_classes.gate.weight), product, 1e-13)


def test_a_network_of_maps_of_one_place_is_that_of_classes():
    torch.manual_seed(0)
    net = plain_unet()
    masks = MHEX(net, num_classes=3, task="segmentation", placement=["blocks.0"]).eval()
    x, mhex = torch.randn(2, 4, 1, 1, dtype=torch.float64), masks.mhex_blocks[0]
    block = net.blocks[0]
    s, _ = mhex((x + block.conv(x)).relu())
    linear = MHEX(nn.Sequential(nn.Sequential(copy.deepcopy(block))), num_classes=3, placement=["0.0"]).eval()
    linear.blocks[0].gate.weight.data = mhex.gate.weight.data.flatten(1)
    linear.blocks[0].head.weight.data = mhex.head.weight.data.flatten(1)
    close(linear.double().deep_forward(x)[0], mhex.head(s).flatten(1), 1e-12)


@kernels
def test_a_small_unet_equals_the_formulas(kernel):
    net, x = plain_unet(), torch.randn(2, 2, 12, 20, dtype=torch.float64)
    wrapper = MHEX(net, num_classes=3, task="segmentation", kernel_size=kernel).eval()
    assert wrapper.names == ("blocks.0", ":0")
    block, skip = wrapper.mhex_blocks

    def convolved(weights, z):
        return F.conv2d(F.pad(z, [kernel // 2] * 4), weights)

    def gate(mhex, z, x):
        s = convolved(mhex.gate.weight, z)
        return (1 / (1 + (-s).exp())) * x, torch.einsum("cj,bjhw->bchw", mhex.head.weight[:, :, 0, 0], s)

    stem = net.stem(x)
    r = net.blocks[0].conv(stem)
    gated, first = gate(block, (stem + r).clamp(min=0), stem)
    encoded = (gated + r).clamp(min=0)
    up = net.up(net.down(encoded).clamp(min=0))
    gated, second = gate(skip, torch.cat([up, encoded], 1).clamp(min=0), up)
    original = net.head(net.merge(torch.cat([encoded, gated], 1)).clamp(min=0))
    close(wrapper.deep_forward(x), [first, second], 1e-12)
    close(wrapper(x), second, 1e-12)  # of the images' size
    wrapper.prediction = "original"
    close(wrapper(x), original, 1e-12)
    ungated = MHEX(net, num_classes=3, task="segmentation", gate=False, prediction="original").eval()
    close(ungated(x), net(x), 1e-12)


def test_maps_of_a_small_unet_equal_loops_over_places():
    net, x = plain_unet(), torch.randn(2, 2, 12, 20, dtype=torch.float64)
    wrapper = MHEX(net, num_classes=3, task="segmentation", kernel_size=3).eval()
    seen, _, _ = seen_at_blocks(wrapper, x)
    settings = {"beta": 0.4, "gamma_pos": 0.3, "gamma_neg": 0.35}
    for field, activation in enumerate(("head", "gated", "all")):
        maps = []
        for mhex, one in zip(wrapper.mhex_blocks, seen, strict=True):
            positive = mhex.equivalent_matrix().detach().clamp(min=0)
            negative = (-mhex.equivalent_matrix().detach()).clamp(min=0)
            keep = positive[1] / (positive.sum(0) + 1e-8) >= 0.3, negative[1] / (negative.sum(0) + 1e-8) >= 0.35
            e = positive[1] * keep[0] - 0.4 * negative[1] * keep[1]
            maps.append(torch.stack([by_loops(e[: a.shape[0]], a) for a in one[field]]))
        found = MHEXCAM(wrapper).attribute(x, 1, activation=activation, per_layer=True, **settings)
        close(found, torch.stack(maps, 1), 1e-12)
        summed = MHEXCAM(wrapper).attribute(x, 1, activation=activation, alpha=0.5, **settings)
        close(summed[:, 0], 0.5 * maps[0] + maps[1], 1e-12)
    assert seen[1][0].min() == 0 > seen[1][2].min()


@pytest.mark.sampled(1)
@each_net
@pytest.mark.parametrize("kernel", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_blocks_map_is_its_logits_and_the_prediction_the_last_one(name, kernel):
    wrapper, images = wrap(name, kernel_size=kernel), images_of(name)
    seen, gates, deep = seen_at_blocks(wrapper, images)
    size = images.shape[2:]
    maps = MHEXCAM(wrapper).attribute(images, [2, 0], per_layer=True, **NO_SHARPNESS)
    for i, (mhex, (z, gated, total), s, y) in enumerate(zip(wrapper.mhex_blocks, seen, gates, deep, strict=True)):
        head, gate = mhex.head.weight.flatten(1), mhex.gate.weight
        close(s[0, 1], by_loops(gate[1], z[0]), 1e-10)
        close(y, torch.einsum("cm,bm...->bc...", head, s), 1e-10)
        close(maps[:, i], torch.stack([resized(y, size)[0, 2], resized(y, size)[1, 0]]), 1e-10)
        d = mhex.gate.out_channels
        close(z[:, d:], total[:, d:].relu(), 1e-12)  # a skip is not gated
        r = total[:, :d] - gated if z.shape[1] == d else 0
        x = gated * (1 + (-s).exp())
        close(z[:, :d], (x + r).relu(), 1e-8)
        assert y.std() > 1e-3
    close(wrapper(images), resized(deep[-1], size), 1e-12)


def skips_of(name):
    return [one for one in wrap(name).residuals if one.skip]


@pytest.mark.slow
def test_skips_and_additions_of_known_networks():
    names = {name: wrap(name).names for name in ("smp.Unet", "SegFormer", "MONAI UNet, volumes", "LR-ASPP")}
    encoder = tuple(f"encoder.layer{i}.{j}" for i in range(1, 5) for j in range(2))
    assert names["smp.Unet"] == encoder + tuple(f"decoder.blocks.{i}" for i in range(4))
    assert len(names["SegFormer"]) == 5
    assert names["LR-ASPP"][-1] == "classifier"
    unet = {one.name: one for one in wrap("MONAI UNet, volumes").residuals}
    assert (unet["model.1"].skip, unet["model.1"].identity) == (4, 1)  # MONAI puts the encoder's part first
    assert [(one.channels, one.skip, one.identity) for one in skips_of("smp.Unet")] == [
        (512, 256, 0),
        (256, 128, 0),
        (128, 64, 0),
        (64, 64, 0),
    ]


@pytest.mark.parametrize(("name", "norm"), [("SegFormer", "layernorm_after"), ("MONAI UNETR", "norm2")])
def test_of_tokens_the_identity_branch_is_what_the_feed_forward_part_reads(name, norm):
    wrapper, images = wrap(name), images_of(name)
    read = []
    layer = wrapper.backbone.get_submodule(f"{wrapper.names[0]}.{norm}")
    layer.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
    seen, gates, _ = seen_at_blocks(wrapper, images)
    x = seen[0][1] * (1 + (-gates[0]).exp())
    close(x, read[0].transpose(1, 2).view_as(x), 1e-10)


@pytest.mark.slow
def test_tokens_and_maps_with_their_channels_last_are_no_decoders():
    unetr = wrap("MONAI UNETR, volumes").residuals
    decoders = [f"decoder{i}" for i in (5, 4, 3, 2)]
    assert [one.label for one in unetr if one.skip] == decoders
    assert [one.label for one in unetr if one.on_tokens] == [f"vit.blocks.{i}" for i in range(12)]
    swin = wrap("MONAI SwinUNETR").residuals  # its blocks add maps with channels last, without convolutions
    widths = dict(zip((5, 4, 3, 2, 1), (96, 48, 24, 12, 12), strict=True))
    assert [(one.label, one.channels, one.skip) for one in swin] == [(f"decoder{i}", d, d) for i, d in widths.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HEADLESS))
def test_networks_without_additions_have_skips(name):
    assert all(one.skip for one in wrap(name).residuals)


@pytest.mark.slow
def test_several_skips_of_one_module_are_told_apart():
    names = wrap("MONAI SegResNet, volumes").names
    assert [name for name in names if ":" in name] == [":0", ":1"]
    some = wrap("MONAI SegResNet, volumes", placement=[":1", "up_layers.0.0"])
    assert some.names == ("up_layers.0.0", ":1")
    x = images_of("MONAI SegResNet, volumes", 1)
    assert [y.shape[2] for y in some.deep_forward(x)] == [8, 16]


@pytest.mark.sampled(1)
@each_net
def test_without_gates_the_network_computes_what_it_did(name):
    wrapper, images = wrap(name, gate=False, prediction="original"), images_of(name)
    output = wrapper.backbone(images)
    output = output if isinstance(output, torch.Tensor) else output["logits" if "logits" in output else "out"]
    close(wrapper(images), output, 1e-10)
    with left_as_found(wrapper):
        MHEXCAM(wrapper).attribute(images, 1)


@pytest.mark.sampled(1)
@each_net
def test_a_batch_equals_its_images(name):
    wrapper, images = wrap(name, kernel_size=3), images_of(name)
    maps = MHEXCAM(wrapper).attribute(images, [3, 1])
    singles = [MHEXCAM(wrapper).attribute(one, c) for one, c in zip(images.split(1), (3, 1), strict=True)]
    close(maps, torch.cat(singles), 1e-10)
    assert maps.shape == (2, 1, *images.shape[2:])


def test_all_networks_are_listed():
    assert len(NETS) == 15


def test_maps_of_what_heads_read_need_no_gate_of_the_last_block_and_nothing_behind_it():
    net, x = plain_unet(), torch.randn(2, 2, 12, 20, dtype=torch.float64)
    wrapper, ran = MHEX(net, num_classes=3, task="segmentation", kernel_size=3).eval(), []
    layers = {"first": wrapper.mhex_blocks[0].gate, "last": wrapper.mhex_blocks[1].gate, "behind": net.merge}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    for activation, expected in (("head", ["first"]), ("gated", ["first", "last"]), ("all", ["first", "last"])):
        ran.clear()
        MHEXCAM(wrapper).attribute(x, 1, activation=activation)
        assert ran == expected


@pytest.mark.parametrize("kernel", [1, 3])
def test_without_gates_the_last_loss_is_that_of_a_plain_unet_with_both_convolutions_as_its_head(kernel):
    torch.manual_seed(0)
    wrapper = MHEX(SmallUNet(11), task="segmentation", gate=False, kernel_size=kernel).double()
    plain, last = copy.deepcopy(wrapper.backbone), wrapper.mhex_blocks[-1]
    plain.head = nn.Sequential(copy.deepcopy(last.gate), copy.deepcopy(last.head))
    images, wanted = torch.randn(4, 1, 24, 24, dtype=torch.float64), torch.randint(11, (4, 24, 24))
    F.cross_entropy(wrapper(images), wanted).backward()
    F.cross_entropy(plain(images), wanted).backward()
    close(last.gate.weight.grad, plain.head[0].weight.grad, 1e-12)
    close(last.head.weight.grad, plain.head[1].weight.grad, 1e-12)
    for name, one in plain.named_parameters():
        if not name.startswith("head"):
            close(wrapper.backbone.get_parameter(name).grad, one.grad, 1e-12)
            assert one.grad.abs().max() > 1e-4
