"""What a run needs of a model with its data, and of a metric; images and questions have their own."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ._evaluation import Step
from ._methods import Method
from ._models import Subject
from ._samples import Sample


class Scored(Protocol):
    """A metric that is ready to be called."""

    @property
    def title(self) -> str:
        """What the report calls it."""

    @property
    def direction(self) -> str:
        """Which scores are better: "higher", "lower" or "", neither."""

    @property
    def ours(self) -> bool:
        """Whether scores of a sample depend on no other sample."""

    @property
    def source(self) -> Any:
        """What the numbers depend on, compared when a run is resumed."""


@dataclass(frozen=True)
class Checked:
    """What trying methods and metrics showed.

    Attributes:
        forwards: What an explanation by each method costs, in forward passes.
        unfit: Why others do not fit.
        maps: How many maps of each sample are made: two where a metric compares classes.
        passes: What scoring a map by all metrics costs, in forward passes; NaN where it is not known.
        further: What it costs for a further method's map of the same sample, as some passes are shared.
        seconds: What a pass takes for each sample of a batch.
    """

    forwards: Mapping[str, float] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)
    maps: int = 1
    passes: float = math.nan
    further: float = math.nan
    seconds: float = math.nan


class Compared(Protocol):
    """A model with the samples that it explains."""

    @property
    def name(self) -> str:
        """Its name in the tables."""

    @property
    def subject(self) -> Subject:
        """The model."""

    @property
    def count(self) -> int:
        """How many samples."""

    @property
    def metrics(self) -> Mapping[str, Scored]:
        """The metrics as they are called for it."""

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on."""

    def facts(self) -> dict[str, Any]:
        """What the run says of it."""

    def check(self, methods: Mapping[str, Method], metrics: Mapping[str, Any], *, may_miss: bool) -> Checked:
        """Try methods and metrics."""

    def work(self, start: int, cells: Mapping[str, list[str]]) -> Iterator[Step]:
        """The work on a batch of samples, step by step."""

    def read(self, index: int) -> Sample | tuple[int, str, str]:
        """A sample for the gallery; index, name and error of one that is skipped."""
