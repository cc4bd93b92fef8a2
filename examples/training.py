"""A training loop for any model, on one process or many, that may be killed at any time.

    accelerate launch --num_processes 2 examples/train_classifier.py --data digits

A batch is what one step of the optimizer sees, on all processes and in all accumulated parts together, so neither
changes what is learned. All randomness of an epoch comes from the seed and the epoch's number.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from run_folder import RunFolder
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

Loss = Callable[[nn.Module, Any], Tensor]
Scores = Callable[[nn.Module, Any], dict[str, Tensor]]
Schedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class Settings:
    """How to train, whatever the model.

    epochs: How many.
    batch_size: Samples for each step of the optimizer, on all processes together. What is left over at the end of an
        epoch is not used in it.
    accumulate: In how many parts the gradients of a batch are computed, to save memory.
    mixed_precision: "no", "fp16" or "bf16".
    clip: The largest norm of the gradients; None: any.
    patience: Stop after so many epochs without a smaller validation loss; None: never.
    seed: Of weights, order and augmentation.
    workers: Processes that load data, for each process that trains.
    deterministic: Are sums taken in the same order every time? Slower on GPUs; needed to resume to the same bits.
    """

    epochs: int = 90
    batch_size: int = 256
    accumulate: int = 1
    mixed_precision: str = "no"
    clip: float | None = None
    patience: int | None = None
    seed: int = 0
    workers: int = 0
    deterministic: bool = True


@dataclass
class Progress:
    """How far a run is; `rows` are those of its log."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    rows: list[dict[str, Any]] = field(default_factory=list)


class EpochOrder(Sampler[int]):
    """Indices in an order that depends on the seed and the epoch only."""

    def __init__(self, size: int, count: int, seed: int) -> None:
        self.size, self.count, self.seed, self.epoch = size, count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_seed_of(self.seed, self.epoch))
        return iter(torch.randperm(self.size, generator=generator)[: self.count].tolist())


class Trainer:
    """Trains and evaluates models.

    Args:
        settings: How.
        cpu: Stay on the CPU where there is a GPU?

    Attributes:
        accelerator: Accelerate's, which knows the processes and devices.
    """

    def __init__(self, settings: Settings, cpu: bool = False) -> None:
        self.settings = settings
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulate,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        parts = self.accelerator.num_processes * settings.accumulate
        if settings.batch_size < 1 or settings.batch_size % parts:
            raise ValueError(
                f"Expected a batch size that {self.accelerator.num_processes} processes and {settings.accumulate} "
                f"accumulated parts divide, got {settings.batch_size}. Take "
                f"{max(1, settings.batch_size // parts) * parts}."
            )
        if settings.deterministic and self.accelerator.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        set_seed(settings.seed)

    def fit(
        self,
        model: nn.Module,
        data: Dataset,
        validation: Dataset,
        *,
        loss: Loss,
        scores: Scores,
        optimizer: Optimizer,
        schedule: Schedule,
        out: str | Path,
        description: dict[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Progress:
        """Train a model in place; it has the weights of the last epoch afterwards.

        Writes to `out`: `log.csv`, `settings.json`, the last two checkpoints, and the weights `best.safetensors` (of
        the smallest validation loss) and `last.safetensors`, without those that are frozen.

        Args:
            model: What requires no gradients, and modules that stay in evaluation mode in `train()`, stay as they are.
            data: Samples to learn from.
            validation: Samples to evaluate on after each epoch.
            loss: The mean loss of a batch, from the model and the batch.
            scores: Values (batch,) of each sample by name, from the same; one is called "loss".
            optimizer: Of the model's parameters.
            schedule: Makes a learning-rate schedule from the optimizer and the number of steps.
            out: The folder of the run.
            description: What else decides the result, as the model's name; a run that resumes must have the same.
            resume: Go on from the last checkpoint in `out`, if there is one?
            overwrite: Remove an earlier run in `out`?

        Raises:
            ValueError: if `out` holds a run and neither is given, or one with other settings, or data are too few.
            FloatingPointError: if the loss is not finite. The last checkpoint is the one before that.
        """
        order = self._order(data)
        described = asdict(self.settings) | {"processes": self.accelerator.num_processes, "samples": len(data)}
        folder = RunFolder(out, self.accelerator)
        checkpoint = folder.begin(described | (description or {}), resume, overwrite)
        steps = len(order) // self.settings.batch_size
        prepared = self.accelerator.prepare(
            model,
            optimizer,
            schedule(optimizer, steps * self.settings.epochs),
            self._loader(data, order),
            self._loader(validation),
        )
        progress = Progress(**folder.load(checkpoint)) if checkpoint else Progress()
        folder.write_log(progress.rows)
        with self._bar(steps, progress) as bar:
            while progress.epoch < self.settings.epochs and not self._patience_is_over(progress):
                order.epoch = progress.epoch
                is_best = self._epoch(prepared, loss, scores, progress, bar)
                folder.save(model.train(), progress.epoch, asdict(progress), is_best)
        self.accelerator.unwrap_model(prepared[0], keep_fp32_wrapper=False).eval()
        folder.close()
        self.accelerator.free_memory()
        return progress

    def evaluate(self, model: nn.Module, data: Dataset, scores: Scores) -> dict[str, float]:
        """The mean of each score over all samples."""
        return self._evaluate(model.to(self.accelerator.device), self.accelerator.prepare(self._loader(data)), scores)

    def _epoch(self, prepared: tuple[Any, ...], loss: Loss, scores: Scores, progress: Progress, bar: tqdm) -> bool:
        model, _, _, loader, validation = prepared
        start = time.perf_counter()
        set_seed(_seed_of(self.settings.seed, progress.epoch, self.accelerator.process_index))
        model.train()
        total, rate = self._steps(prepared, loss, progress, bar)
        mean = self.accelerator.reduce(total, "mean").item() / len(loader)
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"The loss of epoch {progress.epoch + 1} is {mean}. Take a smaller learning rate, or clip gradients."
            )
        found = self._evaluate(model, validation, scores)
        progress.epoch += 1
        is_best = found["loss"] < progress.best_loss
        if is_best:
            progress.best_epoch, progress.best_loss = progress.epoch, found["loss"]
        row = {"epoch": progress.epoch, "step": progress.step, "learning_rate": rate, "train_loss": mean}
        row |= {f"validation_{name}": value for name, value in found.items()}
        progress.rows.append(row | {"seconds": round(time.perf_counter() - start, 3)})
        bar.set_postfix(
            {"epoch": progress.epoch} | {k: f"{v:.3f}" for k, v in row.items() if k.startswith("validation")}
        )
        return is_best

    def _steps(self, prepared: tuple[Any, ...], loss: Loss, progress: Progress, bar: tqdm) -> tuple[Tensor, float]:
        """One pass over the data: the sum of the losses, and the learning rate of the last step."""
        model, optimizer, schedule, loader, _ = prepared
        total, rate = torch.zeros((), device=self.accelerator.device), 0.0
        for batch in loader:
            with self.accelerator.accumulate(model):
                value = loss(model, batch)
                self.accelerator.backward(value)
                if self.accelerator.sync_gradients:
                    rate = optimizer.param_groups[0]["lr"]
                    progress.step += 1
                    bar.update()
                    if self.settings.clip is not None:
                        self.accelerator.clip_grad_norm_(model.parameters(), self.settings.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            total = total + value.detach()
        return total, rate

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, loader: DataLoader, scores: Scores) -> dict[str, float]:
        model.eval()
        parts: dict[str, list[Tensor]] = {}
        for batch in loader:
            with self.accelerator.autocast():
                values = scores(model, batch)
            for name, value in self.accelerator.gather_for_metrics(values).items():
                parts.setdefault(name, []).append(value.double().cpu())
        return {name: torch.cat(values).mean().item() for name, values in parts.items()}

    def _order(self, data: Dataset) -> EpochOrder:
        batch = self.settings.batch_size
        if len(data) < batch:
            raise ValueError(f"Expected at least one batch of {batch} samples, got {len(data)}. Take a smaller batch.")
        return EpochOrder(len(data), len(data) // batch * batch, self.settings.seed)

    def _loader(self, data: Dataset, order: EpochOrder | None = None) -> DataLoader:
        return DataLoader(
            data,
            batch_size=self.settings.batch_size // self.settings.accumulate,
            sampler=order,
            num_workers=self.settings.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _bar(self, steps: int, progress: Progress) -> tqdm:
        total = steps * self.settings.epochs
        return tqdm(total=total, initial=progress.step, unit="step", disable=not self.accelerator.is_main_process)

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.settings.patience
        return patience is not None and progress.epoch - progress.best_epoch >= patience


def learned(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def in_thirds(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A tenth of the learning rate after one third of the steps, a hundredth after two."""
    return LambdaLR(optimizer, lambda step: 0.1 ** min(3 * step // steps, 2))


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean cross-entropy of a batch of images and labels."""
    return F.cross_entropy(model(batch[0]), batch[1])


def classification_scores(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy, and whether the largest logit is that of the label, for each sample."""
    logits = model(batch[0])
    return {
        "loss": F.cross_entropy(logits, batch[1], reduction="none"),
        "accuracy": logits.argmax(1) == batch[1],
    }


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
