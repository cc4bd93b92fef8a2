"""What messages advise is done on the case that raises them, and gives what plain autograd gives: where tokens are."""

import copy
import threading

import pytest
import timm
import torch
from advising import (
    GRID,
    IMAGES,
    VIT,
    Case,
    Flattened,
    Joined,
    Merging,
    PooledKeys,
    Shared,
    Transformer,
    at,
    check,
    explained,
    logit,
    named_layer,
    norm_of,
    of_vit,
)
from captum.attr import LayerGradCam
from torch import nn
from toy_models import tiny_vit

from captum_ext import CDAM, AttentionMap, AttentionRollout, PartialLRP, RelevancePropagation

SHARED, JOINED, FLAT = Shared(), Joined(), Flattened()
MERGING, POOLED, PLAIN = Merging(), PooledKeys(), Transformer()
SWIN = timm.models.swin_transformer.SwinTransformer(
    img_size=32, patch_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 4), window_size=2, num_classes=5
).eval()
CNN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 28 * 28, 5)).eval()


class Spread(nn.Module):
    """Runs a copy of a model in another thread, as nn.DataParallel does on several devices."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        found, copied = [], copy.deepcopy(self.module)
        thread = threading.Thread(target=lambda: found.append(copied(x)))
        thread.start()
        thread.join()
        return found[0]


def pruned():
    model = tiny_vit()
    model.norm_pre.register_forward_hook(lambda _, __, tokens: tokens[:, :-3])
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


class Changing(nn.Module):
    """Doubles its inputs in place by an operation that is not seen."""

    def __init__(self):
        super().__init__()
        self.vit = VIT

    def forward(self, x):
        with torch.no_grad():
            torch.jit.script(doubled)(x)
        return self.vit(x)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


PRUNED, CHANGING = pruned(), Changing()
ONCE = r"more than once.*Pass a layer that runs once, or leave `layer` out and choose by `attention=`"
TUPLE = r"MultiheadAttention to hold one tensor.*<class 'tuple'>.*returns one, or `attribute_to_layer_input=True`"
NO_GRID = r"Cannot tell how the tokens.*Ask for `return_tokens=True`"
TOKENS_OF = r"which is not \(batch, heads, queries, tokens\).*Take CDAM"
INSTEAD = r"look at different tokens.*Take AttentionMap, which needs the last one only, or CDAM"
PLACES = {
    "a layer that runs twice, another layer": Case(
        lambda: explained(SHARED, layer=SHARED.norm),
        ONCE,
        lambda: explained(SHARED, layer=SHARED.embed),
        lambda: at(SHARED.embed, logit(SHARED), IMAGES, axis=1)[:, None],
    ),
    "a layer that runs twice, by attention": Case(
        lambda: explained(SHARED, layer=SHARED.norm),
        ONCE,
        lambda: [explained(SHARED, attention=n).flatten(1) for n in (0, 1)],
        lambda: [at(SHARED.norm, logit(SHARED), IMAGES, run=n) for n in (0, 1)],
    ),
    "a layer that returns a tuple, its input": Case(
        lambda: explained(PLAIN, layer=PLAIN.attention),
        TUPLE,
        lambda: CDAM(PLAIN, PLAIN.attention).attribute(IMAGES, 1, attribute_to_layer_input=True).flatten(1),
        lambda: at(PLAIN.norm, logit(PLAIN), IMAGES),
    ),
    "a layer that returns a tuple, one that does not": Case(
        lambda: explained(PLAIN, layer=PLAIN.attention),
        TUPLE,
        lambda: explained(PLAIN, layer=PLAIN.norm).flatten(1),
        lambda: at(PLAIN.norm, logit(PLAIN), IMAGES),
    ),
    "a model that runs in other threads": Case(
        lambda: explained(Spread(VIT), layer=norm_of(VIT)),
        r"did not run in the forward pass of this thread.*must be passed as its `.module`",
        lambda: explained(Spread(VIT).module, layer=norm_of(VIT)),
        of_vit,
    ),
    "tokens of all samples on one axis": Case(
        lambda: explained(FLAT),
        "flattened over samples.*Pass `layer=` the module whose output is the tokens",
        lambda: explained(FLAT, layer=FLAT.norm).flatten(1),
        lambda: at(FLAT.norm, logit(FLAT), IMAGES),
    ),
    "samples in one sequence": Case(
        lambda: explained(JOINED),
        r'batch of 2 is not found.*pass `layer=`.*get_submodule\("norm"\)',
        lambda: explained(JOINED, layer=named_layer(lambda: explained(JOINED), JOINED)).flatten(1),
        lambda: at(JOINED.norm, logit(JOINED), IMAGES),
    ),
    "no attention, the layer that is named": Case(
        lambda: explained(CNN),
        "No attention was seen.*or pass `layer=` the module",
        lambda: explained(CNN, layer=named_layer(lambda: explained(CNN), CNN)),
        lambda: at(CNN[2], logit(CNN), IMAGES, axis=1)[:, None],
    ),
    "no attention, Grad-CAM": Case(
        lambda: explained(CNN),
        "use captum.attr.LayerGradCam",
        lambda: LayerGradCam(CNN, CNN[2]).attribute(IMAGES, 1).detach(),
        lambda: cam_by_hand(CNN, CNN[2]),
    ),
    "a layer behind the last attention": Case(
        lambda: explained(VIT, layer=VIT.blocks[-1].norm2),
        r"behind the last attention.*pass the norm in front of it",
        lambda: explained(VIT, layer=norm_of(VIT)),
        of_vit,
    ),
    "a layer of a copy": Case(
        lambda: explained(VIT, layer=norm_of(copy.deepcopy(VIT))),
        "Take it from the model that is passed",
        lambda: explained(VIT, layer=norm_of(VIT)),
        of_vit,
    ),
    "inputs that are changed unseen": Case(
        lambda: explained(CHANGING, images=IMAGES.clone()),
        r"changed its inputs in place.*Explain a function that gives it copies: `lambda x: model\(x.clone\(\)\)`",
        lambda: explained(lambda x: CHANGING(x.clone())),
        lambda: at(norm_of(VIT), logit(VIT), 2 * IMAGES, **GRID),
    ),
    "both": Case(
        lambda: explained(VIT, layer=norm_of(VIT), attention=2),
        "got both: each says where",
        lambda: [explained(VIT, layer=norm_of(VIT)), explained(VIT, attention=2)],
        lambda: [of_vit()] * 2,
    ),
    "tokens on no grid": Case(
        lambda: explained(PRUNED),
        NO_GRID,
        lambda: CDAM(PRUNED).attribute(IMAGES, 1, return_tokens=True),
        lambda: at(norm_of(PRUNED), logit(PRUNED), IMAGES),
    ),
    "weights of tokens on no grid": Case(
        lambda: explained(PRUNED, method=AttentionMap),
        NO_GRID,
        lambda: AttentionMap(PRUNED).attribute(IMAGES, return_tokens=True).sum(1),
        lambda: torch.ones(2),
    ),
    "a layer with one vector a sample": Case(
        lambda: explained(VIT, layer=VIT.head_drop),
        NO_GRID,
        lambda: CDAM(VIT, VIT.head_drop).attribute(IMAGES, 1, return_tokens=True),
        lambda: (VIT(IMAGES)[:, 1:2] - VIT.head.bias[1]).detach(),
    ),
    "compiled in place, from before": Case(
        lambda: explained(compiled_in_place(copy.deepcopy(VIT))),
        "Explain the model from before compilation",
        lambda: explained(VIT),
        of_vit,
    ),
    "compiled in place, torch.compile": Case(
        lambda: explained(compiled_in_place(copy.deepcopy(VIT))),
        r"or use `compiled = torch.compile\(model\)`",
        lambda: explained(torch.compile(VIT, backend="eager")),
        of_vit,
    ),
    "keys that are pooled": Case(
        lambda: explained(POOLED, method=AttentionMap),
        "or pools them. Take CDAM",
        lambda: explained(POOLED).flatten(1),
        lambda: at(POOLED.norm, logit(POOLED), IMAGES),
    ),
    "layers of other tokens": Case(
        lambda: explained(MERGING, method=AttentionRollout),
        INSTEAD,
        lambda: [AttentionMap(MERGING).attribute(IMAGES, return_tokens=True), explained(MERGING).flatten(1)],
        lambda: [MERGING.last_weights(IMAGES), at(MERGING.norm, logit(MERGING), IMAGES)],
    ),
    **{
        f"windows, {method.__name__}": Case(
            lambda method=method: explained(SWIN, method=method),
            TOKENS_OF,
            lambda: explained(SWIN),
            lambda: at(SWIN.layers[-1].blocks[-1].norm1, logit(SWIN), IMAGES)[:, None],
        )
        for method in (AttentionMap, AttentionRollout, RelevancePropagation, PartialLRP)
    },
}


def cam_by_hand(model, layer):
    seen = []
    with layer.register_forward_hook(lambda *args: seen.append(args[2])):
        score = model(IMAGES)[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, seen)
    return (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1, keepdim=True).detach()


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("case", PLACES.values(), ids=PLACES)
def test_advice_on_where_the_tokens_are(case):
    check(case)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_layer_has_the_module_from_before_and_one_in_front():
    scripted = tiny_vit()
    scripted.load_state_dict(VIT.state_dict())
    scripted.head = torch.jit.script(VIT.head)
    refused = Case(
        lambda: explained(scripted, layer=scripted.head), "before it was scripted, or one in front", *[None] * 2
    )
    check(refused._replace(advised=lambda: explained(scripted, layer=norm_of(scripted)), expected=of_vit))
    check(refused._replace(advised=lambda: explained(VIT, layer=norm_of(VIT)), expected=of_vit))


class Embedded(nn.Module):
    """Signals, images or volumes as tokens behind a convolution; a single sample is an error of its own, or runs."""

    def __init__(self, axes, runs):
        super().__init__()
        torch.manual_seed(0)
        self.embed = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 16, 4, 4)
        self.block, self.axes = Transformer(), -axes if runs else 2
        self.eval()

    def forward(self, x):
        return self.block.head(self.block.mixed(self.embed(x).flatten(self.axes).transpose(-1, -2)).mean(-2))


@pytest.mark.parametrize(("axes", "kind"), [(1, "signals"), (2, "images"), (3, "volumes")])
@pytest.mark.parametrize("method", [CDAM, AttentionMap])
@pytest.mark.parametrize("runs", [True, False])
def test_a_single_sample_needs_a_batch_axis(axes, kind, method, runs):
    model, one = Embedded(axes, runs), torch.randn(2, *[8] * axes)
    with pytest.raises(ValueError, match=rf"Expected {kind} \(batch, .*got shape \(2, 8.*`inputs.unsqueeze\(0\)`"):
        method(model).attribute(one, 1)
    found = method(model).attribute(one.unsqueeze(0), 1)
    torch.testing.assert_close(found, method(model).attribute(torch.stack([one, one]), 1)[:1])
