"""Models hidden in functions: found, taken apart as if they were given themselves, and never stale."""

import functools
from types import SimpleNamespace

import pytest
import torch
from by_autograd import seeded
from comparing import all_same, differ
from real_models import CLOSED_FORM, build, hooked, images
from torch import nn

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM, without_closed_form

MODEL = build("timm").model
HEAD = nn.Linear(5, 4).double().eval()
CONFIG = {"average": False, "rows": torch.tensor(1)}
OBJECT = SimpleNamespace(model=MODEL, head=nn.Identity())
LAYER = MODEL.blocks[-1].norm1


def of_a_global(x):
    return MODEL(x)


def of_an_argument(x, model, scale):
    return scale * model(x).log_softmax(-1)


def of_a_default(x, model=MODEL):
    return model(x)


def of_a_keyword_default(x, *, model=MODEL):
    return model(x)


def with_a_head(x):
    return HEAD(MODEL(x))


def by_hand(x):
    tokens = MODEL.forward_features(x)
    return MODEL.head(tokens.mean(1) if CONFIG["average"] else tokens[:, : CONFIG["rows"]].mean(1))


class Pool(nn.Module):
    average = False

    def forward(self, tokens):
        return tokens.mean(1) if self.average else tokens[:, 0]


POOL = Pool().eval()


def pooled(x):
    return MODEL.head(POOL(MODEL.forward_features(x)))


def closed_over(model):
    return lambda x: model(x)


def counting(x):
    global COUNT  # on purpose
    COUNT += 1
    return MODEL(x)


COUNT = 0
FAST = {
    "global": of_a_global,
    "closure": closed_over(MODEL),
    "keyword": functools.partial(of_an_argument, model=MODEL, scale=0.5),
    "default": of_a_default,
    "keyword default": of_a_keyword_default,
    "pool": pooled,
    "head": with_a_head,
    "by hand": by_hand,
    "partial of a function": functools.partial(of_a_global),
}
OTHERS = {
    "function inside": lambda x: (lambda part: MODEL(part))(x),
    "function behind": lambda x: of_a_global(x),
    "object": lambda x: OBJECT.model(x),
    "head in an object": lambda x: OBJECT.head(MODEL(x)),
    "writes": counting,
}


@pytest.fixture(autouse=True)
def as_before():
    yield
    HEAD.eval()
    POOL.average = False
    CONFIG.update(average=False, rows=torch.tensor(1))


def explained(forward, layer=LAYER):
    x = images()
    return [
        CDAM(forward, layer).attribute(x, 1),
        IntegratedCDAM(forward, layer).attribute(x, 1, n_steps=4),
        SmoothCDAM(forward, layer).attribute(x, 1, nt_samples=3, generator=seeded()),
    ]


def is_right(forward):
    with without_closed_form():
        expected = explained(forward)
    actual = explained(forward)
    all_same(actual, expected)
    return actual


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, LAYER], ids=["found", "given"])
@pytest.mark.parametrize("forward", [*FAST.values(), *OTHERS.values()], ids=[*FAST, *OTHERS])
def test_a_model_in_a_function_takes_the_fast_way(forward, layer):
    assert CDAM(forward, layer).path(images()).way == CLOSED_FORM
    all_same(explained(forward, layer), is_right(forward))


SETTINGS = {
    "value": lambda: CONFIG.update(average=True),
    "index": lambda: CONFIG["rows"].fill_(3),
    "another index": lambda: CONFIG.update(rows=torch.tensor(5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_what_a_function_refers_to_is_never_stale(change):
    before = is_right(by_hand)
    change()
    differ(is_right(by_hand), before)


def test_a_changed_module_beside_the_model_is_never_stale():
    before = is_right(pooled)
    POOL.average = True
    differ(is_right(pooled), before)


def test_a_hook_on_a_head_beside_the_model_is_respected():
    before = is_right(with_a_head)
    with hooked(HEAD.register_forward_hook(lambda _, __, output: output.sin())):
        differ(is_right(with_a_head), before)
    all_same(explained(with_a_head), before)


def test_a_head_beside_the_model_is_evaluated_and_left_as_found():
    dropout, state = nn.Dropout(0.5), torch.get_rng_state()

    def forward(x):
        return HEAD(dropout(MODEL(x)))

    before = is_right(with_a_head)
    all_same(explained(forward), before)
    assert dropout.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_that_runs_twice_behind_a_function_is_an_error():
    with pytest.raises(ValueError, match="ran more than once"):
        explained(lambda x: MODEL(x) - of_a_global(x).mean())
