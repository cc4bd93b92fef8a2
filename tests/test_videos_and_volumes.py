"""Videos, volumes and signals: scores come back on their grids, and wrapped networks equal the formulas."""

import math

import pytest
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional as F
from torchvision.models.video import mvit as mvit_parts

from adapters import MHEX, CAStream, MHEXEvidenceCAM, RawAttentionCAM, reshape_transform_for
from captum_ext import CDAM, MHEXCAM, AttentionMap, AttentionRollout, IntegratedCDAM, RawAttention, SmoothCDAM

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}


def mvit():
    """torchvision's, whose keys are pooled with the heads in the batch."""
    sizes = {"num_heads": 2, "kernel_q": [], "kernel_kv": [3, 3, 3], "stride_q": [], "stride_kv": [1, 1, 1]}
    block = mvit_parts.MSBlockConfig(input_channels=16, output_channels=16, **sizes)
    pooled = mvit_parts.MSBlockConfig(
        input_channels=16, output_channels=16, **sizes | {"kernel_q": [3, 3, 3], "stride_q": [1, 2, 2]}
    )
    return mvit_parts.MViT(
        (32, 32), 4, [pooled, block], residual_pool=False, residual_with_cls_embed=True, rel_pos_embed=False,
        proj_after_attn=False, num_classes=3, patch_embed_kernel=(2, 4, 4), patch_embed_stride=(2, 4, 4),
        patch_embed_padding=(0, 0, 0),
    )  # fmt: skip


class Volumes(nn.Module):
    """A Vision Transformer of volumes, patches cut by a convolution or by reshaping."""

    def __init__(self, by_convolution):
        super().__init__()
        self.by_convolution = by_convolution
        self.embed = nn.Conv3d(2, 16, (2, 4, 4), (2, 4, 4)) if by_convolution else nn.Linear(2 * 2 * 4 * 4, 16)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True, dropout=0.0)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        if self.by_convolution:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
        else:
            b, c, d, h, w = x.shape
            patches = x.view(b, c, d // 2, 2, h // 4, 4, w // 4, 4).permute(0, 2, 4, 6, 1, 3, 5, 7)
            tokens = self.embed(patches.reshape(b, -1, c * 32))
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.block(tokens)[:, 0])


def hf(name, **options):
    config = getattr(transformers, f"{name}Config")(**SIZES | options)
    kind = "Audio" if name == "AST" else "Video"
    return getattr(transformers, f"{name}For{kind}Classification")(config)


VIDEO = {"image_size": 16, "num_frames": 4}
MODELS = {  # the model, the shape of a sample, what of it each place of the grid reads, and the grid
    "VideoMAE": (lambda: hf("VideoMAE", patch_size=8, tubelet_size=2, **VIDEO), (4, 3, 16, 16), (2, 8, 8)),
    "VideoMAE, wide": (
        lambda: hf("VideoMAE", image_size=[16, 32], patch_size=8, tubelet_size=2, num_frames=4),
        (4, 3, 16, 32),
        (2, 8, 8),
    ),
    "ViViT": (lambda: hf("Vivit", tubelet_size=[2, 8, 8], **VIDEO), (4, 3, 16, 16), (2, 8, 8)),
    "ViViT, 3 frames": (
        lambda: hf("Vivit", tubelet_size=[1, 8, 8], image_size=16, num_frames=3),
        (3, 3, 16, 16),
        (1, 8, 8),
    ),
    "TimeSformer": (lambda: hf("Timesformer", patch_size=8, **VIDEO), (4, 3, 16, 16), (1, 8, 8)),
    "TimeSformer, joint": (
        lambda: hf("Timesformer", patch_size=8, attention_type="joint_space_time", **VIDEO),
        (4, 3, 16, 16),
        (1, 8, 8),
    ),
    "volumes": (lambda: Volumes(True), (2, 4, 8, 12), (2, 4, 4)),
    "volumes, reshaped": (lambda: Volumes(False), (2, 4, 8, 12), (2, 4, 4)),
    "AST": (
        lambda: hf("AST", patch_size=8, frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16),
        (32, 16),
        (8, 8),
    ),
}


def made(name):
    build, shape, patch = MODELS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    return model, torch.randn(2, *shape, dtype=torch.float64), patch


def grid_sizes(name, shape, patch):
    if name == "AST":  # the first axis is time, the grid's rows are frequencies
        return (shape[1] // patch[0], shape[0] // patch[1])
    places = (shape[0], *shape[2:]) if not name.startswith("volumes") else shape[1:]
    return tuple(size // step for size, step in zip(places, patch, strict=True))


def part_of(name, place, patch):
    """Where in a sample a place of the grid lies."""
    cells = [slice(number * step, (number + 1) * step) for number, step in zip(place, patch, strict=True)]
    if name == "AST":
        return (cells[1], cells[0])
    return (slice(None), *cells) if name.startswith("volumes") else (cells[0], slice(None), *cells[1:])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", MODELS)
def test_each_place_of_the_grid_is_the_token_that_changes_with_its_part_of_the_input(name):
    model, inputs, patch = made(name)
    explainer = CDAM(model)
    tokens = explainer.tokens(inputs)
    sizes = grid_sizes(name, inputs.shape[1:], patch)
    assert tuple(tokens.order.shape) == sizes
    flat = tokens.values.flatten(1, -2)
    for number in range(0, math.prod(sizes), 3):
        place = tuple(int(one) for one in torch.unravel_index(torch.tensor(number), sizes))
        changed = inputs.clone()
        changed[(slice(None), *part_of(name, place, patch))] += 1.0
        difference = (explainer.tokens(changed).values.flatten(1, -2) - flat).abs().sum((0, 2))
        if name == "TimeSformer":  # time attention comes first: the same patch of other frames changes a little, too
            assert int(difference.argmax()) == int(tokens.order[place])
        else:
            assert difference.nonzero().flatten().tolist() == [int(tokens.order[place])]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_scores_of_the_tokens_on_this_grid(name):
    model, inputs, _ = made(name)
    order = CDAM(model).tokens(inputs).order
    sizes = tuple(order.shape)
    single = (2, 1, *sizes) if len(sizes) == 2 else (2, *sizes)
    for explain in (CDAM(model), IntegratedCDAM(model)):
        scores = explain.attribute(inputs, 1, return_tokens=True)
        maps = explain.attribute(inputs, 1)
        assert maps.shape == single
        torch.testing.assert_close(maps.view(2, *sizes), scores[:, order.flatten()].view(2, *sizes), rtol=0, atol=0)
    several = CDAM(model).attribute_targets(inputs, [1, [0, 2]])
    assert several.shape == (2, 2, *sizes)
    torch.testing.assert_close(several[:, 0].view(2, *sizes), CDAM(model).attribute(inputs, 1).view(2, *sizes))
    generator = torch.Generator().manual_seed(0)
    assert SmoothCDAM(model).attribute(inputs, 1, nt_samples=2, generator=generator).shape == single
    if name != "TimeSformer":  # its last attention looks at one frame
        for method in (AttentionMap, AttentionRollout):
            tokens = method(model).attribute(inputs, return_tokens=True)
            expected = tokens[:, order.flatten()].view(2, *sizes)
            torch.testing.assert_close(method(model).attribute(inputs).view(2, *sizes), expected, rtol=0, atol=0)


def test_scores_of_a_video_equal_autograd_at_the_norm_in_front():
    model, inputs, _ = made("ViViT")
    seen = []

    def keep(module, args, output):
        seen.append(output)
        output.retain_grad()

    (norm,) = (module for name, module in model.named_modules() if name.endswith("layernorm_before"))
    hook = norm.register_forward_hook(keep)
    model(inputs).logits[:, 1].sum().backward()
    hook.remove()
    expected = (seen[0] * seen[0].grad).sum(-1).detach()
    torch.testing.assert_close(
        CDAM(model).attribute(inputs, 1), expected[:, 1:].view(2, 2, 2, 2), rtol=1e-9, atol=1e-12
    )


def test_tokens_that_are_pooled_lie_where_their_patches_lay():
    torch.manual_seed(0)
    model, inputs = mvit().double().eval(), torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():  # so that a token depends on its own patches almost alone
        for name, weight in model.named_parameters():
            if name.endswith(("attn.project.0.weight", "mlp.3.weight")):
                weight *= 1e-3
    explainer = CDAM(model)
    tokens = explainer.tokens(inputs)
    assert tokens.order.shape == (2, 4, 4)
    for frame, row, column in ((0, 0, 0), (1, 2, 1), (0, 3, 3)):
        changed = inputs.clone()
        changed[:, :, 2 * frame : 2 * frame + 2, 8 * row : 8 * row + 4, 8 * column : 8 * column + 4] += 5.0
        difference = (explainer.tokens(changed).values - tokens.values).abs().sum((0, 2))
        assert int(difference.argmax()) == int(tokens.order[frame, row, column])
    assert CDAM(model).attribute(inputs, 1).shape == (2, 2, 4, 4)


def test_videos_whose_tokens_lie_nowhere_are_refused_and_the_advice_works():
    class Drops(Volumes):
        def forward(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)[:, [0, 1, 2, 3, 4, 7, 9, 10, 11]]
            return self.head(self.block(tokens)[:, 0])

    model = Drops(True).eval()
    inputs = torch.randn(2, 2, 4, 8, 12)
    with pytest.raises(ValueError, match=r"how the tokens.*Ask for `return_tokens=True`"):
        CDAM(model).attribute(inputs, 1)
    assert CDAM(model).attribute(inputs, 1, return_tokens=True).shape == (2, 9)


# Networks of signals and volumes, wrapped.


class Block(nn.Module):
    def __init__(self, axes, before, after, stride=1):
        super().__init__()
        conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (), (nn.Conv3d, nn.BatchNorm3d))[axes - 1]
        self.conv, self.norm = conv(before, after, 3, stride, 1), norm(after)
        self.downsample = None if before == after else conv(before, after, 1, stride)

    def forward(self, x):
        residual = self.norm(self.conv(x))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)))


class Net(nn.Module):
    def __init__(self, axes, pooling):
        super().__init__()
        conv, pool = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (), (nn.Conv3d, nn.AdaptiveAvgPool3d))[axes - 1]
        self.stem = conv(2, 4, 3, 1, 1)
        self.layers = nn.Sequential(Block(axes, 4, 4), Block(axes, 4, 6, 2), Block(axes, 6, 8, 2))
        self.pool = pool(1) if pooling == "module" else lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)
        if pooling == "last axis":
            self.pool = lambda x: x.mean(-1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.pool(self.layers(self.stem(x))).flatten(1))


NETS = [(1, "module"), (1, "mean"), (1, "last axis"), (3, "module"), (3, "mean")]


def net_and_inputs(axes, pooling):
    torch.manual_seed(0)
    model = Net(axes, pooling).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            module.running_mean += 0.3
            module.running_var *= 0.7
    return model, torch.randn(2, 2, *((40,) if axes == 1 else (8, 12, 16)), dtype=torch.float64)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("axes", "pooling"), NETS)
def test_mhex_of_signals_and_volumes_equals_the_formulas(axes, pooling):
    model, inputs = net_and_inputs(axes, pooling)
    wrapper = MHEX(model, num_classes=4).eval()
    x, maps, logits = model.stem(inputs), [], None
    for block, gates in zip(model.layers, wrapper.mhex_blocks, strict=True):
        residual = block.norm(block.conv(x))
        identity = x if block.downsample is None else block.downsample(x)
        z = (residual + identity).flatten(2).mean(2).relu()
        s = gates.gate(z)
        logits = gates.head(s)
        total = s.sigmoid().view(*s.shape, *[1] * axes) * identity + residual
        row = (gates.head.weight @ gates.gate.weight)[2]
        mode = "linear" if axes == 1 else "trilinear"
        small = torch.einsum("c,bc...->b...", row, total)
        maps.append(F.interpolate(small[:, None], inputs.shape[2:], mode=mode)[:, 0])
        x = total.relu()
    close = torch.testing.assert_close
    close(wrapper(inputs), logits, rtol=1e-9, atol=1e-12)
    found = MHEXCAM(wrapper).attribute(inputs, 2, gamma_pos=0.0, gamma_neg=0.0, per_layer=True)
    close(found, torch.stack(maps, 1), rtol=1e-9, atol=1e-12)
    whole = MHEXCAM(wrapper).attribute(inputs, 2, gamma_pos=0.0, gamma_neg=0.0, alpha=0.5)
    close(whole[:, 0], sum(0.5 ** (2 - i) * one for i, one in enumerate(maps)), rtol=1e-9, atol=1e-12)
    cam = MHEXEvidenceCAM(wrapper)(inputs.float())
    assert cam.shape == (2, *inputs.shape[2:])
    assert cam.max() > 0.99


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("axes", "pooling"), NETS)
def test_ca_stream_of_signals_and_volumes_equals_the_formulas(axes, pooling):
    model, inputs = net_and_inputs(axes, pooling)
    wrapper = CAStream(model).eval()
    assert wrapper.stages == ("layers.0", "layers.1", "layers.2")
    features, x = [], model.stem(inputs)
    for block in model.layers:
        x = block(x)
        features.append(x)
    query, maps = wrapper.stream.query.expand(2, -1), []
    for number, one in enumerate(features):
        tokens = one.flatten(2)
        attention = (torch.einsum("bcn,bc->bn", tokens, query) / math.sqrt(tokens.shape[1])).softmax(1)
        maps.append(attention.view(2, *one.shape[2:]))
        query = wrapper.stream.projections[number](torch.einsum("bcn,bn->bc", tokens, attention))
    logits, found = wrapper.forward_with_attention(inputs)
    torch.testing.assert_close(logits, model.head(query), rtol=1e-9, atol=1e-12)
    for mine, expected in zip(found, maps, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    last = RawAttention(wrapper).attribute(inputs)
    torch.testing.assert_close(last[:, 0], maps[-1], rtol=1e-9, atol=1e-12)
    assert RawAttentionCAM(wrapper)(inputs).shape == (2, *inputs.shape[2:])
    with pytest.raises(ValueError, match=r"Expected (signals|volumes) \(batch, channels, .*shape \(2, 3, 8, 8\)"):
        wrapper(torch.randn(2, 3, 8, 8))


@pytest.mark.slow
def test_torchvisions_videos_are_wrapped():
    inputs = torch.randn(2, 3, 8, 32, 32)
    for build in (torchvision.models.video.r3d_18, torchvision.models.video.r2plus1d_18):
        mhex, stream = MHEX(build(num_classes=3)).eval(), CAStream(build(num_classes=3)).eval()
        assert mhex.names[-1] == "layer4.1"
        assert stream.stages == ("layer1", "layer2", "layer3", "layer4")
        assert torch.isfinite(MHEXCAM(mhex).attribute(inputs, 1)).all()
        torch.testing.assert_close(RawAttention(stream).attribute(inputs).sum((1, 2, 3, 4)), torch.ones(2))


def test_reshape_transform_says_what_it_does_not_do():
    model, _, _ = made("volumes")
    with pytest.raises(ValueError, match="does not take images"):
        reshape_transform_for(model)
