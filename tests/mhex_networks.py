"""Networks of every family for MHEX, and the formulas written out block by block."""

import copy
import functools
import math

import pytest
import torch
import transformers
from timm.models import resnet as timm_resnet
from timm.models import vision_transformer as timm_vit
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as tv_resnet
from torchvision.models import vision_transformer as tv_vit

import captum_ext
from adapters import MHEX

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
QUICK = ("timm ResNet", "timm SE-ResNet", "timm ViT", "BERT")  # what quick runs try too


def parameters(names):
    """The names as parameters of a test, slow but for a few."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


each_model = pytest.mark.parametrize("name", parameters(MODELS))


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


TARGETS = torch.tensor([1, 4, 0])
CNN = "timm SE-ResNet"


def explain(wrapper, name, target=TARGETS, **options):
    inputs = inputs_of(name)
    return captum_ext.MHEXCAM(wrapper).attribute(inputs[0], target, inputs[1:] or None, **options)
