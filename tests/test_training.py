"""The trainer of the examples: killed and resumed runs, accumulated steps, processes, what is saved and logged."""

import os
import random
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from class_map_callback import ClassMapCallback
from image_data import ImageData
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file
from training import Learner, accuracy, arguments
from training_runs import WEIGHTS, Killed, log, network, same, train, trainer_of
from transformers import TrainerCallback, TrainerState

from adapters import CAStream
from captum_ext import signed_overlay
from xai_compare.digit_scenes import make_scenes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes():
    drawn = make_scenes(56, "train", digits=1)
    return ImageData(F.avg_pool2d(drawn.images, 4), drawn.labels[:, 0], list("0123456789"), turns=True)


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
