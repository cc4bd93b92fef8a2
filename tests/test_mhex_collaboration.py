"""Collaboration of MHEX's gates, stripping, saving, and the steps of a trainer."""

import copy
import pickle

import pytest
import torch
import transformers
from mhex_networks import CLASSES, CNN, TARGETS, TEXTS, backbone, close, derive, explain, inputs_of, wrap
from torch import nn
from torch.nn import functional as F

import captum_ext
from adapters import MHEX, MHEXEvidenceCAM, collaboration, spatial_collaboration


def cosines(name, wrapper, inputs, targets):
    """Gradients of each sample's two losses for the matrix itself, one sample and block at a time."""
    result = []
    for (steps, _), t in zip(derive(name, wrapper, inputs), targets, strict=True):
        losses, row = [y.logsumexp(1)[0] - y[0, t] for _, y, _, _ in steps], []
        for i, block in enumerate(wrapper.blocks[:-1]):
            a, b = (torch.autograd.grad(losses[j], block.gate.weight, retain_graph=True)[0] for j in (i, i + 1))
            row.append(((a * b).sum() / (a.norm() * b.norm() + 1e-8)).item())
        result.append(row)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [CNN, "timm ResNeXt", "timm ViT", "BERT", "DistilBERT"])
def test_collaboration_is_the_cosine_of_per_sample_gradients(name):
    wrapper, inputs = wrap(name, scale=1.0), inputs_of(name)
    expected = cosines(name, wrapper, inputs, TARGETS)
    assert expected.abs().max() > 0.05
    with torch.no_grad():
        close(collaboration(wrapper.train(), inputs if name in TEXTS else inputs[0], TARGETS), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(35, 42), (33, 40)])
def test_spatial_collaboration_replaces_cells_by_the_mean(size):
    wrapper = wrap(CNN, scale=1.0, placement=["layer1.1", "layer3.0", "layer4.0"])
    images = inputs_of(CNN)[0][..., : size[0], : size[1]]
    maps = spatial_collaboration(wrapper, images, TARGETS)
    assert maps.shape == (3, 2, 7, 7)
    for row, column in [(0, 0), (3, 5), (6, 6), (2, 0)]:
        changed, corners = images.clone(), [(row, column), (row + 1, column + 1)]
        (top, left), (bottom, right) = ([-(-n * i // 7) for n, i in zip(size, at, strict=True)] for at in corners)
        changed[..., top:bottom, left:right] = images.mean((2, 3), keepdim=True)
        close(maps[..., row, column], cosines(CNN, wrapper, (changed,), TARGETS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [CNN, "BERT", "timm ViT"])
@pytest.mark.parametrize("prediction", ["last", "original"])
def test_stripping_keeps_the_prediction_and_the_original(name, prediction):
    wrapper, inputs = wrap(name, prediction=prediction), inputs_of(name)
    expected, deep = wrapper(*inputs), wrapper.deep_forward(*inputs)
    small = wrapper.strip()
    for model in (small, small.strip(), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(model(*inputs), expected)
        heads = [k for k in model.state_dict() if ".head." in k and not k.startswith("backbone.")]
        assert heads == ([f"blocks.{len(deep) - 1}.head.weight"] if prediction == "last" else [])
    gone, count = len(deep) - (prediction == "last"), [sum(p.numel() for p in m.parameters()) for m in (wrapper, small)]
    assert count[0] - count[1] == sum(block.head.weight.numel() for block in wrapper.blocks[:gone])
    assert all(map(torch.equal, wrapper.deep_forward(*inputs), deep))
    for call in (small.deep_forward, lambda *x: explain(small, name), lambda *x: collaboration(small, x, TARGETS)):
        with pytest.raises(ValueError, match="strip"):
            call(*inputs)
    small.blocks[0].gate.weight.data.mul_(2)
    assert torch.equal(wrapper(*inputs), small(*inputs))
    assert not torch.equal(wrapper(*inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("with_backbone", [None, True, False])
def test_saving_and_loading(tmp_path, with_backbone):
    wrapper, other = wrap(CNN, placement="downsample", gate=False), copy.deepcopy(backbone(CNN))
    wrapper.backbone.conv1.weight.data.mul_(1.5)
    wrapper.save_pretrained(tmp_path, with_backbone=with_backbone)
    loaded = MHEX.from_pretrained(tmp_path, model=other)
    assert (loaded.names, loaded.gated, loaded.prediction) == (wrapper.names, False, "last")
    assert torch.equal(loaded(*inputs_of(CNN)), wrapper(*inputs_of(CNN))) == (with_backbone is not False)
    assert all(map(torch.equal, loaded.blocks.parameters(), wrapper.blocks.parameters()))
    with pytest.raises(ValueError, match=r"blocks.0.gate.weight has shape \(8, 8\), expected \(32, 32\)"):
        MHEX.from_pretrained(tmp_path, model=copy.deepcopy(backbone("timm ResNeXt")))
    with pytest.raises(ValueError, match=r"blocks.4.head.weight is missing"):
        MHEX.from_pretrained(tmp_path, model=other, placement="all")


TRAINED = [("BERT", True, 3), ("BERT", False, 3), ("BERT", False, 1), ("timm ViT", False, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "remove_unused_columns", "batch"), TRAINED)
def test_transformers_trainer_takes_the_steps_of_a_plain_loop(tmp_path, name, remove_unused_columns, batch):
    wrapper = wrap(name, scale=1.0).float()
    wrapper.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    inputs = [x.float() if x.dim() == 4 else x for x in inputs_of(name)]
    keys = ("input_ids", "attention_mask", "labels") if name in TEXTS else ("x", "labels")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*inputs, TARGETS, strict=True)]
    plain = copy.deepcopy(wrapper)
    losses, sgd = [], torch.optim.SGD(plain.parameters(), 0.01)
    for _ in range(2):
        sgd.zero_grad()
        losses.append(sum(F.cross_entropy(y, TARGETS) for y in plain.deep_forward(*inputs)))
        losses[-1].backward()
        sgd.step()
    settings = {"max_steps": 2, "max_grad_norm": 0, "lr_scheduler_type": "constant", "use_cpu": True}
    settings |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 3 // batch}
    settings |= {"report_to": [], "save_strategy": "no", "remove_unused_columns": remove_unused_columns}
    optimizers = torch.optim.SGD(wrapper.parameters(), 0.01), None
    arguments = transformers.TrainingArguments(tmp_path, **settings)
    transformers.Trainer(wrapper, arguments, train_dataset=rows, optimizers=optimizers).train()
    torch.testing.assert_close(wrapper.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-5)
    assert losses[1] < losses[0]


BAD_TARGETS = [CLASSES, -1, [0, 1], [0, 1, CLASSES], [0, 1, -100], 1.0, [0.0, 1.0, 2.0], True, "cat", [[0], [1], [2]]]


@pytest.mark.slow
@pytest.mark.parametrize("target", BAD_TARGETS, ids=str)
@pytest.mark.parametrize("use", [explain, lambda w, n, t: collaboration(w, *inputs_of(n), t)], ids=["CAM", "gates"])
def test_bad_targets_are_named(use, target):
    for form in [target] if isinstance(target, str) else [target, torch.tensor(target)]:
        with pytest.raises((TypeError, ValueError), match=r"target|class"):
            use(wrap(CNN), CNN, form)


@pytest.mark.parametrize(
    "use", [captum_ext.MHEXCAM, MHEXEvidenceCAM, lambda m: collaboration(m, *inputs_of(CNN), TARGETS)]
)
def test_a_plain_model_is_refused(use):
    with pytest.raises(TypeError, match=r"Expected an adapters.MHEX.*ResNet"):
        use(backbone(CNN))


def test_a_number_of_classes_is_a_number():
    with pytest.raises(ValueError, match="num_classes"):
        MHEX(backbone(CNN), num_classes=True)
