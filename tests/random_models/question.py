"""A random model with a question: what the methods and the reference are asked."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
WORDS = 50
PATCH = 4
VARIABLE = "RANDOM_MODEL_SWITCH"
EXACT, ROUNDED = 1e-8, 5e-2  # tolerances: in float64, and where a part computes in bfloat16


class Reads(nn.Identity):
    """The tokens that an attention's projections read: the tensor itself, unless a hook exchanges it."""

    def __init__(self, batch_axis: int = 0):
        super().__init__()
        self.batch_axis = batch_axis


@dataclass
class RandomModel:
    """A model, a question, and what is known of it.

    Attributes:
        seed: What `make` was called with.
        model: In evaluation mode; a few are left in training mode, and explained in evaluation mode all the same.
        inputs: Give a clone to each run, as some models change them in place.
        arguments: What else the model takes, for `additional_forward_args`.
        target: As the CDAM family takes it.
        parts: What the model is composed of.
        tolerance: Relative to the largest score.
        change: Changes the model, which a second explanation must follow; None: nothing to change.
    """

    seed: int
    model: nn.Module
    inputs: Tensor
    arguments: tuple[Tensor, ...]
    target: Any
    parts: list[str]
    tolerance: float
    change: Callable[[], None] | None

    @property
    def read_at(self) -> list[nn.Module]:
        """The modules whose output is what an attention reads, in the order of registration."""
        found = [module for module in self.model.modules() if isinstance(module, Reads)]
        return [*found, *getattr(self.model, "sites", list)()]

    def run(self) -> Tensor:
        """The logits of the user's model, with a fresh copy of the inputs."""
        output = self.model(self.inputs.clone(), *self.arguments)
        if isinstance(output, Tensor):
            return output
        return output["logits"] if isinstance(output, dict) else output.logits

    @contextmanager
    def evaluated(self):
        """In evaluation mode, also for a backward pass that runs blocks again; as torch runs it for gradients.

        Of frozen modules torch takes a fast path, which gives NaN where all tokens are masked and rounds otherwise.
        """
        training, fast = self.model.training, torch.backends.mha.get_fastpath_enabled()
        self.model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            self.model.train(training)
            torch.backends.mha.set_fastpath_enabled(fast)

    def score(self) -> Tensor:
        """What is explained, summed over the batch."""
        logits = self.run()
        if self.target is None:
            return logits.sum()
        index = torch.as_tensor(self.target).expand(len(logits))
        return logits[torch.arange(len(logits)), index].sum()
