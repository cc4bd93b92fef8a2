"""Files of weights in their usual wrappings."""

import warnings

import pytest
import torch
from data_runs import compared, net
from safetensors.torch import save_file
from torch import nn

from xai_compare._checkpoint import load_weights

X = torch.rand(2, 3, 8, 8)


@pytest.fixture
def trained():
    model = net()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value))
    return model


def under(prefix, model):
    return {prefix + name: value for name, value in model.state_dict().items()}


WRAPPED = {
    "Lightning": (
        lambda m: {"epoch": 3, "state_dict": under("model.", m)},
        "'state_dict', the prefix 'model.' of 4",
    ),
    "DataParallel": (lambda m: under("module.", m), "the prefix 'module.' of 4 weights"),
    "compiled": (lambda m: {"model": under("module._orig_mod.", m)}, "'model', the prefix 'module._orig_mod.'"),
    "deep": (lambda m: {"model": {"state_dict": under("", m)}, "lr": 0.1}, "the dictionary 'model.state_dict'"),
    "own": (
        lambda m: under("backbone.net.", m) | {"loss.weight": torch.ones(3)},
        "'backbone.net.' of 4.*1 others, as 'los",
    ),
}


@pytest.mark.parametrize(("wrap", "said"), WRAPPED.values(), ids=WRAPPED)
def test_wrappings_are_taken_off_and_said(trained, tmp_path, wrap, said):
    torch.save(wrap(trained), tmp_path / "a.ckpt")
    model = net()
    assert not torch.allclose(model(X), trained(X))
    with pytest.warns(UserWarning, match=said):
        load_weights(model, tmp_path / "a.ckpt")
    assert torch.equal(model(X), trained(X))


def test_plain_weights_are_loaded_in_silence(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        model = net()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_weights(model, tmp_path / name)
        assert torch.equal(model(X), trained(X))


def test_a_model_with_a_part_called_model_is_not_unwrapped(tmp_path):
    outer = nn.Sequential()
    outer.add_module("model", net())
    torch.save({"state_dict": outer.state_dict()}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"pt: taken off: the dictionary 'state_dict'\.$"):
        load_weights(outer, tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda m: under("student.", m) | under("teacher.", m), "below each of 'student.', 'teacher.'"),
        (
            lambda m: {"state_dict": {"a.weight": torch.ones(2)}},
            "of 4 weights of the Sequential 4 are missing, as 0.bias, .*; 1 are not",
        ),
        (lambda m: [1, 2], "expected a dictionary of weights, got <class 'list'>"),
        (lambda m: {"epoch": 3}, "expected a dictionary of weights, got one of epoch"),
    ],
)
def test_weights_of_something_else_are_refused(trained, tmp_path, wrap, said):
    torch.save(wrap(trained), tmp_path / "a.pt")
    (tmp_path / "toy.py").write_text("from data_runs import net, plain\ndef model(): return net(), plain\n")
    with pytest.raises(ValueError, match=f"cannot be loaded with the weights of .*a.pt.*{said}"):
        compared(X, tmp_path / "run", f"python:{tmp_path}/toy.py:model", checkpoint=str(tmp_path / "a.pt"))
