"""Which tensor of a model's output is explained: by name, never by position, and what `output` chooses."""

import dataclasses
import importlib
import pkgutil
import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import transformers
from captum.attr import InputXGradient
from torch import Tensor, nn
from transformers.utils import ModelOutput

from adapters.models import output_tensor
from captum_ext import CDAM, AttentionMap, IntegratedCDAM, PartialLRP, RelevancePropagation, SmoothCDAM
from quantus_metrics import explain_func
from xai_compare import compare

IMAGE = torch.zeros(1, 3, 4, 4)
DOCS = Path(__file__).parent.parent / "docs" / "outputs.md"


def documented():
    """What the table in the docs says: by class of output the field that is explained, or the error."""
    table = DOCS.read_text().split("other libraries")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith(("| `", "| refused"))]
    expected = {}
    for field, names in rows:
        meant = ValueError if "refused" in field else re.match(r" `(\w+)`", field)[1]
        expected |= dict.fromkeys(re.findall(r"`(\w+)`", names), meant)
    return expected


def output_classes():
    """All dataclasses of outputs that transformers has, by name."""
    found = {}
    modules = [transformers.modeling_outputs]
    for package in pkgutil.iter_modules(transformers.models.__path__):
        try:
            modules.append(importlib.import_module(f"transformers.models.{package.name}.modeling_{package.name}"))
        except (ImportError, RuntimeError):
            continue
    for module in modules:
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, ModelOutput) and dataclasses.is_dataclass(cls):
                found[name] = cls
    return found


def tensors_of(cls):
    """A tensor for each field that is one; losses have no axes."""
    given = {}
    for field in dataclasses.fields(cls):
        kind = str(field.type).lower()
        if "tensor" in kind and not any(word in kind for word in ("tuple", "list", "dict", "long", "int", "bool")):
            given[field.name] = torch.zeros(()) if field.name.endswith("loss") else torch.zeros(2, 3)
    return given


def explained(fields):
    """The name of the field that is explained, or the error."""
    try:
        found = output_tensor(OrderedDict(fields), given=IMAGE)
    except (TypeError, ValueError) as error:
        return type(error)
    return next(name for name, value in fields.items() if value is found)


@pytest.mark.slow
def test_every_output_of_transformers_is_read_by_name_or_refused():
    classes = output_classes()
    assert len(classes) > 300
    expected = documented()
    assert len(expected) > 30
    for name, cls in classes.items():
        fields = tensors_of(cls)
        if not fields:
            continue
        found = explained(fields)
        assert found == explained(dict(reversed(fields.items()))), name  # never by position
        if "logits" in fields:
            assert found == "logits", name
        elif found is ValueError:
            assert len(fields) > 1, name
        if name in expected:
            assert found == expected[name], name
    assert set(expected) <= set(classes)


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class Model(nn.Module):
    """A tiny ViT whose output is made by a function of its features and logits."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.make = make
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=3, depth=2)

    def forward(self, x: Tensor):
        tokens = self.vit.forward_features(x)
        return self.make(tokens[:, 0], self.vit.forward_head(tokens))


x = torch.randn(2, 3, 32, 32)
METHODS = [CDAM, SmoothCDAM, IntegratedCDAM, RelevancePropagation, PartialLRP, AttentionMap]


def maps(method, model, **options):
    further = {"generator": torch.Generator().manual_seed(0)} if method is SmoothCDAM else {}
    return method(model.eval(), **options).attribute(x, 1, **further)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", METHODS)
def test_the_logits_are_explained_wherever_they_are(method):
    expected = maps(method, Model(lambda _, logits: logits))
    for make in (
        Named,
        lambda f, o: {"features": f, "logits": o},
        lambda f, o: (o, [f]),
        lambda f, o: {"aux": f, "out": o},
    ):
        torch.testing.assert_close(maps(method, Model(make)), expected)
    for make, output in (
        (lambda f, o: (f, o), 1),
        (lambda f, o: (f, o), -1),
        (lambda f, o: {"features": f, "output": o}, "output"),
        (lambda f, o: {"a": {"b": [f, o]}}, ("a", "b", 1)),
        (lambda f, o: {"a": {"b": [f, o]}}, "a.b.1"),
        (lambda f, o: [{"scores": one} for one in o], lambda parts: torch.stack([one["scores"] for one in parts])),
    ):
        torch.testing.assert_close(maps(method, Model(make), output=output), expected)


@pytest.mark.parametrize(
    ("make", "output", "error", "words"),
    [
        (lambda f, o: (f, o), None, ValueError, r"several tensors.* 0 \(2, 192\), 1 \(2, 3\).*`output=0`"),
        (lambda f, o: {"f": f, "o": o}, None, ValueError, r"'f' \(2, 192\), 'o' \(2, 3\).*`output='f'`"),
        (
            lambda f, o: {"f": f, "o": o},
            "x",
            ValueError,
            r"`output='x'` is not in what the model returned.* 'o' \(2, 3\)",
        ),
        (
            lambda f, o: [{"boxes": f, "scores": o}],
            None,
            TypeError,
            r"\(0, 'boxes'\) \(2, 192\), \(0, 'scores'\) \(2, 3\)",
        ),
        (lambda f, o: {"o": [o]}, "o", ValueError, r"is no tensor but <class 'list'>.*\('o', 0\) \(2, 3\)"),
        (lambda f, o: o, lambda o: o[0].item, ValueError, r"`output` \(<lambda>\) is no tensor"),
        (lambda f, o: o, "logits", ValueError, r"It is one tensor, of shape \(2, 3\): leave `output` out"),
        (lambda f, o: {"out": f, "score": o}, None, ValueError, r"'out' \(2, 192\), 'score' \(2, 3\)"),
        (lambda f, o: o, 1.5, TypeError, r"a name, an index, a tuple of them or a function, got 1.5"),
        (lambda f, o: {"text": f.long()}, None, TypeError, r"Expected the model to return a tensor"),
    ],
)
def test_an_output_that_is_not_clear_is_an_error_that_lists_what_there_is(make, output, error, words):
    with pytest.raises(error, match=words):
        maps(CDAM, Model(make), output=output)


@pytest.mark.slow
def test_the_choice_counts_for_all_methods_of_a_comparison(tmp_path):
    model, plain = Model(lambda f, o: (f, o)).eval(), Model(lambda f, o: o).eval()
    for method in (CDAM, InputXGradient):
        chosen = explain_func(method, output=1)(model, x, [0, 2])
        torch.testing.assert_close(torch.tensor(chosen), torch.tensor(explain_func(method)(plain, x, [0, 2])))
    few = {
        "methods": ["cdam", "ixg"],
        "metrics": ["compactness"],
        "gallery": 0,
        "resamples": 100,
        "targets": "predicted",
    }
    found = [
        compare(one, x, out=tmp_path / str(i), output=output, **few).scores()["score"].tolist()
        for i, (one, output) in enumerate([(model, 1), (plain, None), (model, lambda parts: parts[1])])
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == found[2]
    with pytest.raises(ValueError, match="several tensors"):
        compare(model, x, out=tmp_path / "none", **few)


def zero_shot():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": 100, "eos_token_id": 99, "bos_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config).eval()


def test_clip_explains_the_similarity_of_image_and_text():
    clip, ids, images = zero_shot(), torch.tensor([[5, 6, 99], [7, 8, 99]]), torch.randn(1, 3, 32, 32)
    by_image = CDAM(lambda pixels: clip(input_ids=ids, pixel_values=pixels))
    expected = CDAM(lambda pixels: clip(input_ids=ids, pixel_values=pixels).logits_per_image).attribute(images, 1)
    torch.testing.assert_close(by_image.attribute(images, 1), expected)
    assert expected.abs().max() > 0
    by_text = CDAM(lambda words: clip(input_ids=words, pixel_values=images))
    expected = CDAM(lambda words: clip(input_ids=words, pixel_values=images).logits_per_text).attribute(ids, 0)
    torch.testing.assert_close(by_text.attribute(ids, 0), expected)
    with pytest.raises(ValueError, match=r"\[20\] is out of range: the model's output has shape \(1, 2\)"):
        by_image.attribute(images, 20)
