"""Running a model from its tokens on, and borrowing it for that."""

import pytest
import torch
from contracts import left_as_found
from torch import nn
from toy_models import tiny_vit

from adapters import Site, TokenTail, find_anatomy
from adapters._borrow import answer_for

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """`h = scale(x) + 1`, `f = scale(3 tokens(h)) + h`: one module before and after the tokens, arithmetic in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 3, bias=False)
        self.early = nn.ReLU(inplace=True)
        self.tokens = nn.Identity()
        self.scale.weight.data = 2 * torch.eye(3)

    def forward(self, x):
        hidden = self.scale(x)
        hidden += 1
        return self.scale(self.tokens(hidden) * 3) + hidden


def test_later_pass_runs_only_what_follows_the_tokens():
    model, calls = tiny_vit(), []
    for name in ("patch_embed.proj", "blocks.0.mlp", "blocks.1.attn", "blocks.2.attn", "head"):
        module = model.get_submodule(name)
        own = module.forward
        module.forward = lambda *args, name=name, own=own, **kwargs: (calls.append(name), own(*args, **kwargs))[1]
    anatomy, x = find_anatomy(model), torch.randn(2, 3, 32, 32)
    with left_as_found(model), TokenTail(model, (x,), anatomy.tokens) as tail:
        calls.clear()
        tail.read(tail.tokens.detach().repeat(3, 1, 1))
    assert calls == ["blocks.2.attn", "head"]


@pytest.mark.parametrize("copies", [1, 3])
def test_the_recorded_tokens_give_the_recorded_output(copies):
    model, x = tiny_vit(reg_tokens=2).double(), torch.randn(2, 3, 32, 32).double()
    anatomy = find_anatomy(model)
    with TokenTail(model, (x,), anatomy.tokens) as tail:
        for _ in range(2):
            again = tail.read(tail.tokens.detach().repeat(copies, 1, 1)).outputs
            torch.testing.assert_close(again, model(x).repeat(copies, 1), rtol=1e-12, atol=1e-14)


def test_a_head_that_reads_earlier_blocks_reads_their_own_outputs():
    model, x, middle = tiny_vit().double(), torch.randn(2, 3, 32, 32).double(), []
    model.blocks[0].register_forward_hook(lambda _, __, out: middle.append(out))

    def forward(x):
        return model(x) * middle[-1].mean((1, 2))[:, None]

    with TokenTail(forward, (x,), find_anatomy(model).tokens) as tail:
        again = tail.read(tail.tokens.detach()).outputs
    torch.testing.assert_close(again, forward(x), rtol=1e-12, atol=1e-14)


def test_shared_modules_and_in_place_arithmetic_are_replayed_right():
    model = Shared()
    with left_as_found(model), TokenTail(model, (X,), Site(model.tokens)) as tail:
        assert torch.equal(tail.tokens, 2 * X + 1)
        for tokens in (tail.tokens.detach(), torch.ones(2, 3), torch.zeros(4, 3)):
            expected = 6 * tokens + (2 * X + 1).repeat(len(tokens) // 2, 1)
            assert torch.equal(tail.read(tokens).outputs, expected)
        assert torch.equal(tail.read(tail.tokens.detach()).outputs, model(X))


def test_user_hooks_act_once_in_every_pass():
    model = Shared()
    model.scale.register_forward_hook(lambda _, __, out: out + 10)
    expected = model(X)
    with TokenTail(model, (X,), Site(model.tokens)) as tail:
        assert torch.equal(tail.first.outputs, expected)
        assert torch.equal(tail.read(tail.tokens.detach()).outputs, expected)


def test_arithmetic_in_place_on_the_tokens_is_differentiated():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    with TokenTail(model, (X,), Site(model[0])) as tail:
        (gradient,) = torch.autograd.grad(tail.first.outputs.sum(), tail.tokens)
        assert torch.equal(gradient, (model[0](X) > 0).float())
        assert torch.equal(tail.tokens, model[0](X))


def test_a_layer_that_runs_twice_is_refused():
    model = Shared()
    with left_as_found(model), pytest.raises(ValueError, match="Linear ran more than once"):
        TokenTail(model, (X,), Site(model.scale)).__enter__()


def test_a_layer_that_does_not_run_is_refused():
    model = Shared()
    with left_as_found(model), pytest.raises(ValueError, match="ReLU did not run"):
        TokenTail(model, (X,), Site(model.early)).__enter__()


def test_a_layer_that_does_not_run_again_is_refused():
    model, first = Shared(), [True]

    def forward(x):
        return model(x) if first.pop() else model.scale(x)

    first[:] = [False, True]
    with TokenTail(forward, (X,), Site(model.tokens)) as tail, pytest.raises(ValueError, match="not in a later one"):
        tail.read(tail.tokens.detach())


def test_a_layer_with_another_first_axis_is_refused():
    model = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)))
    with pytest.raises(ValueError, match=r"batch of 2, got a tensor of shape \(6,\)"):
        TokenTail(model, (X,), Site(model[0])).__enter__()


def test_answers_of_two_borrowers_end_in_any_order():
    import threading

    module = nn.Linear(3, 3)
    expected, inside, leave = module(X), threading.Event(), threading.Event()

    def borrow():
        with answer_for({module: lambda forward, x: forward(x) + 1}):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=borrow)
    thread.start()
    inside.wait()
    with answer_for({module: lambda forward, x: forward(x) + 2}):
        assert torch.equal(module(X), expected + 2)
        leave.set()
        thread.join()
        assert torch.equal(module(X), expected + 2)
    assert torch.equal(module(X), expected)
    assert "forward" not in module.__dict__
