"""What is known of an explanation method, and how it is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adapters.models import OutputChoice
from quantus_metrics import explain_func

Make = Callable[..., Any]
Explain = Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """A method by its name.

    Attributes:
        make: A class of Captum or pytorch-grad-cam, or a function of the model that returns an object of one.
        source: Where it comes from, for the report.
        options: Default arguments of the class and of its `attribute`, which the user's options override.
        title: What the report calls it.
        needs_warm_up: Whether its first call on a model may do work that later calls reuse.
        group: Under which heading it is listed.
        about: What it is, in half a line.
        cost: What one explanation takes, in forward passes, as measured on the model that `group_models` names.
    """

    make: Make
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    needs_warm_up: bool = True
    group: str = ""
    about: str = ""
    cost: str = ""

    def explain(self, options: Mapping[str, Any], batch_size: int, output: OutputChoice = None) -> Explain:
        """A function `(model, inputs, targets)` that returns maps of the inputs' size, one channel."""
        given: dict[str, Any] = {"batch_size": batch_size, "output": output, "channel_first": True}
        return explain_func(self.make, **(given | dict(self.options) | dict(options)))


class Row(NamedTuple):
    """A method in a table; its name is the key."""

    make: Make
    title: str
    about: str
    cost: str
    options: Mapping[str, Any] = {}


Table = Mapping[str, Mapping[str, Row]]  # by group and name


def methods_of(table: Table, source: Callable[[Row], str], *, needs_warm_up: bool = True) -> dict[str, Method]:
    """The methods of a table, by name."""
    return {
        name: Method(row.make, source(row), row.options, row.title, needs_warm_up, group, row.about, row.cost)
        for group, rows in table.items()
        for name, row in rows.items()
    }
