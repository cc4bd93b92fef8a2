"""The training scripts, and the data that they read: digits, blood cells, folders of images, MedMNIST."""

import textwrap

import numpy as np
import pytest
import torch
import train_ca_stream
import train_classifier
from blood_cells import CLASSES, REPEATED, SHARES, SIZE, chosen_cells, load_cells, split_files
from image_data import load_data
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file
from small_resnet import build_model, small_resnet
from training import SGD, ClassifierTrainer, accuracy, arguments
from training_runs import WEIGHTS, same

from adapters import CAStream

CELLS = ROOT.parent / "shared" / "data" / "bccd"
needs_cells = pytest.mark.skipif(not CELLS.exists(), reason="the BCCD dataset is not there")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_small_network_learns_digits(tmp_path):
    data, validation = load_data("digits", "train", 32, limit=2500), load_data("digits", "validation", 32, limit=300)
    torch.manual_seed(0)
    model = small_resnet(10, 1)
    given = SGD | {"num_train_epochs": 1, "per_device_train_batch_size": 32, "learning_rate": 0.03}
    ClassifierTrainer(model, arguments(tmp_path, **given), data, validation).fit()
    assert accuracy(model, validation)["test_accuracy"] > 0.2  # a tenth by chance
    assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 10)
    assert model.forward_features(torch.zeros(1, 1, 48, 48)).shape == (1, 128, 6, 6)


@pytest.mark.slow
def test_the_scripts_train_save_and_load(tmp_path, capsys):
    options = ["--num-train-epochs=2", "--per-device-train-batch-size=16", "--limit=32", "--image-size=24"]
    train_classifier.main([*options, "--output-dir", str(tmp_path / "plain")])
    weights = tmp_path / "plain" / WEIGHTS
    options += ["--class-specific", "--maps=2", "--backbone", str(weights), "--output-dir", str(tmp_path / "stream")]
    capsys.readouterr()
    train_ca_stream.main([*options, "--start-stage=1"])
    assert "CA-Stream        test accuracy" in capsys.readouterr().out
    backbone = build_model("small", 10, 1)
    backbone.load_state_dict(load_file(weights))
    loaded = CAStream.from_pretrained(tmp_path / "stream", model=backbone)
    assert loaded.class_specific
    assert same(load_file(tmp_path / "stream" / "checkpoint-4" / WEIGHTS), loaded.own_state())
    assert sorted(file.name for file in (tmp_path / "stream" / "class_maps").iterdir()) == ["2.png", "4.png"]
    with pytest.raises(ValueError, match="start_stage was 1 and is 0"):
        train_ca_stream.main([*options, "--resume"])
    train_ca_stream.main([*options, "--start-stage=1", "--resume", "--maps=0"])


@pytest.mark.slow
@needs_cells
def test_cells_of_different_splits_are_of_different_photographs():
    files = {split: split_files(CELLS, split) for split in SHARES}
    assert sum(map(len, files.values())) == len(set().union(*files.values())) == len(list(CELLS.glob("*/*.xml")))
    repeated = {f"BloodImage_{number:05}" for number in REPEATED}
    assert {"BloodImage_00230", "BloodImage_00257"} < repeated
    assert repeated & {path.stem for path in files["validation"] + files["test"]} == set()
    assert len(files["validation"]) > 40
    assert len(files["test"]) > 40
    cells = load_cells(CELLS, "validation")
    assert set(cells.names) <= {path.stem for path in files["validation"]}
    counts = cells.labels.bincount(minlength=len(CLASSES))
    assert counts.max() < 1.5 * counts.min()
    assert cells.images.shape == (len(cells.labels), 3, SIZE, SIZE)
    assert 0 <= cells.images.min() < 0.3 < 0.7 < cells.images.max() <= 1
    left, top, right, bottom = cells.boxes.unbind(1)
    assert (left >= 0).all()
    assert (left < right).all()
    assert (right <= SIZE).all()
    assert (top >= 0).all()
    assert (top < bottom).all()
    assert (bottom <= SIZE).all()
    assert ((right - left).maximum(bottom - top) > SIZE / 2).all()
    again = load_cells(CELLS, "validation")
    assert torch.equal(cells.images, again.images)
    assert torch.equal(cells.boxes, again.boxes)


def photograph(folder, name, boxes):
    for kind in ("Annotations", "JPEGImages"):
        (folder / kind).mkdir(exist_ok=True)
    pixels = np.full((120, 160, 3), 200, dtype=np.uint8)
    objects = ""
    for kind, (left, top, right, bottom) in boxes:
        pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 20
        objects += textwrap.dedent(f"""
            <object><name>{kind}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>
            <ymax>{bottom}</ymax></bndbox></object>""")
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><size><width>160</width><height>120</height></size>{objects}</annotation>"
    )


def test_crops_hold_their_cell_and_broken_boxes_are_left_out(tmp_path):
    boxes = [("RBC", (30, 30, 50, 50)), ("RBC", (90, 60, 110, 84)), ("WBC", (-10, 90, 30, 130))]
    broken = [
        ("RBC", (5, 5, 5, 5)),
        ("Platelets", (90, 30, 80, 40)),
        ("WBC", (300, 10, 340, 50)),
        ("Ghost", (1, 1, 12, 12)),
    ]
    for number in range(8):
        photograph(tmp_path, f"image{number}", boxes + broken)
    assert [label for label, _ in chosen_cells(tmp_path / "Annotations" / "image0.xml")] == [1, 0]
    cells = load_cells(tmp_path, "train")
    dark = cells.images.mean(1, keepdim=True) < 0.43
    assert (dark == cells.mask()).float().mean((1, 2, 3)).min() > 0.97


def test_what_is_no_data_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*nowhere"):
        load_data(tmp_path / "nowhere", "train")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"holds notes. For your own images, put"):
        load_data(tmp_path, "train")
    with pytest.raises(ValueError, match="Expected a split of train, validation, test; got 'dev'"):
        load_data("digits", "dev")
    with pytest.raises(FileNotFoundError, match=r"found 0 annotations.*git clone"):
        load_cells(tmp_path, "train")
    for spec, words in (("big", "'timm:NAME'"), ("timm:resnet5", "timm.list_models"), ("torchvision:x", "list_models")):
        with pytest.raises(ValueError, match=words):
            build_model(spec, 10)


def test_folders_of_images_and_medmnist_files_are_read(tmp_path):
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (tmp_path / "pets" / split / kind).mkdir(parents=True)
            Image.new("RGB", (40, 30), "white").save(tmp_path / "pets" / split / kind / "1.png")
    for split in ("train", "validation", "test"):
        data = load_data(tmp_path / "pets", split, 16)
        image, label = data[1]
        assert (image.shape, label, data.classes) == ((3, 16, 16), 1, ["cat", "dog"])
        assert image.max() == pytest.approx((1 - 0.406) / 0.225, abs=1e-3)
    (tmp_path / "pets" / "val" / "emu").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "pets" / "val" / "emu" / "1.png")
    with pytest.raises(ValueError, match=r"\['emu'\] are in one of them only"):
        load_data(tmp_path / "pets", "validation")

    pixels = np.full((5, 28, 28), 255, dtype=np.uint8)
    labels = np.arange(5)[:, None]
    both = {
        f"{split}_{kind}": array
        for split in ("train", "val", "test")
        for kind, array in (("images", pixels), ("labels", labels))
    }
    np.savez(tmp_path / "grey.npz", **both)
    data = load_data(tmp_path / "grey.npz", "validation", 32)
    assert (len(data), data[3][0].shape, data[3][0].max(), data[3][1]) == (5, (1, 32, 32), 1, 3)
    assert data.classes == ("0", "1", "2", "3", "4")
    assert len(load_data(tmp_path / "grey.npz", "test", limit=2)) == 2
    np.savez(
        tmp_path / "rgb.npz",
        **{key: np.stack([array] * 3, 3) if "images" in key else array for key, array in both.items()},
    )
    assert load_data(tmp_path / "rgb.npz", "train")[0][0].shape == (3, 28, 28)
    np.savez(tmp_path / "many.npz", **(both | {"train_labels": np.zeros((5, 14))}))
    with pytest.raises(ValueError, match="14 labels for each"):
        load_data(tmp_path / "many.npz", "train")
