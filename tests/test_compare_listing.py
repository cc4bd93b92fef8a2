"""`xai-compare --list`: the table of methods, its documentation, what they cost, and which fit a model."""

import contextlib
import io
import re

import pytest
import torch
import torchvision
from paths import ROOT
from torch import nn

from adapters import MHEX, CAStream
from xai_compare import _listing
from xai_compare._cost import in_forwards
from xai_compare._methods import OTHERS, methods
from xai_compare.cli import main
from xai_compare.digit_vit import load

KNOWN = {name: method for name, method in methods().items() if method.group != OTHERS}
TRIED = ("cdam", "saliency", "deep-lift", "gradcam", "fullgrad", "random")


def test_the_documented_table_is_that_of_the_code():
    section = (ROOT / "docs" / "compare.md").read_text().split("\n## Methods\n")[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == list(_listing.table_of_methods())


def test_every_method_has_half_a_line_a_cost_and_a_group():
    for name, method in KNOWN.items():
        assert 0 < len(method.about) <= 70, name
        assert "|" not in method.about
        assert re.fullmatch(r"([^:]+: )?\d+(\.\d)?", method.cost), name
        assert method.group
        assert method.title


def test_methods_of_one_group_stand_together():
    mixed = dict(sorted(KNOWN.items()))
    groups = [group for group, _ in _listing.grouped(mixed)]
    assert len(groups) == len(set(groups)) == 10
    listed = [name for _, rows in _listing.grouped(mixed) for name in rows]
    assert sorted(listed) == sorted(KNOWN)
    assert {"random", "randomcam"} == set(dict(_listing.grouped(KNOWN))["Controls"])


@pytest.fixture(scope="module")
def of_each_kind():
    torch.manual_seed(0)
    resnet, wrapped = (torchvision.models.resnet18(num_classes=10).eval() for _ in range(2))
    image = torch.randn(1, 3, 64, 64)
    relus = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 62**2, 10)).eval()
    wrappers = {"raw-attention": CAStream(wrapped).eval(), "mhex-cam": MHEX(wrapped).eval()}  # which freeze it
    digits = load().eval(), torch.rand(1, 1, 48, 48)

    def choose(name):
        if name in wrappers:
            return wrappers[name], image
        if KNOWN[name].group.startswith("captum_ext"):
            return digits
        return (relus if name.startswith("deep-lift") else resnet), image

    return choose


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting", "ignore:Input")  # Captum's, of the hooks and gradients it sets
@pytest.mark.parametrize("name", KNOWN)
def test_costs_are_those_that_are_measured(name, of_each_kind):
    method, (model, image) = KNOWN[name], of_each_kind(name)
    explain, target = method.explain({}, 16), torch.tensor([1])
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        if method.needs_warm_up:
            explain(model, image, target)
        found = in_forwards(lambda: explain(model, image, target), lambda: model(image))
    assert found == pytest.approx(float(method.cost.split(": ")[-1]), rel=0.06)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_listing, "methods", lambda: {name: KNOWN[name] for name in TRIED})
    monkeypatch.setattr(_listing, "metrics", dict)


def small_cnn(outputs=3):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return nn.Sequential(*layers)


def column(capsys, *arguments):
    main(["--list", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in TRIED}


def test_the_list_says_what_methods_are_and_cost(few, capsys):
    lines = column(capsys)
    assert list(lines) == list(TRIED)
    for name, line in lines.items():
        assert re.split(r"\s{2,}", line.strip()) == [name, KNOWN[name].about, KNOWN[name].cost]


@pytest.mark.parametrize("outputs", [1, 3])
def test_with_a_model_the_list_says_which_methods_fit(few, capsys, outputs):
    before = torch.get_rng_state()
    lines = column(capsys, "--model", f"python:{__file__}:small_cnn", "--option", f"model.outputs={outputs}")
    verdicts = {name: re.split(r"\s{2,}", line.strip())[-1] for name, line in lines.items()}
    assert verdicts["cdam"].startswith("does not fit: No attention was seen")
    assert verdicts["random"] == "fits, 0 forwards"
    assert all(verdicts[name].startswith("fits, ") for name in ("saliency", "deep-lift", "gradcam", "fullgrad"))
    assert "fits, 3 forwards" in verdicts["gradcam"] or outputs == 1
    assert all("\n" not in one and len(one) <= 175 for one in verdicts.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_options_of_methods_count(few, capsys):
    model = ("--model", f"python:{__file__}:small_cnn")
    wrong = column(capsys, *model, "--option", "gradcam.target_layers=nowhere")["gradcam"]
    assert "does not fit: Sequential has no module 'nowhere'" in wrong


@pytest.mark.parametrize("arguments", [["--model", "timm:no_such_model"], ["--model", "nothing:x"]])
def test_a_model_that_cannot_be_loaded_is_said(few, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["--list", *arguments])
    assert stopped.value.code == 1
    assert "xai-compare: " in capsys.readouterr().err
