"""The folder of one training run: its settings, its checkpoints, its log and its weights."""

import csv
import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_model
from torch import nn

WEIGHTS = "model.safetensors"
BEST, LAST = "best.safetensors", "last.safetensors"
KEPT = 2
_FREE = ("workers", "processes", "accumulate")  # they change no batch and no learning rate


class RunFolder:
    """Everything that a run writes to `path`, which all machines of the run must see.

    A checkpoint is written under another name and renamed when it is whole, so a run that is killed leaves only whole
    ones. The log is written from the rows that the last checkpoint holds.
    """

    def __init__(self, path: str | Path, accelerator: Accelerator) -> None:
        self.path, self._accelerator = Path(path), accelerator
        self._fixed: set[str] = set()
        self._hooks = (
            accelerator.register_save_state_pre_hook(self._save_weights),
            accelerator.register_load_state_pre_hook(self._load_weights),
        )

    def begin(self, settings: dict[str, Any], resume: bool, overwrite: bool) -> Path | None:
        """The checkpoint to go on from, or None at the start of a run.

        Raises:
            ValueError: on all processes, if the folder holds another run, or not all machines see it.
        """
        answer: list[str | None] = [None, None]
        if self._accelerator.is_main_process:
            try:
                answer[1] = self._opened(json.loads(json.dumps(settings, default=str)), resume, overwrite)
            except ValueError as error:
                answer[0] = str(error)
        error, name = broadcast_object_list(answer)
        if error:
            raise ValueError(error)
        if not all(gather_object([(self.path / "settings.json").exists()])):
            raise ValueError(f"Expected a folder that all machines of the run see, but some do not see {self.path}.")
        return self.path / name if name else None

    def save(self, model: nn.Module, epoch: int, progress: dict[str, Any], is_best: bool) -> None:
        """Write a checkpoint and the log; a model is `best` before its checkpoint counts, so none is forgotten."""
        accelerator = self._accelerator
        self._fixed = _fixed_names(model)
        partial, whole = self.path / ".checkpoint.partial", self.path / f"checkpoint-{epoch}"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / "progress.json").write_text(json.dumps(progress))
            if is_best:
                self._copy(partial / WEIGHTS, BEST)
            for file in partial.iterdir():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            partial.rename(whole)
            self._copy(whole / WEIGHTS, LAST)
            self.write_log(progress["rows"])
            for old in self.checkpoints()[:-KEPT]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Put everything back as it was at a checkpoint; returns the `progress` that was saved."""
        self._accelerator.load_state(str(checkpoint))
        return json.loads((checkpoint / "progress.json").read_text())

    def close(self) -> None:
        """Leave Accelerate's own way of saving as it was."""
        for hook in self._hooks:
            hook.remove()

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write `log.csv` as a whole."""
        if not rows or not self._accelerator.is_main_process:
            return
        partial = self.path / ".log.csv.partial"
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path / "log.csv")

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        found = [path for path in self.path.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def _opened(self, settings: dict[str, Any], resume: bool, overwrite: bool) -> str | None:
        if resume and overwrite:
            raise ValueError("Expected `resume` or `overwrite`, got both.")
        if overwrite:
            self._clear()
        found = self.checkpoints()
        if found and not resume:
            raise ValueError(
                f"{self.path} holds a run up to {found[-1].name}. Go on with it by --resume, begin again by "
                "--overwrite, or take another folder by --out."
            )
        file = self.path / "settings.json"
        if found and file.exists():
            self._compare(json.loads(file.read_text()), settings)
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / ".settings.json.partial"
        partial.write_text(json.dumps(settings, indent=2) + "\n")
        partial.replace(file)
        return found[-1].name if found else None

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differ = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if refused := [text for text in differ if not text.startswith(tuple(f"{key} " for key in _FREE))]:
            raise ValueError(
                f"The run in {self.path} cannot go on with other settings: {'; '.join(refused)}. Give the settings it "
                "began with, or take another folder by --out."
            )
        if differ:
            self._accelerator.print(f"Going on, but not to the bit: {'; '.join(differ)}.")

    def _clear(self) -> None:
        for path in self.checkpoints():
            shutil.rmtree(path)
        for name in ("log.csv", "settings.json", BEST, LAST):
            (self.path / name).unlink(missing_ok=True)

    def _copy(self, source: Path, name: str) -> None:
        partial = self.path / f".{name}.partial"
        shutil.copyfile(source, partial)
        partial.replace(self.path / name)

    def _save_weights(self, models: list[nn.Module], states: list[dict[str, Any]], folder: str) -> None:
        states.clear()  # Accelerate then writes none itself
        for model in models:
            state = self._accelerator.unwrap_model(model).state_dict()
            learned = OrderedDict((name, value) for name, value in state.items() if name not in self._fixed)
            self._accelerator.save(learned, Path(folder) / WEIGHTS, safe_serialization=True)

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        while models:
            load_weights(self._accelerator.unwrap_model(models.pop()), Path(folder) / WEIGHTS)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights that a run wrote; what it did not learn stays as it is.

    Raises:
        ValueError: if they are those of another model.
    """
    try:
        missing, unexpected = load_model(model, path, strict=False)
    except RuntimeError as error:
        raise ValueError(f"The weights {path} are those of another model: {error}") from error
    unlearned = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    unlearned |= {name for name, _ in model.named_buffers()}
    wrong = [f"{name} is missing" for name in sorted(set(missing) - unlearned)[:5]]
    wrong += [f"{name} is not known" for name in sorted(unexpected)[:5]]
    if wrong:
        raise ValueError(f"The weights {path} are those of another model: {'; '.join(wrong)}.")


def _fixed_names(model: nn.Module) -> set[str]:
    """Entries of the state dictionary of a model in training mode that do not change.

    These are the frozen parameters, and the buffers of modules that stay in evaluation mode.
    """
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for path, module in model.named_modules():
        if not module.training:
            fixed |= {f"{path}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)}
    return fixed
