import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train_ca_stream
import train_classifier
from blood_cells import CLASSES, REPEATED, SHARES, SIZE, chosen_cells, load_cells, split_files
from class_map_callback import ClassMapCallback
from image_data import ImageData, load_data
from PIL import Image
from safetensors.torch import load_file
from small_resnet import build_model, small_resnet
from torch import nn
from training import SGD, ClassifierTrainer, Learner, accuracy, arguments
from transformers import TrainerCallback, TrainerState

from adapters import CAStream
from captum_ext import signed_overlay
from xai_compare.digit_scenes import make_scenes

ROOT = Path(__file__).parent.parent
CELLS = ROOT.parent / "shared" / "data" / "bccd"
needs_cells = pytest.mark.skipif(not CELLS.exists(), reason="the BCCD dataset is not there")
WEIGHTS = "model.safetensors"


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


class Killed(BaseException):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


def trainer_of(out, data, model=None, kill=None, **changed):
    given = SGD | {"num_train_epochs": 3, "per_device_train_batch_size": 8, "use_cpu": True} | changed
    trainer = ClassifierTrainer(model or network(), arguments(out, disable_tqdm=True, **given), data, data)
    trainer.add_callback(Kill(kill))
    return trainer


def train(*args, **changed):
    trainer = trainer_of(*args, **changed)
    trainer.fit()
    return trainer


def log(trainer, *names):
    rows, names = trainer.state.log_history, names or ("loss", "eval_loss", "eval_accuracy")
    return {name: [row[name] for row in rows if name in row] for name in names}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("step", [3, 10], ids=["first-epoch", "second-epoch"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, scenes, step, frozen, accumulated):
    how = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    whole = train(tmp_path / "whole", scenes, network(frozen), **how)
    with pytest.raises(Killed):
        train(tmp_path / "cut", scenes, network(frozen), kill=step, **how)
    torch.rand(5)
    cut = train(tmp_path / "cut", scenes, network(frozen), resume=True, **how)
    assert same(cut.model.model.state_dict(), whole.model.model.state_dict())
    assert not same(cut.model.state_dict(), Learner(network(frozen)).state_dict())
    assert log(cut) == log(whole)
    assert cut.state.global_step == 21
    assert same(load_file(tmp_path / "cut" / WEIGHTS), whole.model.state_dict())


def test_a_run_that_was_killed_while_it_saved_ends_as_if_it_had_not_been(tmp_path, scenes, monkeypatch):
    def killed(*_):
        raise Killed

    whole = train(tmp_path / "whole", scenes)
    save = TrainerState.save_to_json
    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", lambda s, path: killed() if s.global_step == 14 else save(s, path))
        with pytest.raises(Killed):
            train(tmp_path / "cut", scenes)
    assert (tmp_path / "cut" / "checkpoint-14" / WEIGHTS).exists()
    cut = train(tmp_path / "cut", scenes, resume=True)
    assert same(cut.model.state_dict(), whole.model.state_dict())
    assert log(cut) == log(whole)


def test_a_finished_run_that_resumes_is_read(tmp_path, scenes):
    whole = train(tmp_path, scenes)
    again = train(tmp_path, scenes, kill=22, resume=True)
    assert same(again.model.state_dict(), whole.model.state_dict())
    assert log(again) == log(whole)
    assert not again.model.training


def test_an_interrupted_patience_goes_on(tmp_path, scenes):
    losses = iter([2.0, 1.0, 1.5, 1.6, 1.7])

    def run(**more):
        trainer = trainer_of(
            tmp_path, scenes, num_train_epochs=9, per_device_train_batch_size=56, patience=2, save_total_limit=5, **more
        )
        trainer.compute_metrics = lambda _: {"loss": next(losses)}
        trainer.fit()
        return trainer

    with pytest.raises(Killed):
        run(kill=4)
    for _ in range(2):  # the second time it has ended, and is read
        found = run(resume=True)
        assert (found.state.global_step, found.state.best_global_step, found.state.best_metric) == (4, 2, 1.0)
        best, last = (load_file(tmp_path / f"checkpoint-{step}" / WEIGHTS) for step in (2, 4))
        assert same(found.model.state_dict(), best)
        assert same(load_file(tmp_path / WEIGHTS), best)
        assert not same(best, last)
    assert next(losses) == 1.7


def test_a_folder_with_a_run_is_neither_overwritten_nor_continued_by_accident(tmp_path, scenes):
    train(tmp_path, scenes, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"holds one. Resume by --resume, restart by --overwrite"):
        train(tmp_path, scenes, num_train_epochs=1)
    with pytest.raises(
        ValueError, match=r"per_device_train_batch_size was 8 and is 4; learning_rate was 0.1 and is 0.2. Use those"
    ):
        train(tmp_path, scenes, num_train_epochs=1, per_device_train_batch_size=4, learning_rate=0.2, resume=True)
    with pytest.raises(ValueError, match="samples was 56 and is 40"):
        train(tmp_path, torch.utils.data.Subset(scenes, range(40)), num_train_epochs=1, resume=True)
    with pytest.raises(ValueError, match="got both"):
        train(tmp_path, scenes, resume=True, overwrite=True)
    assert train(tmp_path, scenes, num_train_epochs=2, overwrite=True).state.global_step == 14


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_accumulated_parts_are_the_whole_batch(tmp_path, scenes, clip):
    """The last batch of an epoch has 6 samples, 5 in its first part."""
    scenes = ImageData(scenes.images.double(), scenes.labels, scenes.classes)
    how = {"max_grad_norm": clip, "num_train_epochs": 3}
    whole = train(tmp_path / "1", scenes, network(True).double(), per_device_train_batch_size=10, **how)
    how |= {"gradient_accumulation_steps": 2}
    parts = train(tmp_path / "2", scenes, network(True).double(), per_device_train_batch_size=5, **how)
    start = network(True).double().own_state()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, atol=1e-9, rtol=0)
        assert not torch.equal(value, start[name])
    assert parts.state.global_step == whole.state.global_step == 18
    for name, values in log(parts, "loss", "eval_loss", "learning_rate").items():
        assert values == pytest.approx(log(whole, name)[name], abs=1e-6)


STEP = """
import torch
from torch import nn
from training import SGD, ClassifierTrainer, arguments
from adapters import CAStream

def step(folder, out, batch):
    torch.manual_seed(1)
    backbone = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )
    model = CAStream(backbone, stages=["0", "2"], projections=True).double()
    start = {name: value.clone() for name, value in model.own_state().items()}
    data = list(zip(*torch.load(f"{folder}/data.pt")))
    given = SGD | {"num_train_epochs": 1, "learning_rate": 1.0, "use_cpu": True}
    args = arguments(f"{folder}/{out}", per_device_train_batch_size=batch, **given)
    ClassifierTrainer(model, args, data, data).fit()
    return start
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """The learning rates of the two steps are 1 and 0.1, so the change is the sum of the gradients, so weighted."""
    drawn = make_scenes(32, "train", digits=1)
    torch.save((F.avg_pool2d(drawn.images, 4).double(), drawn.labels[:, 0]), tmp_path / "data.pt")
    scope = {}
    exec(STEP, scope)
    start = scope["step"](tmp_path, "one", 16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
    code = f"{STEP}step({str(tmp_path)!r}, 'two', 8)"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [run.wait(280) for run in runs] == [0, 0]
    one, two = (load_file(tmp_path / out / WEIGHTS) for out in ("one", "two"))
    assert one.keys() == two.keys() == start.keys()
    for name in start:
        torch.testing.assert_close(start[name] - two[name], start[name] - one[name], atol=1e-14, rtol=1e-6)
        if not (name.startswith("stream.keys") and name.endswith("bias")):  # changes nothing: softmax
            assert (start[name] - one[name]).abs().max() > 1e-9
    assert len(list((tmp_path / "two" / "checkpoint-2").glob("rng_state_*"))) == 2


def test_only_what_is_learned_is_saved_and_what_is_frozen_stays(tmp_path, scenes):
    before = network(True)
    model = train(tmp_path, scenes, network(True), num_train_epochs=1).model.model
    assert same(load_file(tmp_path / "checkpoint-7" / WEIGHTS), model.own_state())
    assert same(before.backbone.state_dict(), model.backbone.state_dict())
    assert not same(before.own_state(), model.own_state())
    loaded = CAStream.from_pretrained(tmp_path, model=network())
    assert same(loaded.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"another layout than this CAStream's: .* is not known"):
        Learner(CAStream(network(), stages=["3"])).load_state_dict(model.own_state())


def test_the_whole_of_a_plain_network_is_saved(tmp_path, scenes):
    model = train(tmp_path, scenes, num_train_epochs=1).model.model
    assert same(load_file(tmp_path / WEIGHTS), model.state_dict())
    assert model.state_dict()["1.running_mean"].abs().max() > 0


def test_a_loss_that_is_not_finite_is_refused_before_it_is_saved(tmp_path, scenes):
    with pytest.raises(FloatingPointError, match=r"up to 7 is (nan|inf). Use a smaller --learning-rate"):
        train(tmp_path, scenes, learning_rate=1e30)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_learning_rate_falls_in_thirds(tmp_path, scenes):
    found = log(train(tmp_path, scenes), "learning_rate")
    assert found["learning_rate"] == pytest.approx([0.1, 0.01, 0.001])


def test_accuracy_and_loss_are_means_over_all_samples(tmp_path, scenes):
    model = network().eval()
    images, labels = scenes.images, scenes.labels
    found = accuracy(
        model, ImageData(images, labels, scenes.classes), arguments(tmp_path, per_device_eval_batch_size=15)
    )
    assert found["test_accuracy"] == pytest.approx((model(images).argmax(1) == labels).float().mean().item())
    assert found["test_loss"] == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-5)


def random_states():
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()


def test_class_maps_go_to_the_trackers_and_change_nothing(tmp_path, scenes, monkeypatch):
    sent, logged = [], []

    class Tracker(TrainerCallback):
        class tb_writer:  # noqa: N801 as Trainer's callback names it
            add_image = staticmethod(lambda *picture, dataformats: sent.append((*picture, dataformats)))

    def explain(images, targets):
        """A map that costs gradients and random numbers, and changes with the mode of the model."""
        assert not any(module.training for module in model.modules())
        inputs = images.clone().requires_grad_()
        model(inputs).gather(1, targets[:, None]).sum().backward()
        return inputs.grad + 0 * (torch.rand(()) + np.random.rand() + random.random())

    without = train(tmp_path / "without", scenes)
    model, images, targets = network(), scenes.images[:3], scenes.labels[:3]
    trainer = trainer_of(tmp_path / "with", scenes, model)
    trainer.add_callback(Tracker())
    callback = ClassMapCallback(trainer, images, targets, explain)
    trainer.add_callback(callback)
    trainer.args.report_to = ["wandb"]
    wandb = SimpleNamespace(Image=lambda picture: picture, log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer.fit()
    assert same(trainer.model.state_dict(), without.model.state_dict())
    assert log(trainer) == log(without)
    model.train()[1].eval()
    states, modes = random_states(), [module.training for module in model]
    callback.on_evaluate(trainer.args, trainer.state, trainer.control)
    assert random_states() == states
    assert [module.training for module in model] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert sent.pop()[2] == logged.pop()["train/global_step"] == 21

    assert [(name, step, form) for name, _, step, form in sent] == [("class maps", s, "HWC") for s in (7, 14, 21)]
    assert [row["train/global_step"] for row in logged] == [7, 14, 21]
    heat = explain(images, targets)[:, 0]
    for index, image in enumerate(images):
        shown = (image - image.min()) / (image.max() - image.min())
        row = sent[-1][1][index * 12 : (index + 1) * 12]
        np.testing.assert_allclose(row[:, :12], shown.expand(3, -1, -1).movedim(0, 2), atol=1e-6)
        np.testing.assert_allclose(row[:, 12:], signed_overlay(shown, heat[index]), atol=1e-5)
    written = np.asarray(Image.open(tmp_path / "with" / "class_maps" / "21.png")) / 255
    np.testing.assert_allclose(written, sent[-1][1], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(logged[-1]["class maps"], sent[-1][1])


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
