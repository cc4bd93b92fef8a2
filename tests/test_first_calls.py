"""What new users call first: it works, or the message has the line to write, and that works."""

import functools

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import BatchEncoding, BatchFeature, BertConfig, BertForSequenceClassification, Pipeline

from captum_ext import (
    CDAM,
    AttentionMap,
    ContrastTarget,
    IntegratedCDAM,
    RelevancePropagation,
    SmoothCDAM,
    TokenAblation,
    TokenShapley,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(**SIZES, num_classes=5).eval()
    model.head.bias.data -= model(IMAGES).mean(0).detach()  # so that samples differ in what is predicted
    return model


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", [CDAM, SmoothCDAM, IntegratedCDAM, TokenAblation, TokenShapley])
def test_a_layer_or_an_attention_may_be_given_by_its_name(model, method):
    options = {"n_samples": 4} if method is TokenShapley else {"nt_samples": 2} if method is SmoothCDAM else {}
    for argument, name in (("layer", "blocks.1.norm1"), ("attention", "blocks.1.attn")):
        torch.manual_seed(0)
        expected = method(model, **{argument: model.get_submodule(name)}).attribute(IMAGES, 3, **options)
        found = method(functools.partial(model), **{argument: name}).attribute(IMAGES, 3, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method", [CDAM, IntegratedCDAM, RelevancePropagation, TokenAblation])
def test_predicted_is_the_class_of_the_largest_logit_of_each_sample(model, method):
    classes = model(IMAGES).argmax(1)
    assert len(set(classes.tolist())) == 2
    assert torch.equal(method(model).attribute(IMAGES, "predicted"), method(model).attribute(IMAGES, classes))
    other = next(label for label in range(5) if label not in classes)
    contrast = ContrastTarget("predicted", other)
    if method is CDAM:
        expected = CDAM(model).attribute(IMAGES, ContrastTarget(classes.tolist(), other))
        assert torch.equal(CDAM(model).attribute(IMAGES, contrast), expected)
        several = CDAM(model).attribute_targets(IMAGES, ["predicted", 3])
        torch.testing.assert_close(several[:, :1], CDAM(model).attribute(IMAGES, classes))


def test_predicted_needs_one_row_of_logits(model):
    with pytest.raises(ValueError, match=r"this output has shape \(2, 17, 32\)"):
        CDAM(model, output=lambda _: model.forward_features(IMAGES)).attribute(IMAGES, "predicted")


def array():
    return IMAGES.numpy()


PICTURE = Image.new("RGB", (32, 32))
TABLE = [
    (array, TypeError, r"numpy array of shape \(2, 3, 32, 32\) and float32: `torch.from_numpy\(inputs\)`"),
    (lambda: PICTURE, TypeError, r"got a PIL image.*resolve_model_data_config\(model\)\)\(image\).unsqueeze\(0\)`"),
    (lambda: [PICTURE, PICTURE], TypeError, r"got a list. Of each: a PIL image.*Then `torch.cat"),
    (lambda: list(IMAGES), TypeError, r"list of 2 tensors: `torch.stack\(inputs\)`"),
    (
        lambda: {"pixel_values": IMAGES},
        TypeError,
        r"dict of \['pixel_values'\]. Pass the tensor: `inputs\['pixel_values'\]`",
    ),
    (lambda: BatchFeature({"pixel_values": IMAGES}), TypeError, r"Pass the tensor: `inputs\['pixel_values'\]`"),
    (lambda: BatchFeature({"pixel_values": array()}), TypeError, "return_tensors='pt'"),
    (lambda: "cat.jpg", TypeError, r"the string 'cat.jpg'.*PIL.Image.open\(path\)"),
    (lambda: 7, TypeError, "got <class 'int'>"),
    (lambda: None, TypeError, "got <class 'NoneType'>"),
    (lambda: IMAGES[0], ValueError, r"`inputs.unsqueeze\(0\)`"),
    (lambda: IMAGES.double(), ValueError, r"of torch.float32, as the model's weights are, got torch.float64"),
    (lambda: (IMAGES * 50).to(torch.uint8), ValueError, "got torch.uint8.*after scaling and normalising"),
    (lambda: IMAGES.permute(0, 2, 3, 1), ValueError, r"channels lie last. `inputs.permute\(0, 3, 1, 2\)`"),
]


@pytest.mark.parametrize(("inputs", "error", "words"), TABLE)
@pytest.mark.parametrize("method", [CDAM, AttentionMap])
def test_inputs_that_the_model_does_not_take(model, inputs, error, words, method):
    with pytest.raises(error, match=words):
        method(model).attribute(inputs(), 3)


def test_what_is_advised_for_inputs_works(model):
    expected = CDAM(model).attribute(IMAGES, 3)
    for inputs in (torch.from_numpy(array()), IMAGES.double().to(torch.float32), torch.stack(list(IMAGES))):
        assert torch.equal(CDAM(model).attribute(inputs, 3), expected)
    assert torch.equal(CDAM(model).attribute(IMAGES.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 3), expected)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model, {"input_size": (3, 32, 32)}))
    assert CDAM(model).attribute(transform(PICTURE).unsqueeze(0), 3).shape == (1, 1, 4, 4)


def test_what_a_tokenizer_returns_is_taken_apart_and_the_rest_bound():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()
    inputs = BatchEncoding({"input_ids": torch.tensor([[1, 5, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])})
    advice = r"functools.partial\(model, attention_mask=inputs\['attention_mask'\]\)"
    with pytest.raises(TypeError, match=rf"`inputs\['input_ids'\]`, and bind the others by name: `{advice}`"):
        CDAM(bert).attribute(inputs, 1)
    bound = functools.partial(bert, attention_mask=inputs["attention_mask"])
    assert torch.equal(
        CDAM(bound).attribute(inputs["input_ids"], 1),
        CDAM(bert).attribute(inputs["input_ids"], 1, additional_forward_args=(inputs["attention_mask"],)),
    )


class Pipe(Pipeline):
    """A pipeline, without the checks of its constructor."""

    def __init__(self, model):
        self.model = model

    def _sanitize_parameters(self, **_):
        raise NotImplementedError

    preprocess = _forward = postprocess = None


@pytest.mark.parametrize("method", [CDAM, AttentionMap])
def test_what_is_no_model(model, method):
    Pipe.__abstractmethods__ = frozenset()
    for given, words in (
        ("vit_tiny_patch16_224", r"`timm.create_model\('vit_tiny_patch16_224', pretrained=True\).eval\(\)`"),
        (timm.models.VisionTransformer, r"got the class VisionTransformer.*`VisionTransformer\(...\).eval\(\)`"),
        (Pipe(model), "got a Pipe around one. Pass its `.model`"),
        (3, "got <class 'int'>"),
    ):
        with pytest.raises(TypeError, match=words):
            method(given)
    assert torch.equal(method(Pipe(model).model).attribute(IMAGES, 3), method(model).attribute(IMAGES, 3))


def test_names_that_are_wrong_come_with_those_that_are_close(model):
    with pytest.raises(ValueError, match=r"got 'blocks.2.nrm1'. Did you mean 'blocks.2.norm1'"):
        CDAM(model, layer="blocks.2.nrm1")
    with pytest.raises(ValueError, match=r"got 'zzz'. Its parts are \['patch_embed',"):
        CDAM(model, attention="zzz")
    with pytest.raises(ValueError, match="this is a function: pass the module"):
        CDAM(lambda x: model(x), layer="blocks.2.norm1")
    with pytest.raises(TypeError, match=r"or 'predicted', got 'cat'.*label2id\['cat'\]"):
        CDAM(model).attribute(IMAGES, "cat")


def test_without_a_head_a_number_is_that_of_a_feature():
    bare = timm.models.VisionTransformer(**SIZES, num_classes=0).eval()
    for method in (CDAM, RelevancePropagation):
        with pytest.warns(UserWarning, match=r"no head \(num_classes=0\), so 3 is the number of a feature") as said:
            method(bare).attribute(IMAGES, 3)
        assert said[0].filename == __file__  # the user's line


@pytest.mark.filterwarnings("error")
def test_with_a_head_nothing_is_said(model):
    CDAM(model).attribute(IMAGES, 3)
    assert np.isfinite(CDAM(model).attribute(IMAGES, [1, 2]).numpy()).all()
