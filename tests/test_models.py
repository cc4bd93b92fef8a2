"""What is asked of any model: evaluation mode, output, placement, image layout, and the key of its state."""

import contextlib
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from adapters.models import (
    channels_first,
    evaluation_mode,
    logits_of,
    output_tensor,
    placement_of,
    state_key,
    unchanged,
)
from captum_ext import CDAM


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 5))


def test_a_model_stays_in_evaluation_mode_until_the_last_of_several_calls_has_ended():
    model = network()
    model[2].eval()
    flags = [module.training for module in model.modules()]
    with contextlib.ExitStack() as second:
        with evaluation_mode(model):
            second.enter_context(evaluation_mode(model))
        assert not any(module.training for module in model.modules())
        model(torch.randn(2, 3, 4, 4))
        assert model[1].num_batches_tracked == 0
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("root", [True, False])
def test_flags_are_restored_after_an_error(root):
    model = network()
    forward = model if root else lambda x: model(x)
    with pytest.raises(RuntimeError, match="expected input"), evaluation_mode(forward):
        forward(torch.randn(2, 9, 4, 4))
    assert all(module.training for module in model.modules())


LOGITS = torch.arange(6.0).view(2, 3)
Named = namedtuple("Named", ["features", "logits"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, [torch.zeros(2, 8)]),
        (torch.tensor(0.7), LOGITS, torch.zeros(2, dtype=torch.long)),
        {"features": torch.zeros(2, 8), "logits": LOGITS},
        Named(torch.zeros(2, 8), LOGITS),
        ImageClassifierOutput(logits=LOGITS, hidden_states=(torch.zeros(2, 8),)),
        SimpleNamespace(logits=LOGITS),
    ],
)
def test_logits_are_found_in_what_models_return(output):
    assert output_tensor(output) is LOGITS
    assert logits_of(output, 2) is LOGITS


def test_what_holds_no_logits_is_refused():
    with pytest.raises(TypeError, match=r"Expected the model to return a tensor.*got <class 'list'>"):
        output_tensor(["a"])
    with pytest.raises(ValueError, match=r"Expected the model to return logits \(4, classes\), got \(2, 3\)"):
        logits_of(LOGITS, 4)
    with pytest.raises(ValueError, match=r"Expected the model to return logits \(batch, classes\), got \(3,\)"):
        logits_of(LOGITS[0])


def test_inputs_are_moved_to_the_type_of_the_weights_and_token_ids_keep_theirs():
    placement = placement_of(network().double())
    assert placement.moved(torch.ones(2)).dtype is torch.float64
    assert placement.moved(torch.ones(2, dtype=torch.long)).dtype is torch.long
    assert placement_of(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3, affine=False).half())).dtype is torch.float16
    assert placement_of(len).moved(torch.ones(2).half()).dtype is torch.float16


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 12, 500, 1), (2, 9, 4), (2, 8, 7, 6, 2)])
def test_channels_are_first_unless_they_are_said_to_be_last(shape):
    image = torch.rand(shape)
    assert channels_first(image) is image
    assert channels_first(image, first=True) is image
    last = channels_first(image.numpy(), first=False)
    assert last.shape == (shape[0], shape[-1], *shape[1:-1])
    assert torch.equal(channels_first(image.movedim(1, -1), first=False), image)
    assert channels_first(np.ones((2, 9))).shape == (2, 9)


class WithDepth(nn.Module):
    """A transformer whose depth may change from one call to the next."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(4))
        self.head, self.depth, self.calls = nn.Linear(8, 5), 4, 0

    def forward(self, images):
        self.calls += 1
        x = self.embed(images).flatten(2).transpose(1, 2)
        for layer in self.layers[: self.depth]:
            q, k, v = layer(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x.mean(1))


def test_a_last_attention_that_moves_between_calls_is_found_each_time():
    torch.manual_seed(0)
    model, images = WithDepth().double(), torch.randn(2, 3, 16, 16).double()
    explainer = CDAM(model)
    passes = []
    for depth in (4, 2, 4, 1, 3):
        model.depth, model.calls = depth, 0
        found = explainer.attribute(images, 3)
        passes.append(model.calls)
        assert torch.equal(found, CDAM(model).attribute(images, 3))
        assert not torch.equal(found, CDAM(model, attention=0).attribute(images, 3)) or depth == 1
    once = passes[0]
    assert passes == [once, once + 1, once, once + 1, once]  # again only where the last one came sooner than ever


def test_the_key_of_a_state_has_no_limit_of_depth_and_follows_cycles():
    model = network()
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    loop: list = []
    loop.append(loop)
    model.nested, model.itself, model.loop = nested, {"cycle": model}, loop
    key = state_key(model)
    assert key == state_key(model)
    assert hash(key) == hash(state_key(model))
    while nested:
        (nested,) = nested
    nested.append(1)
    assert key != state_key(model)


def test_the_key_of_a_model_known_not_to_change_is_computed_once():
    model = network()
    with unchanged(model):
        key = state_key(model)
        model[0].weight.data.mul_(2)
        assert state_key(model) == key
        assert state_key(model, {"mask": 1}) != key
    assert state_key(model) != key


def test_equal_values_in_other_tensors_are_another_state():
    model = network()
    key = state_key(model)
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    assert state_key(model) != key


def quantised_per_channel():
    ones, zeros = torch.ones(2), torch.zeros(2)
    return torch.quantize_per_channel(torch.ones(9, 2), ones, zeros, 1, torch.qint8)


TENSORS = {
    "not initialised": lambda: nn.LazyLinear(3).weight,
    "meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(9), 0.1, 0, torch.quint8),
    "quantised per channel": quantised_per_channel,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1).expand(5, 4),
    "of other types": lambda: [torch.ones(3).to(kind) for kind in (torch.bool, torch.bfloat16, torch.cfloat)],
    "conjugate": lambda: torch.ones(3, dtype=torch.cfloat).conj(),
    "empty": lambda: torch.empty(0, 3),
}


@pytest.mark.filterwarnings("ignore:.*(quantize_per|nested tensors|torch.nested|Lazy)")
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_tensors_of_every_kind_have_a_place_in_the_key(make):
    model = network()
    model.held = make()
    key = state_key(model)
    assert key == state_key(model)
    model.held = make()
    assert key != state_key(model)


def test_a_change_in_a_part_of_a_larger_tensor_is_noticed():
    model = network()
    model[4].weight.data = torch.randn(10, 32)[::2, ::2]
    key = state_key(model)
    model[4].weight.data += 1
    assert key != state_key(model)
