"""Scores among those of Quantus, and methods as its `explain_func`."""

import copy
import dataclasses
import functools
import pickle

import numpy as np
import pytest
import quantus
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, LayerIntegratedGradients
from contracts import Breaks, left_as_found
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from score_derivations import SCORES, A, H, W, X, Y, close, counted, make, net, score
from torch import nn
from toy_models import tiny_vit

import quantus_metrics as qm
from quantus_metrics import explain_func

NAMES = {
    "Soft Average Drop",
    "Removal Drop",
    "Effective Average Drop",
    "Box Sensitivity",
    "Average Drop",
    "Average Gain",
}
NAMES |= {"Average Increase", "Insertion", "Deletion", "Fidelity", "Compactness", "Class Discrimination"}
ALL = NAMES | {"Token Faithfulness"}  # which needs tokens on a grid


def registered():
    known = {name: metric for names in quantus.AVAILABLE_METRICS.values() for name, metric in names.items()}
    lists = [name for names in quantus.available_metrics().values() for name in names]
    return {k: (known.get(k), lists.count(k), getattr(quantus, k.replace(" ", ""), None)) for k in {*ALL, *known}}


def test_registration_is_once_and_can_be_undone():
    before = registered()
    classes = {qm.TokenFaithfulness, *(metric for metric, *_ in SCORES.values())}
    assert {before[name] for name in ALL} == {(metric, 1, metric) for metric in classes}
    qm.register()
    assert registered() == before
    qm.unregister()
    qm.unregister()
    assert registered() == before | dict.fromkeys(ALL, (None, 0, None))
    qm.register()
    assert registered() == before


@pytest.mark.parametrize("name", ["Class Discrimination", "Fidelity"])
def test_a_name_that_is_taken_is_not_overwritten(name, monkeypatch):
    qm.unregister()
    if name == "Fidelity":
        monkeypatch.setattr(quantus, name, quantus.Sparseness, raising=False)
    else:
        monkeypatch.setitem(quantus.AVAILABLE_METRICS["Localisation"], name, quantus.Sparseness)
    before = registered()
    with pytest.raises(ValueError, match=name):
        qm.register()
    assert registered() == before
    monkeypatch.undo()
    qm.register()


def direct(model, name):
    x, y = torch.from_numpy(X).requires_grad_(), torch.tensor(Y)
    if name == "IG":
        return IntegratedGradients(model).attribute(x, target=y, n_steps=3).sum(1, keepdim=True).detach()
    if name == "layer":
        maps = LayerGradCam(model, model[0]).attribute(x, target=y)
        return LayerAttribution.interpolate(maps, (H, W), "bicubic").detach()
    return GradCAM(model, [model[0], model[2]])(x, [ClassifierOutputTarget(c) for c in Y])[:, None]


EXPLAIN = {
    "IG": explain_func(IntegratedGradients, n_steps=3, batch_size=2),
    "layer": explain_func(LayerGradCam, layer="0", mode="bicubic"),
    "GradCAM": explain_func(GradCAM, target_layers=["0", "2"], batch_size=3),
}


@pytest.mark.parametrize("name", EXPLAIN)
def test_an_explain_func_is_what_its_method_computes(name):
    model, explain, expected = net(), pickle.loads(pickle.dumps(EXPLAIN[name])), direct(net(), name)
    model(torch.from_numpy(X)).sum().backward()
    model.train()
    inputs, seen = X.copy(), counted(model)
    inputs.setflags(write=False)
    with left_as_found(model):
        close(explain(model=model, inputs=inputs, targets=Y, method="Saliency", device="cpu"), expected, 1e-6)
        assert max(seen) == {"IG": 2 * 3, "layer": 5, "GradCAM": 3}[name]
        close(explain(copy.deepcopy(model), torch.tensor(X), Y.tolist(), batch_size=1), expected, 1e-6)
        last = dataclasses.replace(explain, channel_first=False)
        close(last(model, X.transpose(0, 2, 3, 1), Y), expected, 1e-6)
    model.append(Breaks(RuntimeError("mine")))
    with left_as_found(model), pytest.raises(RuntimeError, match="mine"):
        explain(model, X, Y)


def test_a_layer_that_is_not_in_the_model_is_named():
    model = net()
    for layer, match in (("9", "no module '9'.*1, 2"), (model[0], "Conv2d is not a part.*Pass its name")):
        with pytest.raises(ValueError, match=match):
            explain_func(LayerGradCam, layer=layer)(net(), X, Y)
    close(explain_func(LayerGradCam, layer=model[0], mode="bicubic")(model, X, Y), direct(model, "layer"))


def test_maps_of_tokens_are_no_pictures():
    vit, explain = tiny_vit(), functools.partial(explain_func, LayerIntegratedGradients, n_steps=2)
    with pytest.raises(ValueError, match=r"\(2, 17, 32\)"):
        explain(layer="blocks.1")(vit, torch.randn(2, 3, 32, 32), [0, 1])
    text, ids = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(28, 4)), torch.randint(9, (2, 7))
    expected = LayerIntegratedGradients(text, text[0]).attribute(ids, target=torch.tensor([0, 1]), n_steps=2).sum(2)
    close(explain(layer="0")(text, ids, [0, 1]), expected.detach(), 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Quantus' own
def test_all_metrics_run_in_one_evaluation(capsys):
    model, x, mine = net().float(), X.astype(np.float32), {SCORES[name][0].name: name for name in SCORES}
    metrics = [quantus.PixelFlipping(features_in_step=9), quantus.SensitivityN(features_in_step=9)]
    metrics += [quantus.MaxSensitivity(nr_samples=2), quantus.RandomLogit(num_classes=4), quantus.Sparseness()]
    metrics += [quantus.MPRT(return_last_correlation=True), quantus.RelevanceMassAccuracy(), *map(make, mine.values())]
    metrics = {metric.name: metric for metric in metrics}
    results = quantus.evaluate(metrics, EXPLAIN, model, x, Y, A[:, None] > 0, explain_func_kwargs={})
    assert "Failed" not in capsys.readouterr().out
    for method, scores in results.items():
        assert scores.keys() == metrics.keys() > NAMES == mine.keys()
        for title, name in list(mine.items())[:-1]:
            close(scores[title], score(name, model, x, a=EXPLAIN[method](model, x, Y)), 1e-5)
