"""From a seed to a model, and to its change."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import attentions, own_model
from .drawing import Draw, draw_options
from .library_model import LibraryModel
from .own_model import Model
from .question import CLASSES, EXACT, PATCH, ROUNDED, VARIABLE, WORDS, RandomModel


def make(seed: int) -> RandomModel:
    """The model of a seed, always the same."""
    draw = Draw(seed)
    o = draw_options(draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = Model if o.backbone == "none" else LibraryModel
        kind = type("OwnModel", (base,), {"switched": True})  # of its own, as its attributes may change
        model = noisy(kind(o)).to(torch.float32 if o.autocast != "none" else torch.float64).train(o.training)
        # no word twice: the maximum over equal words has no gradient that is defined
        inputs = torch.stack([torch.randperm(WORDS)[: o.patches] for _ in range(o.batch)])
        if o.embed != "words":
            size = [PATCH * side for side in o.grid]
            inputs = torch.randn(o.batch, 3, *size, dtype=next(model.parameters()).dtype)
        keep = torch.rand(o.batch, o.tokens) > 0.3 if o.mask == "argument" else torch.ones(0)
    if o.mask == "argument":
        keep[:, 0] = True
    freeze(model, o)
    if o.hook == "module backward":
        model.head.register_full_backward_hook(lambda module, given, _: tuple(g if g is None else 2 * g for g in given))
    turn_switch(model, True)
    target = draw_target(draw, o)
    tolerance = ROUNDED if o.autocast != "none" else EXACT
    arguments = (keep,) if o.mask == "argument" else ()
    return RandomModel(seed, model, inputs, arguments, target, draw.parts, tolerance, change_of(model, seed))


def noisy(model: nn.Module) -> nn.Module:
    """Norms and gates are not what they are at the start of a training."""
    for parameter in model.parameters():
        if parameter.dim() > 0:
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model


def freeze(model: Model, o: SimpleNamespace) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = o.frozen == "none" or (o.frozen == "backbone" and name.startswith("head."))


def draw_target(draw: Draw, o: SimpleNamespace) -> Any:
    """One class for all samples, or one for each, as a list or a tensor."""
    if o.head == "one logit":
        return None
    classes = o.batch if o.head == "contrast" else CLASSES
    each = draw.random.sample(range(classes), o.batch)
    if o.together in ("batch norm", "softmax"):
        return each
    return draw.random.choice([each[0], each[0], each, torch.tensor(each)])


def turn_switch(model: Model, on: bool) -> None:
    """Sets what `Model.switch` reads."""
    own_model.SWITCH = on
    attentions.attend = F.scaled_dot_product_attention
    os.environ[VARIABLE] = str(int(on))
    where = model.o.where
    if where == "nested setting":
        model.config.model.pooling = "token" if on else "mean"
    elif where == "parameter":
        model.alpha.data.fill_(1 if on else -1)
    elif where == "buffer":
        model.flag.fill_(on)
    elif where == "class attribute":
        type(model).switched = on
    elif where == "attribute":
        model.switched = on


def change_of(model: Model, seed: int) -> Callable[[], None] | None:
    """What is changed between two explanations: the switch, or else a part of the model."""
    o = model.o
    if o.where not in ("none", "values"):
        return lambda: turn_switch(model, False)
    if o.change == "none":
        return None

    def change() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            other = type(model).__base__(o).to(next(model.parameters())).train(o.training)
            change_part(model, other)

    return change


def change_part(model: Model, other: Model) -> None:
    what, last = model.o.change, model.order[-1]
    if what == "weights":
        model.load_state_dict(other.state_dict())
    elif what == "head replaced":
        model.head = other.head
    elif what == "block replaced":
        model.blocks[last] = other.blocks[last]
        model.blocks[last].side = model.side
    elif what == "attention":
        name = "self_attn" if model.o.attention == "encoder layer" else "attn"
        setattr(model.blocks[last], name, getattr(other.blocks[last], name))
    elif what == "function":
        attentions.attend = attentions.attend_flatter
    else:
        model.order.reverse()
