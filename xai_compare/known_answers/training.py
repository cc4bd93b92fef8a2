"""Small models that are trained for a task, and kept."""

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._progress import progress
from .._seeding import seeded_for
from .task import Conditions

_SAMPLES, _BATCH = 4096, 128
M = TypeVar("M", bound=nn.Module)
Draw = Callable[[int], tuple[Tensor, Tensor]]


def trained(
    name: str,
    build: Callable[[], M],
    draw: Draw,
    conditions: Conditions,
    *,
    steps: int,
    samples: int = _SAMPLES,
    code: Sequence[Any] = (),
) -> M:
    """A classifier that was trained, or its kept weights.

    Args:
        name: Of the file of weights.
        build: Makes the model.
        draw: Makes so many samples and classes, by torch's random numbers.
        conditions: Of the task.
        steps: How many batches of 128.
        samples: How many samples these are drawn from.
        code: What the samples depend on: functions and settings; weights that others trained are not used.

    Returns:
        The model in evaluation mode.
    """
    steps = min(steps, conditions.steps or steps)
    text = "".join(map(_said, (build, draw, *code)))
    key = hashlib.sha256(f"{conditions.seed} {steps} {text}".encode()).hexdigest()[:12]
    file = conditions.cache / f"{name}-{key}.safetensors"
    with seeded_for(conditions.seed, f"arena {name}", 0):
        model = build()
        if file.is_file():
            model.load_state_dict(load_file(file))
        else:
            _train(model, draw(samples), steps, name)
            _save(model, file)
    return model.eval()


def _said(one: Any) -> str:
    return inspect.getsource(one) if inspect.isfunction(one) else str(getattr(one, "keywords", one))


def _train(model: nn.Module, given: tuple[Tensor, Tensor], steps: int, name: str) -> None:
    model.train()
    x, y = given
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in progress(range(steps), desc=f"training {name}", unit="batch"):
            batch = torch.randint(len(x), (_BATCH,))
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _save(model: nn.Module, file: Path) -> None:
    """Weights as a file that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}-{os.getpid()}.part")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
    part.replace(file)


@torch.no_grad()
def right_first(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The order of the samples in which those come first that the model answers rightly, and the accuracy."""
    right = torch.cat([model(part).argmax(1) for part in x.split(128)]) == y
    order = torch.cat([right.nonzero()[:, 0], (~right).nonzero()[:, 0]])
    return order, float(right.float().mean())
