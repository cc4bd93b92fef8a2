"""What messages advise is done on the case that raises them, and gives what plain autograd gives: targets, outputs."""

import copy
import functools
import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from advising import GRID, IMAGES, VIT, Case, Returning, at, check, explained, logit, norm_of, of_vit, said
from torch import nn

from captum_ext import (
    CDAM,
    AttentionMap,
    ConceptTarget,
    IntegratedCDAM,
    PartialLRP,
    RelevancePropagation,
    TextTarget,
    signed_overlay,
)

LATE = Returning(VIT, lambda y: y[:, :4].unflatten(1, (2, 2)))
WIDE = torch.randn(32, generator=torch.Generator().manual_seed(2))
FUNCTION = "return one number.*Select or sum: `lambda output: output"
QUESTIONS = {
    "a class is missing": Case(
        lambda: explained(VIT, None), "must say which value", lambda: explained(VIT, 2), lambda: of_vit(2)
    ),
    "an index too many": Case(
        lambda: explained(VIT, (0, 1)), "give 1, as a tuple", lambda: explained(VIT, (3,)), lambda: of_vit(3)
    ),
    "an index too few": Case(
        lambda: explained(LATE, 1),
        "give 2, as a tuple for more than one",
        lambda: explained(LATE, (1, 0)),
        lambda: of_vit(2),
    ),
    "an index of none": Case(
        lambda: explained(logit(VIT, 3), 0),
        "leave `target` None",
        lambda: CDAM(logit(VIT, 3)).attribute(IMAGES),
        lambda: of_vit(3),
    ),
    "a function selects": Case(
        lambda: explained(VIT, lambda y: y[:2]),
        FUNCTION,
        lambda: [explained(VIT, lambda y: y[3]), explained(VIT, lambda y: y[:2].sum())],
        lambda: [of_vit(3), of_vit(0) + of_vit(1)],
    ),
    "several latents": Case(
        lambda: ConceptTarget(torch.stack([WIDE, 3 * WIDE])),
        "The mean of several latents is `latents.mean",
        lambda: explained(VIT, ConceptTarget(torch.stack([WIDE, 3 * WIDE]).mean(0))),
        lambda: at(norm_of(VIT), lambda x: latents(x) @ (2 * WIDE), IMAGES, **GRID),
    ),
    "another width, examples": Case(
        lambda: explained(VIT, ConceptTarget(torch.ones(7))),
        "Make the concept with ConceptTarget.from_examples and the same model",
        lambda: explained(VIT, ConceptTarget.from_examples(VIT, IMAGES)),
        lambda: at(norm_of(VIT), lambda x: latents(x) @ latents(IMAGES).mean(0).detach(), IMAGES, **GRID),
    ),
    "another width, its module": Case(
        lambda: explained(VIT, ConceptTarget(torch.ones(128))),
        "or name the module it comes from by `latent`",
        lambda: explained(HIDDEN, ConceptTarget(torch.ones(8), latent=HIDDEN.model[1])),
        lambda: at(norm_of(VIT), lambda x: HIDDEN.model[1](VIT(x)).sum(1), IMAGES, **GRID),
    ),
    "latents that are tokens": Case(
        lambda: explained(VIT, ConceptTarget(WIDE, latent=VIT.norm)),
        "Choose a module that does, as the pooling or what follows it",
        lambda: explained(VIT, ConceptTarget(WIDE, latent=VIT.fc_norm)),
        lambda: at(norm_of(VIT), lambda x: latents(x) @ WIDE, IMAGES, **GRID),
    ),
    "two places": Case(
        lambda: CDAM(VIT).attribute_targets(
            IMAGES, [ConceptTarget(WIDE, latent=VIT.fc_norm), ConceptTarget(WIDE.exp(), latent="head")]
        ),
        "take a call for each",
        lambda: [
            explained(VIT, ConceptTarget(WIDE, latent=VIT.fc_norm)),
            explained(VIT, ConceptTarget(WIDE.exp(), latent="head")),
        ],
        lambda: [at(norm_of(VIT), lambda x, v=v: latents(x) @ v, IMAGES, **GRID) for v in (WIDE, WIDE.exp())],
    ),
    "an embedding of several": Case(
        lambda: TextTarget(lambda ids: (torch.ones(len(ids), 4), torch.eye(4)[: len(ids)]), list, "dog"),
        "Choose one, as `output=0`",
        lambda: (
            TextTarget(lambda ids: (torch.ones(len(ids), 4), torch.eye(4)[: len(ids)]), list, "dog", output=1).vector
        ),
        lambda: torch.eye(4)[0],
    ),
    "an image that is normalised": Case(
        lambda: signed_overlay((GREY - 0.4) / 0.2, MAP),
        "Undo the model's normalisation first",
        lambda: torch.as_tensor(signed_overlay(((GREY - 0.4) / 0.2) * 0.2 + 0.4, MAP)),
        lambda: torch.as_tensor(signed_overlay(GREY, MAP)),
    ),
}
HIDDEN = Returning(nn.Sequential(VIT, nn.Linear(5, 8), nn.Linear(8, 3)).eval(), lambda y: y)
GREY, MAP = torch.rand(3, 32, 32), torch.randn(1, 4, 4)


def latents(images):
    return VIT.forward_head(VIT.forward_features(images), pre_logits=True)


@pytest.mark.parametrize("case", QUESTIONS.values(), ids=QUESTIONS)
def test_advice_on_what_is_explained(case):
    check(case)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "make",
    [
        lambda y: (2 * y, y),
        lambda y: {"f": 2 * y, "o": y},
        lambda y: [{"f": 2 * y, "o": {"p": y}}],
        lambda y: {"f": 2 * y, "logit.s": y},
    ],
)
@pytest.mark.parametrize("method", [CDAM, PartialLRP, AttentionMap])
def test_the_choice_that_a_message_shows_can_be_pasted(make, method):
    model = Returning(VIT, make)
    message = said(lambda: explained(model, method=method))
    shown = eval(re.search(r"Choose one, as `output=(.*?)`, or by a function", message).group(1))
    factor = 1 if method is AttentionMap else 2
    torch.testing.assert_close(explained(model, method=method, output=shown), factor * explained(VIT, method=method))
    by_function = explained(model, method=method, output=last_tensor)
    torch.testing.assert_close(by_function, explained(VIT, method=method))
    message = said(lambda: explained(VIT, method=method, output="logits"))
    assert "leave `output` out" in message  # and so it is explained above


def last_tensor(found):
    """The last tensor in it."""
    while not isinstance(found, torch.Tensor):
        found = list(found.values())[-1] if isinstance(found, dict) else found[-1]
    return found


def test_a_mask_is_bound_by_a_partial():
    """The way of docs/troubleshooting.md, against the mask given by place and the words alone."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32)
    model, ids = transformers.BertForSequenceClassification(config).eval(), torch.randint(5, 50, (2, 7))
    mask = (torch.arange(7) < 5).long().expand(2, 7)
    for method in (CDAM, PartialLRP):
        found = method(functools.partial(model, attention_mask=mask)).attribute(ids, 1)
        torch.testing.assert_close(found, method(model).attribute(ids, 1, (mask,)))
        alone = method(model).attribute(ids[:, :5], 1)
        torch.testing.assert_close(found[:, :5], alone, rtol=1e-3, atol=1e-6)


def test_bags_have_their_convergence_delta_one_at_a_time():
    tiles = torch.cat([IMAGES, IMAGES.flip(0) + 1])

    def bags(x, groups):
        return VIT(x).unflatten(0, (groups, -1)).amax(1)

    with pytest.raises(ValueError, match=r"Explain one bag of samples at a time"):
        IntegratedCDAM(lambda x: bags(x, 2)).attribute(tiles, 1, return_convergence_delta=True)
    both = IntegratedCDAM(lambda x: bags(x, 2)).attribute(tiles, 1)
    for rows in (slice(2), slice(2, 4)):
        one = IntegratedCDAM(lambda x: bags(x, 1))
        found, delta = one.attribute(tiles[rows], 1, return_convergence_delta=True)
        torch.testing.assert_close(found, both[rows], rtol=1e-4, atol=1e-6)
        assert delta.shape == (1,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", [CDAM, RelevancePropagation])
def test_what_overflows_in_float16_does_not_in_the_types_that_are_advised(dtype, method):
    def overflowing(model):
        return lambda x: (4000 * model(x)).square()

    half, other, exact = (copy.deepcopy(VIT).to(one) for one in (torch.float16, dtype, torch.float64))
    with pytest.raises(ValueError, match="In float16 the model may overflow: use bfloat16 or float32"):
        method(overflowing(half)).attribute(IMAGES.half(), 1)
    found = method(overflowing(other)).attribute(IMAGES.to(dtype), 1)
    expected = method(overflowing(exact)).attribute(IMAGES.double(), 1)
    if dtype is torch.float32:
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert F.cosine_similarity(found.double().flatten(1), expected.flatten(1)).min() > 0.98
