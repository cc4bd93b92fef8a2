"""What the fast way costs and touches: no hooks, no replaced functions, threads, reads by the host."""

from dataclasses import replace

import pytest
import torch
from comparing import all_same, differ
from contracts import in_threads, left_as_found
from real_models import build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from ways import explained, is_right

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM

pytestmark = pytest.mark.slow

KINDS = ["timm", "timm-avg", "timm-low-rank-adapter"]


SEEN = []  # not the module's own, whose settings make the model another one


class Looking(nn.Module):
    """Looks from inside whether the model holds replaced forwards."""

    def __init__(self, inner, model):
        super().__init__()
        self.inner, self.model = inner, [model]

    def forward(self, x):
        SEEN.append(any("forward" in vars(module) for module in self.model[0].modules()))
        return self.inner(x)


@pytest.mark.parametrize("name", KINDS)
def test_the_fast_way_needs_no_hooks_and_replaces_nothing(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a hook")

    case = build(name)
    case.model.norm = Looking(case.model.norm, case.model).eval()
    expected = is_right(case)
    SEEN.clear()
    for kind in ("forward_hook", "forward_pre_hook"):
        monkeypatch.setattr(nn.Module, f"register_{kind}", refuse)
        monkeypatch.setattr(nn.modules.module, f"register_module_{kind}", refuse)
        monkeypatch.setattr(f"adapters.models.hooks.register_module_{kind}", refuse)
    with left_as_found(case.model):
        all_same(explained(case), expected)
    assert len(SEEN) >= 3
    assert not any(SEEN)


@pytest.mark.parametrize("name", KINDS)
def test_threads_explain_and_run_one_model_at_once(name):
    case = build(name)
    cases = [replace(case, inputs=case.inputs + i / 4) for i in range(3)]
    expected, logits = [explained(one) for one in cases], case.logits()
    model = build(name).model  # not known yet
    fresh = [replace(one, model=model) for one in cases]
    explaining = [lambda one=one: [explained(one) for _ in range(2)] for one in fresh]
    *actual, outputs = in_threads([*explaining, lambda: [fresh[0].logits() for _ in range(20)]])
    for repeated, alone in zip(actual, expected, strict=True):
        for maps in repeated:
            all_same(maps, alone)
    assert all(torch.equal(output, logits) for output in outputs)


class HostReads(TorchDispatchMode):
    """Counts what a program waits for the device for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")
        return func(*args, **(kwargs or {}))


FIRST = dict.fromkeys([*KINDS, "timm-qk-norm", "timm-distilled"], lambda model: model.blocks[0])
FIRST["hf-vit"] = lambda model: model.vit.layers[0] if hasattr(model.vit, "layers") else model.vit.encoder.layer[0]


@pytest.mark.parametrize("name", FIRST)
def test_work_on_the_host_and_before_the_last_block_does_not_grow(name):
    case, calls = build(name), []
    cdam, integrated, smooth = (method(case.model) for method in (CDAM, IntegratedCDAM, SmoothCDAM))
    before, first = explained(case), FIRST[name](case.model)
    first.register_forward_hook(lambda _, __, output: (output * 1.5 + output.sin(), calls.append(1))[0])
    differ(is_right(case), before)

    def cost(method, *args, **options):
        calls.clear()
        with HostReads() as reads:
            method(case.inputs, *args, **options)
        return reads.count, len(calls)

    few, many = (
        [
            cost(integrated.attribute, 1, n_steps=n, internal_batch_size=2 * len(case.inputs)),
            cost(smooth.attribute, 1, nt_samples=n, nt_samples_batch_size=2),
            cost(cdam.attribute_targets, [0, 1, 2, 3] * (n // 8)),
        ]
        for n in (8, 64)
    )
    assert few == many
    assert all(reads > 0 and calls == 1 for reads, calls in few)
