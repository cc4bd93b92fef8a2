"""What transformers.Trainer lacks for the classifiers here: their losses and options, a step schedule, safe resuming.

    accelerate launch --num_processes 2 examples/train_classifier.py --data digits --report-to tensorboard

All options of transformers.TrainingArguments are options of the scripts.
"""

import json
import shutil
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_data import load_data
from safetensors.torch import load_file
from small_resnet import build_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import _IncompatibleKeys
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset, default_collate
from transformers import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from adapters import MHEX, CAStream, deep_supervision_loss
from adapters.models.outputs import output_tensor
from adapters.wrappers.deep_supervision import Mode
from adapters.wrappers.hub import HubWrapper

SGD = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.1, "weight_decay": 1e-4, "thirds": True}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.01, "lr_scheduler_type": "cosine"}
_DEFAULTS = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch") | {
    "save_total_limit": 2,
    "metric_for_best_model": "loss",
    "restore_callback_states_from_checkpoint": True,  # else early stopping counts from 0 again
    "logging_nan_inf_filter": False,
    "max_grad_norm": 0.0,
    "per_device_eval_batch_size": 256,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "seed": 0,
}
_FIXED = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
_FIXED += ("optim", "optim_args", "learning_rate", "weight_decay", "max_grad_norm", "lr_scheduler_type")
_FIXED += ("thirds", "patience")


@dataclass
class Arguments(TrainingArguments):
    """TrainingArguments, and what they lack."""

    thirds: bool = field(default=False, metadata={"help": "divide the learning rate by 10 after each third"})
    patience: int | None = field(
        default=None,
        metadata={"help": "stop after this many epochs without a smaller validation loss, and use the best"},
    )
    resume: bool = field(default=False, metadata={"help": "resume from the last checkpoint in the output folder"})
    overwrite: bool = field(default=False, metadata={"help": "remove the checkpoints of an earlier run"})

    def __post_init__(self) -> None:
        """Derive what patience needs."""
        self.load_best_model_at_end |= self.patience is not None
        super().__post_init__()


@dataclass
class ImageOptions:
    """Images, and a convolutional network for them."""

    data: str = field(default="digits", metadata={"help": "see image_data.py"})
    image_size: int | None = field(default=None, metadata={"help": "height and width; None: see image_data.py"})
    model: str = field(default="small", metadata={"help": "small, timm:NAME or torchvision:NAME"})
    pretrained: bool = field(default=False, metadata={"help": "start from the library's pretrained weights"})
    limit: int | None = field(default=None, metadata={"help": "number of images of each split, for a trial run"})

    def splits(self) -> list[Dataset]:
        """Images to train, validate and test."""
        names = ("train", "validation", "test")
        return [load_data(self.data, split, self.image_size, self.limit) for split in names]

    def network(self, data: Dataset) -> nn.Module:
        """A network for the classes and channels of these images."""
        return build_model(self.model, len(data.classes), len(data[0][0]), self.pretrained)


def arguments(output_dir: str | Path, **given: Any) -> Arguments:
    """Arguments with the defaults of the scripts."""
    return Arguments(**(_DEFAULTS | {"output_dir": str(output_dir)} | given))


def parse(options: type, doc: str, given: Sequence[str] | None = None, **defaults: Any) -> tuple[Arguments, Any]:
    """The arguments and options of a command line, by default the process's own; random numbers are seeded."""
    formats = (ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter)
    parser = HfArgumentParser((Arguments, options), description=doc, formatter_class=type("Format", formats, {}))
    parser.set_defaults(**_DEFAULTS | defaults)
    found = parser.parse_args_into_dataclasses(given)
    set_seed(found[0].seed)
    return found


class Learner(nn.Module):
    """A classifier as Trainer takes it: from inputs and labels to loss and logits.

    The loss is the cross-entropy, in MHEX's training that of all blocks. The state is what `model` itself would save:
    the stream only of a CA-Stream.

    Args:
        model: From images, or token ids and masks, to logits.
        mode: That of `deep_supervision_loss`.
    """

    accepts_loss_kwargs = True  # losses are shares of the whole batch, whose size Trainer then tells

    def __init__(self, model: nn.Module, mode: Mode = "finetune") -> None:
        super().__init__()
        self.model, self.mode = model, mode

    def forward(
        self, inputs: list[Tensor], labels: Tensor, num_items_in_batch: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss and logits; all parts of a batch together have its mean loss."""
        if isinstance(self.model, MHEX) and self.training:
            outputs = self.model.deep_forward(*inputs)
            logits, loss = outputs[-1], deep_supervision_loss(outputs, labels, self.mode)
        else:
            known = (labels,) if isinstance(self.model, CAStream) and self.training else ()
            logits = output_tensor(self.model(*inputs, *known))
            loss = cross_entropy(logits, labels)
        total = len(labels) if num_items_in_batch is None else num_items_in_batch
        return {"loss": loss * len(labels) / total, "logits": logits}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What is saved of the classifier, under its own names."""
        model = self.model
        return model.own_state(model.saves_backbone) if isinstance(model, HubWrapper) else model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> _IncompatibleKeys:
        """Load what `state_dict` returned; names and shapes must be the same."""
        load = self.model.load_own_state if isinstance(self.model, HubWrapper) else self.model.load_state_dict
        load(state)
        return _IncompatibleKeys([], [])


class ClassifierTrainer(Trainer):
    """Trains and evaluates a classifier on tuples of its inputs and a label.

    Args:
        model: The classifier.
        args: How to train.
        train: Samples to learn from.
        validation: Samples to evaluate on after each epoch.
        mode: That of `deep_supervision_loss`, for an MHEX.
        options: The dataclass with what else decides the result; a run that resumes must have the same.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Arguments,
        train: Dataset | None = None,
        validation: Dataset | None = None,
        mode: Mode = "finetune",
        options: Any = None,
    ) -> None:
        super().__init__(
            Learner(model, mode),
            args,
            _collate,
            train,
            validation,
            compute_metrics=lambda found: {"accuracy": np.mean(found.predictions == found.label_ids)},
            preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
            callbacks=[] if args.patience is None else [EarlyStoppingCallback(args.patience)],
        )
        chosen = {one.name: getattr(options, one.name) for one in fields(options) if one.compare} if options else {}
        chosen |= {name: getattr(args, name) for name in _FIXED} | {"samples": len(train or ())}
        self._settings = json.loads(json.dumps(chosen))

    def fit(self) -> None:
        """Train the classifier, resume from the last complete checkpoint, or load a finished run; save it.

        Raises:
            ValueError: if the output folder holds a run, and neither `resume` nor `overwrite` is set, or both, or the
                run has other settings.
            FloatingPointError: if the loss is not finite. The last checkpoint is from before.
        """
        with self.args.main_process_first(local=False):
            last = self._last_checkpoint()
        state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)) if last else None
        if state and state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            best = last.with_name(f"checkpoint-{state.best_global_step}")
            used = best if self.args.load_best_model_at_end else last
            self.model.load_state_dict(load_file(used / SAFE_WEIGHTS_NAME))
            self.state = state
        else:
            self.train(resume_from_checkpoint=str(last) if last else None)
        self.model.eval()
        if self.is_world_process_zero():
            getattr(self.model.model, "save_pretrained", self.save_model)(self.args.output_dir)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Trainer's schedules, and that in thirds."""
        if self.args.thirds and self.lr_scheduler is None:
            used = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(used, lambda step: 0.1 ** min(3 * step // num_training_steps, 2))
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Refuse a loss that is not finite, before it is saved."""
        super().log(logs, start_time)
        if not np.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"The loss of the steps up to {self.state.global_step} is {logs['loss']}. Use a smaller "
                "--learning-rate, or clip gradients with --max-grad-norm 1."
            )

    def _last_checkpoint(self) -> Path | None:
        """The last whole one of this run; its settings are compared, or noted at its beginning."""
        args, out = self.args, Path(self.args.output_dir)
        if args.resume and args.overwrite:
            raise ValueError("Expected --resume or --overwrite, got both. Pass only one of them.")
        for path in out.glob("checkpoint-*") if args.overwrite else ():
            shutil.rmtree(path)
        whole = [file.parent for file in out.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]  # written last
        noted = out / "settings.json"
        if not whole:
            out.mkdir(parents=True, exist_ok=True)
            noted.write_text(json.dumps(self._settings, indent=2) + "\n")
            return None
        if not args.resume:
            raise ValueError(
                f"Expected a folder without a run, but {out} holds one. Resume by --resume, restart by --overwrite, or "
                "choose another --output-dir."
            )
        before = json.loads(noted.read_text())
        differ = [(key, before.get(key), now) for key, now in self._settings.items() if before.get(key) != now]
        if differ:
            changed = "; ".join(f"{key} was {old!r} and is {now!r}" for key, old, now in differ)
            raise ValueError(
                f"Expected the settings of the run in {out}, but {changed}. Use those, or choose another --output-dir."
            )
        return max(whole, key=lambda path: int(path.name.split("-")[1]))


def accuracy(model: nn.Module, data: Dataset, args: Arguments | None = None) -> dict[str, float]:
    """`test_accuracy` and `test_loss` of a classifier, by default on the CPU."""
    args = args or arguments(tempfile.gettempdir(), use_cpu=True)
    metrics: dict[str, float] = ClassifierTrainer(model, args, validation=data).predict(data).metrics
    return metrics


def _collate(samples: list[tuple[Any, ...]]) -> dict[str, Any]:
    *inputs, labels = default_collate(samples)
    return {"inputs": inputs, "labels": labels}
