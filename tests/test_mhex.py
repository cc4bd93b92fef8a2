"""MHEX against the specification, written out block by block for every family of backbones."""

import contextlib
import copy

import pytest
import timm
import torch
import torchvision
from mhex_networks import (
    TEXTS,
    S,
    Y,
    backbone,
    close,
    cnn,
    derive,
    each_model,
    hf,
    inputs_of,
    randomised,
    stacked,
    transformer,
    wrap,
)
from torch import nn

from adapters import MHEX, deep_supervision_loss


def check(name, wrapper, gate=True):
    seen, inputs = [], inputs_of(name)
    rows = derive(name, wrapper, inputs, gate)
    for block in wrapper.blocks:
        block.gate.register_forward_hook(lambda _, __, s: seen.append(s))
    deep = wrapper.deep_forward(*inputs)
    assert len(deep) == len(wrapper.names) == len(rows[0][0])
    close(seen[: len(deep)], stacked(rows, S))
    close(deep, stacked(rows, Y))
    expected = torch.cat([logits for _, logits in rows]) if wrapper.prediction == "original" else deep[-1]
    close(wrapper(*inputs), expected)
    assert deep[0].abs().max() > 1e-3


@pytest.mark.sampled(1)
@each_model
def test_gates_heads_and_predictions_equal_the_formulas(name):
    check(name, wrap(name))
    rows = derive(name, wrapper := wrap(name, prediction="original"), inputs_of(name))
    close(wrapper(*inputs_of(name)), torch.cat([logits for _, logits in rows]))


@pytest.mark.sampled(2)
@each_model
def test_without_gate_features_pass_unchanged(name):
    wrapper = wrap(name, gate=False, prediction="original")
    check(name, wrapper, gate=False)
    output = backbone(name)(*inputs_of(name))
    close(wrapper(*inputs_of(name)), output if isinstance(output, torch.Tensor) else output.logits)


DOWN = [
    ("torchvision ResNet", (2, 3, 4)),
    ("timm SE-ResNet, bottlenecks", (0, 2, 3, 4)),
    ("timm ResNet", (0, 2, 3, 4)),
]
NAMED = [("timm ResNet", (4, 1), (1, 4)), ("timm ViT", (3, 1), (1, 3)), ("BERT", (3, 1), (1, 3))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "placement", "chosen"), [(n, "downsample", c) for n, c in DOWN] + NAMED)
def test_a_placement_changes_only_its_blocks_in_the_networks_order(name, placement, chosen):
    names = wrap(name).names
    given = placement if placement == "downsample" else [names[i] for i in placement]
    wrapper = wrap(name, placement=given, prediction="original")
    assert wrapper.names == tuple(names[i] for i in chosen)
    check(name, wrapper)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 9])
def test_parameters_of_resnet18(classes):
    model = torchvision.models.resnet18()
    wrapper = MHEX(model, num_classes=classes)
    assert wrapper.backbone is model
    assert sum(p.numel() for p in wrapper.blocks.parameters()) == 696_320 + 1_920 * classes
    assert [block.gate.in_features for block in wrapper.blocks] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert all(layer.bias is None for block in wrapper.blocks for layer in (block.gate, block.head))


@pytest.mark.slow
@pytest.mark.parametrize("make", [torchvision.models.get_model, timm.create_model])
@pytest.mark.parametrize(("name", "stages", "count"), [("resnet18", 3, 8), ("resnet34", 3, 16), ("resnet50", 4, 16)])
def test_additions_of_known_networks(make, name, stages, count):
    wrapper = MHEX(make(name), placement="downsample")
    assert wrapper.names == tuple(f"layer{i}.0" for i in range(1, 5))[-stages:]
    assert wrapper.num_classes == 1000
    assert len(MHEX(wrapper.backbone, num_classes=2).names) == count


@pytest.mark.parametrize("name", TEXTS)
def test_a_zero_gate_leaves_a_pretrained_encoder_unchanged(name):
    wrapper = wrap(name, prediction="original")
    for block in wrapper.blocks:
        block.gate.weight.data.zero_()
    ids, mask = inputs_of(name)
    close(wrapper(attention_mask=mask.bool(), input_ids=ids), backbone(name)(ids, mask).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision ResNet", "timm SE-ResNet, bottlenecks"])
def test_batch_norm_moves_in_training(name):
    wrapper, inputs = wrap(name).train(), inputs_of(name)
    steps, _ = cnn(twin := copy.deepcopy(wrapper), *inputs, True)
    close(wrapper.deep_forward(*inputs), [step[Y] for step in steps])
    close(wrapper.state_dict(), twin.state_dict())
    assert not torch.equal(wrapper.backbone.bn1.running_var, backbone(name).bn1.running_var)


@pytest.mark.parametrize("name", ["BERT", "timm ResNet"])
def test_everything_learns(name):
    wrapper, inputs = wrap(name, prediction="original").train(), inputs_of(name)
    deep_supervision_loss(wrapper.deep_forward(*inputs), torch.tensor([0, 1, 2])).backward()
    unused = ("backbone.classifier", "backbone.bert.pooler", "backbone.fc", f"backbone.{wrapper.names[-1]}.output.L")
    idle = {k for k, p in wrapper.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(k.startswith(unused) or k.endswith("key.bias") for k in idle), idle
    again = [torch.stack(wrapper.deep_forward(*inputs)) for _ in range(2)]
    assert torch.equal(*again) == (name != "BERT")  # dropout


def cross_entropy(y, labels):
    return sum(float(-row.detach().softmax(0)[t].log()) for row, t in zip(y, labels, strict=True)) / len(labels)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["torchvision ViT", "timm ResNet", "transformers ViT", *TEXTS])
def test_losses_and_what_forward_returns_with_labels(name):
    wrapper, inputs, labels = wrap(name), inputs_of(name), torch.tensor([4, 0, 2])
    deep = wrapper.deep_forward(*inputs)
    finetune = sum(cross_entropy(y, labels) for y in deep)
    pretrain = cross_entropy(sum(y / 2 ** (len(deep) - i) for i, y in enumerate(deep, 1)), labels)
    for mode, loss in {"finetune": finetune, "pretrain": pretrain}.items():
        assert float(deep_supervision_loss(deep, labels, mode=mode).detach()) == pytest.approx(loss)
    output, plain = wrapper(*inputs, labels=labels), wrapper.backbone(*inputs)
    assert type(output) is (dict if isinstance(plain, torch.Tensor) else type(plain))
    assert float(output["loss"].detach()) == pytest.approx(finetune)
    assert torch.equal(output["logits"], wrapper(*inputs))


BAD = [("num_classes", 0), ("num_classes", -2), ("num_classes", "8"), ("prediction", "first"), ("placement", "none")]
BAD += [("placement", x) for x in ([], ["layer9"], ["layer1.0", "layer1.0"], [1], 5)]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("setting", "value"), BAD)
def test_bad_settings_are_named(setting, value):
    with pytest.raises((TypeError, ValueError), match=f"{setting}|names of residual blocks out of .'layer1.0'"):
        wrap("timm ResNet", **{setting: value})


def test_networks_without_additions_are_refused():
    for model in (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torchvision.models.DenseNet(4, (1, 1), 8)):
        with pytest.raises(ValueError, match=rf"{type(model).__name__} has no residual additions"):
            MHEX(model)
    with pytest.raises(ValueError, match=r"VisionTransformer has no residual block with a down-sampling"):
        wrap("timm ViT", placement="downsample")
    with pytest.raises(ValueError, match=r"'finetune' or 'pretrain', got 'both'"):
        deep_supervision_loss([torch.zeros(1, 2)], torch.tensor([0]), mode="both")


class AddsInPlace(nn.Conv2d):
    def forward(self, x):
        r = super().forward(x)
        r.add_(x)
        return r


def test_an_addition_in_place_is_not_lost():
    parts = nn.Conv2d(3, 4, 3), nn.Sequential(AddsInPlace(4, 4, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net, x = nn.Sequential(*parts), torch.randn(2, 3, 28, 28)
    close(MHEX(net, prediction="original", gate=False)(x), net(x))


def test_chunked_feed_forward_is_gated_as_a_whole_or_refused():
    net = randomised(hf("Bert", chunk_size_feed_forward=4))
    with contextlib.suppress(ValueError):
        wrapper, ids = MHEX(net).eval(), torch.randint(5, 40, (2, 8))
        close(wrapper.deep_forward(ids), stacked([transformer(wrapper, one[None], True) for one in ids], Y))
