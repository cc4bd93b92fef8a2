"""CA-Stream in evaluation, its copies, and the backbone as it was found."""

import copy
import pickle

import pytest
import torch
from ca_stream_networks import images, resnet, stream_on
from contracts import Breaks, in_threads, left_as_found
from torch.nn import functional as F

from adapters import CAStream

# Evaluation


@pytest.mark.slow
def test_activations_have_gradients_in_evaluation_and_images_stay():
    wrapper, pixels, seen = stream_on(resnet()), images(), []
    before = pixels.clone()
    wrapper.backbone.layer4.register_forward_hook(lambda _, __, out: seen.append(out))
    wrapper(pixels)[:, 1].sum().backward(inputs=[seen[0]])
    assert seen[0].requires_grad
    assert seen[0].grad.abs().max() > 0
    assert not pixels.requires_grad
    assert pixels.grad is None
    assert torch.equal(pixels, before)
    with torch.no_grad():
        assert not wrapper(pixels).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("specific", [False, True])
def test_modes_and_layouts_give_the_same(specific):
    wrapper = stream_on(resnet(), class_specific=specific)
    expected, maps = wrapper.forward_with_attention(images())
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(wrapper(images()), expected)
    given = images().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(wrapper).to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(given), expected)
    singles = [wrapper.forward_with_attention(x) for x in images().split(1)]
    torch.testing.assert_close(torch.cat([logits for logits, _ in singles]), expected)
    torch.testing.assert_close(torch.cat([m[2] for _, m in singles]), maps[2])


@pytest.mark.slow
def test_inference_tensors_are_images_too():
    wrapper = stream_on(resnet())
    with torch.inference_mode():
        pixels = images() + 0
        expected = wrapper(pixels)
    torch.testing.assert_close(wrapper(pixels), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"])
@pytest.mark.parametrize("projections", [False, True])
def test_low_precision_is_close(dtype, projections):
    wrapper = stream_on(resnet(), projections=projections).float()
    with torch.no_grad():
        wrapper.stream.query.mul_(0.2)
        expected, maps = wrapper.forward_with_attention(images().float())
        if dtype == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                logits, low = wrapper.forward_with_attention(images().float())
        else:
            logits, low = wrapper.to(dtype).forward_with_attention(images().to(dtype))
    close = 0.02 if dtype is torch.float16 else 0.12
    assert (logits.float() - expected).abs().max() < close * expected.abs().max()
    for actual, wanted in zip(low, maps, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - wanted).abs().max() < 2 * close * wanted.max()
        assert (actual.sum((1, 2)) - 1).abs().max() < 1e-5


@pytest.mark.slow
def test_training_works_under_autocast():
    wrapper = stream_on(resnet().float(), projections=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(wrapper(images().float()), torch.tensor([1, 2]))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in wrapper.stream.parameters())
    exact = stream_on(resnet(), projections=True).train()
    F.cross_entropy(exact(images()), torch.tensor([1, 2])).backward()
    last, wanted = wrapper.stream.projections[-1].bias.grad, exact.stream.projections[-1].bias.grad
    assert F.cosine_similarity(last.double(), wanted, dim=0) > 0.95


@pytest.mark.slow
def test_threads_share_a_wrapper_and_its_backbone():
    wrapper = stream_on(resnet())
    batches = [images() * (i + 1) for i in range(4)]
    expected = [wrapper(x) for x in batches]
    plain = [wrapper.backbone(x) for x in batches]
    jobs = [lambda x=x: [wrapper(x) for _ in range(3)] for x in batches]
    jobs += [lambda x=x: [wrapper.backbone(x) for _ in range(3)] for x in batches]
    for results, wanted in zip(in_threads(jobs), expected + plain, strict=True):
        assert all(torch.equal(result, wanted) for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(twin):
    wrapper = stream_on(resnet())
    wrapper(images())
    expected = wrapper(images())
    other = twin(wrapper)
    assert torch.equal(other(images()), expected)
    with torch.no_grad():
        other.backbone.fc.weight.mul_(2)
        other.backbone.fc.bias.mul_(2)
    torch.testing.assert_close(other(images()), 2 * expected)
    assert torch.equal(wrapper(images()), expected)
    with torch.no_grad():
        other.stream.query.mul_(-1)
    assert torch.equal(wrapper(images()), expected)
    assert all(p.requires_grad for p in other.unwrap().parameters())
    assert not any(p.requires_grad for p in wrapper.backbone.parameters())


@pytest.mark.slow
def test_state_goes_from_one_wrapper_to_another():
    wrapper, other = stream_on(resnet()), CAStream(small_twin := resnet()).eval()
    assert not torch.allclose(other(images()), wrapper(images()))
    small_twin.fc.weight.data.zero_()
    other.load_state_dict(wrapper.state_dict())
    assert torch.equal(other(images()), wrapper(images()))


# The backbone is left as found


def mixed():
    model = resnet()
    model.train()
    model.layer2.eval()
    model.layer3[0].bn1.eval()
    model.layer1.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    return model


@pytest.mark.slow
def test_unwrap_gives_the_backbone_back_as_it_was():
    model = mixed()
    state = torch.get_rng_state()
    with left_as_found(model):
        wrapper = CAStream(model)
        wrapper.train()(images()).sum().backward()
        wrapper.eval()(images())
        wrapper.train()
        assert wrapper.unwrap() is model
        torch.set_rng_state(state)  # the stream's first values were drawn
    assert wrapper.backbone is model


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"stages": ["layer1", "nothing"]}, {"start_stage": 5}, {"stages": "layer4"}])
def test_a_wrapper_that_cannot_be_made_leaves_the_model_as_found(options):
    model = mixed()
    with left_as_found(model), pytest.raises((TypeError, ValueError)):
        CAStream(model, **options)


def test_looking_for_stages_does_not_move_batch_norm_statistics():
    model = resnet().train()
    before = copy.deepcopy(model.state_dict())
    CAStream(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_wrapped_backbone_alone_answers_as_before():
    model = resnet()
    expected = model(images()).detach()
    wrapper = CAStream(model).eval()
    assert torch.equal(model(images()), expected)
    with left_as_found(model):
        wrapper(images())
        assert torch.equal(model(images()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", ["conv1", "layer3.0.bn1", "avgpool", "fc"])
def test_an_error_leaves_nothing_behind(place, error):
    model = resnet()
    wrapper = stream_on(model)
    expected, plain = wrapper(images()), model(images())
    parent, _, name = place.rpartition(".")
    kept = model.get_submodule(place)
    setattr(model.get_submodule(parent), name, Breaks(error))
    with left_as_found(model), pytest.raises(type(error)):
        wrapper(images())
    setattr(model.get_submodule(parent), name, kept)
    assert torch.equal(model(images()), plain)
    assert torch.equal(wrapper(images()), expected)
