"""Every score: samples by themselves, models in other forms, all left as found, bad input named."""

from types import SimpleNamespace

import numpy as np
import pytest
import quantus
import torch
from contracts import Breaks, left_as_found
from score_derivations import (
    SCORES,
    WRONG,
    A,
    X,
    Y,
    close,
    every_score,
    function,
    make,
    net,
    one_of_each,
    score,
    tensors,
)
from torch import nn

import quantus_metrics


@pytest.mark.sampled(5)
@every_score
def test_a_sample_is_scored_by_itself_and_all_is_left_as_found(name):
    model, metric, order = net(nn.Softmax(1)), make(name), [3, 1, 4, 0, 2]
    expected = np.array(score(name, net()))
    model(torch.from_numpy(X)).sum().backward()
    model.train()[1].eval()
    given = [value[order] for value in (X, Y, A, WRONG)]
    inputs = tensors(*given)
    for value in given:
        value.setflags(write=False)
    with left_as_found(model):  # also the random states
        score(name, model, X[::-1], Y, WRONG, metric=metric)
        for size in (1, 2, 64):
            close(score(name, model, *given, metric=metric, batch_size=size), expected[order])
        close([score(name, model, *(value[i : i + 1] for value in given))[0] for i in range(5)], expected[order])
        options = {"metric": make("box")} if name == "class" else SCORES[name][2]
        close(function(name)(model, *inputs[: 3 + (name == "class")], **options), expected[order])
    assert all(np.array_equal(now, value) for now, value in zip(inputs, given, strict=True))


class Calls(nn.Module):
    def __init__(self, call, *parts):
        super().__init__()
        self.call, self.parts = call, nn.ModuleList(parts)

    def forward(self, x):
        return self.call(x, *self.parts)


HALF = net().bfloat16()
SAME = {  # models, and how they are called, with the same scores
    "softmax": (net(nn.Softmax(1)), net(), {}),
    "softmax inside": (net(inner=[nn.Softmax(1)]), net(inner=[Calls(lambda x: x.softmax(1))]), {}),
    "logits": (Calls(lambda x, part: SimpleNamespace(logits=part(x)), net(nn.Softmax(1))), net(), {}),
    "bfloat16": (HALF, lambda x: HALF(x.bfloat16()), {}),
    "channels last": (net(), net(), {"x": X.transpose(0, 2, 3, 1), "channel_first": False}),
    "wrapped": (quantus.helpers.utils.get_wrapped_model(net(), True, None), net(), {}),
}


@pytest.mark.slow
@every_score
@pytest.mark.parametrize(("model", "plain", "call"), SAME.values(), ids=SAME)
def test_a_model_in_another_form_has_the_same_scores(model, plain, call, name):
    close(score(name, model, **call), score(name, plain), 1e-9)


def test_tensors_of_bfloat16_are_scored():
    for name in ("SAD", "removal", "AD", "insertion"):
        x, a = (value.bfloat16() for value in tensors(X, A))
        close(function(name)(HALF, x, Y, a, **SCORES[name][2]), score(name, net()), 0.03)


def bad(value, *samples):
    value = value.copy()
    value[list(samples), ..., 1] = np.nan
    return value


def breaks(inputs, **_):
    if inputs[0, 0, 0, 0] != X[0, 0, 0, 0]:
        raise RuntimeError("mine")
    return A[: len(inputs)]


BAD = {  # arguments, error, message, number of samples that are scored before
    "maps": ({"a": A[:, 1:]}, ValueError, r"\(5, 2, 9, 7\).*\(5, 8, 7\)", 0),
    "fewer maps": ({"a": A[1:]}, ValueError, r"\(5, 2, 9, 7\).*\(4, 9, 7\)", 0),
    "fewer labels": ({"y": Y[1:]}, ValueError, r"\(5, 2, 9, 7\).*\(4,\)", 0),
    "labels": ({"y": Y / 2}, TypeError, "class indices.*float64", 0),
    "class": ({"y": np.array([0, 1, 2, 4, 1]), "batch_size": 1}, ValueError, "from 0 to 3.*got 4", 3),
    "map of NaN": ({"a": bad(A, 3)}, ValueError, r"maps.*sample\(s\) \[3\]", 3),
    "map of NaN, batches": ({"a": bad(A, 3, 4), "batch_size": 2}, ValueError, r"maps.*\[3\]", 3),
    "inputs of NaN": ({"x": bad(X, 3)}, ValueError, r"inputs.*sample\(s\) \[3\]", 3),
    "both": ({"x": bad(X, 4), "a": bad(A, 2)}, ValueError, r"maps.*sample\(s\) \[2\]", 2),
    "no maps": ({"a": None}, TypeError, "explain_func", 0),
    "explain_func": ({"a": None, "explain_func": breaks, "batch_size": 2}, RuntimeError, "mine", 2),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size", 0),
    "token ids": ({"x": np.ones((5, 7), int), "a": A[:, 0], "wrong": A[:, 1]}, ValueError, r"images.*\(5, 7\)", 0),
    "typo": ({"batchsize": 2}, ValueError, "batchsize", 0),
}


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize(("call", "error", "match", "done"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_what_was_scored_stays(call, error, match, done, name):
    model, metric = net(), make(name)
    with left_as_found(model), pytest.raises(error, match=match):
        score(name, model, metric=metric, **call)
    close(metric.evaluation_scores, score(name, net())[:done])


@one_of_each
def test_an_error_in_the_model_is_passed_on_and_what_was_scored_stays(name):
    model, metric = net(), make(name)
    model.append(Breaks(RuntimeError("in the model"), 75)).train()  # two samples of 37 boxes and one are through
    with left_as_found(model), pytest.raises(RuntimeError, match="in the model"):
        score(name, model, *(np.repeat(value, 20, 0) for value in (X, Y, A, WRONG)), metric=metric, batch_size=1)
    close(metric.evaluation_scores, np.repeat(score(name, net()), 20)[: len(metric.evaluation_scores)])
    assert metric.evaluation_scores


def test_what_makes_a_map_or_a_box_bad_is_named():
    with pytest.raises(ValueError, match=r"box of 6 pixels.*9 x 5"):
        score("box", net(), X[..., :5], a=A[..., :5])
    with pytest.raises(ValueError, match=r"classes from 0 to 3.*got 0 to 4"):
        make("class")(net(), X, np.arange(5), A, explain_func=lambda **_: A)
    metric = make("SAD", normalise=True, normalise_func=lambda one: np.where((one == A[3]).all(), np.nan, one))
    with pytest.raises(ValueError, match=r"maps.*sample\(s\) \[3\]"):
        score("SAD", net(), metric=metric)
    close(metric.evaluation_scores, score("SAD", net())[:3])


def test_a_score_of_the_map_alone_needs_no_model():
    images, maps = np.zeros((3, 1, 4, 4), dtype=np.float32), np.arange(48.0, dtype=np.float32).reshape(3, 1, 4, 4)
    scores = quantus_metrics.Compactness(disable_warnings=True)(None, images, np.array([0, 1, 2]), maps)
    assert scores == pytest.approx(quantus_metrics.compactness(a=torch.from_numpy(maps)).tolist())
    with pytest.raises(TypeError, match=r"Expected `model` to be a torch.nn.Module or a function"):
        quantus_metrics.Insertion(disable_warnings=True)(None, images, np.array([0, 1, 2]), maps)
