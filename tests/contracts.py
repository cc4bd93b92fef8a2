"""What every attribution class promises about the user's model, and what it takes to check it."""

import random
import threading
from contextlib import contextmanager
from contextvars import copy_context

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM, TokenAblation, TokenShapley

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
TARGETS = torch.tensor([1, 4, 0])
METHODS = {
    "CDAM": (CDAM, {}),
    "SmoothCDAM": (SmoothCDAM, {"nt_samples": 3, "stdevs": 0.3}),
    "IntegratedCDAM": (IntegratedCDAM, {"n_steps": 3}),
    "TokenAblation": (TokenAblation, {}),
    "TokenShapley": (TokenShapley, {"n_samples": 4}),
}


def snapshot(model):
    """Everything about a model and the process that an explanation must leave alone."""
    return {
        "hooks": {
            name: [list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)]
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
        "global hooks": [len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)],
        "training": {name: m.training for name, m in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "random": [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), random.getstate()],
        "grad mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()],
    }


def same(left, right):
    """Are two snapshots equal?"""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@contextmanager
def left_as_found(model):
    before = snapshot(model)
    try:
        yield
    finally:
        after = snapshot(model)
        changed = [key for key in before if not same(before[key], after[key])]
        assert not changed, f"the explanation changed the model's {changed}"


class Breaks(nn.Module):
    """Raises an error in the middle of the forward pass, from a given call on."""

    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.left = error, after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return x


def in_threads(functions):
    """Run functions at the same time, and return their results in order; an error in one is raised here."""
    results, errors, start = [None] * len(functions), [], threading.Barrier(len(functions))

    def run(i, function):
        try:
            start.wait()
            results[i] = function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=copy_context().run, args=(run, *pair)) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
