"""A last attention that cannot be looked into: refused, not replaced by an earlier one without a word."""

from copy import deepcopy

import pytest
import timm
import torch
from tiny_decoders import batch, decoder
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, TokenAblation

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
BEHIND = "Behind the last attention that was seen the model runs"


def weighted(q, k, v, scale):
    return (q @ k.mT * scale).softmax(-1) @ v


@torch.library.custom_op("xai_discern_tests::attention", mutates_args=())
def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        return weighted(q, k, v, scale)


@torch.library.custom_op("xai_discern_tests::attention_backward", mutates_args=())
def fused_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch._C.DisableTorchFunction():
        weights = (q @ k.mT * scale).softmax(-1)
        back = grad @ v.mT
        inner = weights * (back - (back * weights).sum(-1, keepdim=True)) * scale
        return inner @ k, inner.mT @ q, weights.mT @ grad


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.scale = inputs[3]


fused.register_autograd(
    lambda ctx, grad: (*fused_backward(grad, *ctx.saved_tensors, ctx.scale), None), setup_context=keep
)


class Unseen(torch.autograd.Function):
    """A function of one tensor in one piece, with its own gradient."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch._C.DisableTorchFunction():
            return function(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad(), torch._C.DisableTorchFunction():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(ctx.function(x), x, grad)[0], None


class InOnePiece(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = [part]  # not a submodule: it runs as a function

    def forward(self, x, **_):
        return Unseen.apply(x, self.part[0])


class Fused(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, **_):
        own, (batch, tokens, channels) = self.attention, x.shape
        q, k, v = own.qkv(x).reshape(batch, tokens, 3, own.num_heads, -1).permute(2, 0, 3, 1, 4)
        return own.proj(fused(q, k, v, own.scale).transpose(1, 2).reshape(batch, tokens, channels))


class Traced(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = torch.jit.trace(part, torch.randn(2, 17, 32).double())

    def forward(self, x, **_):
        return self.part(x)


def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3, "num_classes": 5}
    return timm.models.VisionTransformer(**sizes).eval().double()


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("kind", [Fused, InOnePiece, Traced])
def test_where_the_last_attention_is_not_seen_no_earlier_one_is_explained_in_its_place(kind):
    model = vit()
    changed = deepcopy(model)
    changed.blocks[-1].attn = kind(changed.blocks[-1].attn)
    torch.testing.assert_close(changed(IMAGES), model(IMAGES))
    for method in (CDAM, IntegratedCDAM, TokenAblation, AttentionMap):
        with pytest.raises(ValueError, match=BEHIND):
            method(changed).attribute(IMAGES, 3)
    chosen = CDAM(changed, attention=-1).attribute(IMAGES, 3)  # as the message says
    torch.testing.assert_close(chosen, CDAM(model, attention=-2).attribute(IMAGES, 3))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(chosen, CDAM(model).attribute(IMAGES, 3))


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("kind", [InOnePiece, Traced])
@pytest.mark.parametrize("part", ["mlp", "mlp.act", "norm2"])
def test_what_treats_each_token_alone_may_run_in_one_piece(kind, part):
    model = vit()
    changed = deepcopy(model)
    block = changed.blocks[-1]
    if part == "mlp.act":
        if kind is Traced:
            pytest.skip("its hidden size differs from the example's")
        block.mlp.act = kind(F.gelu)
    else:
        setattr(block, part, kind(block.get_submodule(part)))
    torch.testing.assert_close(CDAM(changed).attribute(IMAGES, 3), CDAM(model).attribute(IMAGES, 3))


def attend(module, q, k, v, attention_mask, scaling=None, **_):
    groups = q.shape[1] // k.shape[1]
    return fused(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), scaling).transpose(1, 2), None


def test_where_no_attention_is_seen_the_operator_that_may_be_one_is_named_and_the_advice_works():
    AttentionInterface.register("xai_discern_tests", attend)
    model = decoder("llama")
    model.set_attn_implementation("xai_discern_tests")
    with pytest.raises(ValueError, match=r"runs `xai_discern_tests.attention.default`.*attn_implementation=\"sdpa\""):
        CDAM(model).attribute_answer(batch("left"), [11])
    model.set_attn_implementation("sdpa")
    assert CDAM(model).attribute_answer(batch("left"), [11]).scores.any()
