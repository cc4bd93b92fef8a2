"""What a comparison asks: an activation, one logit, functions of the output; metrics that cannot work here."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import quantus
import torch
from captum.attr import InputXGradient
from torch import nn

import quantus_metrics as qm
from quantus_metrics import explain_func
from xai_compare import compare


class Net(nn.Module):
    """A small network, of which `last` makes the output."""

    def __init__(self, last=nn.Identity, classes=4):
        super().__init__()
        torch.manual_seed(2)
        self.features, self.head, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, classes), last

    def forward(self, x):
        return self.last()(self.head(self.features(x).relu().mean((2, 3))))


IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path):
    count = iter(range(100))

    def run(model, metrics=("soft-average-drop",), methods=("ixg",), data=IMAGES, folder="", **settings):
        out = tmp_path / (folder or f"run{next(count)}")
        cheap = {"gallery": 2, "resamples": 100, "batch_size": 3}
        return compare(model.eval(), data, out=out, methods=methods, metrics=metrics, **(cheap | settings))

    return run


def scores_of(found, metric):
    return found.scores().query("metric == @metric").sort_values("sample").score.to_numpy()


@pytest.mark.slow
def test_the_activation_is_that_of_every_score(run):
    model = Net()
    found = run(
        model,
        ["soft-average-drop", "insertion", "pixel-flipping"],
        activation="sigmoid",
        options={"pixel-flipping": {"features_in_step": 36}},
    )
    y = model(IMAGES).argmax(1)
    maps = torch.from_numpy(explain_func(InputXGradient)(model, IMAGES, y))
    expected = qm.soft_average_drop(model, IMAGES, y, maps, activation="sigmoid")
    np.testing.assert_allclose(scores_of(found, "soft-average-drop"), expected, atol=1e-6)
    np.testing.assert_allclose(
        scores_of(found, "insertion"), qm.insertion(model, IMAGES, y, maps, activation="sigmoid"), atol=1e-6
    )
    each = lambda a: a / np.abs(a).max((1, 2, 3), keepdims=True)  # noqa: E731
    flipping = quantus.PixelFlipping(features_in_step=36, disable_warnings=True, normalise_func=each)
    flips = flipping(Net(nn.Sigmoid).eval(), IMAGES.numpy(), y.numpy(), maps.numpy(), softmax=False)
    np.testing.assert_allclose(scores_of(found, "pixel-flipping"), np.mean(flips, 1), atol=1e-6)
    with pytest.raises(ValueError, match="activation"):  # of another question
        run(model, ["soft-average-drop", "insertion", "pixel-flipping"], folder="run0")


@pytest.mark.slow
def test_a_function_is_an_activation_and_python_names_one(run, tmp_path):
    file = tmp_path / "mine.py"
    halved, third = "def halved(outputs):\n    return outputs.sigmoid() / 2", "def third(output):\n    return output[2]"
    file.write_text(f"{halved}\n\n{third}\n")
    found = [
        scores_of(run(Net(), ["deletion"], activation=value), "deletion")
        for value in (f"python:{file}:halved", lambda z: z.sigmoid() / 2)
    ]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(
        2 * found[0], scores_of(run(Net(), ["deletion"], activation="sigmoid"), "deletion"), atol=1e-6
    )
    named = run(Net(), ["fidelity"], targets=f"python:{file}:third")
    by_label = run(Net(), ["fidelity"], targets="label", data=(IMAGES, [2] * 4))
    np.testing.assert_allclose(scores_of(named, "fidelity"), scores_of(by_label, "fidelity"), rtol=1e-5)
    assert set(named.scores().target) == {-1}
    assert "the target function" in named.report().read_text()


@pytest.mark.slow
def test_probabilities_are_said_before_the_run(run):
    with pytest.warns(UserWarning, match=r"probabilities already.*activation=.identity.") as told:
        run(Net(lambda: lambda z: z.softmax(1)))
    assert len([w for w in told if "already" in str(w.message)]) == 1


@pytest.mark.slow
def test_one_logit_has_two_labels(run):
    model, labels = Net(classes=1), [0, 1, 1, 0]
    metrics = ["fidelity", "class-discrimination", "soft-average-drop", "faithfulness-correlation", "random-logit"]
    few = {"faithfulness-correlation": {"subset_size": 20}}
    with pytest.warns(UserWarning, match=r"class-discrimination.*one output, so no other class"):
        found = run(model, metrics, targets="label", data=(IMAGES, labels), options=few)
    assert not len(found.skipped())
    scores = found.scores()
    assert scores.query("metric == 'fidelity'").target.tolist() == labels
    undefined = scores.query("metric == 'class-discrimination'")
    assert undefined.score.isna().all()
    assert undefined.error.str.contains("undefined: the model has one output, so no other class").all()
    assert scores.query("metric != 'class-discrimination'").error.isna().all()
    two = lambda x: torch.cat([-model(x), model(x)], 1)  # noqa: E731
    maps = torch.stack(
        [
            (2 * k - 1) * torch.from_numpy(explain_func(InputXGradient)(model, x[None], [1])[0])
            for x, k in zip(IMAGES, labels, strict=True)
        ]
    )
    np.testing.assert_allclose(scores_of(found, "fidelity"), qm.fidelity(two, IMAGES, labels, maps), rtol=1e-4)
    predicted = run(model, ["compactness"]).scores()
    assert predicted.target.tolist() == (model(IMAGES)[:, 0] > 0).long().tolist()


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.layers = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 3, padding=1))

    def forward(self, x):
        out = self.layers(x)
        return {"out": out, "aux": 2 * out}


@pytest.mark.slow
def test_functions_of_masks_are_targets(run):
    model = Segmenter()
    area = [lambda out, c=c: out[c, 2:9].mean() for c in (0, 1, 2, 1)]
    metrics = ["soft-average-drop", "fidelity", "faithfulness-correlation", "max-sensitivity"]
    options = {"gradcam": {"target_layers": "layers.0"}, "faithfulness-correlation": {"subset_size": 20}}
    for output in ("out", "0", lambda y: y["out"]):
        found = run(model, metrics, ["ixg", "gradcam"], targets=area, output=output, options=options)
        assert found.scores().error.isna().all()
        maps = torch.from_numpy(explain_func(InputXGradient, output="out")(model, IMAGES, area))
        rows = found.scores().query("method == 'ixg' and metric == 'soft-average-drop'").score
        m = (maps - maps.amin((2, 3), keepdim=True)) / (
            maps.amax((2, 3), keepdim=True) - maps.amin((2, 3), keepdim=True)
        )
        faded = IMAGES * (1 - m) + IMAGES.mean((2, 3), keepdim=True) * m
        p = [[f(one.softmax(0)).item() for f, one in zip(area, model(x)["out"], strict=True)] for x in (IMAGES, faded)]
        np.testing.assert_allclose(rows, np.maximum(0, 1 - np.array(p[1]) / p[0]), atol=1e-6)


def test_functions_and_samples_must_be_as_many(run):
    with pytest.raises(ValueError, match="one function for each of 4 samples, or one, got 3"):
        run(Net(), targets=[lambda out: out[0]] * 3)
    with pytest.raises(TypeError, match=r"Expected `targets` to be 'predicted', 'label', a function.*got 3"):
        run(Net(), targets=3)
    with pytest.raises(ValueError, match="there is no other class to compare with, as the targets are functions"):
        run(Net(), ["class-discrimination"], targets=lambda out: out[0])


@pytest.mark.slow
def test_curves_count_as_their_mean_and_numbers_by_layer_too(run):
    names = ["pixel-flipping", "selectivity", "region-segmentation", "mprt", "random-logit"]
    model, few = Net(), {"pixel-flipping": {"features_in_step": 36}}
    found = run(model, names, options=few)
    assert found.scores().error.isna().all()
    assert found.scores().score.notna().all()
    y = model(IMAGES).argmax(1).numpy()
    maps = explain_func(InputXGradient)(model, IMAGES, y)
    metric = quantus.PixelFlipping(
        features_in_step=36, disable_warnings=True, normalise_func=lambda a: a / np.abs(a).max()
    )
    curves = [metric(model, IMAGES[i : i + 1].numpy(), y[i : i + 1], maps[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(scores_of(found, "pixel-flipping"), np.mean(curves, 1), rtol=1e-5)


def test_metrics_that_cannot_work_are_refused_before_any_work(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"2 of 3 metrics give no number for this Net(.|\n)*- focus: (.|\n)*- pointing-game: "
    ):
        run(Net(), ["compactness", "focus", "pointing-game"], folder="refused")
    assert not pd.io.common.file_exists(tmp_path / "refused" / "run.json")


def test_a_first_sample_that_fails_alone_refuses_no_metric(run):
    class Picky(qm.Compactness):
        def __call__(self, *args, x_batch, **kwargs):
            if np.array_equal(x_batch[0], IMAGES[0].numpy()):
                raise ValueError("not this one")
            return super().__call__(*args, x_batch=x_batch, **kwargs)

    found = run(Net(), {"picky": Picky(disable_warnings=True)}, batch_size=1)
    assert found.scores().error.notna().tolist() == [True, False, False, False]


@pytest.mark.slow
def test_objects_take_no_options_and_no_other_activation(run):
    with pytest.raises(ValueError, match=r"metric 'box', num_boxes, which is an object.*BoxSensitivity\(...\)"):
        run(Net(), {"box": qm.BoxSensitivity()}, options={"box": {"num_boxes": 5}})
    with pytest.raises(ValueError, match=r"`activation` is 'softmax', but the comparison's is 'sigmoid'"):
        run(Net(), {"sad": qm.SoftAverageDrop()}, activation="sigmoid")
    own = run(Net(), {"sad": qm.SoftAverageDrop(activation="sigmoid", disable_warnings=True)}, activation="sigmoid")
    np.testing.assert_array_equal(
        scores_of(own, "sad"), scores_of(run(Net(), activation="sigmoid"), "soft-average-drop")
    )


@pytest.mark.slow
def test_the_list_says_what_works():
    done = subprocess.run([sys.executable, "-m", "xai_compare", "--list"], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert "needs masks" in lines["pointing-game"]
    assert "gives no number" in lines["focus"]
    assert "  " in lines["pixel-flipping"]
    assert "gives" not in lines["pixel-flipping"] + lines["compactness"]
