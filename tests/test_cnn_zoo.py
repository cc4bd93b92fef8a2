"""CNNs of kinds that the generated table of docs/cnns.md found wrong or refused, against hooks and dispatch."""

import functools

import cnn_truth
import pytest
import timm
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from adapters import MHEX, CAStream

SCALED = ("repvit_m0_9", "poolformerv2_s12")  # the second scales its identity branch
SIZES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "num_labels": 5}


class LongFirst(nn.Module):
    """A block that adds its shorter branch to its longer one, or the other way round, neither named."""

    def __init__(self, swapped=False):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.swapped = swapped

    def forward(self, x):
        short, long = self.a(x), self.c(self.b(x).relu())
        return short + long if self.swapped else long + short


def long_first(swapped):
    return nn.Sequential(nn.Conv2d(3, 8, 3), LongFirst(swapped), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def poolformer():
    config = transformers.PoolFormerConfig(**SIZES)
    return transformers.PoolFormerForImageClassification(config)


def ghostnet():
    """Adds in place, and the next block's empty shortcut returns that tensor."""
    return timm.create_model("ghostnet_050", num_classes=5)


def seen(model, side=96):
    model = cnn_truth.random_network(model, (3, side, side))
    model.image_size = side, side
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return model, images, cnn_truth.run_plain(model, images)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", [lambda: long_first(False), lambda: long_first(True), poolformer, ghostnet])
def test_the_gated_branch_is_the_one_with_fewer_convolutions(make):
    difference, odd, blocks = cnn_truth.check_mhex(*seen(make()))
    assert difference < cnn_truth.LIMIT
    assert not odd
    assert blocks


@pytest.mark.slow
def test_additions_of_a_network_without_lists_are_found():
    model, images, plain = seen(timm.create_model("dla46x_c", num_classes=5))
    difference, odd, blocks = cnn_truth.check_mhex(model, images, plain)
    assert (difference < cnn_truth.LIMIT, odd, blocks) == (True, [], len(plain.additions))


def test_every_stage_of_a_network_whose_encoder_returns_no_tensor_is_found():
    config = transformers.ResNetConfig(embedding_size=8, **SIZES)
    model, images, plain = seen(transformers.ResNetForImageClassification(config))
    assert CAStream(model).stages[-3:] == tuple(f"resnet.encoder.stages.{i}" for i in (1, 2, 3))
    difference, count = cnn_truth.check_ca_stream(model, images, plain)
    assert difference < cnn_truth.LIMIT
    assert count >= 4


class Ceiling(nn.Module):
    """Averages a whole map by a window that is larger."""

    def __init__(self, **options):
        super().__init__()
        self.conv, self.fc, self.options = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5), options

    def forward(self, x):
        return self.fc(F.avg_pool2d(self.conv(x), 99, ceil_mode=True, **self.options).flatten(1))


def test_a_window_larger_than_the_map_averages_it_whole():
    difference, _ = cnn_truth.check_ca_stream(*seen(Ceiling()))
    assert difference < cnn_truth.LIMIT
    with pytest.raises(ValueError, match="no pooling step"):
        CAStream(Ceiling(divisor_override=3))


@pytest.mark.slow
def test_the_reference_sees_a_branch_that_is_exchanged():
    model, images, plain = seen(timm.create_model("resnet10t", num_classes=5))
    wrapper = MHEX(model)
    assert not cnn_truth.check_mhex(model, images, plain)[1]
    one = next(a for a in plain.additions if wrapper.residuals[0].name in a.inside)
    longer = one.terms[one.depths.index(max(one.depths))]
    assert "longer" in cnn_truth._place(wrapper.residuals[0], one.z[0], longer, plain)


GATED = ("test_resnet", "hrnet_w18_small", "ghostnet_050", "test_convnext", "res2net50_14w_8s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if i < 2 else pytest.mark.slow) for i, n in enumerate(GATED)]
)
def test_gated_networks_compute_what_gates_below_torchs_functions_do(name):
    model, images, plain = seen(timm.create_model(name, num_classes=5))
    difference, odd, blocks = cnn_truth.check_mhex(model, images, plain)
    assert (difference < cnn_truth.LIMIT, odd) == (True, [])
    gated = MHEX(model, num_classes=5, prediction="original").eval()
    assert len(gated.names) == blocks > 3
    with torch.no_grad():
        assert cnn_truth.difference(gated(images), plain.logits) > 1e-3  # so gates matter


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hrnet_w18_small", "selecsls42"])
def test_every_resolution_is_a_stage_where_modules_return_several_maps(name):
    model, images, plain = seen(timm.create_model(name, num_classes=5))
    sides = [min(plain.outputs[stage].shape[2:]) for stage in CAStream(model).stages]
    assert sides == [48, 24, 12, 6, sides[-1]]
    assert sides[-1] < 6
    assert cnn_truth.check_ca_stream(model, images, plain)[0] < cnn_truth.LIMIT


class Mixes(nn.Module):
    """Two residual parts, as in PoolFormer and RepViT, where the second starts from the sum of the first."""

    def __init__(self, channels, skip):
        super().__init__()
        self.mix, self.feed = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.skip = skip

    def forward(self, x):
        x = x + self.mix(x)
        return self.skip(x) + self.feed(x).relu()


def test_an_identity_branch_that_the_residual_branch_reads_is_not_projected():
    projected = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    parts = [Mixes(4, skip) for skip in (nn.Identity(), projected, nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1))]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert MHEX(net, placement="all").names == ("1.0", "1.1", "1.2", "1.3")
    assert MHEX(net, placement="downsample").names == ("1.1",)


@pytest.mark.parametrize("make", [poolformer, *(functools.partial(timm.create_model, n) for n in SCALED)])
def test_metaformers_have_no_block_with_a_down_sampling_identity_branch(make):
    with pytest.raises(ValueError, match="has no residual block with a down-sampling"):
        MHEX(make(), placement="downsample")
