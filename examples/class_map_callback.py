"""Heat maps of some images during training, in the trackers that transformers.Trainer reports to."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.models.evaluation_mode import evaluation_mode
from captum_ext import signed_overlay


class ClassMapCallback(TrainerCallback):
    """Explains the same images at each evaluation, to see what the model looks at as it learns.

        trainer.add_callback(ClassMapCallback(trainer, images, targets, CDAM(model).attribute))

    Each picture has a row for each image: the image, and its map over it, red for the class and blue against it, on a
    colour scale of its own. Pictures are `class_maps/STEP.png` in the output folder, and "class maps" in TensorBoard
    and Weights & Biases where the trainer reports to them. Model, gradients and random numbers stay as they are.

    Args:
        trainer: Any transformers.Trainer.
        images: (images, 1 or 3, height, width).
        targets: (images,), the class of each that is explained.
        explain: From both to maps (images, h, w) or (images, 1, h, w), as `attribute` of Captum's classes.
    """

    def __init__(
        self, trainer: Trainer, images: Tensor, targets: Tensor, explain: Callable[[Tensor, Tensor], Any]
    ) -> None:
        self.trainer, self.images, self.targets, self.explain = trainer, images, targets, explain

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Explain, draw, and send the picture to the trackers."""
        if not state.is_world_process_zero:
            return
        with _untouched(self.trainer.model):
            maps = torch.as_tensor(self.explain(self.images.to(args.device), self.targets.to(args.device)))
        maps = maps.detach().cpu().reshape(len(self.images), *maps.shape[-2:])
        picture = np.concatenate([_row(image, heat) for image, heat in zip(self.images.cpu(), maps, strict=True)])
        file = Path(args.output_dir, "class_maps", f"{state.global_step}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * picture).round().astype(np.uint8)).save(file)
        for callback in self.trainer.callback_handler.callbacks:
            if writer := getattr(callback, "tb_writer", None):
                writer.add_image("class maps", picture, state.global_step, dataformats="HWC")
        if "wandb" in args.report_to:
            import wandb

            wandb.log({"class maps": wandb.Image(picture), "train/global_step": state.global_step})


def _row(image: Tensor, heat: Tensor) -> np.ndarray:
    """The image and its map side by side, (height, 2 * width, 3), whatever the image's normalisation."""
    shown = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    plain = shown.expand(3, -1, -1).movedim(0, 2).numpy()
    return np.concatenate([plain, signed_overlay(shown, heat)], 1)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; its gradients and all random numbers are put back."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        for parameter in gradients:
            parameter.grad = None
        with torch.random.fork_rng(), evaluation_mode(model):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        random.setstate(python)
        np.random.set_state(numpy)
