"""What messages advise is done on the case that raises them: reshape transforms, scores and explanation functions."""

import tomllib

import numpy as np
import pytest
import quantus
import torch
from advising import IMAGES, VIT, Case, Returning, check, norm_of
from captum.attr import LayerAttribution, LayerGradCam, LayerIntegratedGradients
from paths import ROOT
from torch import nn
from toy_models import tiny_vit

import quantus_metrics as qm
from adapters import reshape_transform_for, target_layer_for
from captum_ext import CDAM

TWO = Returning(VIT, lambda y: (2 * y, y))
PATCHES = torch.arange(17.0).view(1, 17, 1)
TRANSFORMS = {
    "size": Case(
        lambda: reshape_transform_for(VIT, (64, 32)),
        r"does not take images of shape .*Pass the size that it takes, as `image_size=\(height, width\)`",
        lambda: reshape_transform_for(VIT, image_size=(32, 32))(PATCHES),
        lambda: PATCHES[:, 1:].view(1, 1, 4, 4),
    ),
    "size of a target layer": Case(
        lambda: target_layer_for(VIT, (64, 32)),
        r"Pass the size that it takes, as `image_size=\(height, width\)`",
        lambda: target_layer_for(VIT, image_size=(32, 32)) is norm_of(VIT),
        lambda: True,
    ),
    "outputs": Case(
        lambda: reshape_transform_for(TWO),
        "Choose one, as `output=0`",
        lambda: reshape_transform_for(TWO, output=0)(PATCHES),
        lambda: PATCHES[:, 1:].view(1, 1, 4, 4),
    ),
    "outputs of a target layer": Case(
        lambda: target_layer_for(TWO),
        "Choose one, as `output=0`",
        lambda: target_layer_for(TWO, output=0) is norm_of(VIT),
        lambda: True,
    ),
    "another layer": Case(
        lambda: reshape_transform_for(VIT)(torch.zeros(2, 5)),
        r"got shape \(2, 5\). Choose a target layer such as the last block's norm",
        lambda: reshape_transform_for(VIT)(norm_of(VIT)(PATCHES.expand(1, 17, 32))).shape,
        lambda: (1, 32, 4, 4),
    ),
}


@pytest.mark.parametrize("case", TRANSFORMS.values(), ids=TRANSFORMS)
def test_advice_on_reshape_transforms(case):
    check(case)


X, Y = IMAGES.numpy(), np.array([1, 2])
MAPS = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(4))
A = MAPS.numpy()
ONE = tiny_vit(num_classes=1)
TEXT = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3)).eval()
WORDS = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
SCORES_OF_WORDS = np.array([[0.9, 0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5]])


def score(metric, model=VIT, a=A, x=X, y=Y, **given):
    return torch.tensor(metric(model, x, y, a, **given))


def sigmoid_drop():
    """Average drop by hand, of a model with one output."""
    masks = (MAPS - MAPS.amin((1, 2), True)) / (MAPS.amax((1, 2), True) - MAPS.amin((1, 2), True))
    before, after = ONE(IMAGES).sigmoid()[:, 0], ONE(IMAGES * masks[:, None]).sigmoid()[:, 0]
    return ((before - after).clamp(min=0) / before).detach()


def test_a_single_logit_needs_no_advice():
    torch.testing.assert_close(qm.average_drop(ONE, IMAGES, [1, 1], MAPS), sigmoid_drop(), rtol=1e-5, atol=1e-7)


def dropped_words():
    """The best word of each text gives way to word 0."""
    ids = torch.tensor(WORDS)
    changed = ids.clone()
    changed[[0, 1], [0, 4]] = 0
    before, after = (TEXT(one).softmax(1)[[0, 1], [1, 2]] for one in (ids, changed))
    return ((before - after).clamp(min=0) / before).detach()


def resized(maps):
    return LayerAttribution.interpolate(maps, (32, 32), "bilinear")


def made(explain, model=VIT):
    return torch.as_tensor(explain(model, X, Y))


def other_models_layer():
    return qm.explain_func(LayerGradCam, layer=tiny_vit().patch_embed.proj)(VIT, X, Y)


def named(name):
    return made(qm.explain_func(LayerGradCam, layer=name))


def taken():
    """Registration while Quantus has a metric of its own with a name of ours."""
    qm.unregister()
    listed = quantus.AVAILABLE_METRICS["Faithfulness"]
    try:
        listed["Insertion"] = quantus.Sparseness
        qm.register()
    finally:
        del listed["Insertion"]
        qm.register()


SCORES = {
    "arrays": Case(
        lambda: qm.insertion(VIT, X, Y, MAPS),
        "Use torch.as_tensor",
        lambda: qm.insertion(VIT, torch.as_tensor(X), Y, MAPS),
        lambda: score(qm.Insertion()),
        TypeError,
    ),
    "small maps": Case(
        lambda: qm.insertion(VIT, IMAGES, Y, CDAM(VIT).attribute(IMAGES, [1, 2])),
        "Resize them first, as by captum.attr.LayerAttribution.interpolate",
        lambda: qm.insertion(VIT, IMAGES, Y, resized(CDAM(VIT).attribute(IMAGES, [1, 2]))),
        lambda: score(qm.Insertion(), a=qm.explain_func(CDAM)(VIT, X, Y)),
    ),
    "several outputs, a function": Case(
        lambda: qm.insertion(TWO, IMAGES, Y, MAPS),
        "Pass a function or a module that returns one of them alone",
        lambda: qm.insertion(lambda x: TWO(x)[1], IMAGES, Y, MAPS),
        lambda: qm.insertion(VIT, IMAGES, Y, MAPS),
    ),
    "several outputs, a module": Case(
        lambda: score(qm.Insertion(), TWO),
        "Pass a function or a module that returns one of them alone",
        lambda: score(qm.Insertion(), Returning(TWO, lambda both: both[1])),
        lambda: qm.insertion(VIT, IMAGES, Y, MAPS),
    ),
    "texts": Case(
        lambda: score(qm.RemovalDrop(), TEXT, SCORES_OF_WORDS, WORDS),
        "so `mask_id` must say which token takes the place of the removed ones",
        lambda: score(qm.RemovalDrop(mask_id=0, fraction=0.2), TEXT, SCORES_OF_WORDS, WORDS),
        dropped_words,
    ),
    "another class, options": Case(
        lambda: qm.ClassDiscrimination(qm.Fidelity(abs=True)),
        "pass `abs` and `normalise` to ClassDiscrimination instead",
        lambda: score(qm.ClassDiscrimination(qm.Fidelity(), abs=True), a=A - 0.5, wrong_a_batch=0.5 - A[::-1]),
        lambda: score(qm.ClassDiscrimination(qm.Fidelity()), a=abs(A - 0.5), wrong_a_batch=abs(0.5 - A[::-1])),
    ),
    "another class, maps": Case(
        lambda: score(qm.ClassDiscrimination(qm.Fidelity())),
        "in `wrong_a_batch`, or an `explain_func` that made the given maps",
        lambda: score(qm.ClassDiscrimination(qm.Fidelity()), wrong_a_batch=A[::-1]),
        lambda: score(qm.Fidelity()) - score(qm.Fidelity(), a=A[::-1]),
        TypeError,
    ),
    "a layer of another model": Case(
        other_models_layer,
        "Pass its name, e.g. 'layer4.1', so that it is found in every copy",
        lambda: named("patch_embed.proj"),
        lambda: resized(LayerGradCam(VIT, VIT.patch_embed.proj).attribute(IMAGES, torch.tensor(Y))).detach(),
    ),
    "scores of tokens": Case(
        lambda: made(qm.explain_func(LayerIntegratedGradients, layer="blocks.1", n_steps=2)),
        "use a method that arranges them, e.g. CDAM, or write a function",
        lambda: made(qm.explain_func(CDAM)),
        lambda: resized(CDAM(VIT).attribute(IMAGES, [1, 2])),
    ),
    "a name that is taken, used directly": Case(
        taken,
        "or use quantus_metrics.Insertion directly, which needs no registration",
        lambda: score(qm.Insertion()),
        lambda: qm.insertion(VIT, IMAGES, Y, MAPS),
    ),
    "a name that is taken, removed": Case(
        taken,
        "Remove it",
        lambda: quantus.AVAILABLE_METRICS["Faithfulness"]["Insertion"] is qm.Insertion,
        lambda: True,
    ),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", SCORES.values(), ids=SCORES)
def test_advice_of_scores(case):
    check(case)


def test_the_extra_that_is_advised_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "xai-discern[quantus]" in (ROOT / "quantus_metrics" / "__init__.py").read_text()
    assert any(one.startswith("quantus") for one in extras["quantus"])
