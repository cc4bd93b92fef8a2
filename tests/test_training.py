import csv
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blood_cells import CLASSES, REPEATED, SHARES, SIZE, chosen_cells, load_cells, split_files
from image_data import ImageData, load_data
from PIL import Image
from run_folder import BEST, LAST, WEIGHTS, load_weights
from safetensors.torch import load_file
from small_resnet import build_model, small_resnet
from torch import nn
from training import Settings, Trainer, classification_loss, classification_scores, in_thirds, learned

from adapters import CAStream
from xai_compare.digit_scenes import make_scenes

ROOT = Path(__file__).parent.parent
CELLS = ROOT.parent / "shared" / "data" / "bccd"
needs_cells = pytest.mark.skipif(not CELLS.exists(), reason="the BCCD dataset is not there")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The networks here are so small that threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes():
    drawn = make_scenes(56, "train", digits=1)
    return ImageData(F.avg_pool2d(drawn.images, 4), drawn.labels[:, 0], list("0123456789"), turns=True)


def network(frozen=False):
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    return CAStream(layers, stages=["0", "3"]) if frozen else layers


def train(
    out, data, model=None, loss=classification_loss, epochs=3, resume=False, overwrite=False, rate=0.1, **changed
):
    model = model or network()
    settings = Settings(**({"epochs": epochs, "batch_size": 8} | changed))
    progress = Trainer(settings, cpu=True).fit(
        model,
        data,
        data,
        loss=loss,
        scores=classification_scores,
        optimizer=torch.optim.SGD(learned(model), rate, momentum=0.9),
        schedule=in_thirds,
        out=out,
        description={"rate": rate},
        resume=resume,
        overwrite=overwrite,
    )
    return model, progress


def rows(out):
    with (out / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Killed(BaseException):
    pass


def killed_at(step):
    calls = iter(range(1000))

    def loss(model, batch):
        if next(calls) == step:
            raise Killed
        return classification_loss(model, batch)

    return loss


def names(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("step", [3, 10], ids=["first-epoch", "second-epoch"])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, scenes, step, frozen):
    whole, _ = train(tmp_path / "whole", scenes, network(frozen))
    with pytest.raises(Killed):
        train(tmp_path / "cut", scenes, network(frozen), loss=killed_at(step))
    torch.rand(5)
    cut, _ = train(tmp_path / "cut", scenes, network(frozen), resume=True)
    assert same(cut.state_dict(), whole.state_dict())
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == ["1", "2", "3"]
    assert [row["step"] for row in rows(tmp_path / "cut")] == ["7", "14", "21"]
    expected = ["best.safetensors", "checkpoint-2", "checkpoint-3", "last.safetensors", "log.csv", "settings.json"]
    assert names(tmp_path / "cut") == expected
    for name in (BEST, LAST):
        assert same(load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name))


def test_a_run_that_was_killed_while_it_saved_ends_as_if_it_had_not_been(tmp_path, scenes, monkeypatch):
    whole, _ = train(tmp_path / "whole", scenes)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(Killed):
            train(tmp_path / "cut", scenes)
    assert not list((tmp_path / "cut").glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr("run_folder.RunFolder.write_log", lambda self, rows: killed() if len(rows) == 2 else None)
        with pytest.raises(Killed):
            train(tmp_path / "cut", scenes, resume=True)
    cut, _ = train(tmp_path / "cut", scenes, resume=True)
    assert same(cut.state_dict(), whole.state_dict())
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_finished_run_that_resumes_changes_nothing(tmp_path, scenes):
    whole, _ = train(tmp_path, scenes)
    before = rows(tmp_path)
    again, progress = train(tmp_path, scenes, resume=True, loss=killed_at(0))
    assert same(again.state_dict(), whole.state_dict())
    assert rows(tmp_path) == before
    assert progress.epoch == 3


def test_an_interrupted_patience_goes_on(tmp_path, scenes):
    def worse_and_worse(model, batch):
        scores = classification_scores(model, batch)
        return scores | {"loss": scores["loss"] * 0 + next(losses)}

    def run(out, loss=classification_loss, **more):
        model = network()
        return Trainer(Settings(epochs=9, batch_size=56, patience=2), cpu=True).fit(
            model,
            scenes,
            scenes,
            loss=loss,
            scores=worse_and_worse,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            schedule=in_thirds,
            out=out,
            **more,
        )

    losses = iter([2.0, 1.0, 1.5, 1.6, 1.7])
    with pytest.raises(Killed):
        run(tmp_path, killed_at(3))
    progress = run(tmp_path, resume=True)
    assert (progress.epoch, progress.best_epoch, progress.best_loss) == (4, 2, 1.0)
    assert not same(load_file(tmp_path / BEST), load_file(tmp_path / LAST))


def test_a_folder_with_a_run_is_neither_overwritten_nor_continued_by_accident(tmp_path, scenes):
    train(tmp_path, scenes, epochs=1)
    with pytest.raises(ValueError, match=r"holds a run up to checkpoint-1.*--resume.*--overwrite"):
        train(tmp_path, scenes, epochs=1)
    with pytest.raises(
        ValueError, match=r"batch_size was 8 and is 4; clip was None and is 1.0; rate was 0.1 and is 0.2"
    ):
        train(tmp_path, scenes, epochs=1, batch_size=4, clip=1.0, rate=0.2, resume=True)
    with pytest.raises(ValueError, match="samples was 56 and is 40"):
        train(tmp_path, torch.utils.data.Subset(scenes, range(40)), epochs=1, resume=True)
    assert json.loads((tmp_path / "settings.json").read_text())["batch_size"] == 8
    with pytest.raises(ValueError, match="got both"):
        train(tmp_path, scenes, resume=True, overwrite=True)
    train(tmp_path, scenes, epochs=2, overwrite=True)
    assert len(rows(tmp_path)) == 2


def test_a_run_may_resume_in_more_parts_and_says_so(tmp_path, scenes, capsys):
    with pytest.raises(Killed):
        train(tmp_path, scenes, loss=killed_at(10))
    train(tmp_path, scenes, resume=True, accumulate=2)
    assert "not to the bit: accumulate was 1 and is 2" in capsys.readouterr().out


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_parts_are_the_whole_batch(tmp_path, scenes, clip):
    scenes = ImageData(scenes.images.double(), scenes.labels, scenes.classes)
    whole, progress = train(tmp_path / "1", scenes, network(True).double(), clip=clip)
    parts, in_parts = train(tmp_path / "2", scenes, network(True).double(), clip=clip, accumulate=2)
    start = network(True).double().state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-9, rtol=0)
        assert name.startswith("backbone.") or not torch.equal(value, start[name])
    assert in_parts.step == progress.step == 21
    for row, other in zip(progress.rows, in_parts.rows, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-9)
        assert row["learning_rate"] == other["learning_rate"]


STEP = """
import torch
from torch import nn
from training import Settings, Trainer, classification_loss, classification_scores, in_thirds, learned
from adapters import CAStream

def step(folder, out):
    torch.manual_seed(1)
    backbone = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )
    model = CAStream(backbone, stages=["0", "2"], projections=True).double()
    start = {name: value.clone() for name, value in model.own_state().items()}
    data = list(zip(*torch.load(f"{folder}/data.pt")))
    progress = Trainer(Settings(epochs=1, batch_size=16), cpu=True).fit(
        model, data, data, loss=classification_loss, scores=classification_scores, schedule=in_thirds,
        optimizer=torch.optim.SGD(learned(model), 1.0), out=f"{folder}/{out}",
    )
    return start, progress
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """The learning rates of the two steps are 1 and 0.1, so the change is the sum of the gradients, so weighted."""
    drawn = make_scenes(36, "train", digits=1)
    torch.save((F.avg_pool2d(drawn.images, 4).double(), drawn.labels[:, 0]), tmp_path / "data.pt")
    scope = {}
    exec(STEP, scope)
    start, progress = scope["step"](tmp_path, "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    env |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
    code = f"{STEP}step({str(tmp_path)!r}, 'two')"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [run.wait(200) for run in runs] == [0, 0]
    one, two = (load_file(tmp_path / out / LAST) for out in ("one", "two"))
    assert one.keys() == two.keys() == start.keys()
    for name in start:
        torch.testing.assert_close(start[name] - two[name], start[name] - one[name], atol=1e-14, rtol=1e-6)
        if not (name.startswith("stream.keys") and name.endswith("bias")):  # changes nothing: softmax
            assert (start[name] - one[name]).abs().max() > 1e-9
    assert json.loads((tmp_path / "two" / "settings.json").read_text())["processes"] == 2
    (row,) = rows(tmp_path / "two")
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert float(row[name]) == pytest.approx(progress.rows[0][name], abs=1e-9)  # 36 samples, in batches of 16
    assert len(list((tmp_path / "two" / "checkpoint-1").glob("random_states_*"))) == 2


def test_only_what_is_learned_is_saved_and_what_is_frozen_stays(tmp_path, scenes):
    before = network(True)
    model, _ = train(tmp_path, scenes, network(True), epochs=1)
    saved = load_file(tmp_path / "checkpoint-1" / WEIGHTS)
    assert set(saved) == set(model.own_state())
    assert same(before.backbone.state_dict(), model.backbone.state_dict())
    assert not same(before.own_state(), model.own_state())
    loaded = network(True)
    load_weights(loaded, tmp_path / LAST)
    assert same(loaded.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"another model: 0.bias is missing.*stream.query is not known"):
        load_weights(network(), tmp_path / LAST)
    with pytest.raises(ValueError, match=r"(?s)another model.*size mismatch"):
        load_weights(CAStream(network(), stages=["3"]), tmp_path / LAST)


def test_running_averages_of_what_learns_are_saved(tmp_path, scenes):
    train(tmp_path, scenes, epochs=1)
    assert load_file(tmp_path / LAST)["1.running_mean"].abs().max() > 0


def test_losses_that_are_not_finite_and_batches_that_do_not_fit_are_refused(tmp_path, scenes):
    with pytest.raises(FloatingPointError, match=r"epoch 1 is nan. Take a smaller learning rate"):
        train(tmp_path, scenes, loss=lambda model, batch: classification_loss(model, batch) * float("nan"))
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(ValueError, match=r"1 processes and 3 accumulated parts divide, got 8. Take 6"):
        Trainer(Settings(batch_size=8, accumulate=3), cpu=True)
    with pytest.raises(ValueError, match="one batch of 64 samples, got 56"):
        train(tmp_path, scenes, batch_size=64)


def test_the_learning_rate_falls_in_thirds(tmp_path, scenes):
    _, progress = train(tmp_path, scenes)
    assert [row["learning_rate"] for row in progress.rows] == pytest.approx([0.1, 0.01, 0.001])


def test_the_order_of_samples_is_new_in_each_epoch(tmp_path):
    data = [(torch.full((1,), float(i)), 0) for i in range(6)]
    seen = []

    def loss(model, batch):
        seen.append(batch[0][:, 0].int().tolist())
        return model(batch[0]).mean()

    train(tmp_path, data, nn.Linear(1, 1), loss, batch_size=3, epochs=2)
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


@pytest.mark.timeout(120)
def test_the_small_network_learns_digits(tmp_path):
    data, validation = load_data("digits", "train", 32, limit=2500), load_data("digits", "validation", 32, limit=300)
    torch.manual_seed(0)
    model = small_resnet(10, 1)
    settings = Settings(epochs=1, batch_size=32)
    progress = Trainer(settings, cpu=True).fit(
        model,
        data,
        validation,
        loss=classification_loss,
        scores=classification_scores,
        optimizer=torch.optim.SGD(learned(model), 0.03, momentum=0.9, weight_decay=1e-4),
        schedule=in_thirds,
        out=tmp_path,
    )
    assert progress.rows[-1]["validation_accuracy"] > 0.2  # a tenth by chance
    assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 10)
    assert model.forward_features(torch.zeros(1, 1, 48, 48)).shape == (1, 128, 6, 6)


def test_the_script_trains_saves_and_loads(tmp_path, capsys):
    import train_ca_stream

    options = ["--epochs=2", "--batch-size=16", "--limit=32", "--class-specific", "--start-stage=1", "--image-size=24"]
    train_ca_stream.main([*options, "--out", str(tmp_path)])
    assert "CA-Stream        test accuracy" in capsys.readouterr().out
    loaded = CAStream.from_pretrained(tmp_path, model=build_model("small", 10, 1))
    assert loaded.class_specific
    assert same(load_file(tmp_path / LAST), loaded.own_state())
    with pytest.raises(ValueError, match="start_stage was 1 and is 0"):
        train_ca_stream.main([*options, "--start-stage", "0", "--resume", "--out", str(tmp_path)])


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
