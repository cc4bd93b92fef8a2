"""MHEX CAM against loops over samples, blocks and channels."""

import copy
import math

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from captum.metrics import infidelity
from contracts import Breaks, in_threads, left_as_found
from mhex_networks import (
    CLASSES,
    CNN,
    CNNS,
    GATED,
    TARGETS,
    TEXTS,
    TOTAL,
    VITS,
    close,
    derive,
    explain,
    inputs_of,
    parameters,
    stacked,
    wrap,
)
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

import captum_ext
from adapters import MHEX, MHEXEvidenceCAM, collaboration
from adapters.wrappers.mhex_pass import MHEXPass

RECOMMENDED = 1 / CLASSES + 0.1


def evidence(block, target, beta, gamma_pos, gamma_neg):
    """The weights of one class, channel by channel."""
    matrix = np.array((block.head.weight @ block.gate.weight).tolist())
    weights = []
    for column in matrix.T:
        positive, negative = max(column[target], 0), max(-column[target], 0)
        keep = positive / (sum(v for v in column if v > 0) + 1e-8) >= gamma_pos
        drop = negative / (sum(-v for v in column if v < 0) + 1e-8) >= gamma_neg
        weights.append(keep * positive - beta * drop * negative)
    return torch.tensor(weights, dtype=torch.float64)


def bilinear(size, given):
    """The matrix of linear interpolation between the centres of cells."""
    places = ((torch.arange(size, dtype=torch.float64) + 0.5) * given / size - 0.5).clamp(0, given - 1)
    return (1 - (places[:, None] - torch.arange(given)).abs()).clamp(min=0)


# prefix tokens, and rows and columns of patches
GRIDS = dict(zip(VITS, [(1, 2, 2), (1, 3, 4), (4, 3, 4), (1, 2, 3)], strict=True))


def by_hand(name, wrapper, targets, settings=(1.0, RECOMMENDED, RECOMMENDED), field=TOTAL):
    """Of each sample the list of its blocks' maps, upsampled; padded tokens 0."""
    result, inputs = [], inputs_of(name)
    for (steps, _), target in zip(derive(name, wrapper, inputs), targets, strict=True):
        maps = []
        for block, step in zip(wrapper.blocks[: None if name in CNNS else 3], steps, strict=name in CNNS):
            e, a = evidence(block, target, *settings), step[field][0]
            if name in TEXTS:
                maps.append(F.pad(a @ e, (0, inputs[0].shape[1] - len(a))))
                continue
            prefix, *grid = GRIDS.get(name, (0,))
            small = torch.einsum("k,khw->hw", e, a) if name in CNNS else (a @ e)[prefix:].reshape(grid)
            rows, columns = (bilinear(n, m) for n, m in zip(inputs[0].shape[2:], small.shape, strict=True))
            maps.append(rows @ small @ columns.T)
        result.append(torch.stack(maps))
    return torch.stack(result)


def summed(maps, alpha):
    return sum(alpha ** (maps.shape[1] - 1 - i) * maps[:, i] for i in range(maps.shape[1]))


@pytest.mark.parametrize("name", parameters([CNN, "timm ResNeXt", "torchvision ResNet", *VITS, *TEXTS]))
def test_maps_equal_the_formula(name):
    wrapper = wrap(name)
    pixels = (lambda x: x) if name in TEXTS else (lambda x: x[:, None])
    maps = by_hand(name, wrapper, TARGETS)
    assert maps.shape[1] == (3 if name in VITS or name in TEXTS else 5)
    close(explain(wrapper, name), pixels(summed(maps, 0.9)))
    close(explain(wrapper, name, per_layer=True, alpha=0.3), maps)
    half = summed(maps, 0.5)
    low, high = (limit(half, tuple(range(1, half.dim())), keepdim=True) for limit in (torch.amin, torch.amax))
    close(explain(wrapper, name, normalize=True, alpha=0.5), pixels((half - low) / (high - low)))
    other = by_hand(name, wrapper, [3] * 3, (0.4, 0.35, 0.1), GATED)
    options = {"beta": 0.4, "gamma_pos": 0.35, "gamma_neg": 0.1, "activation": "gated", "alpha": 1.5}
    close(explain(wrapper, name, 3, **options), pixels(summed(other, 1.5)))
    likely = by_hand(name, wrapper, wrapper(*inputs_of(name)).argmax(1).tolist(), (0, RECOMMENDED, 0))
    close(explain(wrapper, name, None, beta=0), pixels(summed(likely, 0.9)))


@pytest.mark.parametrize("name", [CNN, "timm ResNeXt", "torchvision ResNet"])
def test_the_mean_of_a_map_is_the_equivalent_matrix_times_the_pooled_activation(name):
    wrapper = wrap(name)
    maps = explain(wrapper, name, gamma_pos=0, gamma_neg=0, per_layer=True)  # whole factors of size: the mean stays
    totals = stacked(derive(name, wrapper, inputs_of(name)), TOTAL)
    for i, (block, total) in enumerate(zip(wrapper.blocks, totals, strict=True)):
        matrix = torch.einsum("cj,jk->ck", block.head.weight, block.gate.weight)
        close(block.equivalent_matrix(), matrix)
        close(maps[:, i].mean((1, 2)), (matrix[TARGETS] * total.mean((2, 3))).sum(1))
        assert total.min() < 0  # before the ReLU


def step_of_an_optimizer(wrapper):
    wrapper.deep_forward(*inputs_of(CNN))[1].square().sum().backward()
    torch.optim.SGD(wrapper.parameters(), 0.1).step()


CHANGES = {
    "optimizer": step_of_an_optimizer,
    "data of the gate": lambda w: w.blocks[1].gate.weight.data.mul_(-1),
    "one entry of the head": lambda w: w.blocks[4].head.weight.data[1].zero_(),
    "load_state_dict": lambda w: w.load_state_dict({k: v * 2 for k, v in w.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_never_missed(change):
    wrapper = wrap(CNN)
    before = explain(wrapper, CNN)
    CHANGES[change](wrapper)
    after = explain(wrapper, CNN)
    assert not torch.allclose(after, before)
    close(after[:, 0], summed(by_hand(CNN, wrapper, TARGETS), 0.9))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_another_precision_is_never_missed(dtype, error):
    wrapper, images, options = wrap(CNN), inputs_of(CNN)[0], {"gamma_pos": 0, "gamma_neg": 0}
    exact = explain(wrapper, CNN, **options)
    maps = captum_ext.MHEXCAM(wrapper.to(dtype)).attribute(images.to(dtype), TARGETS, **options)
    assert maps.dtype == torch.float32
    assert 0 < (maps - exact).abs().max() < error * exact.abs().max()


def test_autocast_gives_float32_and_leaves_nothing_behind():
    wrapper, images = wrap(CNN).float(), inputs_of(CNN)[0].float()
    expected = captum_ext.MHEXCAM(copy.deepcopy(wrapper)).attribute(images, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        maps = captum_ext.MHEXCAM(wrapper).attribute(images, TARGETS)
    assert torch.equal(captum_ext.MHEXCAM(wrapper).attribute(images, TARGETS), expected)
    assert maps.dtype == torch.float32


@pytest.mark.slow
def test_sharpness_of_tiny_weights_is_as_the_formula_has_it():
    wrapper = wrap(CNN, scale=2e-4)
    close(1e8 * explain(wrapper, CNN)[:, 0], 1e8 * summed(by_hand(CNN, wrapper, TARGETS), 0.9))


@pytest.mark.parametrize("gamma", [None, 0])
def test_dead_channels_count_nothing(gamma):
    wrapper = wrap(CNN)
    for block in wrapper.blocks:
        block.gate.weight.data[:, ::2] = 0
    maps = explain(wrapper, CNN, gamma_pos=gamma, gamma_neg=gamma)
    g = RECOMMENDED if gamma is None else gamma
    close(maps[:, 0], summed(by_hand(CNN, wrapper, TARGETS, (1, g, g)), 0.9))
    wrapper.load_state_dict({k: v * (k[:6] != "blocks") for k, v in wrapper.state_dict().items()})
    assert not explain(wrapper, CNN, gamma_pos=gamma, normalize=True).any()


@pytest.mark.parametrize("name", [CNN, "BERT"])
def test_one_forward_pass_that_leaves_everything_as_found(name):
    wrapper, inputs, calls = wrap(name).train(), inputs_of(name), []
    wrapper.backbone.get_submodule(wrapper.names[0]).eval()
    before = [x.clone() for x in inputs]
    expected = explain(copy.deepcopy(wrapper).eval(), name)
    wrapper.backbone.get_submodule(wrapper.names[1]).register_forward_hook(lambda *_: calls.append(1))
    with left_as_found(wrapper):
        maps = explain(wrapper, name)
    assert torch.equal(maps, expected)
    assert calls == [1]
    assert not maps.requires_grad
    assert all(p.grad is None for p in wrapper.parameters())
    assert all(map(torch.equal, inputs, before))
    with left_as_found(wrapper):
        collaboration(wrapper, inputs, TARGETS)


def test_a_failing_model_is_left_as_found():
    wrapper = wrap(CNN).train()
    wrapper.backbone.layer3[0].se = Breaks(RuntimeError("broken"))
    for call in (lambda: explain(wrapper, CNN), lambda: collaboration(wrapper, inputs_of(CNN), TARGETS)):
        with left_as_found(wrapper), pytest.raises(RuntimeError, match="broken"):
            call()
    wrapper.backbone.layer3[0].se = nn.Identity()
    assert explain(wrapper, CNN).isfinite().all()


@pytest.mark.parametrize("name", [CNN, "timm ViT", "BERT"])
def test_a_sample_does_not_depend_on_its_batch(name):
    wrapper, inputs = wrap(name).train(), inputs_of(name)
    batch = explain(wrapper, name, normalize=True)
    for i in range(3):
        one = [x[i : i + 1] for x in inputs]
        maps = captum_ext.MHEXCAM(wrapper).attribute(one[0], int(TARGETS[i]), (*one[1:],), normalize=True)
        close(maps, batch[i : i + 1])


@pytest.mark.slow
def test_threads_share_a_wrapper():
    wrapper, images = wrap(CNN).train(), inputs_of(CNN)[0]
    alone = [explain(wrapper, CNN, c) for c in range(4)]
    with left_as_found(wrapper):
        jobs = [lambda c=c: [captum_ext.MHEXCAM(wrapper).attribute(images, c) for _ in range(3)] for c in range(4)]
        together = in_threads(jobs)
    assert all(torch.equal(m, one) for maps, one in zip(together, alone, strict=True) for m in maps)


def scaled(maps):
    low = maps - maps.amin((1, 2), keepdim=True)
    return low / (1e-7 + low.amax((1, 2), keepdim=True))


def logits_from(stage, wrapper, features):
    """The original logits from the last block's output, or the last head's from its input, written out."""
    block, mhex = wrapper.backbone.layer4[-1], wrapper.blocks[-1]
    if stage == 4:
        return wrapper.backbone.fc(features.mean((2, 3)))
    r = block.bn2(block.conv2(block.bn1(block.conv1(features)).clamp(min=0)))
    z = (block.downsample(features).mean((2, 3)) + r.mean((2, 3))).clamp(min=0)
    return z @ mhex.gate.weight.T @ mhex.head.weight.T


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "stage"), [("last", 3), ("original", 4)])
def test_it_stands_in_a_list_with_grad_cam(prediction, stage):
    wrapper, images = wrap(name := "torchvision ResNet", prediction=prediction), inputs_of("torchvision ResNet")[0]
    targets, layer = [ClassifierOutputTarget(int(t)) for t in TARGETS], getattr(wrapper.backbone, f"layer{stage}")[-1]
    features = stacked(derive(name, wrapper, (images,)), TOTAL)[stage].clamp(min=0).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_from(stage, wrapper, features)[range(3), TARGETS].sum(), features)
    features = features.detach()
    resize = lambda x: scaled(F.interpolate(x.clamp(min=0)[:, None], (64, 96), mode="bilinear")[:, 0])  # noqa: E731
    expected = {
        GradCAM: resize((gradient.mean((2, 3), keepdim=True) * features).sum(1)),
        LayerCAM: resize((gradient.clamp(min=0) * features).sum(1)),
        MHEXEvidenceCAM: scaled(explain(wrapper, name)[:, 0].clamp(min=0)),
    }
    for kind, maps in expected.items():
        with kind(model=wrapper, target_layers=[layer]) as cam:
            np.testing.assert_allclose(cam(images, targets), maps, atol=1e-4)
        assert maps.amax() > 0.9
    grad_cam = LayerGradCam(wrapper, layer).attribute(images, TARGETS)
    close(grad_cam, (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True))


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "block"), [("last", 0), ("original", -1)])
def test_target_layers_in_front_of_what_predicts_have_gradients(prediction, block):
    wrapper = wrap("torchvision ResNet")
    wrapper.prediction = prediction
    layer = wrapper.backbone.get_submodule(wrapper.names[block])
    with GradCAM(wrapper, [layer]) as cam:
        cam(inputs_of("torchvision ResNet")[0], [ClassifierOutputTarget(1)] * 3)
        assert cam.activations_and_grads.gradients[0].any()


@pytest.mark.slow
def test_captum_explains_and_scores_it():
    wrapper, (images,) = wrap(CNN), inputs_of(CNN)
    rows = derive(CNN, wrapper, (x := images.clone().requires_grad_(),))
    (gradient,) = torch.autograd.grad(sum(steps[-1][1][0, t] for (steps, _), t in zip(rows, TARGETS, strict=True)), x)
    close(Saliency(wrapper).attribute(images, TARGETS), gradient.abs())
    maps = explain(wrapper, CNN).expand(-1, 3, -1, -1)
    measured = infidelity(wrapper, lambda x: (torch.full_like(x, 0.01), x - 0.01), images, maps, target=TARGETS)
    change = (wrapper(images) - wrapper(images - 0.01))[range(3), TARGETS]
    close(measured, (0.01 * maps.sum((1, 2, 3)) - change).square())


NAN = float("nan")
BAD = [
    ("alpha", 0),
    ("alpha", -1),
    ("alpha", NAN),
    ("beta", -0.1),
    ("beta", NAN),
    ("alpha", float("inf")),
    ("beta", float("inf")),
    ("gamma_pos", 1.1),
]
BAD += [("gamma_neg", -0.1), ("gamma_pos", NAN), ("activation", "some")]
BAD += [("alpha", math.inf), ("beta", math.inf)]


@pytest.mark.parametrize(("option", "value"), BAD)
def test_bad_settings_are_named(option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        explain(wrap(CNN), CNN, **{option: value})


def test_a_tensor_of_one_class_is_for_all_samples_but_a_list_is_not():
    wrapper = wrap(CNN)
    close(explain(wrapper, CNN, torch.tensor([1])), explain(wrapper, CNN, 1))
    with pytest.raises(ValueError, match="one target for each of 3 samples"):
        explain(wrapper, CNN, [1])


@pytest.mark.parametrize(("name", "count"), [(CNN, None), ("timm ViT", 3), ("BERT", 3)])
def test_the_pass_ends_at_the_last_block_that_has_a_map(name, count):
    wrapper = wrap(name)
    blocks = wrapper.mhex_blocks
    ran = []
    for i, block in enumerate(blocks):
        block.gate.register_forward_hook(lambda *_, i=i: ran.append(i))
    explain(wrapper, name)
    assert ran == list(range(len(blocks) if count is None else count))
    assert len(blocks) > 3


class Adds(nn.Module):
    """Adds, runs blocks inside, and adds again."""

    def __init__(self, inside=None):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.inside = nn.Sequential(*(inside or ()))

    def forward(self, x):
        x = self.inside(x + self.first(x))
        return x + self.second(x)


def test_an_outer_block_that_ends_after_its_inner_ones_has_its_map_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Adds([Adds()])), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wrapper, x, seen = MHEX(net.double()).eval(), torch.randn(1, 3, 20, 20, dtype=torch.float64), []
    assert wrapper.names == ("1.0", "1.0.inside.0")
    MHEXPass(wrapper, x, see=seen.append)
    assert [one.index for one in seen] == [1, 0]
    maps = captum_ext.MHEXCAM(wrapper).attribute(x, 1, per_layer=True, beta=1, gamma_pos=0, gamma_neg=0)
    for one in seen:
        block = torch.einsum("k,bkhw->bhw", wrapper.mhex_blocks[one.index].equivalent_matrix()[1], one.total)
        close(maps[:, one.index], F.interpolate(block[None], (20, 20), mode="bilinear")[0], 1e-10)
