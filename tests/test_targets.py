"""What may be a target: Captum's forms, concepts, and the words for everything else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_models import PAIR_TOKENS, PairModel, tiny_vit

from captum_ext import CDAM, ConceptTarget
from captum_ext._targets import score_of

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prediction(outputs):
    from adapters.recording import Prediction

    return Prediction(outputs, None)


@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 6),
    copies=st.integers(1, 3),
    form=st.sampled_from(["int", "list", "tensor", "array", "tuple", "tuples"]),
    data=st.data(),
)
def test_every_form_reads_the_same_logits_as_indexing(batch, classes, copies, form, data):
    rows = data.draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
    if form in ("int", "tuple"):
        rows = [rows[0]] * batch
    target = {
        "int": rows[0],
        "list": rows,
        "tensor": torch.tensor(rows),
        "array": np.array(rows),
        "tuple": (rows[0],),
        "tuples": [(row,) for row in rows],
    }[form]
    outputs = torch.arange(float(copies * batch * classes)).view(copies * batch, classes)
    expected = [outputs[k * batch + b, rows[b]].item() for k in range(copies) for b in range(batch)]
    assert score_of(target, batch)(prediction(outputs)).tolist() == expected


def test_tuples_index_outputs_of_more_axes():
    outputs = torch.arange(24.0).view(2, 3, 4)
    assert score_of((1, 2), 2)(prediction(outputs)).tolist() == [6.0, 18.0]
    assert score_of([(0, 3), (2, 1)], 2)(prediction(outputs)).tolist() == [3.0, 21.0]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_none_is_for_one_value_a_sample(shape):
    outputs = torch.tensor([3.0, 5.0]).view(shape)
    assert score_of(None, 2)(prediction(outputs)).tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (-1, ValueError, r"at least 0, got -1"),
        (torch.tensor([0, 1, 2]), ValueError, r"2 for this batch, got 3"),
        (torch.tensor([[0], [1]]), ValueError, r"one class per sample, got shape \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), TypeError, r"tensor of integers, got one of torch.float32"),
        (torch.tensor([True, False]), TypeError, r"torch.bool"),
        (True, TypeError, r"got True"),
        ("cat", TypeError, r"got 'cat'"),
        ([0, "cat"], TypeError, r"number of a class"),
        ([(0,), (0, 1)], TypeError, r"of one length"),
    ],
)
def test_a_wrong_target_is_an_error_before_the_model_runs(target, error, words):
    model, calls = tiny_vit(), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=words):
        CDAM(model).attribute(IMAGES, target)
    assert not calls


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, r"\[5\] is out of range: the model's output has shape \(2, 5\)"),
        ([0, 7], r"\[7\] is out of range"),
        (lambda output: output[:2], r"return one number, a tensor, for the output of one sample, of shape \(5,\); got"),
        (None, r"shape \(2, 5\), so `target` must say which"),
    ],
)
def test_a_target_that_the_output_does_not_have_is_an_error(target, words):
    with pytest.raises(ValueError, match=words):
        CDAM(tiny_vit()).attribute(IMAGES, target)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (2, r"\[2\] is out of range: the model's output has shape \(2, 2\)"),
        ((0, 1), r"gives 2 index\(es\) a sample, but the model's output has shape \(2, 2\): give 1"),
        (None, r"has shape \(2, 2\), so `target` must say which value"),
    ],
)
def test_a_model_that_is_not_known_is_checked_after_one_pass(target, words):
    model = PairModel()
    with pytest.raises(ValueError, match=words):
        CDAM(model, model.tokens).attribute(PAIR_TOKENS, target)


def test_an_index_into_outputs_without_classes_says_so():
    model = PairModel()
    with pytest.raises(ValueError, match=r"shape \(2,\): leave `target` None"):
        CDAM(lambda x: model(x)[:, 0], model.tokens).attribute(PAIR_TOKENS, 0)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [([], ValueError, "at least one target"), (3, TypeError, "list of targets"), (torch.tensor(3), TypeError, "list")],
)
def test_targets_must_be_a_list(targets, error, words):
    with pytest.raises(error, match=words):
        CDAM(tiny_vit()).attribute_targets(IMAGES, targets)


def test_a_concept_equals_the_logit_whose_weights_it_is():
    """A logit is `w . l + b`, so the dot-product concept with vector `w` has the same map."""
    model = tiny_vit().double()
    concept = ConceptTarget(model.head.weight[3].detach())
    cdam = CDAM(model)
    maps = cdam.attribute_targets(IMAGES.double(), [3, concept])
    torch.testing.assert_close(maps[:, 1], maps[:, 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [("dot", [11.0, 5.0]), ("cosine", [11 / (5 * 5**0.5), 1.0]), ("l2", [-(8**0.5), 0.0])],
)
def test_similarities_by_hand(similarity, expected):
    latents, vector = torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([1.0, 2.0])
    assert ConceptTarget(vector, similarity).score(latents).tolist() == pytest.approx(expected)


def test_examples_are_averaged_in_any_number_of_chunks():
    model = tiny_vit().double()
    images = torch.randn(5, 3, 32, 32).double()
    latents = model.forward_head(model.forward_features(images), pre_logits=True)
    for size in (1, 2, 32):
        vector = ConceptTarget.from_examples(model, images, batch_size=size).vector
        torch.testing.assert_close(vector, latents.mean(0), rtol=1e-10, atol=1e-12)
        assert not vector.requires_grad


def test_examples_leave_the_model_as_found():
    from contracts import left_as_found

    model = tiny_vit(drop_rate=0.5).train()
    with left_as_found(model):
        first = ConceptTarget.from_examples(model, IMAGES)
    assert torch.equal(first.vector, ConceptTarget.from_examples(model.eval(), IMAGES).vector)


def test_a_model_without_known_parts_has_its_output_as_latent():
    model = PairModel()
    cdam = CDAM(model, model.tokens)
    concept = ConceptTarget(torch.tensor([1.0, 0.0]))
    assert torch.equal(cdam.attribute(PAIR_TOKENS, concept), cdam.attribute(PAIR_TOKENS, 0))
    assert torch.equal(ConceptTarget.from_examples(model, PAIR_TOKENS).vector, model(PAIR_TOKENS).mean(0))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ConceptTarget([1.0, 2.0]), TypeError, "floating-point tensor, got"),
        (lambda: ConceptTarget(torch.tensor([1, 2])), TypeError, "got torch.int64"),
        (lambda: ConceptTarget(torch.zeros(2, 3)), ValueError, r"got shape \(2, 3\). The mean of several"),
        (lambda: ConceptTarget(torch.tensor([float("nan")])), ValueError, "finite"),
        (lambda: ConceptTarget(torch.zeros(3), "l1"), ValueError, "got 'l1'"),
        (lambda: ConceptTarget.from_examples(tiny_vit(), IMAGES[:0]), ValueError, "at least one example"),
        (lambda: ConceptTarget.from_examples(tiny_vit(), [IMAGES]), TypeError, "to be a tensor"),
        (
            lambda: CDAM(tiny_vit()).attribute(IMAGES, ConceptTarget(torch.ones(7))),
            ValueError,
            r"vector has 7 channels, but what the model's head reads has shape \(2, 32\)",
        ),
    ],
)
def test_a_wrong_concept_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
