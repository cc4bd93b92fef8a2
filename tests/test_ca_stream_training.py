"""CA-Stream's parameters, first values, gradients and training."""

import copy
import functools

import pytest
import torch
import torchvision
from ca_stream_networks import STAGES, images, resnet, small, stream_on
from torch import nn
from torch.nn import functional as F

from adapters import CAStream

# Counts and initial values


@functools.cache
def _resnet50():
    return torchvision.models.resnet50()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 6_969_152),
        ({"start_stage": 1}, 6_952_704),
        ({"start_stage": 2}, 6_821_376),
        ({"start_stage": 3}, 6_296_576),
        ({"start_stage": 4}, 4_198_400),
        ({"projections": True}, 18_126_272),
    ],
    ids=["S0", "S1", "S2", "S3", "S4", "PROJ"],
)
def test_stream_of_resnet50_has_the_papers_parameters(options, count):
    wrapper = CAStream(_resnet50(), **options)
    assert sum(p.numel() for p in wrapper.stream.parameters()) == count
    assert sum(p.numel() for p in wrapper.parameters() if p.requires_grad) == count
    assert wrapper.stages == STAGES[options.get("start_stage", 0) :]


@pytest.mark.slow
@pytest.mark.parametrize(("specific", "count"), [(False, 32_526_184), (True, 32_590_120)])
def test_resnet50_with_its_stream_has_the_papers_parameters(specific, count):
    assert sum(p.numel() for p in CAStream(_resnet50(), class_specific=specific).parameters()) == count


@pytest.mark.slow
def test_initial_values_are_those_of_the_release():
    torch.manual_seed(0)
    stream = CAStream(_resnet50(), class_specific=True).stream
    assert stream.query.shape == (1000, 64)
    assert (stream.query.mean() - 1).abs() < 0.02
    assert (stream.query.std() - 1).abs() < 0.02
    for linear, (d, out) in zip(
        stream.projections, [(64, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 2048)], strict=True
    ):
        bound = (6 / (d + out)) ** 0.5
        assert linear.weight.shape == (out, d)
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() / (bound / 3**0.5) - 1) < 0.02


# Training


@pytest.mark.parametrize("options", [{}, {"projections": True}, {"class_specific": True}], ids=str)
def test_gradients_are_finite_differences(options):
    wrapper = stream_on(small(), stages=["a", "c"], **options)
    pixels, labels = torch.randn(2, 3, 16, 18, dtype=torch.float64), torch.tensor([3, 1])
    names, values = zip(*wrapper.stream.named_parameters(prefix="stream"), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]

    def logits(*new):
        return torch.func.functional_call(wrapper, dict(zip(names, new, strict=True)), (pixels, labels))

    for training in (False, True):
        wrapper.train(training)
        assert torch.autograd.gradcheck(logits, values, fast_mode=True)


@pytest.mark.slow
def test_training_moves_only_the_stream():
    model = resnet()
    model.layer2.add_module("drop", nn.Dropout(0.5))
    wrapper = CAStream(model).train()
    before = copy.deepcopy(wrapper.state_dict())
    seen = {}
    for name in ("conv1", "layer1", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, n=name: seen.update({n: out}))
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    pixels, labels = images(), torch.tensor([1, 4])
    first = wrapper(pixels)
    assert torch.equal(first, wrapper(pixels))  # no dropout
    F.cross_entropy(first, labels).backward()
    assert not any(out.requires_grad for out in seen.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in wrapper.stream.parameters())
    optimizer.step()
    after = wrapper.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"stream.{name}" for name, _ in wrapper.stream.named_parameters()}
    assert [m.training for m in model.modules()] == [False] * len(list(model.modules()))
    assert wrapper.training
    assert wrapper.stream.training


@pytest.mark.slow
def test_training_lowers_the_loss():
    wrapper, pixels, labels = stream_on(resnet(), start_stage=3).train(), images(4), torch.tensor([1, 4, 0, 2])
    optimizer = torch.optim.SGD(wrapper.stream.parameters(), 1e-2, 0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(wrapper(pixels), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_only_the_labels_queries_learn():
    wrapper = stream_on(resnet(), class_specific=True).train()
    F.cross_entropy(wrapper(images(), torch.tensor([3, 1])), torch.tensor([3, 1])).backward()
    assert wrapper.stream.query.grad.abs().sum(1).gt(0).tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="labels"):
        wrapper(images())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("specific", [False, True])
def test_a_stage_may_be_changed_in_place_by_what_follows(activation, specific):
    def build(inplace):
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), activation(inplace=inplace), nn.Conv2d(6, 8, 3, 2)]
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()

    results = []
    for inplace in (False, True):
        wrapper = stream_on(build(inplace), stages=["1", "3"], class_specific=specific)
        predicted = wrapper(images())
        logits = wrapper.train()(images(), torch.tensor([1, 2]) if specific else None)
        results.append([predicted, logits, *torch.autograd.grad(logits[:, 0].sum(), wrapper.stream.parameters())])
    for plain, changed in zip(*results, strict=True):
        torch.testing.assert_close(changed, plain)
