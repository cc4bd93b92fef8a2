"""MHEX against the specification, written out block by block for every family of backbones."""

import contextlib
import copy
import functools
import math

import pytest
import timm
import torch
import torchvision
import transformers
from timm.models import resnet as timm_resnet
from timm.models import vision_transformer as timm_vit
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as tv_resnet
from torchvision.models import vision_transformer as tv_vit

from adapters import MHEX, deep_supervision_loss

CLASSES, OWN_CLASSES, WIDTH, HEADS, DEPTH, PAD, LENGTHS = 5, 6, 16, 2, 4, 1, (7, 4, 1)
tv_res = functools.partial(tv_resnet.ResNet, layers=[2, 1, 1, 1], num_classes=OWN_CLASSES)
tm_res = functools.partial(timm_resnet.ResNet, layers=(2, 1, 1, 1), channels=(8, 12, 16, 20), num_classes=OWN_CLASSES)
tv_wide, tm_wide = tv_resnet.Bottleneck, timm_resnet.Bottleneck


def hf(family, **options):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 24}
    if family == "DistilBert":
        sizes = {"dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "hidden_dim": 24}
    if family != "ViT":
        sizes |= {"vocab_size": 40, "max_position_embeddings": 20, "pad_token_id": PAD}
    config = getattr(transformers, f"{family}Config")(**sizes | options, num_labels=OWN_CLASSES)
    kind = "ImageClassification" if family == "ViT" else "SequenceClassification"
    return getattr(transformers, f"{family}For{kind}")(config)


def a_timm_vit(**options):
    sizes = {"img_size": (24, 32), "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return timm_vit.VisionTransformer(**sizes | options, num_classes=OWN_CLASSES)


CNNS = {
    "torchvision ResNet": lambda: tv_res(tv_resnet.BasicBlock),
    "torchvision ResNet, bottlenecks": lambda: tv_res(tv_wide),
    "torchvision ResNeXt": lambda: tv_res(tv_wide, groups=4, width_per_group=4),
    "torchvision Wide-ResNet": lambda: tv_res(tv_wide, width_per_group=72),
    "timm ResNet": lambda: tm_res(timm_resnet.BasicBlock),
    "timm ResNet, bottlenecks": lambda: tm_res(tm_wide),
    "timm ResNeXt": lambda: tm_res(tm_wide, cardinality=4, base_width=16),
    "timm Wide-ResNet": lambda: tm_res(tm_wide, base_width=128),
    "timm SE-ResNet": lambda: tm_res(timm_resnet.BasicBlock, block_args={"attn_layer": "se"}),
    "timm SE-ResNet, bottlenecks": lambda: tm_res(tm_wide, block_args={"attn_layer": "se"}),
}
VITS = {
    "torchvision ViT": lambda: tv_vit.VisionTransformer(16, 8, DEPTH, HEADS, WIDTH, 24, num_classes=OWN_CLASSES),
    "timm ViT": a_timm_vit,
    "timm ViT, registers": lambda: a_timm_vit(reg_tokens=3, init_values=0.4, qkv_bias=False),
    "transformers ViT": lambda: hf("ViT", image_size=(16, 24), patch_size=8),
}
TEXTS = {
    "BERT": lambda: hf("Bert"),
    "BERT, eager": lambda: hf("Bert", attn_implementation="eager"),
    "RoBERTa": lambda: hf("Roberta"),
    "DistilBERT": lambda: hf("DistilBert"),
}
MODELS = CNNS | VITS | TEXTS
SIZES = dict(zip(VITS, [(16, 16), (24, 32), (24, 32), (16, 24)], strict=True))
each_model = pytest.mark.parametrize("name", MODELS)


def randomised(model, seed=0):
    """Weights and statistics at random, so that no term of a formula is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            spread = 0.15 if p.dim() < 2 else 0.4 / math.sqrt(p[0].numel())
            p.add_(spread * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean += 0.3 * torch.randn(norm.num_features, generator=generator)
            norm.running_var *= 0.6 + torch.rand(norm.num_features, generator=generator)
    return model.eval()


@functools.cache
def backbone(name):
    torch.manual_seed(0)
    return randomised(MODELS[name]())


@functools.cache
def built(name, scale, options):
    wrapper = MHEX(copy.deepcopy(backbone(name)), **{"num_classes": CLASSES} | dict(options)).eval()
    with torch.no_grad():
        for p in wrapper.blocks.parameters():
            p.normal_(std=scale / math.sqrt(p.shape[1]), generator=torch.Generator().manual_seed(len(p)))
    return wrapper


def wrap(name, scale=3.0, **options):
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return copy.deepcopy(built(name, scale, tuple(options.items())))


def inputs_of(name, count=3):
    generator = torch.Generator().manual_seed(7)
    if name not in TEXTS:
        return (torch.randn(count, 3, *SIZES.get(name, (64, 96)), generator=generator, dtype=torch.float64),)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(5, 40, mask.shape, generator=generator).where(mask.bool(), PAD), mask


def add(wrapper, steps, name, x, r, gate):
    """The residual addition: as it was, or with the block of this name, noting s, y, gated A and A of each sample."""
    if name not in wrapper.names:
        return x + r
    block, places = wrapper.blocks[wrapper.names.index(name)], (2, 3) if x.dim() == 4 else (1,)
    z = (x.mean(places) + r.mean(places)).clamp(min=0)
    s = torch.einsum("ij,bj->bi", block.gate.weight, z)
    strength = (1 / (1 + (-s).exp())).reshape(len(s), *((-1, 1, 1) if x.dim() == 4 else (1, -1))) if gate else 1
    gated = strength * (x if x.dim() == 4 else x + r)
    total = gated + r if x.dim() == 4 else x + r
    steps.append((s, torch.einsum("ci,bi->bc", block.head.weight, s), gated, total))
    return total if x.dim() == 4 else gated


def cnn(wrapper, images, gate):
    net, steps = wrapper.backbone, []
    x = net.maxpool(net.bn1(net.conv1(images)).clamp(min=0))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in getattr(net, stage).named_children():
            r, last = x, 3 if hasattr(block, "conv3") else 2
            for k in range(1, last + 1):
                r = getattr(block, f"bn{k}")(getattr(block, f"conv{k}")(r))
                r = r.clamp(min=0) if k < last else r
            r = block.se(r) if getattr(block, "se", None) is not None else r
            x = x if block.downsample is None else block.downsample(x)
            x = add(wrapper, steps, f"{stage}.{i}", x, r, gate).clamp(min=0)
    return steps, net.fc(x.mean((2, 3)))


def attend(q, k, v):
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def attention_and_rest(layer, t):
    """Of a layer: x, the function from x to r, and what follows the addition."""
    nothing = nn.Identity()
    if hasattr(layer, "ln_1"):  # torchvision
        a = layer.self_attention
        qkv = F.linear(layer.ln_1(t), a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
        return t + a.out_proj(attend(*qkv)), lambda x: layer.mlp(layer.ln_2(x)), nothing
    if hasattr(layer, "norm1"):  # timm
        mixed = attend(*layer.attn.qkv(layer.norm1(t)).chunk(3, -1))
        return t + layer.ls1(layer.attn.proj(mixed)), lambda x: layer.ls2(layer.mlp(layer.norm2(x))), nothing
    a = layer.attention
    if hasattr(layer, "layernorm_before"):  # transformers' ViT
        n = layer.layernorm_before(t)
        mixed = attend(a.q_proj(n), a.k_proj(n), a.v_proj(n))
        return t + a.o_proj(mixed), lambda x: layer.mlp(layer.layernorm_after(x)), nothing
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        mixed, f = attend(a.q_lin(t), a.k_lin(t), a.v_lin(t)), layer.ffn
        x = layer.sa_layer_norm(t + a.out_lin(mixed))
        return x, lambda x: f.lin2(F.gelu(f.lin1(x))), layer.output_layer_norm
    mixed, out = attend(a.self.query(t), a.self.key(t), a.self.value(t)), layer.output
    x = a.output.LayerNorm(t + a.output.dense(mixed))
    return x, lambda x: out.dense(F.gelu(layer.intermediate.dense(x))), out.LayerNorm


def transformer(wrapper, given, gate):
    net, steps = wrapper.backbone, []
    if hasattr(net, "conv_proj"):
        tokens = torch.cat([net.class_token.expand(len(given), -1, -1), net._process_input(given)], 1)
        tokens, path = tokens + net.encoder.pos_embedding, "encoder.layers"
    elif hasattr(net, "patch_embed"):
        tokens, path = net._pos_embed(net.patch_embed(given)), "blocks"
    else:
        base = next(k for k in ("vit", "bert", "roberta", "distilbert") if hasattr(net, k))
        path = base + {"vit": ".layers", "distilbert": ".transformer.layer"}.get(base, ".encoder.layer")
        tokens = getattr(net, base).embeddings(given)
    for key, layer in net.get_submodule(path).named_children():
        x, feed, after = attention_and_rest(layer, tokens)
        tokens = after(add(wrapper, steps, f"{path}.{key}", x, feed(x), gate))
    first = tokens[:, 0]
    if hasattr(net, "conv_proj"):
        return steps, net.heads(net.encoder.ln(first))
    if hasattr(net, "patch_embed"):
        return steps, net.head(net.norm(first))
    read = {
        "vit": lambda t: net.classifier(net.vit.layernorm(t)),
        "bert": lambda t: net.classifier(net.bert.pooler.dense(t).tanh()),
        "roberta": lambda t: net.classifier.out_proj(net.classifier.dense(t).tanh()),
        "distilbert": lambda t: net.classifier(net.pre_classifier(t).clamp(min=0)),
    }
    return steps, read[base](first)


def derive(name, wrapper, inputs, gate=True):
    """Logits, and (s, y, gated, total) of each block, of each sample alone; of texts without padding and mask."""
    walk = cnn if name in CNNS else transformer
    texts = [ids[m.bool()] for ids, m in zip(*inputs, strict=True)] if name in TEXTS else inputs[0]
    return [walk(wrapper, one[None], gate) for one in texts]


S, Y, GATED, TOTAL = range(4)


def stacked(rows, field):
    return [torch.cat([steps[i][field] for steps, _ in rows]) for i in range(len(rows[0][0]))]


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


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


@each_model
def test_gates_heads_and_predictions_equal_the_formulas(name):
    check(name, wrap(name))
    rows = derive(name, wrapper := wrap(name, prediction="original"), inputs_of(name))
    close(wrapper(*inputs_of(name)), torch.cat([logits for _, logits in rows]))


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


@pytest.mark.parametrize(("name", "placement", "chosen"), [(n, "downsample", c) for n, c in DOWN] + NAMED)
def test_a_placement_changes_only_its_blocks_in_the_networks_order(name, placement, chosen):
    names = wrap(name).names
    given = placement if placement == "downsample" else [names[i] for i in placement]
    wrapper = wrap(name, placement=given, prediction="original")
    assert wrapper.names == tuple(names[i] for i in chosen)
    check(name, wrapper)


@pytest.mark.parametrize("classes", [2, 9])
def test_parameters_of_resnet18(classes):
    model = torchvision.models.resnet18()
    wrapper = MHEX(model, num_classes=classes)
    assert wrapper.backbone is model
    assert sum(p.numel() for p in wrapper.blocks.parameters()) == 696_320 + 1_920 * classes
    assert [block.gate.in_features for block in wrapper.blocks] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert all(layer.bias is None for block in wrapper.blocks for layer in (block.gate, block.head))


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
