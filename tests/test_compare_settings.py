"""What `xai-compare` is asked to do: settings, files, data, folders, and what it says when they are wrong."""

import re
import shutil
from collections import namedtuple
from dataclasses import MISSING, fields

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import quantus_metrics
from xai_compare import METHODS, METRICS, Settings, _command, compare
from xai_compare._settings import from_mapping, read_file
from xai_compare.cli import main

TOY = """
import torch
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

def model(classes=3, size=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    return net, lambda image: pil_to_tensor(image.resize((size, size)) if size else image) / 255
"""


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    return f"python:{tmp_path}/toy.py:model"


def save(path, size=(12, 12), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images of two classes, of which three are broken, and files that are none."""
    root = tmp_path / "images"
    for i, name in enumerate(("cat/a.png", "cat/b.JPG", "dog/a.png", "dog/c.bmp")):
        save(root / name, seed=i)
    (root / "dog" / "c.bmp").write_bytes((root / "dog" / "c.bmp").read_bytes()[:150])
    (root / "cat" / "empty.png").touch()
    (root / "dog" / "text.jpeg").write_text("this is no image")
    (root / "notes.txt").write_text("nor is this, and its name says so")
    save(root / "cat" / ".hidden.png")
    (root / "cat" / "folder.png").mkdir()
    return root


def command(toy, out, *further, data="digits"):
    return [
        *("--model", toy, "--data", str(data), "--out", str(out), "--methods", "ixg,saliency"),
        *("--metrics", "compactness", "--resamples", "100", "--gallery", "0", "--device", "cpu", *further),
    ]


@pytest.fixture
def asked(monkeypatch):
    """Calls the command and returns what it asks compare() for."""
    calls = []

    def record(**settings):
        calls.append(settings)
        raise ValueError("asked")

    monkeypatch.setattr(_command, "compare", record)

    def asked(*line):
        with pytest.raises(SystemExit):
            main(line)
        return calls[-1]

    return asked


@pytest.fixture
def refused(capsys):
    """What the command says as it ends with 1, before any work."""

    def refused(line):
        with pytest.raises(SystemExit) as end:
            main(line)
        assert end.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("xai-compare: ")
        assert "Traceback" not in said
        return said

    return refused


@pytest.mark.slow
def test_broken_images_are_listed_and_counted_and_the_others_compared(toy, folder, tmp_path, capsys):
    out = tmp_path / "run"
    main(command(toy, out, "--batch-size", "2", data=folder))
    said = capsys.readouterr().out
    assert "3 samples, 6 scores, 0 failed, 3 samples skipped; " + str(out / "report.html") in said
    for name in ("cat/empty.png", "dog/c.bmp", "dog/text.jpeg"):
        assert f"skipped {name}: " in said
    assert "notes.txt" not in said
    explained = pd.read_parquet(out / "explanations.parquet")
    assert explained.drop_duplicates("sample").name.tolist() == ["cat/a.png", "dog/a.png", "cat/b.JPG"]
    assert (out / "report.html").stat().st_size > 10_000
    skipped = pd.read_parquet(out / "skipped.parquet").set_index("name").error
    assert "truncated" in skipped["dog/c.bmp"]
    assert "UnidentifiedImageError" in skipped["dog/text.jpeg"]


def test_folders_are_labels_and_images_without_one_are_skipped(toy, folder, tmp_path):
    save(folder / "loose.png")
    found = compare(
        *(toy, folder),
        out=tmp_path / "run",
        methods="ixg",
        metrics="compactness",
        targets="label",
        gallery=0,
        resamples=100,
        labels=["cat", "dog", "fox"],
    )
    explained = found.explanations().set_index("name").target
    assert explained.to_dict() == {"cat/a.png": 0, "cat/b.JPG": 0, "dog/a.png": 1}
    assert found.skipped().set_index("name").error["loose.png"] == "it has no label"


@pytest.mark.slow
def test_a_limit_keeps_images_of_all_classes(toy, tmp_path):
    root = tmp_path / "images"
    for name in ("ant/1.png", "ant/2.png", "ant/deep/3.png", "bee/1.png", "cow/1.png", "cow/2.png"):
        save(root / name)
    main(command(toy, tmp_path / "run", "--limit", "5", "--targets", "label", data=root))
    first = pd.read_parquet(tmp_path / "run" / "explanations.parquet").drop_duplicates("sample").sort_values("sample")
    assert first.name.tolist() == ["ant/1.png", "bee/1.png", "cow/1.png", "ant/2.png", "cow/2.png"]
    assert first.target.tolist() == [0, 1, 2, 0, 2]


@pytest.mark.slow
def test_images_of_other_sizes_are_skipped_with_advice(toy, tmp_path):
    root = tmp_path / "images"
    for i, size in enumerate([(12, 12), (16, 12), (12, 12)]):
        save(root / f"{i}.png", size, i)
    few = {"methods": "ixg", "metrics": "box-sensitivity", "gallery": 0, "resamples": 100}
    options = {"box-sensitivity": {"num_boxes": 3}}
    for batch_size in (1, 3):
        found = compare(toy, root, out=tmp_path / f"{batch_size}", batch_size=batch_size, options=options, **few)
        assert found.scores()["sample"].tolist() == [0, 2]
        assert found.skipped().error.item().startswith("its shape is (3, 12, 16), the first one's (3, 12, 12)")
    resized = compare(toy, root, out=tmp_path / "resized", options=options | {"model": {"size": 14}}, **few)
    assert len(resized.scores()) == 3


@pytest.mark.sampled(1)
@pytest.mark.parametrize("label", [3, -1, None])
def test_labels_that_are_no_class_are_skipped(tmp_path, label):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    items = [(torch.rand(1, 12, 12), of) for of in (0, 2, label, 1)]
    few = {"methods": ["ixg"], "metrics": ["compactness"], "gallery": 0, "resamples": 100, "batch_size": 2}
    found = compare(model, items, out=tmp_path / "run", targets="label", **few)
    assert found.explanations().target.tolist() == [0, 2, 1]
    assert found.skipped()["sample"].tolist() == [2]
    with pytest.raises(ValueError, match=r"None of the 1 samples can be used. The first one: 0: it"):
        compare(model, [(torch.rand(1, 12, 12), None)], out=tmp_path / "none", targets="label", **few)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--methods", "ixg,salency"], r"Unknown method 'salency' \(close: saliency"),
        (
            ["--metrics", "soft-avrage-drop,qqqq"],
            r"Unknown metrics 'soft-avrage-drop' \(close: soft-average-drop.*'qqqq'\.",
        ),
        (["--methods", "cdam"], "1 of 1 methods do not fit this Sequential.*convolutional network"),
        (["--methods", ","], "Expected at least one method, got none"),
        (["--model", "timm:no_such_model"], "Model 'timm:no_such_model' cannot be loaded.*no_such_model"),
        (["--model", "resnet18"], "Expected `model` to be one of digits, timm:NAME.*'resnet18'"),
        (["--checkpoint", "/nowhere.pt"], "cannot be loaded with the weights of /nowhere.pt"),
        (["--data", "/nowhere"], "Expected `data` to be a folder of images or 'digits', got '/nowhere'"),
        (["--limit", "0"], "Expected `limit` to be a whole number of at least 1, got 0"),
        (["--seed", "-1"], "Expected `seed`"),
        (["--dtype", "int8"], "Expected `dtype` to be 'float32'.*'int8'"),
        (["--targets", "all"], "Expected `targets` to be 'predicted', 'label' or 'answer', got 'all'"),
        (["--option", "ixg"], r"Expected --option NAME\.KEY=VALUE.*got 'ixg'"),
        (["--option", "cdam.noise=3"], "Options are given for cdam, which is not a method or metric of this run"),
        (["--option", "compactness.treshold=0.1"], "Metric 'compactness' cannot be made.*treshold"),
        (["--option", "ixg.n_steps=3"], "- ixg: .*n_steps"),
        (["--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (["--config", "/nowhere.ini"], "nowhere.ini"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(toy, folder, tmp_path, refused, change, said):
    out = tmp_path / "run"
    assert re.search(said, refused(command(toy, out, *change, data=folder)), re.DOTALL)
    assert not list(out.rglob("part-*"))


def test_a_model_that_does_not_fit_the_data_is_said(toy, tmp_path, refused):
    assert "cannot run on sample 0, of shape (1, 48, 48): RuntimeError: " in refused(command(toy, tmp_path / "run"))


@pytest.mark.slow
def test_folders_of_something_else_or_that_cannot_be_written_are_refused(toy, folder, tmp_path, refused, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "thesis.tex").touch()

    def run(out):
        return refused(command(toy, tmp_path / out, data=folder))

    assert "is not empty and holds no run" in run("other")
    assert "Nothing can be written to" in run("file/run")
    assert "file" in run("file")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 100))
    assert "the disk of" in (said := run("full"))
    assert "Make room" in said
    assert not list((tmp_path / "full").rglob("part-*"))
    monkeypatch.undo()
    main(command(toy, tmp_path / "full", data=folder))  # the folder can be used once there is room


@pytest.mark.slow
def test_what_a_killed_process_left_is_cleaned_and_never_read(toy, folder, tmp_path):
    out = tmp_path / "run"
    main(command(toy, out, data=folder))
    whole = pd.read_parquet(out / "scores.parquet")
    left = [
        out / "scores.parquet" / ".0000000000-1.part",
        out / "gallery" / ".0000000000-1.part",
        out / ".probe-1.part",
    ]
    (out / "gallery").mkdir(exist_ok=True)
    for one in left:
        one.write_bytes(b"half a file")
    assert len(pd.read_parquet(out / "scores.parquet")) == len(whole)
    main(command(toy, out, data=folder))
    assert not any(one.exists() for one in left)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "scores.parquet"), whole)


TOML = """
methods = ["ixg", "Smooth CDAM"]
seed = 5
limit = 7
batch-size = 3
out = "from-file"
[options.box_sensitivity]
num-boxes = 9
box_sizes = [1, 2]
"""
YAML = """
methods: ixg, smooth_cdam
seed: 5
limit: 7
batch_size: 3
out: from-file
options:
  box-sensitivity: {num_boxes: 9, box_sizes: [1, 2]}
"""


def test_config_files_are_utf_8_wherever_they_are_read_also_with_a_mark(tmp_path):
    (tmp_path / "run.toml").write_bytes('\ufeffdata = "Straße"'.encode())
    assert read_file(tmp_path / "run.toml") == {"data": "Straße"}
    (tmp_path / "run.toml").write_bytes('data = "Straße"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.toml is not in UTF-8"):
        read_file(tmp_path / "run.toml")


@pytest.mark.parametrize(("name", "text"), [("run.toml", TOML), ("run.yaml", YAML), ("run.yml", YAML)])
def test_a_file_gives_what_the_line_does_not(asked, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = asked("--config", str(tmp_path / name), "--seed", "6", "--option", "box-sensitivity.num-boxes=4")
    assert str(found.pop("out")) == "from-file"
    assert "--seed 6" in found.pop("command")
    settings = from_mapping(found)
    assert settings.methods == ("ixg", "smooth-cdam")
    assert (settings.seed, settings.limit, settings.batch_size) == (6, 7, 3)
    assert settings.options == {"box-sensitivity": {"num_boxes": 4, "box_sizes": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: ixg", "Unknown setting 'method' in .*run.yaml"),
        ("limit: many", "`limit` to be a whole number"),
        ("pretrained: maybe", "`pretrained`"),
        ("options: {ixg: 3}", "`options`.*table"),
        ("options: ", "`options`.*table"),
        ("[ixg]", "to hold settings"),
        ("a: b: c", "cannot be read"),
        ("methods: 3", "methods"),
    ],
)
def test_a_file_with_something_wrong_is_explained(tmp_path, refused, text, said):
    (tmp_path / "run.yaml").write_text(text)
    assert re.search(said, refused(["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]))


@pytest.mark.parametrize("name", ["command", "transform", "labels", "config", "list"])
def test_what_is_no_setting_is_refused_in_a_file(tmp_path, refused, name):
    (tmp_path / "run.toml").write_text(f'{name} = "x"')
    said = refused(["--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert f"Unknown setting '{name}' in {tmp_path / 'run.toml'}. Known settings: model, " in said


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_said_in_a_line(toy, tmp_path, capsys, device):
    with pytest.raises(SystemExit) as end:
        main(command(toy, tmp_path / "run", "--device", device))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert re.fullmatch(rf"xai-compare: Device '{device}' is not available\. Available: cpu.*\.\n", said)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match=f"Device '{device}' is not available"):
        compare(model, torch.rand(2, 1, 6, 6), out=tmp_path / "run", device=device)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('device = "cuda"')
    with pytest.raises(SystemExit) as end:
        main(["--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert capsys.readouterr().err == "xai-compare: Device 'cuda' is not available. Available: cpu.\n"


@pytest.mark.parametrize("names", [("My Method", "my-method"), ("Ä", "Ö")])
def test_names_that_become_one_are_refused(names, tmp_path, refused):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(2, 1, 6, 6)
    few = {"out": tmp_path / "run", "gallery": 0, "resamples": 100}
    both = "'{}' and '{}'".format(*names)
    with pytest.raises(ValueError, match=both):
        compare(model, images, methods=dict.fromkeys(names, "ixg"), metrics=["compactness"], **few)
    scores = {name: quantus_metrics.Compactness() for name in names}
    with pytest.raises(ValueError, match=both):
        compare(model, images, methods=["ixg"], metrics=scores, **few)
    with pytest.raises(ValueError, match=both):
        compare(model, images, methods=["ixg"], metrics=["compactness"], options={n: {} for n in names}, **few)
    for what, known in (("methods", "ixg"), ("metrics", "compactness")):
        assert both in refused([f"--{what}", ",".join(f"{name}={known}" for name in names)])


def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for one in fields(Settings):
        option = "option" if one.name == "options" else one.name.replace("_", "-")
        assert f"--{option} " in said or f"--{option}," in said
        assert one.metadata["help"] in said
        assert one.default in (None, "", (), False, MISSING, METHODS, METRICS) or f"(default: {one.default})" in said
    assert f"(default: {','.join(METHODS)})" in said.replace("- ", "-").replace(", ", ",")


def test_options_of_the_line_are_numbers_lists_or_texts(asked):
    texts = [
        "ig.n_steps=20",
        "ig.abs=true",
        "gradcam.target_layers=layer4",
        "box-sensitivity.box_sizes=[1, 2]",
        "ig.x=a=b",
    ]
    found = asked(*(part for text in texts for part in ("--option", text)))["options"]
    assert found == {
        "ig": {"n_steps": 20, "abs": True, "x": "a=b"},
        "gradcam": {"target_layers": "layer4"},
        "box-sensitivity": {"box_sizes": [1, 2]},
    }


def test_all_is_this_projects_twelve(asked):
    from xai_compare._metrics import metrics_named

    assert asked("--metrics", "all")["metrics"] == ("all",)
    assert len(metrics_named(["all"], {})) == 12
