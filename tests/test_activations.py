"""Which probability a score measures: softmax, sigmoid, none or the user's own; one logit; what is noticed."""

import math

import numpy as np
import pytest
import torch
from score_derivations import SCORES, WRONG, A, X, Y, close, function, make, net, score, tensors
from torch import nn
from torch.nn import functional as F

import quantus_metrics as qm

PROBABILITY = ["SAD", "removal", "EAD", "AD", "AG", "AI", "insertion", "deletion"]
LOGIT = ["box", "box, raw", "LIF-MIF", "LIF", "MIF"]


class Mapped(nn.Module):
    """A model whose output goes through a function that is no module."""

    def __init__(self, call, *last):
        super().__init__()
        self.parts, self.call = net(*last), call

    def forward(self, x):
        return self.call(self.parts(x))


def alone(model, x):
    """The sigmoid of each output by itself."""
    return np.array([1 / (1 + math.exp(-z)) for z in model(torch.from_numpy(x)[None])[0].tolist()])


def with_probability(name, probability, model):
    """The score by plain loops, with this probability in place of the softmax."""
    import score_derivations as derived

    _, derivation, options = SCORES[name]
    before, defaults = derived.p, derived.exchange.__defaults__
    derived.p = probability
    derived.exchange.__defaults__ = (*defaults[:-1], probability)
    try:
        return [derivation(model, *sample, **options) for sample in zip(X, Y, A, strict=True)]
    finally:
        derived.p, derived.exchange.__defaults__ = before, defaults


def test_a_finding_that_is_alone_gains_nothing():  # by hand: both findings are there before and after
    class Findings(nn.Module):
        def forward(self, x):
            return torch.stack([x[..., :8].mean((1, 2, 3)), x[..., 8:].mean((1, 2, 3))], 1) * 8 - 4

    x, heat = torch.ones(1, 1, 16, 16), torch.zeros(1, 16, 16)
    heat[..., :8] = 1
    assert qm.average_gain(Findings(), x, [0], heat, activation="sigmoid").item() == 0
    assert qm.average_gain(Findings(), x, [0], heat).item() == pytest.approx(1 - 2 / (1 + math.exp(8)))


@pytest.mark.parametrize("name", PROBABILITY)
def test_every_probability_is_that_of_the_activation(name):
    model, options = net(), SCORES[name][2]
    expected = with_probability(name, alone, model)
    close(score(name, model, metric=make(name, activation="sigmoid")), expected)
    close(function(name)(model, *tensors(X, Y, A), **options, activation="sigmoid"), expected)
    close(function(name)(model, *tensors(X, Y, A), **options, activation=torch.sigmoid), expected)
    ready = Mapped(torch.sigmoid)
    close(function(name)(ready, *tensors(X, Y, A), **options, activation="identity"), expected)
    assert np.abs(np.subtract(score(name, model), expected)).max() > 1e-3 or name == "AI"


@pytest.mark.parametrize("name", LOGIT)
def test_a_score_of_logits_measures_the_activation_where_probabilities_are_wanted(name):
    model, (_, derivation, options) = net(), SCORES[name]
    expected = [derivation(model, *one, **options, answer=alone) for one in zip(X, Y, A, strict=True)]
    close(score(name, model, metric=make(name, activation="sigmoid"), softmax=True), expected)
    close(function(name)(model, *tensors(X, Y, A), **options, softmax=True, activation="sigmoid"), expected)
    close(score(name, model, metric=make(name, activation="sigmoid")), score(name, model))


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_what_a_model_ends_in_is_not_applied_twice(last):
    named = "softmax" if isinstance(last, nn.Softmax) else "sigmoid"
    for name in ("SAD", "insertion", "box"):
        close(
            score(name, net(last), metric=make(name, activation=named)),
            score(name, net(), metric=make(name, activation=named)),
        )
    for name in ("SAD", "insertion"):  # of the outputs as they are
        close(
            score(name, net(last), metric=make(name, activation="identity")),
            score(name, net(), metric=make(name, activation=named)),
        )


def test_probabilities_are_noticed_and_said_once_at_the_users_line():
    ready = Mapped(lambda z: F.softmax(z, 1))
    with pytest.warns(UserWarning, match=r"probabilities already.*activation=.identity.") as told:
        once_more = qm.SoftAverageDrop(activation="softmax")(ready, X, Y, A, batch_size=2)
    assert [w.filename for w in told] == [__file__]
    with pytest.warns(UserWarning, match=r"softmax is applied to them once more") as told:
        close(qm.soft_average_drop(ready, *tensors(X, Y, A)), once_more)
    assert [w.filename for w in told] == [__file__]
    close(qm.soft_average_drop(ready, *tensors(X, Y, A), activation="identity"), score("SAD", net()))
    make("SAD")(ready, X, Y, A)  # warnings are off
    make("box")(ready, X, Y, A)  # it measures no probability


@pytest.mark.parametrize("call", [torch.sigmoid, F.sigmoid, torch.special.expit, lambda z: z.sigmoid()[:, :]])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_sigmoid_that_is_no_module_is_noticed(call, activation):
    with pytest.warns(UserWarning, match=rf"already, from 0 to 1, made by a sigmoid, and {activation} is applied"):
        qm.soft_average_drop(Mapped(call), *tensors(X, Y, A), activation=activation)
    one = one_logit()
    with pytest.warns(UserWarning, match="made by a sigmoid"):
        qm.soft_average_drop(lambda x: call(one(x)).squeeze(), *tensors(X, BINARY, A), activation=activation)


@pytest.mark.filterwarnings("error")
def test_what_is_no_probability_is_not_noticed():
    for outputs in (torch.rand(5, 4) + 0.5, torch.full((5, 4), 0.25) - 0.5 * torch.eye(4)[:1], torch.rand(5, 1)):
        qm.soft_average_drop(lambda x, z=outputs: z[: len(x)] + 0 * x.sum(), *tensors(X, 0 * Y, A))
    qm.soft_average_drop(Mapped(torch.sigmoid), *tensors(X, Y, A), activation="identity")
    qm.soft_average_drop(net(inner=[nn.Sigmoid()]), *tensors(X, Y, A))


def test_a_sigmoid_at_the_end_is_noticed_where_a_softmax_is_read():
    with pytest.warns(UserWarning, match=r"ends in a sigmoid.*activation=.sigmoid."):
        qm.soft_average_drop(net(nn.Sigmoid()), *tensors(X, Y, A))


@pytest.mark.parametrize("error_value", [("relu", ValueError), (None, TypeError), (3, TypeError)])
def test_what_is_no_activation_is_named(error_value):
    value, error = error_value
    with pytest.raises(error, match=r"`activation` to be 'softmax', 'sigmoid', 'identity' or a function, got"):
        qm.Insertion(activation=value)
    with pytest.raises(ValueError, match=r"return probabilities \(5, classes\) for outputs of shape \(5, 4\)"):
        qm.soft_average_drop(net(), *tensors(X, Y, A), activation=lambda z: z[:1])
    with pytest.raises(TypeError, match=r"`activation` to return a tensor, got <class 'float'>"):
        qm.soft_average_drop(net(), *tensors(X, Y, A), activation=lambda z: 1.0)


def test_shared_predictions_are_those_of_the_activation():
    model = net()
    for name in ("box", "SAD"):
        metric, expected = make(name), {}
        for kind in ("softmax", "sigmoid", torch.sigmoid, lambda z: z.softmax(1)):
            expected[kind] = score(name, model, metric=make(name, activation=kind), softmax=True)
        for kind, values in [*expected.items()] * 2:
            metric.activation = kind
            assert score(name, model, metric=metric, softmax=True) == values


def test_class_discrimination_has_the_activation_of_its_score():
    box = make("box", activation="sigmoid")
    metric = qm.ClassDiscrimination(box, disable_warnings=True)
    expected = np.subtract(*(score("box", net(), a=a, metric=box, softmax=True) for a in (A, WRONG)))
    close(metric(net(), X, Y, A, wrong_a_batch=WRONG, softmax=True), expected)
    assert qm.ClassDiscrimination(activation="sigmoid").metric.activation == "sigmoid"
    with pytest.raises(ValueError, match="the `activation` of `metric`, 'sigmoid', got 'softmax'"):
        qm.ClassDiscrimination(box, activation="softmax")


def one_logit(*last):
    torch.manual_seed(3)
    layers = nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(105, 1)
    return nn.Sequential(*layers, *last).double().eval()


BINARY = np.array([0, 1, 1, 0, 1])


class Two(nn.Module):
    """The same question with two logits: for the softmax 0 and z, else -z and z."""

    def __init__(self, logits):
        super().__init__()
        self.one, self.logits = one_logit(), logits

    def forward(self, x):
        z = self.one(x)
        return torch.cat([-z if self.logits else 0 * z, z], 1)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [name for name in SCORES if name not in ("class", "compactness", "compactness, 2/3")])
@pytest.mark.parametrize("form", [lambda m: m, lambda m: lambda x: m(x)[:, 0], lambda m: lambda x: m(x).squeeze()])
def test_one_logit_is_a_binary_question(name, form):
    expected = score(name, Two(name in LOGIT), y=BINARY)
    close(score(name, form(one_logit()), y=BINARY, batch_size=1), expected)
    close(score(name, form(one_logit()), y=BINARY), expected)
    close(score(name, form(one_logit()), y=BINARY, metric=make(name, activation="sigmoid")), expected)
    if name not in LOGIT:
        close(score(name, form(one_logit(nn.Sigmoid())), y=BINARY, metric=make(name, activation="identity")), expected)
        ready = lambda x: one_logit()(x).sigmoid()  # noqa: E731
        close(score(name, ready, y=BINARY, metric=make(name, activation="identity")), expected)
    close(score(name, one_logit(nn.Sigmoid()), y=BINARY), expected)
    with pytest.raises(ValueError, match=r"from 0 to 1, as the model returns a single logit.*got . to 2"):
        score(name, one_logit(), y=BINARY * 2)


def test_class_discrimination_of_one_output_is_undefined():
    metric = qm.ClassDiscrimination(make("box"))
    with pytest.warns(UserWarning, match="not defined for 5 of 5 samples"):
        found = metric(one_logit(), X, BINARY, A, wrong_a_batch=WRONG, batch_size=2)
    assert np.isnan(found).all()
    assert metric.undefined == [0, 1, 2, 3, 4]
    assert qm.class_discrimination(one_logit(), *tensors(X, BINARY, A, WRONG), metric=make("box")).isnan().all()
    assert np.isnan(metric.evaluate_batch(one_logit(), X, BINARY, A, wrong_a_batch=WRONG)).all()


def test_warnings_of_undefined_samples_are_at_the_users_line():
    for metric, further in (
        (qm.SoftAverageDrop(), {}),
        (qm.ClassDiscrimination(make("box")), {"wrong_a_batch": 0 * A}),
    ):
        with pytest.warns(UserWarning, match="not defined") as told:
            metric(net(), X, Y, 0 * A, **further)
        assert [w.filename for w in told] == [__file__]


def test_a_probability_outside_its_range_is_undefined():
    metric = make("SAD", activation="identity")
    score("SAD", lambda x: x.flatten(1)[:, :4] * 0 - 1, metric=metric)
    assert metric.undefined == [0, 1, 2, 3, 4]
    metric = make("AG", activation="identity")
    assert score("AG", lambda x: x.flatten(1)[:, :4] * 0 + 2, metric=metric) == [0] * 5
    assert metric.undefined == [0, 1, 2, 3, 4]
