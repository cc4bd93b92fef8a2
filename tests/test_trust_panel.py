"""`check` of the maps of a comparison: the numbers of `captum_ext.check`, kept, resumed and shown."""

import copy
import subprocess
import sys

import pandas as pd
import pytest
import timm
import torch
from captum.attr import InputXGradient, LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr

from captum_ext import CDAM, SmoothCDAM, check
from xai_compare import Comparison, _trust, compare

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NUMBERS = ["agreement", "stability", "steps", "head", "half", "all", "prefix_relevance", "completeness"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3, "num_classes": 5}
    return timm.models.VisionTransformer(**sizes).eval()


def run(model, out, methods=("cdam", "ixg"), **settings):
    settings = {"check": 2, "metrics": ["compactness"], "resamples": 100} | settings
    return compare(model, IMAGES, out=out, methods=methods, **settings)


def known(trust, sample):
    """The numbers of one map that are there."""
    found = trust.to_dict()
    return {name: found[name][sample] for name in NUMBERS if found[name] is not None}


def test_numbers_are_those_of_check(model, tmp_path):
    found = run(model, tmp_path / "run", ["cdam", "smooth-cdam", "ixg"]).trust()
    assert list(found.method) == ["cdam", "smooth-cdam", "ixg"] * 2
    targets = model(IMAGES).argmax(1)
    for sample in range(2):
        x, y = IMAGES[sample : sample + 1], targets[sample : sample + 1]
        rows = found[found["sample"] == sample].set_index("method")
        for method, made in {"cdam": CDAM, "smooth-cdam": SmoothCDAM, "ixg": InputXGradient}.items():
            expected = check(made(model), x.clone().requires_grad_(), y)
            assert rows.loc[method, "verdict"] == expected.verdicts[0]
            assert rows.loc[method, "reasons"] == " ".join(expected.reasons[0])
            assert rows.loc[method, "target"] == int(y)
            for name, value in known(expected, 0).items():
                assert rows.loc[method, name] == pytest.approx(value, abs=1e-6), (method, name)


def test_it_follows_the_model_into_copies(tmp_path):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 5), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 5), torch.nn.ReLU()]
    cnn = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(6 * 24 * 24, 5)).eval()
    methods = {"captum": LayerGradCam, "pytorch-grad-cam": GradCAM, "by index": lambda own: GradCAM(own, [own[2]])}
    options = {"captum": {"layer": "2"}, "pytorch-grad-cam": {"target_layers": "2"}}
    found = run(cnn, tmp_path / "run", methods, options=options, check=1).trust().set_index("method")
    assert found.loc["pytorch-grad-cam", "all"] == pytest.approx(found.loc["by-index", "all"], abs=1e-6)
    other, generator = copy.deepcopy(cnn), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (other[5], other[2], other[0]):
            for weights in layer.parameters(recurse=False):
                weights.copy_(torch.randn(weights.shape, generator=generator) * weights.std() + weights.mean())
    target = [ClassifierOutputTarget(int(cnn(IMAGES[:1]).argmax()))]
    maps = [GradCAM(one, [one[2]])(IMAGES[:1], target).ravel() for one in (cnn, other)]
    expected = abs(spearmanr(*maps).statistic)
    assert found.loc["pytorch-grad-cam", "all"] == pytest.approx(expected, abs=1e-5)
    assert found.notes.str.contains("No attention was seen").all()


@pytest.mark.slow
def test_one_logit_and_functions(tmp_path):
    torch.manual_seed(0)
    single = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=2, num_classes=1
    ).eval()
    torch.nn.init.normal_(single.head.weight)
    found = run(single, tmp_path / "one").trust()
    assert (found.error == "").all()
    assert set(found.target) <= {0, 1}
    asked = run(single, tmp_path / "asked", targets=lambda output: output[0] ** 2).trust()
    assert (asked.error == "").all()
    assert (asked.target == -1).all()


@pytest.mark.slow
def test_what_is_checked_is_not_checked_again(model, tmp_path, monkeypatch):
    first = run(model, tmp_path / "run", check=1).trust()
    counted = []
    monkeypatch.setattr(_trust, "check", lambda *given, **options: counted.append(given) or check(*given, **options))
    second = run(model, tmp_path / "run", ["cdam", "ixg", "saliency"], check=2).trust()
    assert len(counted) == 4  # saliency of the first image, three methods of the second
    assert len(second) == 6
    kept = second[(second["sample"] == 0) & (second.method != "saliency")].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)
    assert len(run(model, tmp_path / "run", check=0).trust()) == 6  # the page keeps its panel
    assert len(counted) == 4


@pytest.mark.slow
def test_an_interrupted_check_keeps_whole_samples(model, tmp_path, monkeypatch):
    calls = []

    def stopped(*given, **options):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return check(*given, **options)

    monkeypatch.setattr(_trust, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "run")
    assert len(run(model, tmp_path / "run").trust()) == 4
    assert len(calls) == 5  # two, the one that was stopped, and the second image's two


@pytest.mark.slow
def test_an_error_costs_its_own_map(model, tmp_path):
    bad = [True]

    class Moody:
        def __init__(self, model):
            pass

        def attribute(self, inputs, target):
            if bad and bool((inputs == IMAGES[1]).all()):
                raise ValueError("not this one")
            return inputs

    found = run(model, tmp_path / "run", {"cdam": "cdam", "moody": Moody}).trust()
    errors = found.set_index(["sample", "method"]).error
    assert errors[1, "moody"] == "ValueError: not this one"
    assert (errors.drop(index=(1, "moody")) == "").all()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "ValueError: not this one" in page
    bad.clear()
    assert run(model, tmp_path / "run", {"cdam": "cdam", "moody": Moody}).trust().error[3] == errors[1, "moody"]
    again = run(model, tmp_path / "run", {"cdam": "cdam", "moody": Moody}, retry_failed=True).trust()
    assert (again.error == "").all()


@pytest.mark.slow
def test_several_models_have_their_own(model, tmp_path):
    other = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=1, num_classes=5
    ).eval()
    results = run({"a": model, "b": other}, tmp_path / "run", ["cdam"], check=1)
    assert list(results.trust().model) == ["a", "b"]
    for name in "ab":
        page = results.report(name).read_text("utf-8")
        assert "1 map checked" in page


@pytest.mark.slow
def test_without_it_there_is_no_panel_and_advice(model, tmp_path):
    results = run(model, tmp_path / "run", check=0)
    assert '<section aria-labelledby="trust-title" hidden>' in results.report().read_text("utf-8")
    with pytest.raises(ValueError, match=r"repeat its command with --check 4, in Python check=4"):
        results.trust()


def test_answers_are_not_checked(tmp_path):
    data = [{"question": "What?", "answer": "this"}]
    with pytest.raises(ValueError, match="`check` is for images"):
        compare("transformers:none", data, out=tmp_path / "run", check=1)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    options = ["--limit", "2", "--check", "1", "--methods", "cdam,random", "--metrics", "compactness"]
    command = [sys.executable, "-m", "xai_compare", *options, "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True)
    found = Comparison(tmp_path / "run").trust().set_index("method")
    assert found.loc["random", "verdict"] == "fails"
    assert "explains no model" in found.loc["random", "reasons"]


@pytest.mark.slow
def test_in_a_browser(model, tmp_path, show):
    results = run(model, tmp_path / "run")
    for width in (1280, 390):
        page = show(results.report().read_text("utf-8"), width)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        rows = page.find_elements("css selector", "#trust tbody tr")
        assert [row.find_element("css selector", "th").text for row in rows] == ["CDAM", "Input x Gradient"]
        page.execute_script("document.querySelector('#trust-maps').open = true")
        link = page.find_element("css selector", "#trust-maps tbody tr:nth-child(3) a")
        page.execute_script("arguments[0].click()", link)
        assert (
            page.find_element("css selector", "#pictures input:checked").find_element("xpath", "..").get_attribute("id")
            == "picture-1"
        )
