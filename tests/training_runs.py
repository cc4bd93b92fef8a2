"""Training runs of small networks on small images, some of which are killed."""

import torch
from torch import nn
from training import SGD, ClassifierTrainer, arguments
from transformers import TrainerCallback

from adapters import CAStream

WEIGHTS = "model.safetensors"


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
