"""CA-Stream on every supported family, against a derivation from the formulas position by position."""

import functools

import pytest
import torch
from ca_stream_cases import CASES
from ca_stream_networks import derived_stream, randomised
from torch import nn

from adapters import CAStream

each_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if case.quick else pytest.mark.slow) for name, case in CASES.items()]
)


@functools.cache
def network(name):
    torch.manual_seed(0)
    return randomised(CASES[name].build(), CASES[name].pixels)


@functools.cache
def images_for(name, count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *CASES[name].pixels, generator=generator, dtype=torch.float64)


@functools.cache
def wrapped(name, alone=False, full=False):
    """A network with a random stream: over all stages, the last one alone, or all but the first with everything on."""
    case, options = CASES[name], {}
    if alone:
        options["start_stage"] = len(wrapped(name).stages) - 1
    if full:
        options = {"start_stage": min(1, len(wrapped(name).stages) - 1), "projections": True, "class_specific": True}
    torch.manual_seed(1)
    wrapper = CAStream(network(name), **({"stages": case.given} if case.given else {}), **options)
    with torch.no_grad():
        for p in wrapper.stream.parameters():
            p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 1))
    return wrapper.eval()


def hooked(model, images, exchanged, seen):
    """One plain run of a model; inputs of some modules exchanged, outputs of others seen."""
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, f=function: (f(args[0]), *args[1:]))
        for name, function in exchanged.items()
    ] + [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, n=name: seen.update({n: out.clone()}))
        for name in list(seen)
    ]
    try:
        logits = model(images)
        return logits[0] if isinstance(logits, tuple) else logits
    finally:
        for hook in hooks:
            hook.remove()


@functools.cache
def features(name, stages):
    """F_l (batch, p_l, d_l) and (h_l, w_l) of each stage, and the logits, from a plain run of the bare network."""
    case, model, seen, images = CASES[name], network(name), dict.fromkeys(stages), images_for(name)
    read = []
    with torch.no_grad():
        logits = hooked(model, images, {case.reads: lambda x: read.append(x) or x}, seen)
    maps, sizes = [], []
    for stage in stages:
        out = case.last(seen[stage]) if stage == stages[-1] else seen[stage]
        out = out if case.is_nhwc(stage) else out.permute(0, 2, 3, 1)
        sizes.append(tuple(out.shape[1:3]))
        maps.append(out.reshape(len(images), -1, out.shape[3]))
    torch.testing.assert_close(read[0].flatten(1), maps[-1].mean(1))  # or this table is wrong
    return maps, sizes, logits


def head(name, images, vectors):
    """The logits where the module behind the average reads these vectors instead."""
    return hooked(network(name), images, {CASES[name].reads: lambda x: vectors.reshape(x.shape)}, {})


def close(actual, expected, relative=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * expected.abs().max().item())


def differ(values, share=1e-3):
    """Do the images' values differ, so that an error in one of them would be seen?"""
    assert torch.isfinite(values).all()
    assert (values[0] - values[1]).abs().max() > share * values.abs().max()


@pytest.mark.sampled(3)
@each_family
def test_stages_are_those_of_the_specification(name):
    case, wrapper = CASES[name], wrapped(name)
    if case.stages:
        assert wrapper.stages == case.stages
    with torch.no_grad():
        _, maps = wrapper.forward_with_attention(images_for(name))
    _, sizes, _ = features(name, wrapper.stages)
    assert [tuple(m.shape[1:]) for m in maps] == sizes
    assert len(set(sizes)) > 1 or len(sizes) == 1 or case.given


@each_family
def test_last_stage_alone_with_identity_is_the_backbone(name):
    wrapper, images = wrapped(name, alone=True), images_for(name)
    with torch.no_grad():
        wrapper.stream.query.zero_()
        nn.init.eye_(wrapper.stream.projections[0].weight)
        wrapper.stream.projections[0].bias.zero_()
        logits, (attention,) = wrapper.forward_with_attention(images)
        expected = hooked(network(name), images, {}, {})
    differ(expected, 1e-4)
    close(logits, expected)
    torch.testing.assert_close(attention, torch.full_like(attention, 1 / attention[0].numel()))


@each_family
def test_stream_is_the_formulas(name):
    wrapper, images = wrapped(name), images_for(name)
    with torch.no_grad():
        logits, attentions = wrapper.forward_with_attention(images)
        maps, _, _ = features(name, wrapper.stages)
        last, expected = derived_stream(wrapper.stream, maps, wrapper.stream.query.expand(len(images), -1))
        close(logits, head(name, images, last))
    differ(last, 1e-4)
    for actual, wanted in zip(attentions, expected, strict=True):
        close(actual.flatten(1), wanted)
        torch.testing.assert_close(actual.sum((1, 2)), torch.ones(len(images), dtype=torch.float64))


@pytest.mark.sampled(2)
@each_family
def test_keys_values_and_class_queries_are_the_formulas(name):
    wrapper, images = wrapped(name, full=True), images_for(name)
    labels = torch.tensor([4, 0])
    with torch.no_grad():
        maps, _, plain = features(name, wrapper.stages)
        for given, classes in ((labels, labels), (None, plain.argmax(1))):
            logits, attentions = wrapper.forward_with_attention(images, given)
            last, expected = derived_stream(wrapper.stream, maps, [wrapper.stream.query[c] for c in classes.tolist()])
            close(logits, head(name, images, last))
            for actual, wanted in zip(attentions, expected, strict=True):
                close(actual.flatten(1), wanted)


@each_family
def test_gradients_in_training_are_those_of_the_formulas(name):
    wrapper, images, labels = wrapped(name, full=True), images_for(name), torch.tensor([4, 0])
    logits = wrapper.train()(images, labels)
    wrapper.eval()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    actual = torch.autograd.grad((logits * weights).sum(), list(wrapper.stream.parameters()))
    maps, _, _ = features(name, wrapper.stages)
    last, _ = derived_stream(wrapper.stream, maps, [wrapper.stream.query[c] for c in labels.tolist()])
    scores = (head(name, images, last) * weights).sum()
    expected = torch.autograd.grad(scores, list(wrapper.stream.parameters()))
    for (key, _), mine, wanted in zip(wrapper.stream.named_parameters(), actual, expected, strict=True):
        scale = max(wanted.abs().max().item(), 1e-6 * max(g.abs().max().item() for g in expected))
        assert (mine - wanted).abs().max() < 1e-7 * scale, key
